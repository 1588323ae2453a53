"""The cache of an agent: bounded, verified, and shared by several processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from watching import ROOT

from watcher.agent.cache import Cache, CacheError, Part
from watcher.agent.given import Given
from watcher.agent.program import _usual_cache
from watcher.evaluation import frames
from watcher.evaluation.carriage import Offers
from watcher.files.slices import finish


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def begin(cache: Cache, sha256: str, size: int) -> Part:
    return cache.begin({sha256: size})[sha256]


def put(cache: Cache, data: bytes) -> int:
    part = begin(cache, digest(data), len(data))
    part.write(data)
    return part.finish()


def held(cache: Cache, data: bytes) -> int | None:
    return finish(cache.holding(digest(data), len(data)))


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()} - {"lock"}


def test_what_was_used_the_longest_ago_goes_first_and_never_what_is_in_use(tmp_path: Path):
    cache = Cache(tmp_path / "cache", 100)
    datas = [bytes([number]) * 30 for number in range(3)]
    for number, data in enumerate(datas):
        os.close(put(cache, data))
        os.utime(cache.folder / digest(data), (number, number))
    oldest = held(cache, datas[0])
    assert oldest is not None  # which makes it the newest
    os.utime(cache.folder / digest(datas[0]), (0, 0))
    os.close(put(cache, b"x" * 30))
    assert names(cache) == {digest(one) for one in (datas[0], datas[2], b"x" * 30)}
    os.close(oldest)
    os.close(put(cache, b"y" * 30))
    assert digest(datas[0]) not in names(cache)


def test_where_only_what_is_open_for_writing_can_be_locked_there_is_room_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on NFS, where Linux has record locks for flock: flock(2), "NFS details"."""

    def on_nfs(descriptor: int, operation: int) -> None:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        locked(descriptor, operation)

    locked = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", on_nfs)
    cache = Cache(tmp_path / "cache", 100)
    for number in range(6):
        os.close(put(cache, bytes([number]) * 30))
    assert len(names(cache)) == 3


def test_a_file_that_does_not_fit_is_refused_with_the_bound(tmp_path: Path):
    cache = Cache(tmp_path / "cache", 100)
    keeps = put(cache, b"a" * 60)
    with pytest.raises(CacheError, match=r"is full: .* do not go into .* in use \(cache_limit\)"):
        begin(cache, digest(b"b" * 60), 60)
    os.close(keeps)
    os.close(put(cache, b"b" * 60))


def test_an_unfinished_file_counts_in_full_and_goes_with_its_process(tmp_path: Path):
    cache = Cache(tmp_path / "cache", 100)
    part = begin(cache, digest(b"a" * 60), 60)
    part.write(b"a")
    with pytest.raises(CacheError, match="is full"):
        begin(cache, digest(b"b" * 60), 60)
    program = (
        "import os, sys, pathlib; from watcher.agent.cache import Cache;"
        "cache = Cache(pathlib.Path(sys.argv[1]), 200);"
        "part = cache.begin({'0' * 64: 60})['0' * 64]; part.write(b'x');"
        "os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program, str(cache.folder)], env=environment, check=False)
    assert len(names(cache)) == 2
    Cache(cache.folder, 100).tidy()
    assert len(names(cache)) == 1
    part.drop()
    assert not names(cache)


@pytest.mark.parametrize("data", [b"b" * 60, b"a" * 59, b"a" * 61])
def test_what_is_not_what_it_was_said_to_be_is_not_kept(tmp_path: Path, data: bytes):
    cache = Cache(tmp_path / "cache", 100)
    part = begin(cache, digest(b"a" * 60), 60)
    with pytest.raises(CacheError):
        part.write(data)
        part.finish()
    part.drop()
    assert not names(cache)


def test_a_kept_file_that_was_damaged_is_fetched_again(tmp_path: Path):
    cache = Cache(tmp_path / "cache", 100)
    os.close(put(cache, b"good"))
    path = cache.folder / digest(b"good")
    path.chmod(0o600)
    path.write_bytes(b"evil")
    assert held(cache, b"good") is None and not names(cache)
    path.symlink_to("/etc/passwd")
    assert held(cache, b"good") is None


def test_of_two_that_bring_the_same_file_both_hold_the_one_that_stays(tmp_path: Path):
    cache = Cache(tmp_path / "cache", 1000)
    parts = [begin(cache, digest(b"same"), 4) for _ in range(2)]
    for part in parts:
        part.write(b"same")
    first, second = (part.finish() for part in parts)
    assert os.path.samestat(os.fstat(first), os.fstat(second))
    assert names(cache) == {digest(b"same")}
    os.close(first)
    small = Cache(cache.folder, 4)
    with pytest.raises(CacheError, match="is full"):
        begin(small, digest(b"next"), 4)
    os.close(second)
    os.close(put(small, b"next"))


def test_a_cache_whose_lock_is_held_for_long_is_refused_and_not_waited_for(tmp_path: Path):
    cache = Cache(tmp_path / "cache", 100)
    lock = os.open(cache.folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    before = time.monotonic()
    with pytest.raises(CacheError, match="is held by a process"):
        begin(cache, digest(b"a"), 1)
    assert time.monotonic() - before > 4
    os.close(lock)


def test_agents_that_start_at_the_same_time_make_one_cache(tmp_path: Path):
    program = (
        "import os, sys, pathlib, hashlib; from watcher.agent.cache import Cache;"
        "cache = Cache(pathlib.Path(sys.argv[1]), 500)\n"
        "for number in range(40):\n"
        "    data = str(number % 20).encode() * 40\n"
        "    sha256 = hashlib.sha256(data).hexdigest()\n"
        "    part = cache.begin({sha256: len(data)})[sha256]\n"
        "    part.write(data); os.close(part.finish())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", program, str(tmp_path / "cache")]
    many = [subprocess.Popen(words, env=environment) for _ in range(4)]
    assert [one.wait(100) for one in many] == [0] * 4
    left = [path for path in (tmp_path / "cache").iterdir() if path.name != "lock"]
    assert sum(path.stat().st_size for path in left) <= 500
    assert all(digest(path.read_bytes()) == path.name for path in left)


# -- folders of what was given


def test_a_folder_is_whole_once_all_of_it_is_there_and_only_what_lacks_is_asked_for(tmp_path: Path):
    cache, said = Cache(tmp_path / "cache", 1000), []
    os.close(put(cache, b"known"))
    given = Given(cache, tmp_path / "given", said.append)
    files = [
        frames.Offered("a.index", digest(b"known"), 5),
        frames.Offered("a.data", digest(b"new"), 3),
        frames.Offered("empty", digest(b""), 0),
    ]
    given.offered(frames.Offer(folder="c1", files=files))
    while given.busy:
        given.go_on()
    assert said == [frames.Want(folder="c1", sha256=[digest(b"new"), digest(b"")])]
    given.take(frames.Chunk(sha256=digest(b"new")), b"new")
    given.take(frames.Chunk(sha256=digest(b"new"), last=True), b"")
    assert not given.is_whole("c1")
    given.take(frames.Chunk(sha256=digest(b""), last=True), b"")
    assert given.is_whole("c1") and said[1:] == [frames.Whole(folder="c1")]
    folder = Path(given.path("c1"))
    assert (folder / "a.index").read_bytes() == b"known" and (folder / "a.data").exists()
    given.drop("c1")
    assert not folder.exists() and len(names(cache)) == 3
    given.close()


def test_what_was_not_asked_for_is_not_taken(tmp_path: Path):
    given = Given(Cache(tmp_path / "cache", 1000), tmp_path / "given", lambda _: None)
    with pytest.raises(CacheError, match="not asked for"):
        given.take(frames.Chunk(sha256="0" * 64), b"x")
    offer = frames.Offer(folder="c1", files=[frames.Offered("a", digest(b"a"), 1)])
    given.offered(offer)
    with pytest.raises(CacheError, match="was offered before"):
        given.offered(offer)


def whole(given: Given, name: str, data: bytes) -> None:
    """Have a folder of one file there."""
    given.offered(frames.Offer(folder=name, files=[frames.Offered("a", digest(data), len(data))]))
    while given.busy:
        given.go_on()
    given.take(frames.Chunk(sha256=digest(data), last=True), data)
    assert given.is_whole(name)


def test_a_folder_for_which_others_leave_no_room_waits_until_one_of_them_is_let_go(tmp_path: Path):
    cache, said = Cache(tmp_path / "cache", 100), []
    given = Given(cache, tmp_path / "given", said.append)
    whole(given, frames.SNAPSHOT, b"s" * 20)
    whole(given, "c1", b"a" * 60)
    files = [frames.Offered(name, digest(name.encode() * 30), 30) for name in "bc"]
    given.offered(frames.Offer(folder="c2", files=files))
    said.clear()
    while given.busy:
        given.go_on()
    assert said == [] and given.is_whole("c1")
    given.drop("c1")
    while given.busy:
        given.go_on()
    assert said == [frames.Want(folder="c2", sha256=[one.sha256 for one in files])]
    for name in "bc":
        data = name.encode() * 30
        given.take(frames.Chunk(sha256=digest(data), last=True), data)
    assert given.is_whole("c2")
    given.close()


def test_one_that_is_too_large_beside_what_stays_is_refused_at_once(tmp_path: Path):
    given = Given(Cache(tmp_path / "cache", 100), tmp_path / "given", lambda _: None)
    whole(given, frames.SNAPSHOT, b"s" * 50)
    given.offered(frames.Offer(folder="c1", files=[frames.Offered("a", digest(b"a" * 60), 60)]))
    with pytest.raises(CacheError, match="is full"):
        while given.busy:
            given.go_on()
    given.close()


def test_an_agent_that_ends_leaves_nothing_unfinished_of_all_it_asked_for(tmp_path: Path):
    cache = Cache(tmp_path / "cache", 100)
    given = Given(cache, tmp_path / "given", lambda _: None)
    files = [frames.Offered(name, digest(name.encode()), 1) for name in "abc"]
    given.offered(frames.Offer(folder="c1", files=files))
    while given.busy:
        given.go_on()
    given.take(frames.Chunk(sha256=digest(b"b"), last=True), b"b")
    assert len(names(cache)) == 3
    given.close()
    assert names(cache) == {digest(b"b")}


# -- as many files as a folder may have


def test_as_many_files_as_a_folder_may_have_make_no_endless_line():
    digests = [f"{number:064x}" for number in range(frames.MOST_FILES)]
    files = [frames.Offered("x" * 230 + f"{n}", one, 1 << 40) for n, one in enumerate(digests)]
    offer = frames.Offer(folder="c1", files=files)
    ((got, _),) = frames.Parser(frames.AGENT_READS).feed(frames.encode(offer))
    assert got == offer
    want = frames.Want(folder="c1", sha256=digests)
    ((got, _),) = frames.Parser(frames.HOME_READS).feed(frames.encode(want))
    assert got == want


def test_more_files_than_that_are_refused_before_any_is_read():
    files: dict[str, Path | bytes] = {f"{n}": b"" for n in range(frames.MOST_FILES + 1)}
    with pytest.raises(OSError, match="10001 files are more than the 10000 of a folder"):
        finish(Offers().offering("c1", files))


def test_a_user_without_a_home_has_the_cache_among_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """As in a pod under a user id that nobody knows."""

    def nobody(_: int) -> None:
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert _usual_cache() == tmp_path / f"checkpoint-watcher-{os.geteuid()}"
    monkeypatch.setenv("HOME", "/home/ann")
    assert _usual_cache() == Path("/home/ann/.cache/checkpoint-watcher")

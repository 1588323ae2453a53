"""Files between two hosts: nothing is read, written or named that was not meant to be."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from watching import ROOT, STUB, wait_until

from watcher import __version__
from watcher.evaluation import frames, messages, wire
from watcher.evaluation.carriage import Fetching, Offers, Untold, renamed
from watcher.evaluation.frames import Chunk, LineError, Parser, encode
from watcher.files.slices import finish

DIGEST = hashlib.sha256(b"png").hexdigest()


# -- home: what is offered


def test_only_what_is_offered_is_sent_and_each_once(tmp_path: Path):
    (tmp_path / "ckpt-1.index").write_bytes(b"index")
    (tmp_path / "secret").write_bytes(b"key")
    offers = Offers()
    files = {"ckpt-1.index": tmp_path / "ckpt-1.index", "b": b"made"}
    offer = finish(offers.offering("c1", files))
    index, made = (one.sha256 for one in offer.files)
    for sha256 in (hashlib.sha256(b"key").hexdigest(), "0" * 64):
        with pytest.raises(Untold):
            offers.wanted(frames.Want(folder="c1", sha256=[sha256]))
    with pytest.raises(Untold):
        offers.wanted(frames.Want(folder="c2", sha256=[index]))
    with pytest.raises(Untold):
        offers.wanted(frames.Want(folder="c1", sha256=[index, index]))
    sent = b"".join(offers.wanted(frames.Want(folder="c1", sha256=[index, made])))
    got = list(Parser(frames.AGENT_READS).feed(sent))
    assert [(frame.sha256, frame.last, body) for frame, body in got] == [
        *((index, False, b"index"), (index, True, b"")),
        *((made, False, b"made"), (made, True, b"")),
    ]
    with pytest.raises(Untold):
        offers.wanted(frames.Want(folder="c1", sha256=[index]))
    assert not offers.busy


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "..", ".", "", ".ssh", "a/b", "a\0b", "x" * 256]
)
def test_a_name_that_leads_out_of_a_folder_is_no_frame(name: str):
    offer = {
        "type": "offer",
        "folder": "c1",
        "files": [{"name": name, "sha256": DIGEST, "size": 1}],
    }
    with pytest.raises(LineError):
        list(Parser(frames.AGENT_READS).feed(json.dumps(offer).encode() + b"\n"))
    folder = {"type": "drop", "folder": name}
    with pytest.raises(LineError):
        list(Parser(frames.AGENT_READS).feed(json.dumps(folder).encode() + b"\n"))


# -- home: what is fetched


def fetching(tmp_path: Path, *paths: str) -> Fetching:
    into = tmp_path / "artefacts"
    into.mkdir()
    found = [messages.Artefact("picture", "a", DIGEST, path=path) for path in paths]
    result = messages.Result(id="1", images=1, metrics={}, artefacts=found)
    return Fetching(result, "/there/artefacts", into)


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def test_what_a_result_names_comes_into_a_folder_of_its_own_and_is_verified(tmp_path: Path):
    paths = ["/there/artefacts/p/1.png", "/there/artefacts/p/2.png", "/there/artefacts/q/1.png"]
    coming = fetching(tmp_path, *paths)
    for path in paths:
        assert coming.ask() == frames.Fetch(path=path, sha256=DIGEST)
        assert not coming.take(Chunk(sha256=DIGEST), b"p")
        good = b"ng" if path != paths[1] else b"other"
        coming.take(Chunk(sha256=DIGEST), good)
        assert coming.take(Chunk(sha256=DIGEST, last=True), b"")
    assert coming.done
    kept = [Path(str(one.path)) for one in coming.message.artefacts]
    assert [path.name for path in kept] == ["1.png", "1.png"] and kept[0].parent != kept[1].parent
    assert files_in(tmp_path / "artefacts") == sorted(kept)
    assert all(path.read_bytes() == b"png" for path in kept)


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "/there/artefacts/..", "/there/artefacts/.bashrc"),
        *("/there/artefacts/a\0b", "/there/artefacts/" + "x" * 300, "1.png", "/there/other/1.png"),
    ],
)
def test_a_name_that_is_none_is_not_asked_for_and_never_written(tmp_path: Path, path: str):
    coming = fetching(tmp_path, path)
    assert coming.done and coming.message.artefacts == []
    with pytest.raises(Untold):
        coming.take(Chunk(sha256=DIGEST), b"png")
    assert not files_in(tmp_path)


def test_a_way_up_in_a_path_leads_nowhere_here(tmp_path: Path):
    coming = fetching(tmp_path, "/there/artefacts/../../etc/cron.d/x")
    coming.take(Chunk(sha256=DIGEST), b"png")
    coming.take(Chunk(sha256=DIGEST, last=True), b"")
    (path,) = files_in(tmp_path)
    assert path.name == "x" and path.parent.parent == tmp_path / "artefacts"


def test_one_that_is_gone_is_left_out_and_another_than_asked_for_is_a_fault(tmp_path: Path):
    coming = fetching(tmp_path, "/there/artefacts/1.png", "/there/artefacts/2.png")
    with pytest.raises(Untold):
        coming.take(Chunk(sha256="0" * 64), b"x")
    with pytest.raises(Untold):
        coming.gone("0" * 64)
    coming.gone(DIGEST)
    assert not coming.done
    with pytest.raises(OSError, match="they are more than 1024 MiB"):
        for _ in range(80):
            coming.take(Chunk(sha256=DIGEST), bytes(16 << 20))
    coming.close()


# -- the configuration's own paths


def test_paths_in_a_configuration_are_renamed_as_whole_folders_and_label_maps_are_not():
    folders = {"/data": "/mnt/d", "/data/coco/": "/fast"}
    text = b"""
    input_path: "/data/val.record"  # not /database, nor /x/data
    input_path: ['/data/coco/a*', "/database/b", "/x/data/c"]
    label_map_path: "/data/labels.pbtxt"
    """
    assert (
        renamed(text, "pipeline.config", folders)
        == b"""
    input_path: "/mnt/d/val.record"  # not /database, nor /x/data
    input_path: ['/fast/a*', "/database/b", "/x/data/c"]
    label_map_path: "/data/labels.pbtxt"
    """
    )
    assert (
        renamed(b"input_path: /data/val*\n", "params.yaml", folders) == b"input_path: /mnt/d/val*\n"
    )
    assert renamed(text, "plugin-0.py", folders) == text
    assert renamed(text, "pipeline.config", {}) == text


# -- the agent: what it sends


@pytest.fixture
def spoken(tmp_path: Path) -> Iterator[Callable[..., list[frames.Frame]]]:
    """Says frames to a real agent with the stub, until it has said one of a kind."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "watcher", "agent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdin and process.stdout
    parser, heard = Parser(frames.HOME_READS), list[frames.Frame]()

    def say(*said: Any, until: type[frames.Frame]) -> list[frames.Frame]:
        assert process.stdin and process.stdout
        for one in said:
            process.stdin.write(encode(*one) if isinstance(one, tuple) else encode(one))
        process.stdin.flush()
        heard.clear()
        while not any(isinstance(one, until) for one in heard):
            data = os.read(process.stdout.fileno(), 1 << 16)
            assert data, f"it ended: {heard}"
            heard.extend(frame for frame, _ in parser.feed(data))
        return list(heard)

    yield say
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


def opening(folder: Path) -> frames.Open:
    """What home says first, of the stub on the CPU."""
    return frames.Open(
        protocol=frames.AGENT_PROTOCOL,
        watcher=__version__,
        evaluators="",
        device="cpu",
        python=str(STUB),
        cache=str(folder / "cache"),
        cache_bytes=1 << 30,
    )


@pytest.mark.slow
def test_an_agent_sends_what_its_worker_left_and_no_other_file(
    spoken: Callable[..., list[frames.Frame]], tmp_path: Path
):
    said = spoken(opening(tmp_path), until=frames.Began)
    began = next(one for one in said if isinstance(one, frames.Began))
    assert began.folder
    folder, secret = Path(began.folder), tmp_path / "secret"
    secret.write_bytes(b"key")
    (folder / "link").symlink_to(secret)
    os.mkfifo(folder / "pipe")
    (folder / "good").write_bytes(b"png")
    for path in (secret, folder / "link", folder / "pipe", folder / ".." / ".." / "secret", folder):
        said = spoken(frames.Fetch(path=str(path), sha256=DIGEST), until=frames.Gone)
        assert not any(isinstance(one, Chunk) for one in said), path
    spoken(frames.Fetch(path=str(folder / "good"), sha256=DIGEST), until=Chunk)
    wait_until(lambda: not (folder / "good").exists(), "what was sent is removed")
    assert secret.read_bytes() == b"key"


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file without which no worker answers about ckpt-1."""
    monkeypatch.setenv("STUB_WAIT", "ckpt-1")
    monkeypatch.setenv("STUB_WAIT_FOR", str(tmp_path / "go"))
    return tmp_path / "go"


@pytest.mark.slow
def test_what_is_evaluated_does_not_end_for_a_file_that_another_one_lacks(
    go: Path, spoken: Callable[..., list[frames.Frame]], tmp_path: Path
):
    spoken(opening(tmp_path), until=frames.Began)
    start = messages.Start(protocol=messages.PROTOCOL, kind="od-api")
    lacks = [frames.File(str(tmp_path / "ckpt-2.index"), DIGEST)]
    asked = [messages.Evaluate(f"t{n}", str(tmp_path / f"ckpt-{n}")) for n in (1, 2)]
    lines = [wire.write_request(one).rstrip(b"\n") for one in (start, *asked)]
    spoken((frames.Line(), lines[0]), (frames.Line(), lines[1]), until=frames.Line)
    # Longer than a file is waited for.
    later = time.monotonic() + 18
    said = spoken((frames.Line(needs=lacks), lines[2]), until=frames.Beat)
    while time.monotonic() < later:
        said += spoken(until=frames.Beat)
    assert not any(isinstance(one, frames.Cannot) for one in said)
    go.touch()
    # Once the first has its answer it is said.
    assert "cannot be read there" in spoken(until=frames.Cannot)[-1].reason  # type: ignore[attr-defined]


def test_a_frame_of_a_file_is_small_beside_the_limit():
    assert frames.CHUNK_BYTES * 8 <= frames.BODY_BYTES
    assert len(encode(Chunk(sha256=DIGEST), bytes(frames.CHUNK_BYTES))) < frames.CHUNK_BYTES + 200
    assert msgspec.json.decode(encode(Chunk(sha256=DIGEST)).strip())["type"] == "chunk"

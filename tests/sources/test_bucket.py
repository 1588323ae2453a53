"""Checkpoints in a bucket, on real servers of both kinds, behind a proxy that spoils what it is
asked to: what is pinned is whole, and what is not whole is waited for or told."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import Answer, Request, Run, Server, have_keys_alone, proxied, served
from fake_trainer import model_tensors, write_checkpoint
from watching import wait_until

from watcher.checkpoints.bundle import verify
from watcher.checkpoints.bundle_format import OD_API
from watcher.config.bucket import parse_place
from watcher.config.source import SourceSettings
from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint, ModelDirError, PinError
from watcher.files.slices import Progress, finish
from watcher.sources import bucket_list, download
from watcher.sources.bucket import Bucket
from watcher.types import FoundCheckpoint, Pin

SIZE = 400_000


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with served(request.param, tmp_path_factory.mktemp(request.param)) as one:
        yield one


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    have_keys_alone(monkeypatch, tmp_path)
    monkeypatch.setattr(download, "_FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(bucket_list, "_FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(bucket_list, "_SOONEST_SECONDS", 0.05)
    with proxied(server) as made:
        yield made


def settings_of(run: Run, **more: object) -> SourceSettings:
    anonymous = run.server.scheme == "gs"
    given = {"endpoint_url": run.proxy.endpoint, "anonymous": anonymous, "poll_seconds": 1, **more}
    return SourceSettings(**given)


def source_of(run: Run, url: str | None = None, **more: object) -> Bucket:
    return Bucket(parse_place(url or run.url), OD_API, settings_of(run, **more))


def saved(
    folder: Path, number: int, size: int = SIZE, seed: object = None, shards: int = 1
) -> Path:
    tensors = model_tensors(size, f"{number}{seed}")
    folder.mkdir(exist_ok=True)
    return write_checkpoint(folder, f"ckpt-{number}", 100 * number, tensors, shards=shards)


def sha256_of(prefix: Path) -> str:
    return hashlib.sha256(prefix.with_name(f"{prefix.name}.index").read_bytes()).hexdigest()


def take(source: Bucket, found: FoundCheckpoint, into: Path) -> Pin:
    into.mkdir(exist_ok=True)
    return finish(source.take(found, into, None, Progress()))


def test_checkpoints_are_found_and_pinned_byte_for_byte(run: Run, tmp_path: Path):
    whole = [saved(tmp_path / "trainer", number, shards=number) for number in (1, 2)]
    for prefix in whole:
        run.save(prefix)
    run.put("eval/events.out.tfevents.1", b"x")
    run.put("ckpt-7_temp/part-00000-of-00001.index", b"")
    run.put("ckpt-9.data-00000-of-00001", b"no index yet")
    source = source_of(run)
    found = source.scan()
    assert [one.name for one in found] == ["ckpt-1", "ckpt-2"]
    for one, original in zip(found, whole, strict=True):
        assert source.identify(one) == sha256_of(original)
        pin = take(source, one, tmp_path / "pins")
        assert (pin.method, pin.global_step) == ("download", 100 * one.save_counter)
        assert sorted(path.name for path in pin.prefix.parent.iterdir()) == sorted(
            path.name for path in original.parent.glob(f"{original.name}.*")
        )
        for file in pin.prefix.parent.iterdir():
            assert file.read_bytes() == (original.parent / file.name).read_bytes()
    assert {path.name for path in (tmp_path / "pins").iterdir()} == {
        sha256_of(one) for one in whole
    }


def test_nothing_is_ever_written_into_the_bucket(run: Run, tmp_path: Path):
    run.save(saved(tmp_path / "trainer", 1))
    source = source_of(run)
    take(source, source.scan()[0], tmp_path / "pins")
    assert {one.method for one in run.proxy.requests} == {"GET"}


def test_one_poll_is_one_delimited_list_and_reads_each_index_once(run: Run, tmp_path: Path):
    for number in (1, 2, 3):
        run.save(saved(tmp_path / "trainer", number, 2000))
    for number in range(30):
        run.put(f"train/events.out.tfevents.{number}", b"x")
    source = source_of(run)
    listed = source._list
    assert listed.poll()
    first = len(run.proxy.requests)
    assert not listed.poll()
    assert len(run.proxy.requests) == first + 1
    assert [one.is_list for one in run.proxy.requests] == [True, False, False, False, True]
    assert "delimiter=/" in run.proxy.requests[0].path
    assert "events" not in " ".join(listed.listed)


def test_every_range_asks_for_the_object_that_was_listed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download, "_RANGE_BYTES", 100_000)
    run.save(saved(tmp_path / "trainer", 1))
    source = source_of(run)
    take(source, source.scan()[0], tmp_path / "pins")
    asked = run.proxy.asked(".data-00000")
    ranges = sorted({one.headers["range"] for one in asked})
    assert len(ranges) >= 4 and all(one.startswith("bytes=") for one in ranges)
    assert all("if-match" in one.headers for one in asked)


class Once:
    """Gives each of some answers once, to requests of which the path holds a text."""

    def __init__(self, text: str, *answers: Answer) -> None:
        self.text, self.answers = text, list(answers)

    def __call__(self, request: Request) -> Answer | None:
        if self.text in request.path and not request.is_list and self.answers:
            return self.answers.pop(0)
        return None


BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@pytest.mark.parametrize(
    "answers",
    [
        [Answer(503, BUSY)] * 5,
        [Answer(429, b"slow down")] * 3,
        [Answer(500, b"oops")] * 3,
        [Answer(cut_bytes=70_000), Answer(cut_bytes=1), Answer(cut_bytes=0)],
        [Answer(chunk_seconds=0.02)],
    ],
    ids=["503", "429", "500", "cut", "slow"],
)
def test_a_download_goes_on_through_faults_of_the_server(
    run: Run, tmp_path: Path, answers: list[Answer]
):
    run.save(saved(tmp_path / "trainer", 1))
    source = source_of(run)
    (found,) = source.scan()
    source.identify(found)
    run.proxy.fault = Once(".data-", *answers)
    pin = take(source, found, tmp_path / "pins")
    assert verify(pin.prefix).global_step == 100
    assert not run.proxy.fault.answers


def test_a_download_that_broke_off_goes_on_where_it_ended(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download, "_RANGE_BYTES", 100_000)
    monkeypatch.setattr(download, "THREADS", 1)
    run.save(saved(tmp_path / "trainer", 1))
    source = source_of(run)
    (found,) = source.scan()
    source.identify(found)
    gone: list[str] = []

    def after_some(request: Request) -> Answer | None:
        if ".data-" in request.path and len(gone) >= 2:
            return Answer(503, BUSY)
        gone.append(request.path)
        return None

    run.proxy.fault = after_some
    with pytest.raises(PinError, match="throttles"):
        take(source, found, tmp_path / "pins")
    before = len(run.proxy.asked(".data-"))
    run.proxy.fault = lambda _: None
    assert verify(take(source, found, tmp_path / "pins").prefix).global_step == 100
    again = run.proxy.asked(".data-")[before:]
    total = sum(
        int(end) - int(start) + 1
        for one in again
        for start, end in [one.headers["range"].removeprefix("bytes=").split("-")]
    )
    assert 0 < total < SIZE


def test_an_object_that_is_replaced_in_the_middle_is_no_torn_pin(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download, "_RANGE_BYTES", 50_000)
    first, second = (saved(tmp_path / name, 1, seed=name) for name in ("one", "other"))
    run.save(first)
    source = source_of(run)
    (found,) = source.scan()
    source.identify(found)
    asked: list[str] = []
    replaced = threading.Event()

    def replace(request: Request) -> None:
        asked.append(request.path)
        if len(asked) == 3:
            run.save(second)
            replaced.set()

    run.proxy.fault = replace
    with pytest.raises(IncompleteCheckpoint, match=r"replaced|newer"):
        take(source, found, tmp_path / "pins")
    assert replaced.wait(60)
    assert not list((tmp_path / "pins").iterdir())
    (again,) = source.scan()
    assert again.signature != found.signature
    assert take(source, again, tmp_path / "pins").sha256 == sha256_of(second)


def test_an_old_index_with_new_data_is_not_finished_rather_than_corrupt(run: Run, tmp_path: Path):
    first, second = (saved(tmp_path / name, 1, seed=name) for name in ("one", "other"))
    run.save(first)
    time.sleep(1.1)  # times in a list are whole seconds
    run.save(second, index=False)
    source = source_of(run)
    for _ in range(3):
        (found,) = source.scan()
        with pytest.raises(IncompleteCheckpoint, match="newer than its index"):
            take(source, found, tmp_path / "pins")
    assert not list((tmp_path / "pins").iterdir())
    # The same content is not downloaded again and again.
    assert len(run.proxy.asked(".data-")) == 2
    run.save(second)
    (found,) = source.scan()
    assert take(source, found, tmp_path / "pins").sha256 == sha256_of(second)


def test_data_of_another_size_are_refused_without_a_download(run: Run, tmp_path: Path):
    run.save(saved(tmp_path / "trainer", 1))
    run.put("ckpt-1.data-00000-of-00001", b"short")
    source = source_of(run)
    with pytest.raises(CorruptCheckpoint, match="has 5 bytes"):
        take(source, source.scan()[0], tmp_path / "pins")
    run.delete("ckpt-1.data-00000-of-00001")
    with pytest.raises(FileNotFoundError):
        take(source, source.scan()[0], tmp_path / "pins")
    assert not run.proxy.asked(".data-")


def test_a_checkpoint_that_is_rotated_away_meanwhile_is_gone(run: Run, tmp_path: Path):
    run.save(saved(tmp_path / "trainer", 1))
    source = source_of(run)
    (found,) = source.scan()
    source.identify(found)
    run.rotate("ckpt-1")
    with pytest.raises(FileNotFoundError):
        take(source, found, tmp_path / "pins")
    assert not list((tmp_path / "pins").iterdir())
    assert not source.scan() and not source.still_there("ckpt-1")


def test_copies_that_lost_bytes_on_the_way_are_no_pins(run: Run, tmp_path: Path):
    prefix = saved(tmp_path / "trainer", 1)
    data = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    spoiled = bytearray(data.read_bytes())
    spoiled[1234] ^= 1
    run.save(prefix)
    run.put(data.name, bytes(spoiled))
    run.put("ckpt-1.index", prefix.with_name("ckpt-1.index").read_bytes())
    source = source_of(run)
    with pytest.raises(CorruptCheckpoint, match="fails its checksum"):
        take(source, source.scan()[0], tmp_path / "pins")
    assert not list((tmp_path / "pins").iterdir())


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (403, "<Error><Code>AccessDenied</Code></Error>", "access is denied; .*right to list"),
        (403, "<Error><Code>ExpiredToken</Code></Error>", "credentials have expired; renew"),
        (400, "<Error><Code>ExpiredToken</Code></Error>", "credentials have expired; renew"),
        (401, "<Error><Code>AuthenticationRequired</Code></Error>", "not accepted; check"),
        (403, "<Error><Code>InvalidAccessKeyId</Code></Error>", "not accepted; check"),
        (403, "<Error><Code>RequestTimeTooSkewed</Code></Error>", "clock is wrong; set it"),
        (404, "<Error><Code>NoSuchBucket</Code></Error>", "no bucket bucket; is the URL right"),
        (301, "<Error><Code>PermanentRedirect</Code></Error>", "another region; give it as --reg"),
        (
            400,
            "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is"
            " wrong; expecting 'eu-west-1'</Message><Region>eu-west-1</Region></Error>",
            "in region eu-west-1; give that as --region",
        ),
        (503, BUSY.decode(), r"busy \(it throttles\)"),
        (500, "oops", "500 Internal Server Error"),
    ],
)
def test_what_a_server_refuses_is_one_line_with_what_to_do(
    run: Run, status: int, body: str, told: str
):
    run.proxy.fault = lambda _: Answer(status, body.encode())
    source = source_of(run)
    with pytest.raises(ModelDirError, match=f"{run.url}: .*{told}") as raised:
        source.scan()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250


def test_what_cannot_get_better_by_itself_is_refused_at_the_start(run: Run, tmp_path: Path):
    with pytest.raises(ModelDirError, match="nothing in model_dir"):
        source_of(run).require(may_be_empty=False)
    source_of(run).require(may_be_empty=True)
    with pytest.raises(ModelDirError, match="no bucket no-such-bucket"):
        source_of(run, f"{run.server.scheme}://no-such-bucket/x").require(may_be_empty=True)
    run.proxy.fault = lambda _: Answer(503, BUSY)
    source_of(run).require(may_be_empty=False)
    run.proxy.fault = lambda _: None
    run.put("sub/x", b"only folders as yet")
    source_of(run).require(may_be_empty=False)


def test_a_server_that_is_not_there_is_told(run: Run):
    source = source_of(run, endpoint_url="http://127.0.0.1:9")
    with pytest.raises(ModelDirError, match="cannot be reached"):
        source.scan()


def test_credentials_are_read_again_once_they_were_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if run.server.scheme == "gs":
        pytest.skip("Google's own files are obstore's to read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "train")
    text = "[train]\naws_access_key_id = {}\naws_secret_access_key = s\naws_session_token = t\n"
    file.write_text(text.format("OLD"))
    seen: list[str] = []

    def judge(request: Request) -> Answer | None:
        key = request.headers.get("authorization", "")
        seen.append(key.partition("Credential=")[2].partition("/")[0])
        body = b"<Error><Code>ExpiredToken</Code></Error>"
        return Answer(400, body) if seen[-1] == "OLD" else None

    run.proxy.fault = judge
    source = source_of(run)
    with pytest.raises(ModelDirError, match="expired"):
        source.scan()
    file.write_text(text.format("NEW"))
    assert source.scan() == []
    assert (seen[0], seen[-1]) == ("OLD", "NEW")


def test_a_thread_polls_and_the_loop_never_waits_for_the_server(run: Run, tmp_path: Path):
    run.save(saved(tmp_path / "trainer", 1, 2000))
    held = threading.Event()

    def hold(_: Request) -> None:
        held.wait(60)

    run.proxy.fault = hold
    woken = threading.Event()
    source = source_of(run)
    watching = source.watch(woken.set)
    watching.ensure()
    began = time.monotonic()
    with pytest.raises(ModelDirError, match="not answered yet"):
        source.scan()
    assert time.monotonic() - began < 30  # the server would have taken a minute
    held.set()
    assert woken.wait(60)
    assert [one.name for one in source.scan()] == ["ckpt-1"]
    woken.clear()
    run.save(saved(tmp_path / "trainer", 2, 2000))
    wait_until(lambda: len(source.scan()) == 2, "the next poll finds it")
    run.rotate("ckpt-1")
    wait_until(lambda: not source.still_there("ckpt-1"), "it is seen to be gone")
    watching.close()


def test_a_poll_that_fails_is_a_problem_until_the_next_that_works(run: Run, tmp_path: Path):
    run.save(saved(tmp_path / "trainer", 1, 2000))
    source = source_of(run)
    watching = source.watch(lambda: None)
    watching.ensure()

    def names() -> list[str] | None:
        try:
            return [one.name for one in source.scan()]
        except ModelDirError as error:
            return [error.message]

    wait_until(lambda: names() == ["ckpt-1"], "it is found")
    run.proxy.fault = lambda _: Answer(403, b"<Error><Code>ExpiredToken</Code></Error>")
    wait_until(lambda: "expired" in names()[0], "the problem is told")
    run.proxy.fault = lambda _: None
    wait_until(lambda: names() == ["ckpt-1"], "it works again")
    watching.close()


def test_an_index_that_may_not_be_read_holds_up_no_other(run: Run, tmp_path: Path):
    for number in (1, 2):
        run.save(saved(tmp_path / "trainer", number, 2000))
    run.proxy.fault = lambda request: (
        Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        if "ckpt-1.index" in request.path
        else None
    )
    source = source_of(run)
    source._list.poll()
    first, second = (one.found for one in source._list.listed.values())
    with pytest.raises(OSError, match="access is denied"):
        source.identify(first)
    assert source.identify(second)


def test_downloads_that_wait_for_a_server_have_no_file_open_and_go_on(run: Run, tmp_path: Path):
    numbers = range(1, 13)
    for number in numbers:
        run.save(saved(tmp_path / "trainer", number, size=2000, shards=3))
    source, pins = source_of(run), tmp_path / "pins"
    found = source.scan()
    for one in found:
        source.identify(one)
    run.proxy.fault = lambda asked: Answer(403, BUSY) if ".data-" in asked.path else None
    for one in found:
        with pytest.raises(PinError):
            take(source, one, pins)
    files = [one.resolve() for one in Path("/proc/self/fd").iterdir()]
    assert [file for file in files if file.is_relative_to(pins)] == []
    assert len(list(pins.glob(".new-*"))) == len(numbers)
    run.proxy.fault = lambda _: None
    for one in found:
        assert verify(take(source, one, pins).prefix).global_step == 100 * one.save_counter


def test_a_file_of_a_download_that_somebody_deletes_is_no_checkpoint_that_is_gone(
    run: Run, tmp_path: Path
):
    run.save(saved(tmp_path / "trainer", 1))
    source, pins = source_of(run), tmp_path / "pins"
    (found,) = source.scan()
    source.identify(found)
    run.proxy.fault = lambda asked: Answer(503, BUSY) if ".data-" in asked.path else None
    with pytest.raises(PinError):
        take(source, found, pins)
    (half,) = pins.glob(".new-*/*.data-*")
    half.unlink()
    run.proxy.fault = lambda _: None
    with pytest.raises(PinError, match="was deleted"):
        take(source, found, pins)
    assert verify(take(source, found, pins).prefix).global_step == 100


def test_a_disk_that_is_full_is_no_fault_of_the_checkpoint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    run.save(saved(tmp_path / "trainer", 1))
    source = source_of(run)
    (found,) = source.scan()
    monkeypatch.setattr(download.os, "pwrite", full)
    with pytest.raises(PinError, match="No space left"):
        take(source, found, tmp_path / "pins")
    monkeypatch.undo()


def test_a_half_made_pin_of_the_end_of_the_process_is_gone_on_with_or_removed(
    run: Run, tmp_path: Path
):
    run.save(saved(tmp_path / "trainer", 1))
    source = source_of(run)
    (found,) = source.scan()
    into = tmp_path / "pins"
    into.mkdir()
    work = source.take(found, into, None, Progress())
    next(work)
    work.close()  # still on its way: nothing is left
    assert not list(into.iterdir())
    progress = Progress()
    work = source.take(found, into, None, progress)
    for _ in work:
        if not progress.holds_open:
            break
    work.close()  # all there, and not verified: the next start does that
    (half,) = into.iterdir()
    pin = finish(source.settle(half / "ckpt-1", into, None, Progress()))
    assert verify(pin.prefix).global_step == 100


@pytest.mark.parametrize("folder", ["", "a b", "exp=1+x", "run~(2)%20", "\u00fc/run-1"])
def test_a_run_may_lie_anywhere_in_a_bucket(run: Run, tmp_path: Path, folder: str):
    run.prefix = f"{run.prefix}/{folder}".rstrip("/")
    original = saved(tmp_path / "trainer", 1, 2000)
    run.save(original)
    source = source_of(run)
    (found,) = source.scan()
    assert take(source, found, tmp_path / "pins").sha256 == sha256_of(original)


def test_shards_of_another_number_are_left_where_they_are(run: Run, tmp_path: Path):
    run.save(saved(tmp_path / "trainer", 1, 2000))
    run.put("ckpt-1.data-00000-of-00002", b"left")
    source = source_of(run)
    pin = take(source, source.scan()[0], tmp_path / "pins")
    names = {path.name for path in pin.prefix.parent.iterdir()}
    assert names == {"ckpt-1.index", "ckpt-1.data-00000-of-00001"}


def test_an_index_that_cannot_be_read_stays_listed_while_that_is_tried_again(
    run: Run, tmp_path: Path
):
    for number in (1, 2, 3):
        run.save(saved(tmp_path / "trainer", number, 2000))
    asked: list[str] = []
    held, let_go = threading.Event(), threading.Event()

    def busy(request: Request) -> Answer | None:
        if "ckpt-2.index" not in request.path:
            return None
        asked.append(request.path)
        if held.is_set():
            let_go.wait(60)
        return Answer(503, BUSY)

    run.proxy.fault = busy
    source = source_of(run)
    woken = threading.Event()
    watching = source.watch(woken.set)
    watching.ensure()
    names = ["ckpt-1", "ckpt-2", "ckpt-3"]
    wait_until(lambda: list(source._list.listed) == names, "all are shown")
    held.set()
    before = len(asked)
    wait_until(lambda: len(asked) > before, "it is tried again")
    for _ in range(50):
        assert [one.name for one in source.scan()] == names
        assert source.still_there("ckpt-2")
        time.sleep(0.01)
    with pytest.raises(OSError, match="throttles"):
        source.identify(source.scan()[1])
    run.proxy.fault = lambda _: None
    let_go.set()
    wait_until(lambda: source._list.problem is None and source._list.ended > 2, "it goes on")

    def is_read() -> bool:
        try:
            return source.identify(source.scan()[1]) == sha256_of(tmp_path / "trainer" / "ckpt-2")
        except OSError:
            return False

    wait_until(is_read, "it is read")
    watching.close()


def test_one_that_is_replaced_stays_listed_until_the_new_index_is_read(run: Run, tmp_path: Path):
    first, second = (saved(tmp_path / name, 1, 2000, seed=name) for name in ("one", "other"))
    run.save(first)
    source = source_of(run)
    source._list.poll()
    (before,) = source.scan()
    run.save(second)
    reading, let_go = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        if ".index" in request.path:
            reading.set()
            let_go.wait(60)

    run.proxy.fault = hold
    thread = threading.Thread(target=source._list.poll)
    thread.start()
    assert reading.wait(60)
    assert source._list.listed["ckpt-1"].found == before
    assert source._said(source._list.listed["ckpt-1"]).sha256 == sha256_of(first)
    let_go.set()
    thread.join()
    assert source._list.listed["ckpt-1"].found.signature != before.signature


def test_an_index_that_is_replaced_while_it_is_read_is_neither_gone_nor_a_gap(
    run: Run, tmp_path: Path
):
    first, second = (saved(tmp_path / name, 1, 2000, seed=name) for name in ("one", "other"))
    run.save(first)
    run.save(saved(tmp_path / "one", 2, 2000))
    replaced: list[str] = []

    def replace(request: Request) -> None:
        if "ckpt-1.index" in request.path and not replaced:
            replaced.append(request.path)
            run.save(second)

    run.proxy.fault = replace
    source = source_of(run)
    source._list.poll()
    assert not source._list.listed  # the second one would say that nobody saw the first
    source._list.poll()
    assert list(source._list.listed) == ["ckpt-1", "ckpt-2"]
    assert source.identify(source._list.listed["ckpt-1"].found) == sha256_of(second)


def test_an_index_that_is_listed_and_never_there_is_told(run: Run, tmp_path: Path):
    run.save(saved(tmp_path / "trainer", 1, 2000))
    run.proxy.fault = lambda request: (
        Answer(404, b"<Error><Code>NoSuchKey</Code></Error>") if ".index" in request.path else None
    )
    source = source_of(run)
    source._list.poll()
    assert not source._list.listed
    source._list.poll()
    with pytest.raises(OSError, match=r"ckpt-1.index is gone, though it is listed"):
        source.identify(source._list.listed["ckpt-1"].found)


def test_a_run_is_not_idle_while_a_poll_takes_longer_than_it_should(run: Run, tmp_path: Path):
    source = source_of(run)
    watching = source.watch(lambda: None)
    assert source.delay_seconds == 2.0
    held, let_go = threading.Event(), threading.Event()

    def hold(_: Request) -> None:
        held.set()
        let_go.wait(60)

    run.proxy.fault = hold
    watching.ensure()
    assert held.wait(60)
    wait_until(lambda: source.delay_seconds == math.inf, "it is waited for")
    watching.close()
    let_go.set()
    wait_until(lambda: source._list.ended == 1, "it has ended")
    assert 2.0 < source.delay_seconds < math.inf


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (503, "SlowDown", r"busy \(it throttles\)"),
        (403, "AccessDenied", "access is denied"),
        (403, "ExpiredToken", "credentials have expired"),
        (500, "InternalError", "500 Internal Server Error"),
        (400, "AuthorizationHeaderMalformed", "in region eu-west-1"),
    ],
)
def test_a_server_that_names_its_region_in_every_error_is_understood(
    run: Run, status: int, code: str, told: str
):
    body = f"<Error><Code>{code}</Code><Region>eu-west-1</Region></Error>"
    run.proxy.fault = lambda _: Answer(status, body.encode())
    with pytest.raises(ModelDirError, match=told):
        source_of(run).scan()


def test_a_download_that_failed_in_an_unknown_way_begins_anew(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download, "_RANGE_BYTES", 50_000)
    run.save(saved(tmp_path / "trainer", 1))
    source = source_of(run)
    (found,) = source.scan()
    source.identify(found)
    real, calls = source._folder.stream, []

    def fails_once(*arguments: object) -> Iterator[memoryview]:
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("no one knows")
        return real(*arguments)

    monkeypatch.setattr(source._folder, "stream", fails_once)
    with pytest.raises(PinError, match="no one knows"):
        take(source, found, tmp_path / "pins")
    # Threads are at it yet: what they write is of no use to another download.
    assert not list((tmp_path / "pins").iterdir())
    assert verify(take(source, found, tmp_path / "pins").prefix).global_step == 100

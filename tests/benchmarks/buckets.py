"""What a run in a bucket costs: a poll, a checkpoint's download, and the daemon's memory.

The server is moto's of S3 on loopback, and fake-gcs-server for the download: moto copies the whole
object for each part that is asked of it. What a poll and a pin are held to is the same bytes by the
standard library's client, one connection and nothing else; both take turns.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from buckets import BUCKET, KEYS, Run, have_keys_alone, proxied, served
from fake_trainer import model_tensors, write_checkpoint
from watching import CLI, ROOT, STUB, wait_until

from benchmarks.scale import resident_mib
from benchmarks.table import Row, goal
from watcher.checkpoints.bundle_format import OD_API
from watcher.config.bucket import parse_place
from watcher.config.source import SourceSettings
from watcher.files.slices import Progress, finish
from watcher.sources.bucket import Bucket

PARTS = ("poll", "pin", "memory")
SMALL_RUN, LARGE_RUN = 14, 10_000
POLLS = 20
CHECKPOINT_BYTES = 1_000_000_000
PINS = 3
POLLING_SECONDS = 20.0
SMALL = {
    "LARGE_RUN": 100,
    "POLLS": 3,
    "CHECKPOINT_BYTES": 4_000_000,
    "PINS": 1,
    "POLLING_SECONDS": 2.0,
}


def run(part: str) -> list[Row]:
    """Runs one of PARTS."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=build) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        have_keys_alone(patch, Path(folder))
        scheme = "gs" if part == "pin" else "s3"
        with served(scheme, Path(folder)) as server, proxied(server) as there:
            return {"poll": _poll, "pin": _pin, "memory": _memory}[part](there, Path(folder))


def _source(there: Run) -> Bucket:
    """What the daemon reads the folder with, past the proxy."""
    settings = SourceSettings(endpoint_url=f"http://127.0.0.1:{there.server.port}")
    return Bucket(parse_place(there.url), OD_API, settings)


def _ask(there: Run, path: str) -> Iterator[bytes]:
    """Yield what a GET of the server answers, a MB at a time."""
    connection = http.client.HTTPConnection("127.0.0.1", there.server.port, timeout=600)
    with contextlib.closing(connection):
        credential = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request"
        headers = {"Authorization": f"{credential}, SignedHeaders=host, Signature=s"}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200
        while chunk := answer.read(1 << 20):
            yield chunk


def _poll(there: Run, folder: Path) -> list[Row]:
    """The run's folder is listed and compared with what was known, at two sizes."""
    prefix = write_checkpoint(folder / "trainer", "ckpt-1", 100, model_tensors(2000, "poll"))
    data, index = (
        prefix.with_name(f"{prefix.name}{end}").read_bytes()
        for end in (".data-00000-of-00001", ".index")
    )
    listed = _source(there)._list
    rows, made = [], 0
    for objects, most in ((SMALL_RUN, 0.05), (LARGE_RUN, 2.0)):
        for number in range(made + 1, objects // 2 + 1):
            there.put(f"ckpt-{number}.data-00000-of-00001", data)
            there.put(f"ckpt-{number}.index", index)
        made = objects // 2
        listed.poll()  # the first one reads each index
        assert len(listed.listed) == made

        def bare() -> None:
            token = ""
            while token is not None:
                query = f"?list-type=2&delimiter=%2F&prefix={there.prefix}%2F{token}"
                text = b"".join(_ask(there, f"/{BUCKET}{query}"))
                found = text.partition(b"<NextContinuationToken>")[2].partition(b"<")[0]
                token = f"&continuation-token={found.decode()}" if found else None

        ours, theirs = _in_turn(listed.poll, bare, POLLS)
        rows.append(
            Row(
                f"a poll of a run with {objects:,} objects, nothing new",
                f"{1000 * ours:.1f} ms",
                f"its lists alone, by http.client {1000 * theirs:.1f} ms",
                goal(ours, "s", at_most=most),
            )
        )
    return rows


def _in_turn(ours: Callable[[], object], theirs: Callable[[], object], times: int) -> list[float]:
    """Return the median seconds of both, which take turns."""
    seconds: list[list[float]] = [[], []]
    for _ in range(times):
        for asked, taken in zip((ours, theirs), seconds, strict=True):
            began = time.perf_counter()
            asked()
            taken.append(time.perf_counter() - began)
    return [statistics.median(one) for one in seconds]


def _save_large(there: Run, folder: Path) -> None:
    tensors = model_tensors(CHECKPOINT_BYTES, "large")
    there.save(write_checkpoint(folder / "trainer", "ckpt-1", 100, tensors))


def _pin(there: Run, folder: Path) -> list[Row]:
    """A checkpoint becomes a verified pin; bare, its bytes are written to a file."""
    _save_large(there, folder)
    source = _source(there)
    source.scan()
    (found,) = source.scan()
    pins, copy = folder / "pins", folder / "copy"
    pins.mkdir()

    def ours() -> None:
        pin = finish(source.take(found, pins, None, Progress()))
        for file in pin.prefix.parent.iterdir():
            file.unlink()
        pin.prefix.parent.rmdir()

    def theirs() -> None:
        with copy.open("wb") as file:
            for chunk in _ask(there, f"/{BUCKET}/{there.prefix}/ckpt-1.data-00000-of-00001"):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

    seconds, bare = _in_turn(ours, theirs, PINS)
    rate = CHECKPOINT_BYTES / 1e6
    return [
        Row(
            f"a checkpoint of {rate:,.0f} MB pinned and verified",
            f"{rate / seconds:.0f} MB/s",
            f"downloaded alone, by http.client {rate / bare:.0f} MB/s",
            goal(bare / seconds, "of its speed", at_least=0.8),
        )
    ]


def _memory(there: Run, folder: Path) -> list[Row]:
    """The real daemon, while it polls a run without checkpoints, and while it downloads one."""
    (folder / "pipeline.config").write_text("")
    endpoint = f"http://127.0.0.1:{there.server.port}"
    command = [*CLI, "run", there.url, "--state-dir", folder / "state", "--python", STUB]
    command += ["--pipeline-config", folder / "pipeline.config", "--wait-for-model-dir"]
    command += ["--endpoint-url", endpoint, "--poll-seconds", "1", "--log-format", "json"]
    log = folder / "daemon.log"
    with log.open("wb") as out:
        daemon = subprocess.Popen(
            [*map(str, command)], env={**os.environ, **KEYS}, stdout=out, stderr=out
        )
    try:
        wait_until((folder / "state" / "watcher.db").exists, "the daemon works", 60)
        time.sleep(POLLING_SECONDS)
        polling = resident_mib(daemon.pid, "VmRSS")
        Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")  # the peak begins anew
        _save_large(there, folder)
        wait_until(lambda: b'"scored"' in log.read_bytes(), "it is scored", 600)
        downloading = resident_mib(daemon.pid, "VmHWM")
    finally:
        daemon.terminate()
        daemon.wait()
    return [
        Row(
            "daemon, polling: resident memory",
            f"{polling:.0f} MiB",
            "",
            goal(polling, "MiB", at_most=60),
        ),
        Row(
            f"daemon, downloading {CHECKPOINT_BYTES / 1e6:,.0f} MB: most resident memory",
            f"{downloading:.0f} MiB",
            "",
            goal(downloading, "MiB", at_most=90),
        ),
    ]

"""A trainer that saves into a bucket ends when a watcher on another machine says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import KEYS, Answer, Run, Server, proxied, served
from launching import Launch, python
from watching import cli, wait_until

from watcher.config.bucket import Place
from watcher.config.source import SourceSettings
from watcher.errors import ConfigError
from watcher.sources import mirror

LONG = python("import time; print('trains', flush=True); time.sleep(600)", "--model_dir=gs://b/run")
STOP = json.dumps({"schema": 1, "run": "some", "message": "no improvement"}).encode()


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with served(request.param, tmp_path_factory.mktemp(request.param)) as one:
        yield one


@pytest.fixture
def run(server: Server) -> Iterator[Run]:
    with proxied(server) as made:
        yield made


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    one = Launch(tmp_path)
    yield one
    one.end()


def flags(run: Run) -> list[object]:
    given = ["--sentinel", f"{run.url}/EARLY_STOP", "--endpoint-url", run.proxy.endpoint]
    given += ["--anonymous"] if run.server.scheme == "gs" else []
    return [*given, "--poll-seconds", 1]


@pytest.mark.slow
def test_a_sentinel_in_a_bucket_ends_the_trainer(launch: Launch, run: Run):
    process = launch.start(*flags(run), trainer=LONG, **KEYS)
    wait_until(lambda: "trains" in launch.out.read_text(), "the trainer runs")
    run.proxy.fault = lambda _: Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
    wait_until(lambda: "access is denied" in launch.err.read_text(), "it is told")
    assert process.poll() is None
    run.proxy.fault = lambda _: None
    run.put("EARLY_STOP", STOP)
    assert process.wait(60) == 0
    assert "no improvement" in launch.said()


@pytest.mark.slow
def test_one_that_was_there_before_means_nothing(launch: Launch, run: Run):
    run.put("EARLY_STOP", STOP)
    launch.model_dir.mkdir()
    launch.sentinel.write_text("a user's")
    trainer = python("import time; time.sleep(3)")
    assert launch.run(*flags(run), trainer=trainer, **KEYS) == 0
    assert "is ignored: it was there before" in launch.said()
    assert launch.sentinel.read_text() == "a user's"


@pytest.mark.slow
def test_nor_does_one_that_a_busy_server_did_not_tell_of_at_first(launch: Launch, run: Run):
    run.put("EARLY_STOP", STOP)
    busy = Answer(503, b"<Error><Code>SlowDown</Code></Error>")
    run.proxy.fault = lambda _: busy if len(run.proxy.requests) < 4 else None
    told = 'while kill -0 $PPID && ! grep -q "it was there before" "$0"; do sleep 0.1; done'
    trainer = ["sh", "-c", f"{told}; sleep 3", str(launch.err)]
    assert launch.run(*flags(run), trainer=trainer, **KEYS) == 0
    assert "it is tried again" in launch.said()
    assert "is ignored: it was there before" in launch.said()


class Mirrored:
    """A mirror, and what it said."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.path, self.said = folder / "EARLY_STOP.remote", list[str]()
        google = run.server.scheme == "gs"
        settings = SourceSettings(endpoint_url=run.proxy.endpoint, poll_seconds=1, anonymous=google)
        url = f"{run.url}/EARLY_STOP"
        self.mirror = mirror.Mirror(url, settings, self.path, self.said.append)


@pytest.fixture
def mirrored(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirrored:
    for name, value in {**KEYS, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    return Mirrored(run, tmp_path)


def test_what_is_first_read_long_after_the_start_may_be_old_and_what_replaces_it_is_not(
    mirrored: Mirrored, run: Run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mirror, "_FIRST_LOOK_SECONDS", 0)
    run.put("EARLY_STOP", STOP)
    run.proxy.fault = lambda _: Answer(503, b"<Error><Code>SlowDown</Code></Error>")
    with mirrored.mirror:
        run.proxy.fault = lambda _: None
        wait_until(lambda: any("may have been there" in one for one in mirrored.said), "it is told")
        assert not mirrored.path.exists()
        run.put("EARLY_STOP", STOP + b"\n")
        wait_until(mirrored.path.exists, "it is taken")


@pytest.mark.parametrize("fault", [None, Answer(403, b"<Error><Code>AccessDenied</Code></Error>")])
def test_a_bucket_that_cannot_be_read_is_told_at_the_start(
    mirrored: Mirrored, run: Run, fault: Answer | None
):
    if fault:
        run.proxy.fault = lambda _: fault
    else:
        mirrored.mirror._folder.place = Place(run.server.scheme, "no-such-bucket")
    told = "access is denied" if fault else "there is no bucket no-such-bucket"
    with pytest.raises(ConfigError, match=told), mirrored.mirror:
        pass


def test_a_sentinel_elsewhere_and_a_watcher_here_are_refused_together(tmp_path: Path):
    (tmp_path / "p.config").touch()
    words = ["--model-dir", tmp_path, "--sentinel", "s3://bucket/EARLY_STOP"]
    answer = cli(
        "train", *words, "--watch", "--pipeline-config", tmp_path / "p.config", "--", "true"
    )
    assert answer.returncode == 1
    assert "is of a watcher elsewhere, and --watch starts one here" in answer.stderr


def test_a_bucket_alone_is_no_sentinel(tmp_path: Path):
    words = ["--model-dir", tmp_path, "--sentinel", "s3://bucket"]
    answer = cli("train", *words, "--", "true")
    assert answer.returncode == 1
    assert "sentinel (s3://bucket) is a whole bucket" in answer.stderr

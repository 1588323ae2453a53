"""A trainer that saves into a bucket ends when a watcher on another machine says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from buckets import Answer, Run, Server, proxied
from launching import Launch, python
from watching import cli, wait_until

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
LONG = python("import time; print('trains', flush=True); time.sleep(600)", "--model_dir=gs://b/run")
STOP = json.dumps({"schema": 1, "run": "some", "message": "no improvement"}).encode()


@pytest.fixture(scope="module", params=["s3", "gs"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    one = Server(request.param, tmp_path_factory.mktemp(request.param))
    yield one
    one.close()


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
    trainer = python("import time; time.sleep(3)")
    assert launch.run(*flags(run), trainer=trainer, **KEYS) == 0
    assert "is ignored: it was there before" in launch.said()


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

"""A plain client of the evaluation worker, for the tests: one process, one line at a time."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "evaluators" / "worker.py"
PROGRAMS = ROOT / "tests" / "od"
COMMON = ("protocol", "kind", "threads", "nice", "check", "snapshot", "heartbeat_seconds")
COMMON += ("replicates",)


def start_request(pipeline: Path | str, **overrides: Any) -> dict[str, Any]:
    """The request that starts an evaluation of a pipeline.config, as the watcher sends it."""
    common = {name: overrides.pop(name) for name in COMMON if name in overrides}
    options = {"pipeline_config": str(pipeline), "coco_backend": "auto", "sample_1_of_n": 1}
    said = {"type": "start", "protocol": 2, "kind": "od-api", **common}
    return {**said, "options": {**options, **overrides}}


def environment() -> dict[str, str]:
    """The environment of every TensorFlow process of the tests: no GPU, little noise."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def run_program(od_python: str, *arguments: object, cwd: Path, asked: object = None) -> str:
    """Runs a program in the training interpreter and returns what it wrote to stdout.

    With `asked`, it gets that as JSON on its standard input.
    """
    ran = subprocess.run(
        [od_python, *map(str, arguments)],
        input=None if asked is None else json.dumps(asked),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return ran.stdout


def draw_shapes(od_python: str, folder: Path, sets: dict[str, dict[str, Any]]) -> None:
    """Writes NAME.tfrecord for each set, and label_map.pbtxt, into the folder.

    `sets` has the options of each, as in `od/shapes.py`.
    """
    run_program(od_python, PROGRAMS / "shapes.py", folder, cwd=folder, asked=sets)


def reference_metrics(od_python: str, pipeline: Path, *arguments: object) -> dict[str, Any]:
    """What the OD API's own loop gives, by checkpoint prefix."""
    program = PROGRAMS / "reference_eval.py"
    out = run_program(od_python, program, pipeline, *arguments, cwd=pipeline.parent)
    metrics: dict[str, Any] = json.loads(out)["metrics"]
    return metrics


class Client:
    """A running worker; a context manager that ends it.

    `replies` keeps every line received, in order.
    """

    def __init__(
        self,
        od_python: str,
        cwd: Path,
        log: Path | None = None,
        program: Path = WORKER,
        **variables: str,
    ) -> None:
        self.replies: list[dict[str, Any]] = []
        self._log = (log or cwd / "worker.log").open("ab")
        self.process = subprocess.Popen(
            [od_python, str(program)],
            cwd=cwd,
            env={**environment(), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self._log.close()

    def send(self, **request: Any) -> None:
        """Sends one request."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self, *kinds: str) -> dict[str, Any]:
        """Reads replies until one is of these types and returns it."""
        assert self.process.stdout
        for line in self.process.stdout:
            reply: dict[str, Any] = json.loads(line)
            self.replies.append(reply)
            if reply["type"] in kinds:
                return reply
        raise EOFError(f"the worker ended with {self.process.wait()} before {kinds}")

    def start(self, pipeline: Path | str, **overrides: Any) -> dict[str, Any]:
        """Starts the evaluation of a pipeline.config; returns `ready` or `error`."""
        self.send(**start_request(pipeline, **overrides))
        return self.receive("ready", "error")

    def evaluate(self, prefix: Path | str) -> dict[str, Any]:
        """Asks for one checkpoint; returns `result` or `failed`."""
        self.send(type="evaluate", id=str(prefix), prefix=str(prefix))
        return self.receive("result", "failed")

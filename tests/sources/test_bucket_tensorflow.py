"""TensorFlow's own CheckpointManager saves into a bucket, and the watcher keeps the best of it.

It needs tensorflow-io, which there is for TensorFlow up to 2.16: `make test-tensorflows` runs this.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_watcher import BucketWatcher
from buckets import KEYS, proxied, served
from evaluator_client import environment, run_program
from watching import wait_until

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(600)]

SAVES, KEPT = 12, 4
TRAINER = """
import sys, time
import tensorflow as tf
import tensorflow_io

url, saves, kept = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
step, kernel = tf.Variable(0, dtype=tf.int64), tf.Variable(tf.zeros([250, 400]))
checkpoint = tf.train.Checkpoint(step=step, model=tf.train.Checkpoint(kernel=kernel))
manager = tf.train.CheckpointManager(checkpoint, url, max_to_keep=kept)
for number in range(1, saves + 1):
    step.assign(100 * number)
    kernel.assign(tf.fill([250, 400], float(number)))
    manager.save()
    print("saved", number, flush=True)
    time.sleep(1)
"""
READER = """
import json, sys
import tensorflow as tf

reader = tf.train.load_checkpoint(sys.argv[1])
kernel = reader.get_tensor("model/kernel/.ATTRIBUTES/VARIABLE_VALUE")
print(json.dumps([sorted({float(value) for value in kernel.ravel()}), list(kernel.shape)]))
"""


@pytest.fixture
def watcher(od_python: str, tmp_path: Path) -> Iterator[BucketWatcher]:
    packages = Path(od_python).parent.parent / "lib"
    if not list(packages.glob("python*/site-packages/tensorflow_io/python")):
        pytest.skip("there is no tensorflow-io for this TensorFlow")
    with served("s3", tmp_path) as server, proxied(server) as run:
        one = BucketWatcher(tmp_path, run)
        yield one
        one.end()


def test_what_tensorflow_saves_and_rotates_in_s3_is_scored_and_its_best_loads(
    watcher: BucketWatcher, od_python: str, tmp_path: Path
):
    there = watcher.run_there
    watcher.start("--top-k", 2, "--wait-for-model-dir")
    endpoint = {"S3_ENDPOINT": f"http://127.0.0.1:{there.server.port}", "S3_USE_HTTPS": "0"}
    program = tmp_path / "trainer.py"
    program.write_text(TRAINER)
    command = [od_python, program, there.url, SAVES, KEPT]
    done = subprocess.run(
        [*map(str, command)],
        env={**environment(), **KEYS, **endpoint, "S3_VERIFY_SSL": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    watcher.scored(*range(1, SAVES + 1))
    assert set(watcher.states().values()) == {"scored"}
    # As the trainer rotates it; what it wrote under other names meanwhile was taken for nothing.
    assert there.server.get(f"{there.prefix}/ckpt-{SAVES - KEPT}.index") is None
    wait_until(lambda: f"ckpt-{SAVES}.index" in watcher.best_files(), "the best is promoted")
    assert watcher.stop() == 0
    (best, *_) = json.loads((watcher.best_dir / "best.json").read_text())["checkpoints"]
    reader = tmp_path / "reader.py"
    reader.write_text(READER)
    read = run_program(od_python, reader, watcher.best_dir / best["checkpoint"], cwd=tmp_path)
    number = float(best["checkpoint"].removeprefix("ckpt-"))
    assert json.loads(read.splitlines()[-1]) == [[number], [250, 400]]

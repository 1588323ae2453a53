"""Whether averages of checkpoints beat the best of them: chosen on one eval set, told on another.

Trains the demo's model several times with a constant and with a decaying learning rate, on the same
images from other initial weights (the OD API seeds nothing). Which checkpoint is best, and what
greedy takes, is decided on 512 images as a run does; the figures are of 512 other images, so that
luck in choosing is in no column. About 20 minutes on two quiet cores; BENCH_RUNS, BENCH_STEPS and
BENCH_IMAGES make it smaller.
"""

from __future__ import annotations

import array
import base64
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluator_client import PROGRAMS, ROOT, Client, draw_shapes, environment

from benchmarks.od_run import od_python, python_path
from benchmarks.table import Row
from watcher.decision.averages import by_score, next_trial
from watcher.decision.ties import difference
from watcher.types import ScoredCheckpoint

RUNS = int(os.environ.get("BENCH_RUNS", "3"))
STEPS = int(os.environ.get("BENCH_STEPS", "1600"))
IMAGES = int(os.environ.get("BENCH_IMAGES", "512"))
TRAINED_ON = 512
REPLICATES = 1000
SMALL = {"RUNS": 1, "STEPS": 400, "IMAGES": 16}
METRIC = "DetectionBoxes_Precision/mAP"
BASE = 0.02
RATES = {
    "constant": f"constant_learning_rate {{ learning_rate: {BASE} }}",
    "cosine": "cosine_decay_learning_rate {{ learning_rate_base: {base} total_steps: {steps}"
    " warmup_learning_rate: 0.005 warmup_steps: 20 }}",
}
_SAVED = re.compile(r"ckpt-(\d+)\.index")


@dataclass
class Score:
    """A checkpoint's or an average's mAP on one set, and its replicates there."""

    value: float
    replicates: Sequence[float] = ()


@dataclass
class Judge:
    """A worker on one eval set."""

    client: Client
    known: dict[Path, Score] = field(default_factory=dict)

    def score(self, prefix: Path) -> Score:
        """Evaluates once."""
        if prefix not in self.known:
            result = self.client.evaluate(prefix)
            assert result["type"] == "result", result
            self.known[prefix] = Score(result["metrics"][METRIC], self._replicates(result))
        return self.known[prefix]

    def _replicates(self, result: dict[str, object]) -> Sequence[float]:
        if not result.get("replicates_follow"):
            return ()
        said = self.client.receive("replicates")
        for metric in said["metrics"]:
            if metric["name"] == METRIC and metric["category"] is None and metric["values"]:
                return array.array("f", base64.b64decode(metric["values"]))
        return ()

    def average(self, parents: Sequence[Path], prefix: Path, batch_norm: int | None = None) -> Path:
        """Has the worker write an average, of the parents by step.

        Args:
            batch_norm: Of how many training images its statistics are computed anew.
        """
        paths = [str(one) for one in sorted(parents, key=_number)]
        asked = {"prefixes": paths, "prefix": str(prefix), "recompute_batch_norm": batch_norm}
        self.client.send(type="average", id="average", **asked)
        said = self.client.receive("averaged", "failed")
        assert said["type"] == "averaged", said
        return prefix


def run() -> list[Row]:
    """Measures all."""
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with python_path(None), tempfile.TemporaryDirectory(prefix="bench-", dir=build) as folder:
        return _measure(Path(folder))


def _measure(folder: Path) -> list[Row]:
    sets = {"train": {"images": TRAINED_ON, "empty_every": 0, "flags": False}}
    sets |= {name: {"images": IMAGES, "seed": seed} for name, seed in (("val", 2), ("test", 3))}
    draw_shapes(od_python(), folder, sets)
    rows = []
    with contextlib.ExitStack() as stack:
        judges = {name: stack.enter_context(_judge(folder, name)) for name in ("val", "test")}
        for rate in RATES:
            gains: dict[str, list[tuple[float, float, str]]] = {}
            for number in range(RUNS):
                began = time.perf_counter()
                saved = _train(folder, rate, number)
                for name, (ours, best) in _compare(folder, saved, judges).items():
                    gains.setdefault(name, []).append((ours.value, best.value, _told(ours, best)))
                took = time.perf_counter() - began
                print(f"{rate} {number + 1} of {RUNS}: {took:.0f} s", gains, flush=True)
            rows += [_row(rate, name, found) for name, found in gains.items()]
    return rows


def _row(rate: str, name: str, found: Sequence[tuple[float, float, str]]) -> Row:
    ours, best = ([one[place] for one in found] for place in (0, 1))
    gains = [a - b for a, b in zip(ours, best, strict=True)]
    return Row(
        f"{rate} learning rate, {name}, test mAP",
        " ".join(f"{value:.4f}" for value in ours),
        "best single one " + " ".join(f"{value:.4f}" for value in best),
        f"mean gain {statistics.mean(gains):+.4f}: " + ", ".join(told for *_, told in found),
    )


def _told(ours: Score, best: Score) -> str:
    found = None
    if ours.replicates and best.replicates:
        found = difference(ours.replicates, best.replicates, ours.value - best.value)
    gain = f"{ours.value - best.value:+.4f}"
    return f"{gain} [{found.low:+.4f}, {found.high:+.4f}]" if found else gain


@contextlib.contextmanager
def _judge(folder: Path, name: str) -> Iterator[Judge]:
    pipeline = folder / f"{name}.config"
    pipeline.write_text(_config(folder, "constant").replace("val.tfrecord", f"{name}.tfrecord"))
    with Client(od_python(), folder, folder / f"{name}.log") as client:
        wanted = REPLICATES if name == "test" else 0
        options = {"pipeline_config": str(pipeline), "coco_backend": "auto", "sample_1_of_n": 1}
        client.send(type="start", protocol=2, kind="od-api", options=options, replicates=wanted)
        ready = client.receive("ready", "error")
        assert ready["type"] == "ready", ready
        yield Judge(client)


def _config(folder: Path, rate: str) -> str:
    config = (PROGRAMS / "ssd_fixed.config").read_text()
    for name in ("train.tfrecord", "val.tfrecord", "label_map.pbtxt"):
        config = config.replace(f'"{name}"', f'"{folder / name}"')
    wanted = RATES[rate].format(base=BASE, steps=STEPS) if rate == "cosine" else RATES[rate]
    config, count = re.subn(
        r"learning_rate \{ cosine_decay_learning_rate \{[^}]*\} \}",
        f"learning_rate {{ {wanted} }}",
        config,
    )
    assert count == 1
    return config.replace("num_steps: 200", f"num_steps: {STEPS}")


def _train(folder: Path, rate: str, number: int) -> list[Path]:
    """Trains once; returns all that was saved with a model in it, rotated away or not."""
    model_dir, kept = folder / f"{rate}-{number}", folder / f"{rate}-{number}-saved"
    kept.mkdir()
    pipeline = folder / f"{rate}.config"
    pipeline.write_text(_config(folder, rate))
    command = [od_python(), "-m", "object_detection.model_main_tf2"]
    command += ["--pipeline_config_path", str(pipeline), "--model_dir", str(model_dir)]
    command += ["--checkpoint_every_n", "100", "--num_train_steps", str(STEPS)]
    with (folder / "train.log").open("ab") as log:
        trainer = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), cwd=folder)
    try:
        while trainer.poll() is None:
            time.sleep(1)
            # The newest may be half written; it is kept once the next one is there.
            for index in sorted(_indexes(model_dir), key=_number)[:-1]:
                _keep(index, kept)
    finally:
        trainer.kill()
        code = trainer.wait()
    assert code == 0, (folder / "train.log").read_text()[-3000:]
    for index in _indexes(model_dir):
        _keep(index, kept)
    saved = sorted((one.with_suffix("") for one in _indexes(kept)), key=_number)
    shutil.rmtree(model_dir)
    return [one for one in saved if _number(one) > 1]


def _indexes(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if _SAVED.fullmatch(path.name)]


def _number(path: Path) -> int:
    return int(path.name.split("-")[1].split(".")[0])


def _keep(index: Path, kept: Path) -> None:
    if (kept / index.name).exists():
        return
    for path in (*index.parent.glob(f"{index.stem}.data-*"), index):
        shutil.copy(path, kept)


def _compare(
    folder: Path, saved: Sequence[Path], judges: dict[str, Judge]
) -> dict[str, tuple[Score, Score]]:
    """Returns by method what it and the best single checkpoint score on the other images."""
    val, test = judges["val"], judges["test"]
    by_id = {_number(one): one for one in saved}
    rows = [_scored(number, val.score(one).value) for number, one in by_id.items()]
    ordered = [row.checkpoint_id for row in by_score(rows, "max")]
    best = by_id[ordered[0]]
    wanted = {f"top {k}": ordered[:k] for k in (3, 5)}
    wanted |= {f"last {k}": sorted(by_id)[-k:] for k in (3, 5, 7)}
    found: dict[str, tuple[Score, Score]] = {}
    for name, ids in wanted.items():
        prefix = saved[0].parent / f"average-{name.replace(' ', '-')}"
        average = val.average([by_id[one] for one in ids], prefix)
        found[name] = test.score(average), test.score(best)
    last = [by_id[one] for one in wanted["last 5"]]
    anew = val.average(last, saved[0].parent / "average-anew", TRAINED_ON)
    found["last 5, batch norm anew"] = test.score(anew), test.score(best)
    greedy = _greedy(by_id, rows, val, saved[0].parent)
    found["greedy of the top 5"] = test.score(greedy), test.score(best)
    return found


def _greedy(
    by_id: dict[int, Path], rows: Sequence[ScoredCheckpoint], val: Judge, folder: Path
) -> Path:
    candidates = by_score(rows, "max")[:5]
    tried: list[tuple[frozenset[int], float | None]] = []
    best, score = by_id[candidates[0].checkpoint_id], candidates[0].score or 0.0
    while trial := next_trial(candidates, tried, "max"):
        prefix = folder / f"average-greedy-{len(tried)}"
        prefix = val.average([by_id[one] for one in trial], prefix)
        tried.append((trial, val.score(prefix).value))
        if val.score(prefix).value >= score:
            best, score = prefix, val.score(prefix).value
    return best


def _scored(number: int, score: float) -> ScoredCheckpoint:
    return ScoredCheckpoint(number, number, f"ckpt-{number}", number, "", score, "")

"""What a large run costs: many evaluations in the database, many files, many checkpoints.

The daemon runs in this process, on a database filled by hand, with the stub evaluator.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fake_bundle import FLOAT, SUFFIX, Tensor
from fake_trainer import model_tensors, write_checkpoint
from faults import Rounds
from folder_source import scan, source_of
from watching import FAKE_TRAINER, STUB

from benchmarks.table import Row
from watcher.checkpoints.bundle import parse_index, verify
from watcher.checkpoints.bundle_format import OD_API
from watcher.checkpoints.pin import Verified, pin
from watcher.config import Loaded, Settings, load_settings
from watcher.decision.metric import parse_metric
from watcher.files.scratch import Scratch
from watcher.promotion.placing import Placing, look_into
from watcher.promotion.promote import BOARD_FILE, BoardFile, write_board
from watcher.runtime.app import _build, _make_state_folder
from watcher.runtime.logs import configure_logs
from watcher.runtime.loop import Daemon
from watcher.runtime.wakeup import WakeUp
from watcher.store import Store
from watcher.types import Leader, Pin, ScoredCheckpoint

EVALUATIONS = 100_000
EVALUATION_SECONDS = 0.1
ARRIVING = 1_000
OTHER_FILES = 10_000
PLACES = 1_000
LARGE_BYTES = 1_000_000_000
SMALL = {
    "EVALUATIONS": 10,
    "ARRIVING": 5,
    "OTHER_FILES": 3,
    "PLACES": 3,
    "LARGE_BYTES": 4_000,
}
TENSORS = 560  # of a detector of 566
FINGERPRINT = "f" * 64


def run() -> list[Row]:
    """Runs the parts, each in a folder of its own."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        settings = filled(Path(folder) / "model_dir", EVALUATIONS)
        for number in range(OTHER_FILES):
            (settings.run.model_path / f"events.out.tfevents.{number}").touch()
        rows = _arrivals(settings)
        rows += [_restart(settings), _best(settings)]
    return rows + _large() + [_unchanged()]


def open_store(settings: Settings) -> Store:
    """The run's database."""
    return Store(
        settings.run.state_path / "watcher.db",
        run="run",
        model_dir=settings.run.model_path,
        now=time.time(),
    )


def new_run(model_dir: Path, **flags: Any) -> Settings:
    """Make a run with the stub evaluator, which ends when it is idle; return its settings."""
    model_dir.mkdir()
    pipeline = model_dir.parent / "pipeline.config"
    pipeline.write_text("the stub evaluator does not read it\n")
    chosen = {
        "model_dir": str(model_dir),
        "pipeline_config": str(pipeline),
        "python": str(STUB),
        "mode": "min",  # scores of the stub grow: most checkpoints are not promoted
        "exit_when_idle": 2,
        "log_format": "json",
    }
    settings = load_settings({**chosen, **flags}, {}, None)
    _make_state_folder(settings.run.state_path)
    configure_logs("json", settings.run.state_path, live=True)
    return settings


def filled(model_dir: Path, evaluations: int) -> Settings:
    """Make a run whose database holds so many evaluations, and return its settings."""
    settings = new_run(model_dir)
    with open_store(settings) as store:
        store.ledger.set_policy(
            parse_metric(settings.ranking.metric), settings.ranking.mode, time.time()
        )
        store.ledger.set_fingerprint(FINGERPRINT, time.time())
    _fill(settings.run.state_path / "watcher.db", evaluations)
    return settings


def _fill(database: Path, evaluations: int) -> None:
    """Insert so many scored checkpoints with 20 metrics each."""
    names = ["DetectionBoxes_Precision/mAP", *(f"metric/{n}" for n in range(19))]
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        for n in range(1, evaluations + 1):
            sha = hashlib.sha256(b"%d" % n).hexdigest()
            db.execute(
                "INSERT INTO all_checkpoints (id, run_id, name, save_counter, sha256, global_step,"
                " state, size_bytes, model_variables, discovered_at)"
                " VALUES (?, 1, ?, ?, ?, ?, 'scored', 1, 1, '2026-01-01T00:00:00.000Z')",
                [n, f"ckpt-{n}", n, sha, 100 * n],
            )
            db.execute(
                "INSERT INTO evaluations (id, checkpoint_id, fingerprint, score, images, device,"
                " started_at, evaluated_at, eval_seconds, timings, versions, details)"
                " VALUES (?, ?, ?, ?, 8, 'cpu', '2026-01-01T00:00:00.000Z',"
                " '2026-01-01T00:00:00.000Z', 1.0, '{}', '{}', '{}')",
                [n, n, FINGERPRINT, n / evaluations / 2],
            )
            db.executemany(
                "INSERT INTO metrics VALUES (?, ?, '', ?)",
                [(n, name, n % 997 / 1000) for name in names],
            )


def _arrivals(settings: Settings) -> list[Row]:
    """1,000 checkpoints arrive, 20 a second, while the loop is timed."""
    os.environ["STUB_SECONDS"] = str(EVALUATION_SECONDS)
    process = train_on(settings.run.model_path, EVALUATIONS, ARRIVING)
    ticks, memory = _time_the_loop(settings)
    process.wait()
    cuts = statistics.quantiles(ticks, n=100)
    scored = states(settings)["scored"]
    return [
        Row(
            f"a step of the loop while {ARRIVING:,} checkpoints arrive ({EVALUATIONS:,}"
            f" evaluations in the database, {OTHER_FILES:,} files in model_dir)",
            f"median {statistics.median(ticks) * 1000:.1f} ms, p99 {cuts[98] * 1000:.0f} ms,"
            f" {len(ticks):,} steps",
            "20 ms at the median",
        ),
        Row(
            f"scored of {ARRIVING:,} that arrived; resident memory after 200 and after all",
            f"{scored - EVALUATIONS:,}; {memory[0]:.0f} MiB and {memory[-1]:.0f} MiB",
        ),
    ]


def states(settings: Settings) -> dict[str, int]:
    """How many checkpoints are in each state."""
    with contextlib.closing(sqlite3.connect(settings.run.state_path / "watcher.db")) as db:
        return dict(db.execute("SELECT state, count(*) FROM history GROUP BY state").fetchall())


def train_on(model_dir: Path, last: int, saves: int) -> subprocess.Popen[bytes]:
    """Have so many checkpoints arrive, 20 a second, after the one of that number."""
    # Goes on from the last one, as a trainer that was restarted does.
    (model_dir / "checkpoint").write_text(
        f'model_checkpoint_path: "ckpt-{last}"\n'
        f'all_model_checkpoint_paths: "ckpt-{last}"\n'
        "all_model_checkpoint_timestamps: 1.0\nlast_preserved_timestamp: 1.0\n"
    )
    flags = ["--saves", str(saves), "--interval", "0.05", "--max-to-keep", "0"]
    trainer = [sys.executable, str(FAKE_TRAINER), str(model_dir), *flags]
    return subprocess.Popen(trainer, stdout=subprocess.DEVNULL)


def _time_the_loop(settings: Settings) -> tuple[list[float], list[float]]:
    ticks: list[float] = []
    memory: list[float] = []

    def note(daemon: Daemon, store: Store, seconds: float) -> None:
        ticks.append(seconds)
        if len(ticks) % 20 == 0 and _arrived(store) >= 200:
            memory.append(resident_mib())

    loop(settings, note)
    return ticks, memory or [resident_mib()]


def loop(settings: Settings, note: Callable[[Daemon, Store, float], None]) -> None:
    """Run the daemon here, and tell `note` how long each of its steps took."""
    with open_store(settings) as store, Scratch() as scratch:
        source = source_of(settings.run.model_path)
        daemon = _build(settings, Loaded(settings), store, source, scratch, WakeUp(), [])
        step = daemon.step

        def timed() -> float:
            began = time.perf_counter()
            due = step()
            note(daemon, store, time.perf_counter() - began)
            return due

        daemon.step = timed  # type: ignore[method-assign]
        daemon.run()


def _arrived(store: Store) -> int:
    last = store.queue.last_save()
    return (last.counter if last else 0) - EVALUATIONS


def _restart(settings: Settings) -> Row:
    began = time.perf_counter()
    first: list[float] = []

    def note(daemon: Daemon, store: Store, seconds: float) -> None:
        if not daemon._intake.more and not first:
            first.append(time.perf_counter() - began)
            daemon.wakeup.stop()

    loop(settings, note)
    return Row(
        f"start: database opened, {ARRIVING:,} known checkpoints compared, best/ checked",
        f"{first[0]:.2f} s",
        "3 s",
    )


def _best(settings: Settings) -> Row:
    database = settings.run.state_path / "watcher.db"
    times = []
    for _ in range(50):
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
            began = time.perf_counter()
            row = db.execute("SELECT * FROM best").fetchone()
            times.append(time.perf_counter() - began)
    assert row
    return Row(
        "`SELECT * FROM best`, a new connection each time",
        f"median {statistics.median(times) * 1000:.2f} ms",
        "5 ms",
    )


def _large() -> list[Row]:
    """Pin and promotion of a checkpoint of 1 GB."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        block = (os.urandom(1 << 20) * (LARGE_BYTES // (1 << 20) + 1))[:LARGE_BYTES]
        big = {f"model/large/kernel{SUFFIX}": Tensor(FLOAT, (LARGE_BYTES // 4,), block)}
        prefix = write_checkpoint(folder / "model_dir", "ckpt-1", 100, big)
        del block, big
        pins = folder / "pins"
        pins.mkdir()
        os.sync()  # else the first fsync writes the whole checkpoint to the disk
        seconds: dict[str, list[float]] = {"verify": [], "pin": [], "promote": []}

        def timed(what: str, work: Callable[[], Any]) -> Any:
            began = time.perf_counter()
            done = work()
            seconds[what].append(time.perf_counter() - began)
            return done

        for number in range(5):
            verified: Verified = set()
            timed("verify", partial(verify, prefix, layout=OD_API.layout))
            found = scan(folder / "model_dir")[0]
            taken = timed("pin", partial(pin, found, pins, OD_API, verified))
            assert taken.method == "link"
            best = folder / f"best-{number}"
            timed("promote", partial(_promote, best, taken, verified))
            shutil.rmtree(taken.prefix.parent)
        alone, pinned, promoted = (statistics.median(times) for times in seconds.values())
        return [
            Row(
                "pin of a checkpoint of 1 GB, in the page cache",
                f"{pinned:.2f} s",
                f"its verification alone {alone:.2f} s",
                f"{pinned / alone:.2f} times",
            ),
            Row("promotion of it, on the disk already", f"{promoted * 1000:.0f} ms", "50 ms"),
        ]


def _unchanged() -> Row:
    """A board of 1,000 places, looked at again."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        rounds = Rounds(Path(name), top_k=-1)
        tensors = model_tensors(20_000, "place", variables=TENSORS // 2)
        for number in range(1, PLACES + 1):
            write_checkpoint(Path(name), f"ckpt-{number}", 100 * number, tensors)
        with rounds.open() as store:
            intake, projector = rounds.begin(store)
            rounds.go(store, intake, projector)
            rounds.project(projector)
            seconds = []
            for _ in range(10):
                began = time.perf_counter()
                projector.update(time.time())
                seconds.append(time.perf_counter() - began)
        began = time.perf_counter()
        for index in rounds.best_dir.glob("*.index"):
            content = index.read_bytes()
            parse_index(content)
            hashlib.sha256(content)
        read = time.perf_counter() - began
    looked = statistics.median(seconds)
    return Row(
        f"a look at a board of {PLACES:,} places that did not change, {TENSORS} tensors each",
        f"{looked * 1000:.0f} ms",
        f"reading their indexes {read:.1f} s; 50 ms",
        f"{read / looked:.0f} times faster",
    )


def _promote(best_dir: Path, pin: Pin, verified: Verified) -> None:
    row = ScoredCheckpoint(1, 1, "ckpt-1", 100, pin.sha256, 0.5, "", pin.prefix)
    board = BoardFile(run="run", run_uuid="uuid", metric="metric", mode="max", checkpoints=())
    leaders = [Leader(1, row, "ckpt-1")]
    best_dir.mkdir(exist_ok=True)
    Placing(OD_API, verified).put(best_dir, leaders, look_into(best_dir, OD_API), math.inf)
    write_board(best_dir, BOARD_FILE, board, leaders, {})


def resident_mib(pid: int | str = "self", kind: str = "VmRSS") -> float:
    """What a process has in memory, or had at most (`VmHWM`)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no {kind}")

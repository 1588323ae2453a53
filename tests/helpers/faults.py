"""Faults at chosen system calls, a reader that never looks away, and one round of the stages.

A round is what the daemon does with a new checkpoint, without the worker: look and pin, lease,
record a score, promote, evict. It runs in a forked process (`forks`), so that strace can kill it or
fail one of its calls, and the libraries need not be imported each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from folder_source import source_of
from forks import Fork, Said
from watching import PEACE_OFF

from watcher.config import Settings
from watcher.decision.metric import parse_metric
from watcher.errors import ModelDirError, StoreError
from watcher.ingest.intake import Intake
from watcher.promotion.projection import Projector
from watcher.store import Store
from watcher.types import Evaluation

METRIC = "DetectionBoxes_Precision/mAP"
# Whatever changes a file system. A kill at any other call leaves the same files as one of these.
MUTATING = (
    "link,linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "fsync,fdatasync,write,pwrite64,ftruncate,fchmod,ioctl,copy_file_range"
)
OPENING = f"openat,{MUTATING}"
EXHAUSTIVE = bool(os.environ.get("CHECKPOINT_WATCHER_EXHAUSTIVE"))


def need_strace() -> None:
    if not shutil.which("strace"):
        pytest.skip("needs strace: apt install strace")


def end_strace(tracer: subprocess.Popen[bytes]) -> None:
    """End a fault; what was traced lives on.

    A strace that is asked to end while a child is being forked can wait for the parent, which
    waits for the child, which waits for strace. The kernel lets go of them when it is killed.
    """
    tracer.terminate()
    try:
        tracer.wait(timeout=10)
    except subprocess.TimeoutExpired:
        tracer.kill()
        tracer.wait()


class Rounds:
    """The state of one run, and the stages on it, in this process."""

    def __init__(self, folder: Path, *, top_k: int = 2, evict_seconds: float = 0.0) -> None:
        self.options = {"folder": str(folder), "top_k": top_k, "evict_seconds": evict_seconds}
        self.settings = Settings.of(
            model_dir=str(folder),
            pipeline_config="none",
            top_k=top_k,
            evict_seconds=evict_seconds,
        )
        self.state_dir = folder / "watcher"
        self.best_dir = folder / "best"

    def open(self) -> Store:
        self.state_dir.mkdir(exist_ok=True)
        return Store(
            self.state_dir / "watcher.db",
            run="run",
            model_dir=self.settings.run.model_path,
            now=now(),
        )

    def begin(self, store: Store) -> tuple[Intake, Projector]:
        """What the daemon does at its start."""
        store.queue.return_all(now())
        store.ledger.set_policy(parse_metric(METRIC), "max", now())
        store.ledger.set_fingerprint("f" * 64, now())
        pins = self.state_dir / "pins"
        intake = Intake(source_of(self.settings.run.model_path), pins, store.queue, grace_seconds=5)
        intake.recover(now())
        return intake, Projector(self.settings, store, intake.source, "run")

    def go(self, store: Store, intake: Intake, projector: Projector) -> str | None:
        """Do all there is to do; returns what went wrong, None when all is done."""
        intake.look(now(), time.monotonic())
        while intake.more:
            intake.look(now(), time.monotonic())
        intake.write_down(now())
        if intake.problem:
            return intake.problem
        self.score_all(store)
        self.project(projector)
        if projector.problem is None and projector.evict_at < float("inf"):
            time.sleep(self.settings.retention.evict_seconds)
            self.project(projector)
        return projector.problem

    def project(self, projector: Projector) -> None:
        """Bring the folders up to date, in as many slices as it takes."""
        projector.update(now())
        while projector.unfinished:
            projector.update(now())

    def score_all(self, store: Store) -> None:
        """Evaluate what is pending, without a worker."""
        while lease := store.queue.lease_next(now(), 60):
            score = score_of(lease.prefix.parent.name)
            measured = Evaluation(fingerprint="f" * 64, images=8, metrics={METRIC: score})
            store.ledger.record_score(lease, measured, score, started=now(), now=now())

    def whole_round(self) -> None:
        """Start, do all there is to do, end."""
        with self.open() as store:
            problem = self.go(store, *self.begin(store))
        assert problem is None, problem

    def stubborn_round(self, said: Said) -> None:
        """As the daemon does: try again while something fails, and say what."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                with self.open() as store:
                    stages = self.begin(store)
                    while problem := self.go(store, *stages):
                        said.note(problem)
                        time.sleep(0.02)
                return
            except (StoreError, ModelDirError, OSError) as error:
                said.note(str(error))
                time.sleep(0.02)
        raise AssertionError("it never recovered")


def now() -> float:
    return time.time()


def score_of(sha256: str) -> float:
    """A score that depends on the content alone, between 0 and 1."""
    return int(sha256[:8], 16) / 0xFFFFFFFF


Call = tuple[str, int]


def at(call: Call, fault: str) -> str:
    """Return strace's order for a fault at one call: `signal=KILL`, `error=ENOSPC`."""
    name, number = call
    return f"{name}:{fault}:when={number}"


def since(made: Sequence[Call], place: int, fault: str) -> list[str]:
    """Return strace's orders for a fault at each call from that place in `made` on."""
    before = Counter(name for name, _ in made[:place])
    return [f"{name}:{fault}:when={before[name] + 1}+" for name in MUTATING.split(",")]


def calls_of(fork: Fork, log: Path, calls: str = MUTATING) -> list[Call]:
    """Let a process work to its end, and return its calls in their order.

    Each with its number among the calls of its name, for that is what strace counts.
    """
    assert Child(fork, [], calls, log).wait() == 0
    names = re.findall(r"^(?:\d+ +)?(\w+)\(", log.read_text(), re.MULTILINE)
    seen: Counter[str] = Counter()
    made = []
    for name in names:
        seen[name] += 1
        made.append((name, seen[name]))
    assert made, "strace traces nothing"
    return made


class Child:
    """A forked process at work; strace, when asked, injects faults into it until `heal`."""

    def __init__(
        self,
        fork: Fork,
        faults: Sequence[str] | None = None,
        calls: str = MUTATING,
        log: Path = Path(os.devnull),
    ) -> None:
        """Start; `faults` are strace's orders, of `at` and `since`; `calls` are those traced."""
        self.fork = fork
        self.tracer: subprocess.Popen[bytes] | None = None
        if faults is not None:
            inject = [f"-etrace={calls}", *(f"-einject={fault}" for fault in faults)]
            command = ["strace", "-f", "-qq", "-o", str(log), "-p", str(fork.pid), *inject]
            self.tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while "TracerPid:\t0" in Path(f"/proc/{fork.pid}/status").read_text():
                assert self.tracer.poll() is None, "strace cannot attach: is ptrace allowed here?"
                time.sleep(0.001)
        fork.go()

    def heal(self) -> None:
        """End the fault; the child lives on."""
        if self.tracer:
            end_strace(self.tracer)

    def wait(self) -> int:
        """Return 0, 1 when its work raised, or the negative number of the signal that ended it."""
        code = self.fork.wait()
        if self.tracer:
            self.tracer.wait()
        return code


def whole_round(rounds: Rounds, *faults: str) -> int:
    """Do a round in a child, with faults if some are given; see Child."""
    return Child(Fork("round", **rounds.options), faults or None).wait()


def calls_of_a_round(rounds: Rounds, calls: str = MUTATING) -> list[Call]:
    """Do a round, and return the calls that it made."""
    log = rounds.best_dir.parent.with_name("calls.log")
    return calls_of(Fork("round", **rounds.options), log, calls)


def stubborn_round(
    rounds: Rounds, said: Path, faults: Sequence[str], calls: str = MUTATING
) -> Child:
    """Begin a round in a child that tries again while something fails, and says what in `said`."""
    return Child(Fork("stubborn round", said=str(said), **rounds.options), faults, calls)


def check(rounds: Rounds) -> list[str]:
    """Assert what must hold after recovery; returns the names on the board, best first."""
    from watcher.checkpoints.bundle import verify

    database = rounds.state_dir / "watcher.db"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = db.execute(
            "SELECT checkpoint, sha256, path FROM leaderboard ORDER BY rank"
        ).fetchall()
        scored = db.execute(
            "SELECT sha256 FROM history WHERE state = 'scored' AND score IS NOT NULL"
        ).fetchall()
        twice = db.execute(
            "SELECT count(*) FROM evaluations GROUP BY checkpoint_id, fingerprint"
        ).fetchall()
    assert all(count == (1,) for count in twice)
    ranked = sorted((sha for (sha,) in scored), key=score_of, reverse=True)
    assert [sha for _, sha, _ in rows] == ranked[: rounds.settings.ranking.top_k]
    for _, sha, path in rows:
        assert verify(Path(path)).sha256 == sha
    names = [Path(path).name for _, _, path in rows]
    board = json.loads((rounds.best_dir / "best.json").read_text())
    assert [entry["checkpoint"] for entry in board["checkpoints"]] == names
    assert latest(rounds.best_dir) == names[0]
    files = {file.name.split(".")[0] for file in rounds.best_dir.glob("ckpt-*")}
    assert files == set(names), "nothing but the board is left in best/"
    return names


def latest(best_dir: Path) -> str | None:
    """What tf.train.latest_checkpoint makes of the state file."""
    try:
        first = (best_dir / "checkpoint").read_text().splitlines()[0]
    except FileNotFoundError:
        return None
    assert first.startswith('model_checkpoint_path: "') and first.endswith('"')
    return first.split('"')[1]


READER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from faults import latest
from watcher.checkpoints.bundle import verify
best_dir, grace, looks = Path(sys.argv[1]), float(sys.argv[2]), 0
print("reading", flush=True)
while not Path(sys.argv[4]).exists():
    read_at = time.monotonic()
    name = latest(best_dir)
    if name is None:
        continue
    try:
        verify(best_dir / name)
        looks += 1
    except Exception as error:
        if time.monotonic() - read_at < grace:
            print(f"broken: {name}: {type(error).__name__}: {error}", flush=True)
            sys.exit(1)
print(looks)
"""


@contextlib.contextmanager
def never_looking_away(best_dir: Path, grace_seconds: float, end: Path) -> Iterator[None]:
    """Run a reader that reads `best/checkpoint` and verifies what it names, again and again.

    Fails at the end if it ever met a broken checkpoint sooner than `grace_seconds` after it had
    read its name.
    """
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", READER, str(best_dir), str(grace_seconds), here, str(end)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    try:
        yield
    finally:
        end.touch()
        said, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0, said
    assert int(said) > 0, "the reader has never read anything"


def fork_daemon(
    command: list[str], log: Path, environment: dict[str, object], *, chunk_bytes: int = 0
) -> Fork:
    """Start `checkpoint-watcher` in a forked process: the libraries are imported already.

    With `chunk_bytes` a small file is to it what a very large one is on a slow disk.
    """
    steer = {name: str(value) for name, value in {**PEACE_OFF, **environment}.items()}
    daemon = Fork(
        "daemon",
        command=[str(part) for part in command],
        log=str(log),
        environment=steer,
        chunk_bytes=chunk_bytes,
    )
    daemon.go()
    return daemon

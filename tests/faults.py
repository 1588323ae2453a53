"""Faults at chosen system calls, a reader that never looks away, and one round of the stages.

A round is what the daemon does with a new checkpoint, without the worker: look and pin, lease,
record a score, promote, evict. It runs in a forked child, so that strace can kill it or fail one of
its calls, and the libraries need not be imported each time.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from watcher.config import Settings
from watcher.data import Evaluation
from watcher.errors import ModelDirError, StoreError
from watcher.intake import Intake
from watcher.metric import parse_metric
from watcher.projection import Projector
from watcher.store import Store

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


class Rounds:
    """The state of one run, and the stages on it, in this process."""

    def __init__(self, folder: Path, *, top_k: int = 2, evict_seconds: float = 0.0) -> None:
        self.settings = Settings(
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
            self.state_dir / "watcher.db", run="run", model_dir=self.settings.model_path, now=now()
        )

    def begin(self, store: Store) -> tuple[Intake, Projector]:
        """What the daemon does at its start."""
        store.queue.return_all(now())
        store.ledger.set_policy(parse_metric(METRIC), "max", now())
        store.ledger.set_fingerprint("f" * 64, now())
        pins = self.state_dir / "pins"
        intake = Intake(self.settings.model_path, pins, store.queue, grace_seconds=5)
        intake.recover(now())
        return intake, Projector(self.settings, store, "run")

    def go(self, store: Store, intake: Intake, projector: Projector) -> str | None:
        """Do all there is to do; returns what went wrong, None when all is done."""
        intake.look(now(), time.monotonic())
        intake.write_down(now())
        if intake.problem:
            return intake.problem
        self.score_all(store)
        projector.update(now())
        if projector.problem is None and projector.evict_at < float("inf"):
            time.sleep(self.settings.evict_seconds)
            projector.update(now())
        return projector.problem

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

    def stubborn_round(self, said: mmap.mmap) -> None:
        """As the daemon does: try again while something fails, and say what."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with self.open() as store:
                    stages = self.begin(store)
                    while problem := self.go(store, *stages):
                        note(said, problem)
                        time.sleep(0.02)
                return
            except (StoreError, ModelDirError, OSError) as error:
                note(said, str(error))
                time.sleep(0.02)
        raise AssertionError("it never recovered")


def note(said: mmap.mmap, text: str) -> None:
    said[: len(said)] = text.encode()[: len(said)].ljust(len(said), b"\0")


def noted(said: mmap.mmap) -> str:
    return said[:].rstrip(b"\0").decode(errors="replace")


def now() -> float:
    return time.time()


def score_of(sha256: str) -> float:
    """A score that depends on the content alone, between 0 and 1."""
    return int(sha256[:8], 16) / 0xFFFFFFFF


class Child:
    """`work` in a forked child; strace, when asked, injects a fault into it until `heal`."""

    def __init__(
        self, work: Callable[[], object], fault: str | None = None, calls: str = MUTATING
    ) -> None:
        """Fork and start; `fault` is strace's: `signal=KILL:when=3`, `error=ENOSPC:when=3+`."""
        go_reader, go_writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(go_writer)
            os.read(go_reader, 1)
            _run_and_exit(work)
        os.close(go_reader)
        self.tracer: subprocess.Popen[bytes] | None = None
        if fault:
            inject = [f"-etrace={calls}", f"-einject={calls}:{fault}"]
            command = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(self.pid), *inject]
            self.tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while "TracerPid:\t0" in Path(f"/proc/{self.pid}/status").read_text():
                assert self.tracer.poll() is None, "strace cannot attach: is ptrace allowed here?"
                time.sleep(0.001)
        os.write(go_writer, b".")
        os.close(go_writer)

    def heal(self) -> None:
        """End the fault; the child lives on."""
        if self.tracer:
            self.tracer.terminate()
            self.tracer.wait()

    def wait(self) -> int:
        """Return 0, 1 when `work` raised, or the negative number of the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        if self.tracer:
            self.tracer.wait()
        return os.waitstatus_to_exitcode(status)


def _run_and_exit(work: Callable[[], object]) -> None:
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def in_child(work: Callable[[], object], fault: str | None = None, calls: str = MUTATING) -> int:
    """Run `work` in a child, with a fault if one is given; see Child."""
    return Child(work, fault, calls).wait()


def check(rounds: Rounds) -> list[str]:
    """Assert what must hold after recovery; returns the names on the board, best first."""
    from watcher.bundle import verify

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
    assert [sha for _, sha, _ in rows] == ranked[: rounds.settings.top_k]
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
from watcher.bundle import verify
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
        said, _ = reader.communicate(timeout=20)
    assert reader.returncode == 0, said
    assert int(said) > 0, "the reader has never read anything"


def fork_daemon(command: list[str], log: Path, environment: dict[str, object]) -> int:
    """Start `checkpoint-watcher` in a forked child: its own process, the libraries imported."""
    from watcher.cli import main

    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
        sys.argv = command
        os.environ.update({name: str(value) for name, value in environment.items()})
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

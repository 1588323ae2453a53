"""The soak: a busy run with faults at random, for as long as asked; prints its seed and result.

    PYTHONPATH=tests/helpers:tests .venv/bin/python -m soak --minutes 30 [--seed 1]

A trainer saves, rotates, starts over and is killed in the middle of saves. The watcher and its
worker are real processes (the stub evaluator, no TensorFlow). Faults come one upon the other:
kills, stops, failing system calls, a locked database, a worker that breaks, edits of best/. All the
while a reader verifies what `best/checkpoint` names. Then everything is let run out, and what must
hold is checked. Exit code 0 when it held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from faults import end_strace, latest, never_looking_away
from tensorboards import ON, steps
from watching import FAKE_TRAINER, Watcher, wait_until

from watcher.checkpoints.bundle import verify

GRACE_SECONDS = 1.0
FLAGS = ["--rescan-seconds", 0.5, "--top-k", 3, "--retry-seconds", 0.1, "--stall-timeout", 2]
FLAGS += ["--max-attempts", 1000, "--evict-seconds", GRACE_SECONDS, "--grace-seconds", 3]
# With write, the pipes to the worker and between threads fail too, which no full disk does.
WRITES = "write,pwrite64,fdatasync,fsync,link,linkat,mkdir,rename,unlink,ftruncate"
BREAKS = ("STUB_KILL", "STUB_EXIT", "STUB_GARBAGE", "STUB_HANG", "STUB_ORPHAN", "STUB_SHORT")


class Soak:
    def __init__(self, folder: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.folder = folder
        self.watcher = Watcher(folder)
        self.trainer: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None
        self.counts: Counter[str] = Counter()
        self.acknowledged: set[tuple[str, float]] = set()
        self.once = folder / "once"
        self.once.mkdir()
        self.faults: dict[str, Callable[[], None]] = {
            "daemon killed": self.kill_daemon,
            "daemon asked to end": self.end_daemon,
            "daemon stopped for a while": self.stop_daemon,
            "worker killed": self.kill_worker,
            "database locked": self.lock_database,
            "system calls fail": self.fail_calls,
            "system calls are slow": self.slow_calls,
            "trainer killed": self.kill_trainer,
            "best/ edited": self.edit_best,
            "two daemons": self.start_second,
        }

    # -- what runs

    def keep_running(self) -> None:
        if self.daemon is None or self.daemon.poll() is not None:
            if self.daemon is not None and self.daemon.returncode not in (0, -signal.SIGKILL):
                self.counts[f"daemon ended with {self.daemon.returncode}"] += 1
            fault = self.chance.choice(BREAKS)
            names = ",".join(f"ckpt-{self.chance.randrange(1, 400)}" for _ in range(20))
            steer = {fault: names, "STUB_ONCE": self.once, "STUB_SECONDS": 0.05, **ON}
            self.daemon = self.watcher.start(*FLAGS, **steer, STUB_STARTS=self.folder / "starts")
        if self.trainer is None or self.trainer.poll() is not None:
            self.trainer = self.train()

    def train(self) -> subprocess.Popen[bytes]:
        options = ["--saves", self.chance.randrange(5, 60), "--megabytes", 0.02]
        options += ["--interval", self.chance.choice([0.1, 0.3, 1.0])]
        options += ["--max-to-keep", self.chance.choice([2, 7]), "--seed", self.chance.random()]
        if self.chance.random() < 0.2:
            options += ["--forget-state"]
        if self.chance.random() < 0.3:
            options += ["--die-at", self.chance.choice(["temp", "data", "index"])]
        program = [
            sys.executable,
            FAKE_TRAINER,
            self.watcher.model_dir,
        ]
        return subprocess.Popen(
            [str(part) for part in [*program, *options]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        if self.trainer and self.trainer.poll() is None:
            self.trainer.kill()
            self.trainer.wait()
        self.watcher.end()

    # -- the faults

    def kill_daemon(self) -> None:
        assert self.daemon
        self.acknowledge()
        self.daemon.kill()
        self.daemon.wait()

    def end_daemon(self) -> None:
        assert self.daemon
        self.daemon.terminate()
        self.daemon.wait(timeout=60)

    def stop_daemon(self) -> None:
        assert self.daemon
        self.daemon.send_signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.1, 3))
        self.daemon.send_signal(signal.SIGCONT)

    def kill_worker(self) -> None:
        starts = self.folder / "starts"
        if starts.exists() and (pids := starts.read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pids[-1]), signal.SIGKILL)

    def lock_database(self) -> None:
        script = (
            "import sqlite3, sys, time\n"
            "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=5)\n"
            "db.execute('BEGIN IMMEDIATE'); time.sleep(float(sys.argv[2]))"
        )
        seconds = self.chance.uniform(0.5, 5)
        if self.watcher.database.exists():
            command = [sys.executable, "-c", script, str(self.watcher.database), str(seconds)]
            subprocess.run(command, check=False, stderr=subprocess.DEVNULL)

    def fail_calls(self) -> None:
        error = self.chance.choice(["ENOSPC", "EIO", "EACCES", "EROFS"])
        self.inject(f"error={error}")

    def slow_calls(self) -> None:
        self.inject("delay_exit=20000")

    def inject(self, fault: str) -> None:
        assert self.daemon
        if not shutil.which("strace"):
            return
        first = self.chance.choice(["", ":when=1+3", ":when=5+"])
        inject = [f"-etrace={WRITES}", f"-einject={WRITES}:{fault}{first}"]
        strace = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(self.daemon.pid), *inject]
        tracer = subprocess.Popen(strace, stderr=subprocess.DEVNULL)
        time.sleep(self.chance.uniform(0.2, 3))
        end_strace(tracer)

    def kill_trainer(self) -> None:
        assert self.trainer
        self.trainer.kill()
        self.trainer.wait()

    def edit_best(self) -> None:
        """Only what is not the best: the reader would see the user's damage, not ours.

        Nor what may be the best a moment later: the stub's scores grow with the number.
        """
        best = latest(self.watcher.best_dir) or "ckpt-0"
        files = [f for f in self.watcher.best_files() if f.startswith("ckpt-")]
        others = sorted(f for f in files if _number(f) < _number(best))
        if others:
            victim = self.watcher.best_dir / self.chance.choice(others)
            with contextlib.suppress(FileNotFoundError):
                victim.unlink()
                if self.chance.random() < 0.5:
                    victim.write_bytes(b"edited by a user")
        (self.watcher.best_dir / "notes.txt").write_text("mine")

    def start_second(self) -> None:
        assert self.daemon
        lock = self.watcher.model_dir / "watcher" / "lock"
        held = lock.exists() and lock.read_text().strip() == str(self.daemon.pid)
        if held and self.daemon.poll() is None:
            second = subprocess.run(self.watcher.command(), capture_output=True, timeout=30)
            assert second.returncode == 3, second.stderr

    # -- what must hold

    def acknowledge(self) -> None:
        if self.watcher.states():
            rows = self.watcher.query("SELECT sha256, score FROM history WHERE state = 'scored'")
            self.acknowledged |= {(row["sha256"], row["score"]) for row in rows}

    def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.keep_running()
        wait_until(lambda: latest(self.watcher.best_dir), "a first best", 60)
        end = self.folder / "end"
        with never_looking_away(self.watcher.best_dir, GRACE_SECONDS, end):
            while time.monotonic() < deadline:
                self.keep_running()
                time.sleep(self.chance.uniform(0, 2))
                name = self.chance.choice(sorted(self.faults))
                self.counts[name] += 1
                self.faults[name]()
            self.run_out()
        self.check()

    def run_out(self) -> None:
        self.kill_trainer()
        self.acknowledge()
        self.end_daemon()
        assert self.watcher.run(*FLAGS, **ON) == 0, "the last run drains the queue"

    def check(self) -> None:
        watcher = self.watcher
        assert watcher.query("PRAGMA integrity_check") == [{"integrity_check": "ok"}]
        rows = watcher.query("SELECT * FROM history")
        self.counts.update(f"state {row['state']}" for row in rows)
        assert {row["state"] for row in rows} <= {"scored", "untrained", "missed", "corrupt"}
        scored = {row["sha256"]: row for row in rows if row["state"] == "scored"}
        assert self.acknowledged <= {(sha, row["score"]) for sha, row in scored.items()}
        events = watcher.query("SELECT count(*) AS n FROM events WHERE kind = 'scored'")
        assert events == [{"n": len(scored)}], "none was scored twice"
        known = {row["checkpoint"] for row in rows}
        present = {file.stem for file in watcher.model_dir.glob("ckpt-*.index")}
        assert present <= known, "none was forgotten"
        order = sorted(scored.values(), key=lambda row: (-row["score"], row["global_step"]))
        board = watcher.query("SELECT sha256, score, path FROM leaderboard ORDER BY rank")
        assert [row["score"] for row in board] == [row["score"] for row in order[:3]]
        for row in board:
            assert verify(Path(row["path"])).sha256 == row["sha256"]
        content = json.loads((watcher.best_dir / "best.json").read_text())
        assert [entry["sha256"] for entry in content["checkpoints"]] == [r["sha256"] for r in board]
        assert latest(watcher.best_dir) == Path(board[0]["path"]).name
        newest = max(row["generation"] for row in scored.values())
        for life in {row["generation"] for row in scored.values()}:
            folder = watcher.model_dir / "eval" / "val"
            folder = folder if life == newest else folder / f"earlier-generation-{life}"
            of_life = {row["global_step"] for row in scored.values() if row["generation"] == life}
            assert steps(folder) == sorted(of_life), "each life of the trainer is a curve"
        self.no_worker_is_left()

    def no_worker_is_left(self) -> None:
        for pid in set((self.folder / "starts").read_text().split()):
            command = Path(f"/proc/{pid}/cmdline")
            with contextlib.suppress(OSError):
                assert b"worker.py" not in command.read_bytes(), f"worker {pid} is left"


def _number(name: str) -> int:
    return int(name.split(".")[0].split("-")[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Mix faults at random, then check what must hold.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--keep", action="store_true", help="keep the folder when all held")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"soak: {arguments.minutes:g} minutes, seed {arguments.seed}, in {folder}", flush=True)
    soak = Soak(folder, arguments.seed)
    held = False
    try:
        soak.run(60 * arguments.minutes)
        held = True
    finally:
        soak.end()
        for what, count in sorted(soak.counts.items()):
            print(f"{count:6}  {what}")
        print("all held" if held else f"FAILED, see {folder}", flush=True)
    if not arguments.keep:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())

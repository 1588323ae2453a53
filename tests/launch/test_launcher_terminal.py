"""The launcher on a terminal: a real shell with job control on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import kill_group
from watching import CLI, FAKE_TRAINER, STUB, alive, wait_until

pytestmark = pytest.mark.slow

CTRL_C, CTRL_Z = "\x03", "\x1a"


class Shell:
    """`bash -i` on a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.model_dir = folder / "model_dir"
        self.pids = folder / "pids"
        self._seen = ""
        self._master, self._slave = os.openpty()
        # The first terminal that the leader of a session opens is that session's.
        bash = 'exec bash --norc --noprofile -i <"$0" >"$0" 2>&1'
        self._bash = subprocess.Popen(
            ["sh", "-c", bash, os.ttyname(self._slave)],
            start_new_session=True,
            env={**os.environ, "PS1": "$ ", "TERM": "dumb", "HISTFILE": "/dev/null"},
        )

    def train(self, program: str, *flags: str) -> None:
        """Type the launcher's command line, with a trainer that is a few lines of Python."""
        note = f"import os; open({str(self.pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        trainer = self.model_dir.with_name("trainer.py")
        trainer.write_text(note + program)
        words = [*CLI, "train", "--model-dir", str(self.model_dir), *flags]
        self.type(shlex.join([*words, "--", sys.executable, str(trainer)]) + "; echo code=$?\n")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def shows(self, text: str, seconds: float = 60) -> None:
        """Wait for a text after the one that was waited for last."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            left = deadline - time.monotonic()
            assert left > 0, f"no {text!r} in {self._seen!r}"
            if select.select([self._master], [], [], left)[0]:
                self._seen += os.read(self._master, 4096).decode(errors="replace")
        self._seen = self._seen.split(text, 1)[1]

    def trainer(self) -> int:
        """The trainer's process id."""
        wait_until(lambda: self.pids.exists() and self.pids.read_text().strip(), "it runs")
        return int(self.pids.read_text().split()[-1])

    def foreground(self) -> int:
        """The process group that the terminal listens to."""
        return os.tcgetpgrp(self._master)

    def hang_up(self) -> None:
        """Close the terminal."""
        os.close(self._master)
        self._master = -1

    def end(self) -> None:
        if self.pids.exists():
            for pid in map(int, self.pids.read_text().split()):
                kill_group(pid)
        self._bash.kill()
        self._bash.wait()
        os.close(self._slave)
        if self._master >= 0:
            self.hang_up()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.end()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_ctrl_c_ends_the_trainer_and_gives_130(shell: Shell):
    shell.train("import time\nprint('train' 'ing', flush=True)\ntime.sleep(60)", "--restarts", "3")
    shell.shows("training")
    shell.type(CTRL_C)
    shell.shows("Ctrl-C is handed on to the trainer")
    shell.shows("KeyboardInterrupt")
    shell.shows("code=130")
    assert not alive(shell.trainer())


def test_ctrl_z_stops_the_trainer_and_fg_goes_on(shell: Shell):
    shell.train("import time\nprint('train' 'ing', flush=True)\ntime.sleep(60)")
    shell.shows("training")
    shell.type(CTRL_Z)
    shell.shows("Stopped")
    assert wait_until(lambda: state(shell.trainer()) == "T", "the trainer is stopped")
    shell.type("fg\n")
    wait_until(lambda: state(shell.trainer()) != "T", "the trainer goes on")
    shell.type(CTRL_C)
    shell.shows("KeyboardInterrupt")


def test_a_trainer_that_asks_gets_the_terminal_also_for_ctrl_z_and_ctrl_c(shell: Shell):
    shell.train("import sys\nprint('got', input('debug' 'ger> '))\nprint(input('more' '> '))")
    shell.shows("debugger> ")
    shell.type("line\n")
    shell.shows("got line")
    shell.shows("more> ")
    wait_until(lambda: shell.foreground() == shell.trainer(), "it has the terminal")
    shell.type(CTRL_Z)
    shell.shows("Stopped")
    shell.type("fg\n")
    wait_until(lambda: shell.foreground() == shell.trainer(), "it has it again")
    shell.type(CTRL_C)
    shell.shows("KeyboardInterrupt")
    shell.type("\necho shell is $((6 * 7))\n")
    shell.shows("shell is 42")


def test_with_tostop_neither_a_background_line_nor_the_trainer_is_held_up(shell: Shell):
    shell.type("stty tostop\n")
    shell.train("import os\nos.write(1, b'first' b'\\n')\nos.write(1, b'second' b'\\n')")
    shell.shows("first")
    shell.shows("second")
    shell.shows("code=0")


def test_with_tostop_the_watcher_beside_the_trainer_works_to_its_end(shell: Shell, tmp_path: Path):
    (pipeline := tmp_path / "pipeline.config").write_text("the stub evaluator does not read it\n")
    program = f"""
import pathlib, sys
sys.path.insert(0, {str(FAKE_TRAINER.parent)!r})
from fake_trainer import Manager, model_tensors
manager = Manager(pathlib.Path({str(shell.model_dir)!r}), max_to_keep=None)
for number in range(1, 4):
    manager.save(100 * number, model_tensors(1000, str(number)))
blocked = pathlib.Path("/proc/self/status").read_text().split("SigBlk:")[1].split()[0]
print("it has block" "ed", int(blocked, 16))
"""
    shell.type("stty tostop\n")
    shell.train(program, "--watch", "--pipeline-config", str(pipeline), "--python", str(STUB))
    shell.shows("it has blocked 0")
    shell.shows("code=0")
    with contextlib.closing(sqlite3.connect(shell.model_dir / "watcher" / "watcher.db")) as db:
        assert db.execute("SELECT count(*) FROM leaderboard").fetchone() == (3,)


def test_a_closed_terminal_ends_trainer_and_launcher(shell: Shell):
    shell.train("import time\nprint('train' 'ing', flush=True)\ntime.sleep(60)")
    shell.shows("training")
    launcher = int(Path(f"/proc/{shell.trainer()}/stat").read_text().rsplit(")", 1)[1].split()[1])
    shell.hang_up()
    wait_until(lambda: not alive(shell.trainer()), "the trainer is gone")
    wait_until(lambda: not alive(launcher), "the launcher is gone")

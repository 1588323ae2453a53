"""The units on a real systemd: `make test-systemd` boots a small Debian and runs them in it.

What a user types is typed here: `install-units`, and then the commands that it prints. Trainer and
worker are small stand-ins, since the machine has no TensorFlow; the rest is what is installed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import CommandFailed, Machine, what_is_missing
from watching import ROOT, wait_until

HERE = Path(__file__).parent
PROGRAM = "/opt/checkpoint-watcher/bin/checkpoint-watcher"
RUNS = Path("/srv/runs")
# How long `systemctl stop` may take: it ends within 10 s, and systemd kills it after 20.
STOP_SECONDS = 12

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """The machine with the package installed, booted."""
    if missing := what_is_missing():
        pytest.fail(f"needs {missing}")
    booted = Machine()
    with tempfile.TemporaryDirectory() as wheels:
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels]
        built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        try:
            booted.boot(f"--bind-ro={wheels}:/wheels", f"--bind-ro={ROOT / 'tests'}:/tests")
            booted.run("sh", "-ec", SET_UP)
            yield booted
        finally:
            booted.close()


# The package from its wheel, and a training environment.
SET_UP = """
/opt/checkpoint-watcher/bin/pip install --quiet --no-index --no-deps /wheels/*.whl
mkdir -p /opt/od/bin /opt/od/lib/object_detection /opt/od/lib/tensorflow
cp /tests/helpers/fake_trainer.py /tests/helpers/fake_bundle.py /opt/od/lib
cp /tests/systemd/model_main_tf2.py /opt/od/lib/object_detection
touch /opt/od/lib/object_detection/__init__.py /opt/od/lib/tensorflow/__init__.py
touch /srv/pipeline.config
cp /tests/workers/stub_worker.py /opt/od
install -m 755 /tests/systemd/od_python /opt/od/bin/python
"""


# Prints nothing while there is no database, or not all of it.
_QUERY = """
import json, sqlite3, sys
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
database.row_factory = sqlite3.Row
print(json.dumps([dict(row) for row in database.execute(sys.argv[2])]))
"""


class Run:
    """One training run on the machine: its units, and what they did."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.name = name
        self.model_dir = RUNS / name
        self.unit = f"checkpoint-watcher@{name}.service"
        self.trainer = f"od-train@{name}.service"

    def install(self, *flags: object, **steer: object) -> str:
        """Write the units, with what steers the stub worker; returns what was printed."""
        printed = self.machine.run(
            *(PROGRAM, "install-units", self.model_dir, "--run", self.name),
            *("--pipeline-config", "/srv/pipeline.config", "--python", "/opt/od/bin/python"),
            *flags,
        )
        self.drop_in("Service", *(f"Environment={name}={value}" for name, value in steer.items()))
        self.machine.run("systemd-sysusers")
        self.machine.run("systemd-tmpfiles", "--create", expect=None)
        self.machine.run("systemctl", "daemon-reload")
        return printed

    def drop_in(self, section: str, *lines: str) -> None:
        """Add to the watcher's unit, as an operator does; `daemon-reload` is the caller's."""
        folder = self.machine.path(f"/etc/systemd/system/{self.unit}.d")
        text = "\n".join([f"[{section}]", *lines, ""])
        (folder / f"50-{section}.conf").write_text(text)

    def save(self, count: int) -> None:
        """Save checkpoints into MODEL_DIR, as its owner."""
        self.machine.run(
            *("runuser", "-u", "checkpoint-watcher", "--", "/opt/od/bin/python"),
            *("/tests/helpers/fake_trainer.py", self.model_dir, "--saves", count, "--interval", 0),
            *("--max-to-keep", 0, "--megabytes", 0.01, "--no-untrained-first"),
        )

    def show(self, what: str, unit: str | None = None) -> str:
        """Return one property of a unit."""
        return self.machine.run("systemctl", "show", "-P", what, unit or self.unit).strip()

    def systemctl(self, *words: str, expect: int | None = 0) -> str:
        return self.machine.run("systemctl", *words, expect=expect)

    def wait_for(self, what: str, value: str, unit: str | None = None, seconds: float = 30) -> None:
        """Wait until a property of a unit matches."""
        try:
            wait_until(
                lambda: re.search(value, self.show(what, unit)), f"{what} is {value}", seconds
            )
        except AssertionError as error:
            shown = self.show(what, unit)
            raise AssertionError(f"{error}; it is {shown}\n{self.journal()[-3000:]}") from None

    def states(self) -> dict[str, str]:
        """Name to state of each checkpoint."""
        return {row["checkpoint"]: row["state"] for row in self.query("SELECT * FROM history")}

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Ask the live database."""
        database = self.model_dir / "watcher" / "watcher.db"
        rows = self.machine.run("/usr/bin/python3", "-c", _QUERY, database, sql, expect=None)
        found: list[dict[str, Any]] = json.loads(rows or "[]")
        return found

    def wait_for_scores(self, count: int, seconds: float = 30) -> None:
        def scored() -> bool:
            return list(self.states().values()).count("scored") >= count

        try:
            wait_until(scored, f"{count} are scored", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.states()}\n{self.journal()[-3000:]}") from None

    def main_process(self) -> int:
        return int(self.show("MainPID"))

    def worker(self) -> int:
        """The worker's process id, as the machine counts."""
        found = self.machine.run("pgrep", "-P", self.main_process(), expect=None).split()
        return int(found[0]) if found else 0

    def journal(self, unit: str | None = None) -> str:
        return self.machine.run("journalctl", "--no-pager", "-o", "cat", "-u", unit or self.unit)

    def file(self, name: str) -> Path:
        return self.machine.path(self.model_dir) / name


@pytest.fixture
def run(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Run]:
    """A run of the test's own; its units are stopped afterwards."""
    made = Run(machine, re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))[:24])
    yield made
    for unit in (f"od-train-stop@{made.name}.path", made.trainer, made.unit):
        machine.run("systemctl", "disable", "--now", unit, expect=None)
        machine.run("systemctl", "reset-failed", unit, expect=None)


def test_what_install_units_prints_gets_a_run_going(machine: Machine, run: Run):
    printed = machine.run(
        *(PROGRAM, "install-units", run.model_dir, "--run", run.name, "--trainer", "plain"),
        *("--pipeline-config", "/srv/pipeline.config", "--python", "/opt/od/bin/python"),
        *("--top-k", 2, "--trainer-flags=--saves=4 --seconds=0.2"),
    )
    for line in printed.split("next:\n")[1].splitlines():
        if "status" not in line:
            machine.run("sh", "-c", line.strip())
    run.wait_for_scores(4)
    run.wait_for(
        "StatusText", r"^best ckpt-4 \(step 400, score 0\.0040\); 0 waiting; worker: ready"
    )
    assert run.show("ActiveState") == "active" and run.show("NRestarts") == "0"
    assert run.show("UnitFileState") == "enabled"
    best = {path.name for path in run.file("best").iterdir()}
    assert {"checkpoint", "best.json", "ckpt-4.index", "ckpt-3.index"} <= best
    pins = "SELECT DISTINCT pin_method FROM checkpoints WHERE pin_method IS NOT NULL"
    assert run.query(pins) == [{"pin_method": "link"}]
    run.wait_for("ActiveState", "inactive", run.trainer)
    assert run.show("Result", run.trainer) == "success"


def test_the_service_has_no_privileges_and_writes_nowhere_but_into_its_run(
    machine: Machine, run: Run
):
    run.install("--trainer", "none")
    run.systemctl("start", run.unit)
    status = machine.run("cat", f"/proc/{run.main_process()}/status")
    facts = dict(re.findall(r"^(\w+):\t(.*)$", status, re.MULTILINE))
    assert (facts["NoNewPrivs"], facts["Seccomp"], facts["CapBnd"]) == ("1", "2", "0" * 16)
    assert machine.run("ps", "-o", "user=", "-p", run.main_process()).strip() != "root"
    exposure = machine.run("systemd-analyze", "security", "--no-pager", run.unit)
    assert float(re.search(r"Overall exposure level.*: ([\d.]+)", exposure)[1]) <= 2.0
    into = ["nsenter", f"--target={run.main_process()}", "--mount", "touch"]
    for folder in ("/etc/x", "/srv/x", "/opt/od/x", "/root/x"):
        with pytest.raises(CommandFailed, match=r"Read-only file system|No such file"):
            machine.run(*into, folder)
    machine.run(*into, run.model_dir / "x")


def test_a_killed_daemon_is_started_again_and_goes_on(machine: Machine, run: Run):
    run.install("--trainer", "none", STUB_SECONDS=1)
    run.systemctl("start", run.unit)
    run.save(3)
    run.wait_for("StatusText", "evaluating ckpt-1")
    before, worker = run.main_process(), run.worker()
    machine.run("kill", "-KILL", before)
    run.wait_for("NRestarts", "^1$")
    run.wait_for_scores(3)
    assert run.main_process() not in (0, before)
    machine.run("test", "-e", f"/proc/{worker}", expect=1)
    assert run.show("ActiveState") == "active"


def test_a_killed_worker_is_replaced_by_the_daemon_itself(machine: Machine, run: Run):
    run.install("--trainer", "none", "--retry-seconds", 0.2, STUB_SECONDS=1)
    run.systemctl("start", run.unit)
    run.save(2)
    run.wait_for("StatusText", "evaluating ckpt-1")
    before = run.main_process()
    machine.run("kill", "-KILL", run.worker())
    run.wait_for_scores(2)
    assert (run.main_process(), run.show("NRestarts")) == (before, "0")


def test_a_daemon_that_is_stopped_is_ended_by_the_watchdog_and_started_again(
    machine: Machine, run: Run
):
    run.install("--trainer", "none")
    run.drop_in("Service", "WatchdogSec=3")
    run.systemctl("daemon-reload")
    run.systemctl("start", run.unit)
    before = run.main_process()
    time.sleep(5)
    assert run.main_process() == before, "a loop with nothing to do pings"
    machine.run("kill", "-STOP", before)
    run.wait_for("NRestarts", "^1$")
    run.wait_for("ActiveState", "^active$")
    run.save(1)
    run.wait_for_scores(1)
    journal = run.journal()
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal and "in _wait" in journal, "where it hung"


def test_it_stops_in_time_and_gives_the_running_evaluation_back(run: Run):
    run.install("--trainer", "none", STUB_SECONDS=600)
    run.systemctl("start", run.unit)
    run.save(2)
    run.wait_for("StatusText", "evaluating ckpt-1")
    started = time.monotonic()
    run.systemctl("stop", run.unit)
    assert time.monotonic() - started < STOP_SECONDS
    assert run.show("Result") == "success"
    assert run.states() == {"ckpt-1": "pending", "ckpt-2": "pending"}


def test_a_queue_that_waits_survives_a_reboot(machine: Machine, run: Run):
    run.install("--trainer", "none", STUB_SECONDS=2)
    run.systemctl("enable", "--now", run.unit)
    run.save(4)
    run.wait_for_scores(1)
    machine.reboot()
    run.wait_for("ActiveState", "^active$")
    assert list(run.states().values()).count("scored") < 4, "the reboot came too late"
    run.wait_for_scores(4)


def test_a_plain_trainer_is_stopped_when_the_sentinel_appears_and_not_begun_again(
    machine: Machine, run: Run
):
    falling = json.dumps({f"ckpt-{n}": (100 - n) / 100 for n in range(1, 99)})
    run.install("--trainer", "plain", "--patience", 3)
    run.drop_in("Service", f"Environment='STUB_SCORES={falling}'")
    run.systemctl("daemon-reload")
    run.systemctl("enable", f"od-train-stop@{run.name}.path")
    run.systemctl("start", run.trainer)
    run.wait_for("StatusText", "early stop: no improvement")
    run.wait_for("ActiveState", "inactive", run.trainer)
    assert run.show("Result", run.trainer) == "success"
    assert run.show("ActiveState") == "active", "the watcher goes on"
    assert '"reason": "patience"' in run.journal(f"od-train-stop@{run.name}.service")
    run.systemctl("start", run.trainer)
    assert run.show("ConditionResult", run.trainer) == "no"
    time.sleep(1)
    assert run.show("ActiveState", run.trainer) == "inactive"
    # Other settings withdraw the decision, and it trains on.
    settings = machine.path(f"/etc/checkpoint-watcher/{run.name}.toml")
    settings.write_text(settings.read_text().replace("patience = 3", "patience = 90"))
    run.systemctl("restart", run.unit)
    wait_until(lambda: not run.file("EARLY_STOP").exists(), "the sentinel is gone")
    saved = len(run.states())
    run.systemctl("start", run.trainer)
    run.wait_for("ActiveState", "^active$", run.trainer)
    run.wait_for_scores(saved + 1)


def test_a_trainer_in_the_launcher_ends_at_the_sentinel_and_is_not_begun_again(
    machine: Machine, run: Run
):
    falling = json.dumps({f"ckpt-{n}": (100 - n) / 100 for n in range(1, 99)})
    run.install("--patience", 3)
    run.drop_in("Service", f"Environment='STUB_SCORES={falling}'")
    run.systemctl("daemon-reload")
    run.systemctl("start", run.trainer)
    run.wait_for("StatusText", "early stop: no improvement")
    run.wait_for("ActiveState", "inactive", run.trainer)
    assert (run.show("Result", run.trainer), run.show("NRestarts", run.trainer)) == ("success", "0")
    saved = len(run.states())
    run.systemctl("start", run.trainer)
    run.wait_for("ActiveState", "inactive", run.trainer)
    assert run.show("Result", run.trainer) == "success"
    assert run.show("ActiveState") == "active" and len(run.states()) == saved


def test_a_trainer_that_crashes_is_started_again_and_goes_on(machine: Machine, run: Run):
    run.install()
    machine.path(f"/etc/systemd/system/{run.trainer}.d/50-soon.conf").write_text(
        "[Service]\nRestartSec=0.5\n"
    )
    run.systemctl("daemon-reload")
    run.systemctl("start", run.trainer)
    run.wait_for_scores(1)
    machine.run("pkill", "-KILL", "-f", f"model_main_tf2 --model_dir={run.model_dir}")
    run.wait_for("NRestarts", "^1$", run.trainer)
    run.wait_for_scores(len(run.states()) + 1)
    started = time.monotonic()
    run.systemctl("stop", run.trainer)
    assert time.monotonic() - started < STOP_SECONDS
    assert run.show("Result", run.trainer) == "success"


def test_a_second_run_beside_the_first_has_nothing_to_do_with_it(machine: Machine, run: Run):
    second = Run(machine, f"{run.name}-second")
    for each, score in ((run, 0.25), (second, 0.5)):
        each.install("--trainer", "none")
        each.drop_in("Service", f"""Environment='STUB_SCORES={{"ckpt-1": {score}}}'""")
    run.systemctl("daemon-reload")
    run.systemctl("start", run.unit, second.unit)
    for each, score in ((run, 0.25), (second, 0.5)):
        each.save(1)
        each.wait_for_scores(1)
        assert each.query("SELECT run, score FROM best") == [{"run": each.name, "score": score}]
    run.systemctl("stop", run.unit)
    assert second.show("ActiveState") == "active"
    second.save(1)
    second.wait_for_scores(2)
    second.systemctl("stop", second.unit)


def test_a_second_watcher_of_one_model_dir_ends_and_is_not_started_again(
    machine: Machine, run: Run
):
    run.install("--trainer", "none")
    run.systemctl("start", run.unit)
    again = Run(machine, f"{run.name}-again")
    again.model_dir = run.model_dir
    again.install("--trainer", "none")
    run.systemctl("start", again.unit, expect=1)
    time.sleep(1)
    assert (again.show("ExecMainStatus"), again.show("NRestarts")) == ("3", "0")
    assert "another watcher" in again.journal()
    assert run.show("ActiveState") == "active"
    run.systemctl("reset-failed", again.unit)

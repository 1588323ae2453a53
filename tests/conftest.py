"""Fixtures that several test files share."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, MISSING, Browser
from shared import once
from stores import MAP, NOW
from trained import Trained
from watching import ROOT, Watcher

from watcher.decision.metric import parse_metric
from watcher.store import Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs a real watcher as slow, and begin with the files that take longest."""
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        if _REMOTE.fullmatch(item.path.name) and item.get_closest_marker("slow"):
            item.add_marker("remote")
    # So that no process waits for the others at the end.
    first = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))


# What talks to other hosts, a cluster or a bucket; the quick ones among it are no trouble.
_REMOTE = re.compile(
    r"test_(far_\w+|hosts|slurm|carriers|bridge|carriage|cache|publish|\w*bucket\w*)\.py"
)

# From the longest; but for the exact ones, which wait for the run that the main job makes.
_LONGEST = (
    "test_evaluator_families.py",
    "test_main_job.py",
    "test_faults_promotion.py",
    "test_doctor.py",
    "test_faults_store.py",
    "test_evaluator_start.py",
    "test_evaluator_exact.py",
    "test_launcher.py",
    "test_faults_worker.py",
    "test_web.py",
    "test_device_running.py",
    "test_faults_pinning.py",
    "test_tensorboard.py",
    "test_faults_running.py",
    "test_readme.py",
    "test_run.py",
)


# What they start runs for seconds: a real watcher, the README's commands, a training environment.
SLOW_FIXTURES = {"desk", "od_python", "watcher"}
# A second alone; beside others on the same cores up to two.
_QUICK_SECONDS = 2.0


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name what takes long in a run of quick tests alone, as `make check` is one."""
    busy = os.getloadavg()[0] > 2 * (os.cpu_count() or 1)  # then everything takes long
    if "not slow" not in config.option.markexpr or busy:
        return
    seconds: Counter[str] = Counter()
    for report in (one for kind in terminalreporter.stats.values() for one in kind):
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid] += report.duration
    late = [(name, took) for name, took in seconds.most_common() if took > _QUICK_SECONDS]
    if late:
        terminalreporter.section("slow: mark these with @pytest.mark.slow, or make them quick")
    for name, took in late:
        terminalreporter.write_line(f"{took:5.1f} s {name}")


@pytest.fixture(scope="session", autouse=True)
def _signals() -> None:
    """Let what the tests start heed signals, also where nohup or a shell's `&` ignores them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _bytecode() -> Iterator[None]:
    """Let what the tests start keep its bytecode, or each of a thousand starts compiles it anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _python3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let `env python3`, which begins the stub worker, be no shell script of a version manager.

    That takes longer than the stub itself, and there are hundreds of its starts.
    """
    folder = tmp_path_factory.mktemp("bin")
    (folder / "python3").symlink_to(Path(sys.base_prefix, "bin", "python3"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session", autouse=True)
def _temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary folder for all that the tests start, which goes with what was left in it.

    A killed TensorFlow leaves the code that it generated, and there are hundreds of them.
    """
    folder = tmp_path_factory.mktemp("tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def od_python() -> str:
    """The interpreter of a training environment: TensorFlow and the OD API are in it."""
    path = os.environ.get("CHECKPOINT_WATCHER_OD_PYTHON", str(ROOT / ".venv-od" / "bin" / "python"))
    if not Path(path).exists():
        pytest.fail(f"no training environment at {path}: run `make test`, which installs it")
    return path


@pytest.fixture(scope="session")
def trained(od_python: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The one run of the unmodified trainer, made by the first test that asks for it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    run = Trained(folder / "trained", od_python)
    once(run.folder, lambda _: run.make())
    return run


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    """A run in a temporary folder, with the stub evaluator; its processes end with the test."""
    run = Watcher(tmp_path)
    yield run
    run.end()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database of `store` lies."""
    return tmp_path / "watcher.db"


@pytest.fixture
def store(path: Path, tmp_path: Path) -> Iterator[Store]:
    """The writing side of a run whose first evaluation is about to be recorded."""
    with Store(path, run="run", model_dir=tmp_path, now=NOW) as opened:
        opened.ledger.set_policy(parse_metric(MAP), "max", NOW)
        opened.ledger.set_fingerprint("a" * 64, NOW)
        yield opened


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all tests of a file."""
    if CHROMIUM is None:
        pytest.skip(MISSING)
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()

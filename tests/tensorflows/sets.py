"""Tests on one training set after the other: `sets.py --default SET VENV [SET...]`.

This is `make test-tensorflows`. A set is one of `deploy/requirements/od-*.txt`; where none is named
all that run on a CPU are taken, from the oldest TensorFlow to the newest. The Makefile installs
each in `build/sets/`, from where it is removed afterwards; the default one is where `make test` has
it. On the oldest and the newest that there is a Python for, all tests of the training environment
are run, and on the others a few. A set without a Python is named and left out.

At the end there is a table. The exit code is 1 where a test failed or nothing was run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
LISTS = ROOT / "deploy" / "requirements"
WORK = Path("build") / "sets"

MAIN_JOB = "tests/runtime/test_main_job.py::"
FAMILIES = "tests/evaluators/test_evaluator_families.py::test_every_metric_equals_the_od_api"
EVERY_SET = "tests/tensorflows/every_set.py"
GARDEN_EXACT = (
    "tests/model_garden/test_garden_exact.py::"
    "test_every_metric_equals_model_gardens_own_to_the_last_bit"
)
# Those experiments of Model Garden that take longer.
GARDEN = "tests/model_garden/more_experiments.py"
HOOKS = "tests/od_api_today/test_hooks.py"
# What a column of the table stands for.
COLUMNS = {
    "trained": MAIN_JOB + "test_every_checkpoint_of_the_trainer_has_its_outcome",
    "evaluated equal": MAIN_JOB + "test_every_metric_equals_the_od_apis_own_to_the_last_bit",
    "exported": MAIN_JOB
    + "test_best_is_what_the_database_says_and_tensorflow_and_the_exporter_take_it_as_it_is",
    "TFLite": EVERY_SET,
    "families": FAMILIES,
    "Model Garden": GARDEN_EXACT,
    "hooks": HOOKS,
    "s3://": "tests/sources/test_bucket_tensorflow.py",
}
FEW = [test for test in COLUMNS.values() if test not in (FAMILIES, GARDEN_EXACT)]
FEW += [f"{GARDEN_EXACT}[{name}]" for name in ("retinanet", "classification")]
# With both ways in which the OD API takes Keras' own models.
FEW_FAMILIES = [f"{FAMILIES}[{name}]" for name in ("faster_rcnn", "center_net", "efficientdet:1")]
# By the pattern: pytest passes over a file that is named beside its folder.
NAMES = f"test_*.py {Path(EVERY_SET).name} {Path(GARDEN).name}"
ALL = ["-m", "tensorflow", "-o", f"python_files={NAMES}"]


@dataclass(frozen=True)
class Set:
    """A list of packages, by its name: `py311-tf221`."""

    name: str

    @property
    def python(self) -> tuple[int, int]:
        """The version of its Python."""
        return _version(self.name.split("-")[0].removeprefix("py"))

    @property
    def tensorflow(self) -> tuple[int, int]:
        """The version of its TensorFlow, as the name has it."""
        return _version(self.name.split("-")[1].removeprefix("tf"))

    @property
    def pinned(self) -> str:
        """The version of its TensorFlow in full."""
        text = (LISTS / f"od-{self.name}.txt").read_text()
        found = re.search(r"^tensorflow==(\S+)", text, re.MULTILINE)
        return found[1] if found else "?"


def _version(digits: str) -> tuple[int, int]:
    return int(digits[0]), int(digits[1:])


def all_sets() -> list[Set]:
    """All that run on a CPU, from the oldest TensorFlow to the newest."""
    names = [path.stem.removeprefix("od-") for path in LISTS.glob("od-py*.txt")]
    sets = [Set(name) for name in names if not name.endswith("-gpu")]
    return sorted(sets, key=lambda one: (one.tensorflow, one.python))


def find_python(version: tuple[int, int]) -> str | None:
    """An interpreter of this version that runs: one on PATH, or else one of pyenv's."""
    return next(filter(None, (_runs(path, version) for path in _candidates(version))), None)


def _candidates(version: tuple[int, int]) -> Iterator[Path]:
    name = "python{}.{}".format(*version)
    for folder in os.get_exec_path():
        yield Path(folder, name)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from pyenv.glob("versions/{}.{}.*/bin/{}".format(*version, name))


def _runs(path: Path, version: tuple[int, int]) -> str | None:
    """The interpreter that it is: a version manager's on PATH is a script that may find none."""
    if not os.access(path, os.X_OK):
        return None
    program = "import sys; print(*sys.version_info[:2], sys.executable)"
    ran = subprocess.run([path, "-c", program], capture_output=True, text=True)
    *found, executable = ran.stdout.split(maxsplit=2) or [""]
    return executable.strip() if found == [str(part) for part in version] else None


@dataclass(frozen=True)
class Outcome:
    """What the tests said of a set."""

    tested: Set
    cells: dict[str, str]
    passed: bool

    @property
    def row(self) -> list[str]:
        """Its row of the table."""
        python = "{}.{}".format(*self.tested.python)
        return [f"`{self.tested.name}`", self.tested.pinned, python, *self.cells.values()]


def install(tested: Set, venv: Path, python: str) -> bool:
    """Have make install a set, unless it is there; whether it is."""
    variables = [f"OD_SET={tested.name}", f"OD_VENV={venv}", f"OD_PYTHON={python}"]
    made = subprocess.run(["make", "--no-print-directory", "environments", *variables])
    return made.returncode == 0


def choose(one: Set, there: list[Set], before: list[Set]) -> list[str]:
    """The tests for a set, by all those that there is a Python for and those tested before."""
    ends = [there[0], there[-1]]
    if one in ends:
        return ALL
    # The families once for each TensorFlow: another Python changes nothing about them.
    is_new = one.tensorflow not in [other.tensorflow for other in [*before, *ends]]
    return [*FEW, *(FEW_FAMILIES if is_new else ())]


def run(tested: Set, venv: Path, tests: list[str], testers: str) -> Outcome:
    """Run tests on an installed set; what they print goes to the terminal."""
    print(f"{tested.name}: TensorFlow {tested.pinned}", flush=True)
    report = WORK / f"{tested.name}.xml"
    report.unlink(missing_ok=True)
    options = ["-q", "--numprocesses", testers, "--dist", "loadfile", "--no-loadscope-reorder"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *tests]
    od_python = str((venv / "bin" / "python").absolute())
    ended = subprocess.run(command, env={**os.environ, "CHECKPOINT_WATCHER_OD_PYTHON": od_python})
    found = read_report(report if report.exists() else None)
    return Outcome(tested, found, ended.returncode == 0)


def read_report(path: Path | None) -> dict[str, str]:
    """What a JUnit report says of each column of the table; there is none where nothing was run."""
    found: dict[str, list[bool | None]] = {column: [] for column in [*COLUMNS, "tests"]}
    for case in ElementTree.parse(path).iter("testcase") if path else ():
        test = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        said = {part.tag for part in case}
        passed = None if "skipped" in said else not said & {"failure", "error"}
        for column, begins in [*COLUMNS.items(), ("tests", "tests/")]:
            if test.startswith(begins):
                found[column].append(passed)
    return {column: _cell(outcomes) for column, outcomes in found.items()}


def _cell(outcomes: list[bool | None]) -> str:
    """How many of how many passed; those that were skipped are not among them."""
    done = [outcome for outcome in outcomes if outcome is not None]
    if len(done) == 1:
        return "yes" if done[0] else "no"
    return f"{sum(done)} of {len(done)}" if done else "not run"


def table(outcomes: list[Outcome]) -> str:
    """The outcomes in Markdown."""
    head = ["set", "TensorFlow", "Python", *COLUMNS, "tests"]
    lines = [head, ["---"] * len(head), *(outcome.row for outcome in outcomes)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    """Install, test and remove each set in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--default", nargs=2, metavar=("SET", "VENV"), required=True)
    parser.add_argument("--testers", default="2", help="how many tests run at once")
    parser.add_argument("--keep", action="store_true", help="leave the environments there")
    parser.add_argument("sets", nargs="*", metavar="SET")
    options = parser.parse_args()
    there = {one.name: one for one in all_sets()}
    if unknown := set(options.sets) - there.keys():
        parser.error(f"no set is named {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    pythons = {one: found for one in there.values() if (found := find_python(one.python))}
    WORK.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for one in [there[name] for name in options.sets or there]:
        if one not in pythons:
            version = "{}.{}".format(*one.python)
            print(f"{one.name} is left out: no python{version} was found", file=sys.stderr)
            continue
        is_default = one.name == options.default[0]
        venv = Path(options.default[1]) if is_default else WORK / one.name
        if install(one, venv, pythons[one]):
            tests = choose(one, list(pythons), [outcome.tested for outcome in outcomes])
            outcomes.append(run(one, venv, tests, options.testers))
        else:
            outcomes.append(Outcome(one, read_report(None), passed=False))
        if not (is_default or options.keep):
            shutil.rmtree(venv, ignore_errors=True)
    print(table(outcomes))
    return 0 if outcomes and all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())

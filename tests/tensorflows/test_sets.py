"""How `make test-tensorflows` finds its sets and Pythons, and what its table says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sets
from watching import ROOT

REPORT = """
<testsuites><testsuite>
<testcase classname="tests.runtime.test_main_job" name="{trained}"><failure /></testcase>
<testcase classname="tests.tensorflows.every_set" name="test_one"><skipped /></testcase>
<testcase classname="tests.od_api_today.test_hooks" name="test_one" />
<testcase classname="tests.evaluators.test_evaluator_families" name="{family}[ssd]" />
<testcase classname="tests.evaluators.test_evaluator_families" name="{family}[mask]"><error />
</testcase>
</testsuite></testsuites>
"""
VERSION = (sys.version_info.major, sys.version_info.minor)


def interpreter(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_python_that_a_version_manager_has_is_found_behind_its_script_that_runs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "python{}.{}".format(*VERSION)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    interpreter(tmp_path / name, "echo no such version >&2; exit 127")
    there = tmp_path / "versions" / "{}.{}.9".format(*VERSION) / "bin" / name
    interpreter(there, f'exec {sys.executable} "$@"')
    assert sets.find_python(VERSION) == sys.executable
    there.unlink()
    assert sets.find_python(VERSION) is None


def test_sets_without_a_python_are_named_and_where_all_are_that_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tests" / "tensorflows" / "sets.py"]
    asked = ["py39-tf28", "py313-tf221"]
    ran = subprocess.run(
        [*command, "--default", "py311-tf221", ".venv-od", *asked],
        env={"PATH": str(tmp_path), "PYENV_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "py39-tf28 is left out: no python3.9 was found",
        "py313-tf221 is left out: no python3.13 was found",
    ]


def test_every_list_for_a_cpu_is_a_set_from_the_oldest_tensorflow_to_the_newest() -> None:
    found = sets.all_sets()
    assert found[0].tensorflow == (2, 8)
    assert [one.tensorflow for one in found] == sorted(one.tensorflow for one in found)
    for one in found:
        assert one.pinned.startswith("{}.{}.".format(*one.tensorflow))
    lists = {path.stem for path in sets.LISTS.glob("od-*-tf*.txt")}
    assert {f"od-{one.name}" for one in found} == {name for name in lists if "gpu" not in name}


def test_all_tests_run_on_the_oldest_and_the_newest_and_families_once_for_each_tensorflow() -> None:
    there = sets.all_sets()
    chosen = [sets.choose(one, there, there[:number]) for number, one in enumerate(there)]
    assert chosen[0] == chosen[-1] == sets.ALL
    with_families = [
        one.tensorflow
        for one, tests in zip(there, chosen, strict=True)
        if tests == [*sets.FEW, *sets.FEW_FAMILIES]
    ]
    assert with_families == [(2, minor) for minor in range(13, 21)]
    assert sum(tests == sets.FEW for tests in chosen) == len(there) - 2 - len(with_families)


def test_the_table_says_how_many_of_how_many_passed_of_what_was_run(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    names = {
        "trained": sets.COLUMNS["trained"].partition("::")[2],
        "family": sets.FAMILIES.partition("::")[2],
    }
    report.write_text(REPORT.format(**names))
    outcome = sets.Outcome(sets.Set("py39-tf28"), sets.read_report(report), passed=False)
    head, _, row = sets.table([outcome]).splitlines()
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells == {
        "| set": "| `py39-tf28`",
        "TensorFlow": "2.8.4",
        "Python": "3.9",
        "trained": "no",
        "evaluated equal": "not run",
        "exported": "not run",
        "TFLite": "not run",
        "families": "1 of 2",
        "Model Garden": "not run",
        "hooks": "yes",
        "s3://": "not run",
        "tests |": "2 of 4 |",
    }


@pytest.mark.slow
def test_all_tests_of_the_training_environment_are_more_than_those_of_every_set() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "--quiet",
        "-p",
        "no:cacheprovider",
    ]
    ran = subprocess.run([*command, *sets.ALL], cwd=ROOT, capture_output=True, text=True)
    found = ran.stdout.splitlines()
    assert len(found) > 150
    for test in [*sets.FEW, *sets.FEW_FAMILIES]:
        assert any(line.startswith(test) for line in found), test


@pytest.mark.parametrize("test", [*sets.FEW, sets.FAMILIES])
def test_what_is_run_on_every_set_is_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text() or not name

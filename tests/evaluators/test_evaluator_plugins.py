"""What a metric plugin may be, and what comes of one that is none.

`test_evaluator_exact.py` has those that run in the real worker.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from watching import Watcher

from evaluators.od_api.plugins import Plugin, load
from evaluators.protocol import Refusal

CATEGORIES = {1: "rect", 2: "ellipse"}


def written(folder: Path, text: str) -> Path:
    file = folder / "mine.py"
    file.write_text(textwrap.dedent(text))
    return file


def refusal(*given: object) -> Refusal:
    """Why these are refused, in one line and a hint."""
    with pytest.raises(Refusal) as caught:
        for plugin in load([str(name) for name in given]):
            plugin.try_out(["image"], CATEGORIES)
    assert caught.value.hint and "\n" not in caught.value.message
    return caught.value


def loaded(folder: Path, text: str) -> Plugin:
    """The function `mine` of such a file, tried out."""
    (plugin,) = load([f"{written(folder, text)}:mine"])
    plugin.try_out(["image"], CATEGORIES)
    return plugin


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (None, "cannot be read: .*mine.py: No such file", "the folder the watcher was started in"),
        ("def other(images): pass", "function that is not there: mine", "mine.py has other"),
        ("def mine(images:", r"cannot be imported: SyntaxError: .*mine.py, line 1", "environment"),
        ("import no_such_library", r"No module named 'no_such_library' \(mine.py, line 1\)", ""),
        ("import sys\nsys.exit()", r"cannot be imported: SystemExit \(mine.py, line 2\)", ""),
        ("mine = 0.5", "names a float, not a function", "FILE.py:FUNCTION"),
        ("def mine(images): pass", "failed on the first image: TypeError", "one image"),
        ("def mine(*_):\n    return 1 / 0", r"ZeroDivisionError: .*\(mine.py, line 2\)", ""),
        ("def mine(*_): raise SystemExit", "failed on the first image: SystemExit", ""),
        ("def mine(*_): return '0.5'", "mine is a str, not a number", "returns a number"),
        ("def mine(*_): return {'a': [1]}", "mine/a is a list, not a number", "dict of numbers"),
        ("def mine(*_): return {}", "returned an empty dict", "dict of numbers"),
        ("def mine(*_): return {'\\ud800': 1}", "gave the name 'mine/", "dict of numbers"),
    ],
    ids=range(13),
)
def test_what_cannot_be_a_metric_is_refused_at_the_start(
    tmp_path: Path, text: str | None, message: str, hint: str
):
    if text is not None:
        written(tmp_path, text)
    found = refusal(f"{tmp_path}/mine.py:mine")
    assert f"metric_plugin ({tmp_path}/mine.py:mine)" in found.message
    assert re.search(message, found.message), found.message
    assert hint in found.hint


def test_a_name_that_is_nothing_or_taken_is_refused(tmp_path: Path):
    file = written(tmp_path, "def mine(*_): return 1")
    assert "names no function" in refusal(file).message
    assert "is no entry point" in refusal("mine").message
    assert "has the name of another: mine" in refusal(f"{file}:mine", f"{file}:mine").message


def test_a_number_of_any_kind_is_a_metric_and_a_dict_is_one_for_each_key(tmp_path: Path):
    text = "import decimal\ndef mine(*_): return {'a': 1, 2: decimal.Decimal('0.5'), 'c': True}"
    plugin = loaded(tmp_path, text)
    assert plugin.metric_names == ["mine/2", "mine/a", "mine/c"]
    assert plugin.compute([], CATEGORIES) == ({"mine/a": 1.0, "mine/2": 0.5, "mine/c": 1.0}, [])


def test_a_trial_without_a_value_is_no_error(tmp_path: Path):
    plugin = loaded(tmp_path, "def mine(images, categories): return float('nan')")
    values, (reason,) = plugin.compute([], CATEGORIES)
    assert values == {"mine": None}
    assert reason == "metric mine has no value: is nan"


def test_a_file_is_run_once_and_identified_by_its_bytes(tmp_path: Path):
    text = """
        import dataclasses, time
        @dataclasses.dataclass
        class Loaded:
            at: float = time.monotonic()
        def mine(*_): return Loaded().at
        def other(*_): return Loaded().at
    """
    file = written(tmp_path, text)
    mine, other = load([f"{file}:mine", f"{file}:other"])
    assert list(mine.compute([], {})[0]) == []
    mine.try_out([], {})
    other.try_out([], {})
    assert [*mine.compute([], {})[0].values()] == [*other.compute([], {})[0].values()]
    assert mine.identity == other.identity
    file.write_text(file.read_text() + "\n")
    assert load([f"{file}:mine"])[0].identity != mine.identity
    assert not list(tmp_path.glob("__pycache__"))


def test_a_name_that_means_another_metric_is_refused(watcher: Watcher):
    assert watcher.run("--metric-plugin", "mine.py:loss") == 1
    assert "names its metric loss, which --metric understands otherwise" in watcher.log.read_text()


def test_the_reason_of_a_missing_value_is_logged_and_recorded(watcher: Watcher):
    Manager(watcher.model_dir).save(100, model_tensors(1000, "a"))
    reason = "metric mine has no value: is nan"
    assert watcher.run(STUB_METRIC_WARNINGS=json.dumps([reason])) == 0
    assert reason in watcher.log.read_text()
    (row,) = watcher.query("SELECT details FROM evaluations")
    assert json.loads(row["details"])["metric_warnings"] == [reason]

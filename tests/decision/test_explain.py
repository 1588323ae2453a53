"""explain says what was decided, and what would be under other settings; it changes nothing."""

from __future__ import annotations

import io
import json
import sqlite3
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from made_runs import scores
from noisy_runs import make_noisy
from rich.console import Console
from watching import Watcher, cli, wait_until

from watcher.config import make_settings
from watcher.config.policies import boards
from watcher.decision.explain import explain
from watcher.decision.walk import StopPolicy
from watcher.types import ScoredCheckpoint
from watcher.view.explanation import drawn

SCORES = {"ckpt-1": 0.2, "ckpt-2": 0.5, "ckpt-3": 0.45, "ckpt-4": 0.3, "ckpt-5": -1.0}


@pytest.fixture
def ended(watcher: Watcher) -> Watcher:
    manager = Manager(watcher.model_dir, max_to_keep=9)
    for number in range(1, 6):
        manager.save(100 * number, model_tensors(1000, str(number)))
    flags = ("--top-k", 2, "--patience", 5, "--target", 0.6)
    assert watcher.run(*flags, STUB_SCORES=json.dumps(SCORES)) == 0
    return watcher


def told(watcher: Watcher, *arguments: object) -> dict:
    said = cli("explain", watcher.model_dir, "--json", *arguments)
    assert said.returncode == 0, said.stderr
    explained: dict = json.loads(said.stdout)
    return explained


def names(rows: list[dict]) -> list[str]:
    return [row["checkpoint"] for row in rows]


def test_it_says_how_the_rows_stand_and_what_other_settings_would_make_of_them(ended: Watcher):
    now = told(ended)
    assert names(now["leaders"]) == ["ckpt-2", "ckpt-3"] and now["unranked"] == ["ckpt-5"]
    assert now["last_improvement"]["checkpoint"] == "ckpt-2" and now["evaluations_since"] == 2
    assert now["stop"] is None
    rules = {rule["reason"]: rule for rule in now["rules"]}
    assert "2 evaluations since ckpt-2" in rules["patience"]["message"]
    assert not rules["target"]["fires"]

    other = told(
        ended, "--what-if", "patience=2", "--what-if", "top-k=3", "--what-if", "metric=-mAP"
    )
    assert names(other["leaders"]) == ["ckpt-1", "ckpt-4", "ckpt-3"]
    assert [row["files"] for row in other["leaders"]] == [False, False, True]
    assert other["stop"]["reason"] == "patience" and other["first_stop"]["global_step"] == 300

    veto = told(ended, "--what-if", "veto=loss:max:0.1", "--what-if", "patience=none")
    assert [row["checkpoint"] for row in veto["vetoed"]] == []  # the best is the incumbent
    assert [rule["reason"] for rule in veto["rules"]] == ["target"]


def test_it_changes_nothing(ended: Watcher):
    before = ended.query("SELECT * FROM runs"), sorted(ended.model_dir.rglob("*"))
    told(ended, "--what-if", "patience=1", "--what-if", "mode=min")
    assert (ended.query("SELECT * FROM runs"), sorted(ended.model_dir.rglob("*"))) == before
    assert not ended.sentinel.exists()


def test_for_people_it_is_drawn_with_the_best_first_and_the_rules_below(ended: Watcher):
    shown = cli("explain", ended.model_dir, COLUMNS="120").stdout
    lines = shown.splitlines()
    assert lines[0].startswith("Ranking best/ by DetectionBoxes_Precision/mAP (max): 4 of 5")
    assert shown.index("ckpt-2") < shown.index("ckpt-3") < shown.index("Stopping: no")
    assert "3 more evaluations" in shown


def test_of_more_leaders_than_are_shown_it_says_how_many_more():
    name = "DetectionBoxes_Precision/mAP"
    rows = [ScoredCheckpoint(n, n, f"ckpt-{n}", n, str(n), n / 20, "") for n in range(1, 14)]
    values = {n: {(name, ""): n / 20} for n in range(1, 14)}
    given = {"model_dir": "m", "pipeline_config": "p", "top_k": -1}
    settings = make_settings(given, dict.fromkeys(given, "a test"))
    (board,) = boards(settings.run, settings.ranking)
    file = io.StringIO()
    Console(file=file, width=80).print(drawn(explain(rows, values, board, StopPolicy("max"))))
    assert "\nand 3 more, with --json\n" in file.getvalue()


@pytest.mark.parametrize(
    ("what_if", "words"),
    [
        ("patiance=2", "did you mean patience?"),
        ("patience", "is no SETTING=VALUE"),
        ("patience=x", "patience (x) is invalid"),
        ("metric=AP[person]", "category person is not reported"),
        ("metric=mAPP", "did you mean mAP?"),
        ("state_dir=/", "is no SETTING=VALUE"),
    ],
)
def test_a_setting_that_is_none_is_one_clear_error(ended: Watcher, what_if: str, words: str):
    said = cli("explain", ended.model_dir, "--what-if", what_if)
    assert said.returncode == 1
    assert words in said.stderr and said.stderr.count("error: ") == 1
    assert "Traceback" not in said.stderr


def test_it_tells_how_each_stands_to_the_best_and_whether_a_gain_may_be_chance(tmp_path: Path):
    # A difference has a standard deviation of 0.0057: half of its interval is about 0.011.
    made = scores(0.3, 0.4, 0.45, 0.452)
    make_noisy(tmp_path / "noisy", made, apart=0.004)
    given = {"model_dir": str(tmp_path / "noisy"), "pipeline_config": "p", "top_k": 3}
    with sqlite3.connect(tmp_path / "noisy" / "watcher" / "watcher.db") as db:
        db.execute("UPDATE runs SET settings = ?", [json.dumps({**given, "patience": 5})])
    db.close()

    def explained(*arguments: str) -> dict:
        said = cli("explain", tmp_path / "noisy", "--json", *arguments)
        assert said.returncode == 0, said.stderr
        return json.loads(said.stdout)

    now = explained("--what-if", "min_delta=0.001")
    assert [row["tied"] for row in now["leaders"]] == [True, True, False]
    second, third = (row["difference"] for row in now["leaders"][1:])
    assert now["leaders"][0]["difference"] is None
    assert second["low"] < 0 < second["high"] and second["value"] == pytest.approx(-0.002)
    assert third["high"] < 0 and third["value"] == pytest.approx(-0.052)
    gain = now["min_delta"]
    assert (
        gain["gain"] == 0.001 and gain["inside_noise"] and gain["between"] == ["ckpt-3", "ckpt-4"]
    )
    assert gain["half_width"] == pytest.approx(0.011, rel=0.25)
    assert not explained("--what-if", "min_delta=0.02")["min_delta"]["inside_noise"]
    for other in ("smoothing=ema:0.5", "patience=none"):
        assert explained("--what-if", other)["min_delta"] is None
    shown = cli("explain", tmp_path / "noisy", "--what-if", "min_delta=0.001", COLUMNS="120").stdout
    assert "to the best, 95 %" in shown and "min_delta (0.001) lies inside the noise" in shown
    assert [line.split()[-2] == "tie" for line in shown.splitlines()[3:6]] == [True, True, False]


def test_without_replicates_nothing_is_said_of_certainty(ended: Watcher):
    now = told(ended)
    assert now["min_delta"] is None
    assert {row["tied"] for row in now["leaders"]} == {None}
    assert "95 %" not in cli("explain", ended.model_dir, COLUMNS="120").stdout


def test_another_board_is_named_and_an_unknown_one_refused(ended: Watcher):
    said = cli("explain", ended.model_dir, "--board", "none")
    assert said.returncode == 1 and "there are: best" in said.stderr


def test_another_board_says_that_the_first_one_stops_the_run(watcher: Watcher, tmp_path: Path):
    manager = Manager(watcher.model_dir, max_to_keep=9)
    for number in range(1, 6):
        manager.save(100 * number, model_tensors(1000, str(number)))
    file = tmp_path / "boards.toml"
    file.write_text('patience = 1\n[[board]]\n[[board]]\nname = "small"\nmetric = "loss"\n')
    watcher.run("--config", file, STUB_SCORES=json.dumps(SCORES))
    first, small = told(watcher, "--board", "best"), told(watcher, "--board", "small")
    assert first["stop"]["reason"] == "patience" and first["stops_by"] == "best"
    assert small["stops_by"] == "best" and small["rules"] == []
    assert small["stop"] is None and small["first_stop"] is None
    assert first.keys() == small.keys()
    shown = cli("explain", watcher.model_dir, "--board", "small", COLUMNS="120").stdout
    assert "Stopping goes by the first board, best" in shown and "patience" not in shown


def test_a_stop_that_waits_for_an_earlier_checkpoint_is_told_as_one_that_waits(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=9)
    for number in range(1, 5):
        manager.save(100 * number, model_tensors(1000, str(number)))
    scores = json.dumps({"ckpt-1": 0.5, "ckpt-3": 0.4, "ckpt-4": 0.3})
    tried_again = {"STUB_EXHAUSTED": "ckpt-2", "STUB_SCORES": scores}
    watcher.start("--patience", 2, "--retry-seconds", 300, **tried_again)
    wait_until(lambda: watcher.states().get("ckpt-4") == "scored", "all others are scored")

    def status(*arguments: object) -> str:
        said = cli("status", watcher.model_dir, *arguments)
        assert said.returncode == 0, said.stderr
        return said.stdout

    wait_until(lambda: json.loads(status("--json"))["stop_awaits"] == "ckpt-2", "it waits for it")
    assert json.loads(status("--json"))["stop"] is None
    assert "early stop waits for ckpt-2, which may be a gain" in status()
    explained = told(watcher)
    assert (explained["stop"]["reason"], explained["stop_awaits"]) == ("patience", "ckpt-2")
    assert "it waits for ckpt-2" in cli("explain", watcher.model_dir).stdout
    assert not (watcher.model_dir / "EARLY_STOP").exists()


def test_before_the_first_score_the_rules_that_are_set_are_named():
    settings = make_settings({"model_dir": "m", "pipeline_config": "p"}, {})
    (board,) = boards(settings.run, settings.ranking)
    for policy, said in (
        (StopPolicy(patience=2, target=0.5), "Stopping: no, patience 2, target 0.5 waits for"),
        (StopPolicy(), "Stopping: no, no rule is set"),
    ):
        file = io.StringIO()
        Console(file=file, width=200).print(drawn(explain([], {}, board, policy)))
        assert said in file.getvalue()

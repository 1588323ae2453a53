"""Averages, with a daemon and a stub worker that writes them: asked for, evaluated, promoted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors, write_checkpoint
from watching import Watcher, cli, wait_until

from watcher.checkpoints.bundle import verify

SCORES = {"ckpt-1": 0.2, "ckpt-2": 0.5, "ckpt-3": 0.4, "ckpt-4": 0.1}


def save(watcher: Watcher, count: int = 4, **options: int) -> Manager:
    manager = Manager(watcher.model_dir, **options)
    for number in range(1, count + 1):
        manager.save(100 * number, model_tensors(1000, f"{number}"))
    return manager


def scores(**averages: float) -> str:
    named = {name.replace("_", "-"): score for name, score in averages.items()}
    return json.dumps({**SCORES, **named})


def averages(watcher: Watcher) -> list[dict]:
    return watcher.query("SELECT * FROM averages")


def in_folder(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.index")}


def test_an_average_is_written_evaluated_and_kept_on_a_board_of_its_own(watcher: Watcher):
    save(watcher)
    told = scores(ckpt_3_average1=0.6)
    assert watcher.run("--average", "top-2", "--top-k", 2, STUB_SCORES=told) == 0
    (row,) = averages(watcher)
    assert (row["checkpoint"], row["parents"], row["state"]) == (
        *("ckpt-3-average1", "ckpt-2,ckpt-3", "scored"),
    )
    assert (row["asked"], row["global_step"], row["score"]) == ("top-2", 300, 0.6)
    assert watcher.evaluations() == [*SCORES, "ckpt-3-average1"]
    placed = watcher.model_dir / "best-averages"
    assert verify(placed / "ckpt-3-average1").sha256 == row["sha256"]
    assert (
        (placed / "checkpoint").read_text().startswith('model_checkpoint_path: "ckpt-3-average1"')
    )
    assert row["path"] == str(placed / "ckpt-3-average1")
    assert watcher.leaderboard() == ["ckpt-2", "ckpt-3"]


def test_an_average_is_in_no_history_no_curve_and_no_rule_and_counts_as_no_save(watcher: Watcher):
    manager = save(watcher)
    told = scores(ckpt_3_average1=0.9)
    flags = ("--average", "top-2", "--patience", 3, "--target", 0.8, "--keep-last", 1)
    assert watcher.run(*flags, STUB_SCORES=told) == 0
    views = ("history", "metric_values", "overall_values", "category_values")
    for view in views:
        assert not watcher.query(f"SELECT * FROM {view} WHERE checkpoint LIKE '%average%'"), view
    assert watcher.query("SELECT scored, stop_reason FROM run_state") == [
        {"scored": 4, "stop_reason": None}
    ]
    assert in_folder(watcher.model_dir / "kept") == {"ckpt-4"}
    manager.save(500, model_tensors(1000, "5"))
    assert watcher.run(*flags, STUB_SCORES=told) == 0
    generations = watcher.query("SELECT DISTINCT generation FROM history")
    assert generations == [{"generation": 1}]
    assert watcher.states()["ckpt-5"] == "scored"
    assert "missed" not in watcher.states().values()


@pytest.mark.parametrize(
    ("promote", "score", "best"),
    [
        ("better", 0.6, ["ckpt-3-average1", "ckpt-2"]),
        ("better", 0.45, ["ckpt-2", "ckpt-3"]),
        ("never", 0.6, ["ckpt-2", "ckpt-3"]),
        ("confirmed", 0.6, ["ckpt-2", "ckpt-3"]),  # without replicates nothing is
    ],
)
def test_an_average_has_a_place_in_best_as_it_is_set(watcher: Watcher, promote, score, best):
    save(watcher)
    flags = ("--average", "top-2", "--top-k", 2, "--average-promote", promote)
    assert watcher.run(*flags, STUB_SCORES=scores(ckpt_3_average1=score)) == 0
    assert watcher.leaderboard() == best
    assert in_folder(watcher.best_dir) == set(best)
    (first,) = watcher.query("SELECT checkpoint, score FROM best")
    assert first["checkpoint"] == best[0]
    shown = cli("metrics", watcher.model_dir, "best", "--json")
    assert json.loads(shown.stdout)["checkpoint"] == best[0]
    compared = cli("compare", watcher.model_dir, "ckpt-3-average1", "ckpt-1")
    assert compared.returncode == 0, compared.stderr
    assert cli("status", watcher.model_dir).returncode == 0
    told = json.loads(cli("explain", watcher.model_dir, "--json").stdout)
    assert [row["checkpoint"] for row in told["leaders"]][:2] == best
    assert told["first_stop"] is None


def test_whose_place_an_average_has_gets_it_back_once_a_checkpoint_beats_the_average(
    watcher: Watcher,
):
    manager = save(watcher, 2)
    told = {"STUB_SCORES": scores(ckpt_2_average1=0.6, ckpt_3=0.7, ckpt_4=0.3)}
    flags = ("--average", "last-2", "--top-k", 1, "--average-promote", "better")
    assert watcher.run(*flags, **told) == 0
    assert watcher.leaderboard() == ["ckpt-2-average1"]
    for path in watcher.model_dir.glob("ckpt-*"):
        path.unlink()
    # The first two are kept by nothing but the place that one of them may have again.
    flags = (*flags[2:], "--average", "none")
    assert watcher.run(*flags, **told) == 0
    saved = watcher.query("SELECT name FROM checkpoints WHERE pin_path IS NOT NULL")
    assert saved == [{"name": "ckpt-2"}]
    del manager
    write_checkpoint(watcher.model_dir, "ckpt-3", 300, model_tensors(1000, "3"), save_counter=3)
    assert watcher.run("--top-k", 2, *flags[2:], **told) == 0
    assert watcher.leaderboard() == ["ckpt-3", "ckpt-2"]
    assert in_folder(watcher.best_dir) == {"ckpt-3", "ckpt-2"}


def test_an_average_that_is_asked_for_twice_is_one_and_keeps_its_pin(watcher: Watcher):
    save(watcher)
    told = {"STUB_SCORES": scores(ckpt_4_average1=0.45)}
    assert watcher.run("--keep-last", 4, **told) == 0
    for _ in range(2):
        assert cli("average", watcher.model_dir, "ckpt-1,ckpt-4").returncode == 0
        assert watcher.run(**told) == 0
    assert watcher.run(**told) == 0
    assert "a lost pin" not in watcher.log.read_text()
    (row,) = watcher.query("SELECT name, pin_path FROM all_checkpoints WHERE kind = 'averaged'")
    assert verify(watcher.database.parent / "pins" / row["pin_path"]).global_step == 400


def test_a_kept_average_stands_in_kept_json_with_its_score(watcher: Watcher):
    save(watcher)
    told = {"STUB_SCORES": scores(ckpt_3_average1=0.45)}
    assert watcher.run("--average", "top-2", **told) == 0
    assert cli("keep", watcher.model_dir, "ckpt-3-average1").returncode == 0
    assert watcher.run("--average", "top-2", **told) == 0
    (kept,) = json.loads((watcher.model_dir / "kept" / "kept.json").read_text())["checkpoints"]
    assert (kept["checkpoint"], kept["score"]) == ("ckpt-3-average1", 0.45)


def test_explain_shows_an_average_on_the_main_board_alone_and_as_the_settings_asked_for_have_it(
    watcher: Watcher,
):
    save(watcher)
    flags = ("--average", "top-2", "--top-k", 2, "--average-promote", "better")
    assert watcher.run(*flags, STUB_SCORES=scores(ckpt_3_average1=0.6)) == 0

    def leaders(*asked: str) -> list[str]:
        said = cli("explain", watcher.model_dir, "--json", *asked)
        assert said.returncode == 0, said.stderr
        return [row["checkpoint"] for row in json.loads(said.stdout)["leaders"]]

    assert leaders() == leaders("--board", "best") == ["ckpt-3-average1", "ckpt-2"]
    assert leaders("--what-if", "average_promote=never") == ["ckpt-2", "ckpt-3"]


def test_what_is_asked_for_while_no_watcher_runs_is_done_by_the_next_one(watcher: Watcher):
    save(watcher)
    assert watcher.run(STUB_SCORES=scores()) == 0
    asked = cli("average", watcher.model_dir, "ckpt-1,ckpt-4")
    assert asked.returncode == 0, asked.stderr
    assert "ckpt-4-average1, of ckpt-1, ckpt-4, waits" in asked.stdout
    assert "--exit-when-idle 0" in asked.stderr
    assert watcher.run(STUB_SCORES=scores(ckpt_4_average1=0.3)) == 0
    (row,) = averages(watcher)
    assert (row["state"], row["score"], row["parents"]) == ("scored", 0.3, "ckpt-1,ckpt-4")
    shown = cli("average", watcher.model_dir, "--json")
    (told,) = json.loads(shown.stdout)
    assert (told["best"], round(told["gain"], 6), told["gain_low"]) == ("ckpt-2", -0.2, None)
    assert "-0.2000 on ckpt-2" in cli("average", watcher.model_dir).stdout


def test_a_running_watcher_averages_what_it_is_asked_for(watcher: Watcher):
    save(watcher)
    watcher.start(STUB_SCORES=scores(ckpt_4_average1=0.3))
    wait_until(lambda: list(watcher.states().values()) == ["scored"] * 4, "all scored")
    assert cli("average", watcher.model_dir, "--last", 3).returncode == 0
    row = wait_until(lambda: [x for x in averages(watcher) if x["score"]], "scored")[0]
    assert row["parents"] == "ckpt-2,ckpt-3,ckpt-4"
    assert watcher.stop() == 0


def test_greedy_adds_a_checkpoint_only_where_the_score_is_no_worse(watcher: Watcher):
    save(watcher)
    assert watcher.run("--top-k", 1, STUB_SCORES=scores()) == 0
    assert cli("average", watcher.model_dir, "--top", 4, "--greedy").returncode == 0
    # 2 and 3 are better together, 1 makes it worse, 4 makes it no worse.
    told = scores(ckpt_3_average1=0.55, ckpt_3_average2=0.5, ckpt_4_average3=0.55)
    assert watcher.run(STUB_SCORES=told) == 0
    assert [(row["parents"], row["score"]) for row in averages(watcher)] == [
        ("ckpt-2,ckpt-3", 0.55),
        ("ckpt-1,ckpt-2,ckpt-3", 0.5),
        ("ckpt-2,ckpt-3,ckpt-4", 0.55),
    ]
    assert "owes to luck" in cli("average", watcher.model_dir).stdout


def test_an_average_with_batch_norm_computed_anew_is_another_one_and_says_of_how_many_images(
    watcher: Watcher,
):
    save(watcher)
    told = scores(ckpt_3_average1=0.6, ckpt_3_average2=0.7, ckpt_4_average3=0.8)
    flags = ("--average", "top-2", "--recompute-batch-norm", 64)
    for given in (flags[:2], flags, flags):
        assert watcher.run(*given, STUB_SCORES=told) == 0
    asked = ("ckpt-3", "ckpt-4", "--recompute-batch-norm", 32)
    assert cli("average", watcher.model_dir, *asked).returncode == 0
    assert watcher.run(STUB_SCORES=told) == 0
    assert [
        (row["parents"], row["recompute_batch_norm"], row["batch_norm_images"], row["score"])
        for row in averages(watcher)
    ] == [
        ("ckpt-2,ckpt-3", None, None, 0.6),
        ("ckpt-2,ckpt-3", 64, 64, 0.7),
        ("ckpt-3,ckpt-4", 32, 32, 0.8),
    ]
    second = averages(watcher)[1]
    assert (second["batch_norm_batch"], second["batch_norm_layers"]) == (8, 3)
    shown = cli("average", watcher.model_dir, COLUMNS="200").stdout
    assert "batch norm of 64 images" in " ".join(shown.split())


def test_every_trial_of_greedy_has_batch_norm_computed_anew(watcher: Watcher):
    save(watcher)
    assert watcher.run("--top-k", 1, STUB_SCORES=scores()) == 0
    asked = ("--top", 3, "--greedy", "--recompute-batch-norm", 16)
    assert cli("average", watcher.model_dir, *asked).returncode == 0
    assert watcher.run(STUB_SCORES=scores(ckpt_3_average1=0.6, ckpt_3_average2=0.5)) == 0
    assert [row["batch_norm_images"] for row in averages(watcher)] == [16, 16]


def test_a_worker_that_averages_and_cannot_compute_batch_norm_anew_is_told(watcher: Watcher):
    save(watcher)
    flags = ("--average", "top-2", "--recompute-batch-norm", 64)
    assert watcher.run(*flags, STUB_SCORES=scores(), STUB_PLAIN=1) == 0
    (row,) = averages(watcher)
    assert (row["state"], row["reason"]) == (
        *("failed", "the worker cannot recompute batch normalisation"),
    )
    assert not list((watcher.model_dir / "watcher" / "pins").glob(".new-*"))


def test_what_cannot_be_averaged_is_refused_by_name(watcher: Watcher):
    save(watcher, max_to_keep=2)
    assert watcher.run("--top-k", 1, STUB_SCORES=scores(), STUB_NAN="ckpt-3") == 0
    for asked, said in [
        (("ckpt-9", "ckpt-2"), "ckpt-9 is no checkpoint of this run"),
        (("ckpt-4", "ckpt-4"), "one checkpoint has no average"),
        (("ckpt-4", "ckpt-3"), "ckpt-3 (step 300) has no score that counts"),
        (("--last", 9), "this generation have a score, last-9 needs 9"),
    ]:
        refused = cli("average", watcher.model_dir, *asked)
        assert refused.returncode == 1
        assert said in refused.stderr
    assert cli("average", watcher.model_dir, "--top", 2, "ckpt-2").returncode == 2
    assert cli("average", watcher.model_dir, "--recompute-batch-norm", 8).returncode == 2
    assert averages(watcher) == []


def test_one_whose_files_are_gone_is_refused_and_one_that_the_trainer_has_is_pinned_again(
    watcher: Watcher,
):
    save(watcher)
    assert watcher.run("--top-k", 1, STUB_SCORES=scores()) == 0
    for file in watcher.model_dir.glob("ckpt-1.*"):
        file.unlink()
    refused = cli("average", watcher.model_dir, "ckpt-1", "ckpt-2")
    assert refused.returncode == 1
    assert "ckpt-1 (step 100): its files are gone" in refused.stderr
    assert cli("average", watcher.model_dir, "ckpt-3", "ckpt-2").returncode == 0
    pins = watcher.model_dir / "watcher" / "pins"
    assert len(list(pins.iterdir())) == 2


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("STUB_CRASH", "(attempt 2, the last)"),
        ("STUB_TORN", "what the worker wrote is not whole"),
        ("STUB_REJECT", "unmatched_variables"),
    ],
)
def test_an_average_that_cannot_be_written_fails_with_the_reason_and_leaves_nothing(
    watcher: Watcher, fault: str, said: str
):
    save(watcher)
    flags = ("--average", "top-2", "--max-attempts", 2, "--retry-seconds", 0.05)
    assert watcher.run(*flags, STUB_SCORES=scores(), **{fault: "ckpt-3-average1"}) == 0
    (row,) = averages(watcher)
    assert row["state"] == "failed"
    assert said in row["reason"]
    assert list(watcher.states().values()) == ["scored"] * 4
    pins = watcher.model_dir / "watcher" / "pins"
    assert len(list(pins.iterdir())) == 3
    assert not list(pins.glob(".new-*"))


def test_a_worker_that_dies_once_while_it_averages_is_replaced_and_the_average_is_written(
    watcher: Watcher, tmp_path: Path
):
    save(watcher)
    once = tmp_path / "once"
    once.mkdir()
    flags = ("--average", "top-2", "--retry-seconds", 0.05)
    crash = {"STUB_CRASH": "ckpt-3-average1", "STUB_ONCE": once}
    assert watcher.run(*flags, STUB_SCORES=scores(ckpt_3_average1=0.6), **crash) == 0
    (row,) = averages(watcher)
    assert (row["state"], row["score"]) == ("scored", 0.6)


def test_a_watcher_that_is_killed_while_it_averages_does_it_again(watcher: Watcher, tmp_path: Path):
    save(watcher)
    wait = {"STUB_WAIT": "ckpt-3-average1", "STUB_WAIT_FOR": tmp_path / "never"}
    process = watcher.start("--average", "top-2", "--top-k", 1, STUB_SCORES=scores(), **wait)
    pins = watcher.model_dir / "watcher" / "pins"
    wait_until(lambda: pins.is_dir() and list(pins.glob(".new-*")), "the worker was asked")
    # The parents are held, although one of them has no place.
    wait_until(lambda: in_folder(watcher.best_dir) == {"ckpt-2"}, "promoted")
    process.kill()
    process.wait()
    assert watcher.run(STUB_SCORES=scores(ckpt_3_average1=0.6)) == 0
    (row,) = averages(watcher)
    assert (row["parents"], row["state"], row["score"]) == ("ckpt-2,ckpt-3", "scored", 0.6)
    assert not list(pins.glob(".new-*"))


def test_a_worker_that_cannot_average_is_told_by_its_kind(watcher: Watcher):
    save(watcher)
    assert watcher.run("--average", "top-2", STUB_JOBS='["evaluate"]') == 0
    (row,) = averages(watcher)
    assert (row["state"], row["reason"]) == ("failed", "a worker of the kind od-api cannot average")


def test_the_database_is_rebuilt_without_the_averages_and_their_files_stay(watcher: Watcher):
    save(watcher)
    flags = ("--average", "top-2", "--top-k", 2, "--average-promote", "better")
    assert watcher.run(*flags, STUB_SCORES=scores(ckpt_3_average1=0.6)) == 0
    watcher.database.write_bytes(b"damaged")
    rebuilt = cli("rebuild", watcher.model_dir)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert watcher.leaderboard()[0] == "ckpt-2"
    assert "ckpt-3-average1" in in_folder(watcher.best_dir)
    assert "ckpt-3-average1" in in_folder(watcher.model_dir / "best-averages")


def test_a_folder_called_best_averages_is_left_alone_while_nothing_was_averaged(watcher: Watcher):
    own = watcher.model_dir / "best-averages"
    own.mkdir()
    (own / "checkpoint").write_text("a user's own")
    save(watcher)
    assert watcher.run(STUB_SCORES=scores()) == 0
    assert [path.name for path in own.iterdir()] == ["checkpoint"]
    assert (own / "checkpoint").read_text() == "a user's own"


def test_an_average_keeps_its_place_while_the_replicates_of_a_new_score_are_computed(
    watcher: Watcher,
):
    told = {**SCORES, "ckpt-3-average1": 0.7, "ckpt-5": 0.6}
    drawn = {name: [score + n / 1000 for n in range(-20, 20)] for name, score in told.items()}
    manager = save(watcher)
    steer = {"STUB_SCORES": json.dumps(told), "STUB_REPLICATES": json.dumps(drawn)}
    watcher.start("--average", "top-2", STUB_REPLICATES_SECONDS=0.3, **steer)
    wait_until(lambda: watcher.states() and "ckpt-3-average1" in watcher.leaderboard(), "promoted")
    manager.save(500, model_tensors(1000, "5"))
    sql = "SELECT 1 FROM history WHERE checkpoint = 'ckpt-5' AND low NOT NULL"
    wait_until(lambda: watcher.query(sql), "the new one has its replicates")
    assert watcher.stop() == 0
    assert watcher.leaderboard()[:2] == ["ckpt-3-average1", "ckpt-5"]
    shown = [line for line in watcher.log.read_text().splitlines() if "] best " in line]
    assert not [line for line in shown if "checkpoint=ckpt-5" in line]

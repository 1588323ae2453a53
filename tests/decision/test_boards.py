"""Boards, vetoes, retention and requests, on a real daemon with the stub evaluator."""

from __future__ import annotations

import json

from fake_trainer import Manager, model_tensors
from watching import Watcher, cli, wait_until

from watcher.checkpoints.bundle import verify

MAP, LOSS = "DetectionBoxes_Precision/mAP", "Loss/total_loss"


def save(watcher: Watcher, count: int) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=count)
    for number in range(1, count + 1):
        manager.save(100 * number, model_tensors(1000, str(number)))


def settings_file(watcher: Watcher, text: str) -> str:
    path = watcher.model_dir.parent / "watcher.toml"
    path.write_text(text)
    return str(path)


def scores(**by_name: float) -> dict[str, str]:
    return {"STUB_SCORES": json.dumps({f"ckpt-{name[1:]}": s for name, s in by_name.items()})}


def names(watcher: Watcher, board: str) -> list[str]:
    rows = watcher.query("SELECT checkpoint FROM boards WHERE board = ?", board)
    return [row["checkpoint"] for row in rows]


def test_several_boards_lie_over_the_same_files_and_the_first_is_the_leaderboard(watcher: Watcher):
    save(watcher, 4)
    file = settings_file(
        watcher,
        f"""
        [[board]]
        top_k = 2
        [[board]]
        name = "low-loss"
        metric = "'{LOSS}' + 0 * mAP"
        mode = "min"
        top_k = 1
        [[board]]
        name = "worst"
        metric = "mAP"
        mode = "min"
        top_k = 2
        folder = "worst-of-all"
        """,
    )
    assert watcher.run("--config", file, **scores(c1=0.3, c2=0.5, c3=0.1, c4=0.2)) == 0
    assert watcher.leaderboard() == names(watcher, "best") == ["ckpt-2", "ckpt-1"]
    assert names(watcher, "low-loss") == ["ckpt-2"]
    assert names(watcher, "worst") == ["ckpt-3", "ckpt-4"]
    for folder, name in (
        ("best", "ckpt-2"),
        ("best-low-loss", "ckpt-2"),
        ("worst-of-all", "ckpt-3"),
    ):
        assert verify(watcher.model_dir / folder / name).model_variables
        assert f'"{name}"' in (watcher.model_dir / folder / "checkpoint").read_text()
    data = "ckpt-2.data-00000-of-00001"
    same = [
        (watcher.model_dir / folder / data).stat().st_ino for folder in ("best", "best-low-loss")
    ]
    assert same[0] == same[1]
    shown = cli("status", watcher.model_dir, COLUMNS="100").stdout.splitlines()
    assert "worst-of-all/  by mAP  ckpt-3 0.1000, ckpt-4 0.2000" in shown
    (line,) = (line for line in shown if line.startswith("best-low-loss/"))
    assert line.endswith("ckpt-2 0.5000")
    shown = json.loads(cli("status", watcher.model_dir, "--json").stdout)["boards"]
    rows = watcher.query("SELECT * FROM boards WHERE board != 'best'")
    assert shown == [{**row, "files": True} for row in rows]
    narrow = cli("status", watcher.model_dir, COLUMNS="40").stdout.splitlines()
    assert max(map(len, narrow)) <= 40
    (at,) = (number for number, line in enumerate(narrow) if line.startswith("best-low-loss/"))
    assert "ckpt-2 0.5000" in " ".join(line.strip() for line in narrow[at : at + 3])


def test_other_boards_need_no_evaluation_and_what_is_gone_is_said(watcher: Watcher):
    save(watcher, 4)
    by = scores(c1=0.1, c2=0.2, c3=0.3, c4=0.4)
    assert watcher.run("--top-k", 2, **by) == 0
    for file in watcher.model_dir.glob("ckpt-[12].*"):
        file.unlink()  # the trainer's rotation
    before = watcher.evaluations()
    assert watcher.run("--metric", "loss", "--mode", "max", "--top-k", 1, **by) == 0
    assert watcher.evaluations() == before
    assert watcher.leaderboard() == ["ckpt-3"]
    log = watcher.log.read_text()
    assert "its files are gone" in log and "checkpoint=ckpt-1" in log
    assert "mode max takes the highest loss for the best" in log


def test_a_board_of_a_metric_of_its_own_has_no_mode_of_the_first(watcher: Watcher):
    save(watcher, 3)
    file = settings_file(
        watcher,
        """
        [[board]]
        metric = "loss"
        mode = "min"
        [[board]]
        name = "both"
        metric = "mAP - 0.1 * loss"
        top_k = 1
        """,
    )
    assert watcher.run("--config", file, **scores(c1=0.3, c2=0.5, c3=0.1)) == 0
    assert names(watcher, "both") == ["ckpt-2"]


def test_a_board_that_gets_another_name_keeps_what_lies_in_its_folder(watcher: Watcher):
    save(watcher, 4)
    told = scores(c1=0.3, c2=0.5, c3=0.1, c4=0.2)
    assert watcher.run("--top-k", 2, **told) == 0
    before = watcher.best_files()
    file = settings_file(watcher, "[[board]]\nname = 'main'\ntop_k = 1\n")
    assert watcher.run("--config", file, **told) == 0
    assert watcher.leaderboard() == names(watcher, "main") == ["ckpt-2"]
    assert names(watcher, "best") == []
    left = {name for name in before if not name.startswith("ckpt-1")}
    assert watcher.best_files() == left


def test_a_note_goes_once_it_is_not_so_any_more(watcher: Watcher):
    save(watcher, 2)
    told = scores(c1=0.3, c2=0.5)
    latencies = {
        "STUB_LATENCIES": json.dumps({"ckpt-1": [10, 1], "ckpt-2": [50, 1]}),
        "STUB_METRICS": json.dumps([MAP, LOSS, "latency_ms"]),
    }
    assert watcher.run("--veto", "latency_ms:5", **told, **latencies) == 0
    noted = "SELECT checkpoint FROM history WHERE note IS NOT NULL"
    assert watcher.query(noted) == [{"checkpoint": "ckpt-2"}]
    assert watcher.run("--veto", "latency_ms:90", "--top-k", 1, **told, **latencies) == 0
    assert watcher.leaderboard() == ["ckpt-2"] and watcher.query(noted) == []


def test_places_by_the_metric_of_before_are_shown_by_that_and_without_intervals_of_another(
    watcher: Watcher,
):
    save(watcher, 3)
    told = scores(c1=0.3, c2=0.5, c3=0.1)
    replicates = {f"ckpt-{n}": [n / 10, n / 10 + 0.01] * 10 for n in range(1, 4)}
    drawn = {"STUB_REPLICATES": json.dumps(replicates)}
    assert watcher.run(**told, **drawn) == 0
    assert watcher.query("SELECT low FROM best")[0]["low"] is not None
    changed = {"STUB_FINGERPRINT": "e" * 64, "STUB_NAN": "*"}
    watcher.run("--metric", "mAP + 1", **told, **changed)
    (best,) = watcher.query("SELECT checkpoint, score, low, p_best FROM best")
    assert best == {"checkpoint": "ckpt-2", "score": 0.5, "low": None, "p_best": None}
    assert f"by {MAP}" in cli("leaderboard", watcher.model_dir).stdout
    assert f"Leaderboard by {MAP}, as before" in cli("status", watcher.model_dir).stdout


def test_a_vetoed_checkpoint_is_not_promoted_and_history_says_why(watcher: Watcher):
    save(watcher, 3)
    by = scores(c1=0.3, c2=0.4, c3=0.6)
    # The stub's loss is 1 - score: what is better by score is worse by a loss that should be high.
    assert watcher.run("--veto", f"'{LOSS}':max:0.15", "--top-k", 1, **by) == 0
    assert watcher.leaderboard() == ["ckpt-2"]
    notes = {row["checkpoint"]: row["note"] for row in watcher.query("SELECT * FROM history")}
    assert notes["ckpt-3"].startswith("not promoted to best/: 'Loss/total_loss' (0.4) is 0.2 worse")
    assert notes["ckpt-1"] is notes["ckpt-2"] is None


def test_the_last_and_some_between_are_kept_beside_the_best(watcher: Watcher):
    save(watcher, 7)
    flags = ("--top-k", 1, "--keep-last", 2, "--keep-every-steps", 300)
    by = scores(c1=0.9, c2=0.1, c3=0.1, c4=0.1, c5=0.1, c6=0.1, c7=0.1)
    assert watcher.run(*flags, **by) == 0
    assert watcher.leaderboard() == ["ckpt-1"]
    assert names(watcher, "kept") == ["ckpt-7", "ckpt-6", "ckpt-3"]
    shown = cli("status", watcher.model_dir, COLUMNS="100").stdout.splitlines()
    assert "kept/  ckpt-7 0.1000, ckpt-6 0.1000, ckpt-3 0.1000" in shown
    kept = watcher.model_dir / "kept"
    assert '"ckpt-7"' in (kept / "checkpoint").read_text()
    assert {verify(kept / name).global_step for name in names(watcher, "kept")} == {300, 600, 700}
    assert json.loads((kept / "kept.json").read_text())["checkpoints"][0]["checkpoint"] == "ckpt-7"


def test_keep_and_its_undo_work_while_the_watcher_runs_and_after(watcher: Watcher):
    save(watcher, 3)
    by = scores(c1=0.1, c2=0.2, c3=0.9)
    daemon = watcher.start("--top-k", 1, **by)
    wait_until(lambda: set(watcher.states().values()) == {"scored"}, "all scored")
    said = cli("keep", watcher.model_dir, "ckpt-1")
    assert (said.returncode, said.stdout) == (0, "ckpt-1 (step 100) is kept\n")
    assert names(watcher, "kept") == ["ckpt-1"]
    assert verify(watcher.model_dir / "kept" / "ckpt-1").global_step == 100
    refused = cli("keep", watcher.model_dir, "ckpt-9")
    assert refused.returncode == 1 and "ckpt-9 is no checkpoint of this run" in refused.stderr
    refused = cli("keep", watcher.model_dir, "ckpt-2", "--undo")
    assert refused.returncode == 1 and "ckpt-2 (step 200) is not kept by hand" in refused.stderr
    anew = cli("requeue", watcher.model_dir, "ckpt-3")
    assert (anew.returncode, anew.stderr) == (0, ""), "the watcher that runs evaluates it"
    daemon.terminate()
    assert daemon.wait(60) == 0
    said = cli("keep", watcher.model_dir, "ckpt-1", "--undo")
    assert said.returncode == 0, said.stderr
    assert names(watcher, "kept") == []


def test_what_is_kept_survives_the_trainer_and_what_is_gone_is_refused(watcher: Watcher):
    save(watcher, 2)
    by = scores(c1=0.1, c2=0.2)
    assert watcher.run("--top-k", 1, **by) == 0
    for file in watcher.model_dir.glob("ckpt-1.*"):
        file.unlink()
    refused = cli("keep", watcher.model_dir, "ckpt-1")
    assert refused.returncode == 1 and "its files are gone" in refused.stderr
    assert cli("keep", watcher.model_dir, "ckpt-2").returncode == 0
    for file in watcher.model_dir.glob("ckpt-2.*"):
        file.unlink()
    assert watcher.run("--top-k", 0, **by) == 0
    assert watcher.leaderboard() == []
    assert verify(watcher.model_dir / "kept" / "ckpt-2").global_step == 200


def test_requeue_evaluates_the_kept_ones_anew_and_best_stays_meanwhile(watcher: Watcher):
    save(watcher, 3)
    assert watcher.run("--top-k", 2, **scores(c1=0.1, c2=0.2, c3=0.3)) == 0
    done = watcher.evaluations()
    said = cli("requeue", watcher.model_dir, "--all")
    assert said.returncode == 0 and len(said.stdout.splitlines()) == 2, said.stderr
    assert watcher.leaderboard() == ["ckpt-3", "ckpt-2"]
    assert watcher.run("--top-k", 2, **scores(c2=0.9, c3=0.3)) == 0
    assert sorted(watcher.evaluations()[len(done) :]) == ["ckpt-2", "ckpt-3"]
    assert watcher.leaderboard() == ["ckpt-2", "ckpt-3"]


def test_resume_withdraws_the_stop_and_patience_counts_anew(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=9)

    def save_next() -> None:
        number = manager.save_counter + 1
        manager.save(100 * number, model_tensors(1000, str(number)))

    for _ in range(3):
        save_next()
    by = scores(c1=0.5, c2=0.1, c3=0.1, c4=0.1, c5=0.1)
    watcher.start("--patience", 2, **by)
    wait_until(watcher.sentinel.exists, "early stop")
    said = cli("resume", watcher.model_dir)
    assert said.returncode == 0 and "step 300" in said.stdout, said.stderr
    assert not watcher.sentinel.exists()
    save_next()
    wait_until(lambda: watcher.states().get("ckpt-4") == "scored", "scored")
    assert not watcher.sentinel.exists()
    save_next()
    wait_until(watcher.sentinel.exists, "the next early stop")
    assert "the resume at step 300" in watcher.stop_notice()["message"]
    assert watcher.stop() == 0
    assert cli("resume", watcher.model_dir).returncode == 0
    assert not watcher.sentinel.exists()


def test_a_request_that_nobody_answered_is_carried_out_after_the_restart(watcher: Watcher):
    save(watcher, 2)
    assert watcher.run("--top-k", 1, **scores(c1=0.1, c2=0.2)) == 0
    requests = watcher.model_dir / "watcher" / "requests"
    (requests / "1.json").write_text('{"verb": "keep", "checkpoints": ["ckpt-1"]}')
    (requests / "2.json").write_text('{"verb": "rm -rf"}')
    assert watcher.run("--top-k", 1) == 0
    assert names(watcher, "kept") == ["ckpt-1"]
    assert not list(requests.glob("*.json"))


def test_settings_under_which_nothing_can_rank_leave_best_as_it_is(watcher: Watcher):
    save(watcher, 3)
    assert watcher.run("--top-k", 2, **scores(c1=0.1, c2=0.2, c3=0.3)) == 0
    for file in watcher.model_dir.glob("ckpt-*"):
        file.unlink()
    before = watcher.best_files()
    # Another evaluation, which measures nothing, and then one in which each evaluation fails.
    nothing = scores(c2=-1.0, c3=-1.0)
    assert watcher.run("--top-k", 2, STUB_FINGERPRINT="a" * 64, **nothing) == 0
    assert watcher.run("--top-k", 2, STUB_FINGERPRINT="b" * 64, STUB_REJECT="*") == 1
    assert set(watcher.states().values()) == {"scored", "failed"}
    assert watcher.best_files() == before and watcher.leaderboard() == ["ckpt-3", "ckpt-2"]
    assert "no checkpoint can rank, what is promoted stays" in watcher.log.read_text()
    assert cli("requeue", watcher.model_dir, "--failed").returncode == 0
    again = scores(c2=0.9, c3=0.3)
    assert watcher.run("--top-k", 2, STUB_FINGERPRINT="b" * 64, **again) == 0
    assert watcher.leaderboard() == ["ckpt-2", "ckpt-3"]


def test_a_best_that_breaks_when_it_is_measured_again_keeps_its_score_and_its_place(
    watcher: Watcher,
):
    save(watcher, 2)
    flags = ("--top-k", 1, "--retry-seconds", 0.05)
    assert watcher.run(*flags) == 0
    assert watcher.leaderboard() == ["ckpt-2"]
    assert cli("requeue", watcher.model_dir, "ckpt-2").returncode == 0
    daemon = watcher.start(*flags, STUB_CRASH="ckpt-2")
    wait_until(lambda: watcher.evaluations().count("ckpt-2") == 2, "it broke once")
    Manager(watcher.model_dir).save(300, model_tensors(1000, "3"))
    wait_until(lambda: watcher.leaderboard() == ["ckpt-3"], "a better one is not kept waiting")
    wait_until(lambda: "the last" in watcher.log.read_text(), "all attempts are used up")
    wait_until(lambda: watcher.states()["ckpt-2"] == "scored", "its score stands")
    (row,) = watcher.query("SELECT * FROM history WHERE checkpoint = 'ckpt-2'")
    assert row["score"] == 0.002
    assert row["reason"].startswith("its earlier score stands, since measuring it anew failed: ")
    daemon.terminate()
    assert daemon.wait(timeout=60) == 0

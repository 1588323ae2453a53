"""The web page: a real Datasette on real databases, alone and in a real browser."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from browser import Browser
from fake_trainer import Manager, model_tensors
from loopback import free_port
from made_runs import MAP, Made, learning, make_run, scores
from noisy_runs import make_noisy
from recorded_runs import CATEGORIES, record
from watching import ROOT, Watcher, alive, cli, wait_until
from web_page import DATASETTE, WebPage

from watcher.store.page_queries import HOME
from watcher.view.certainty import share_text

pytestmark = pytest.mark.slow

HOSTILE = "ckpt-<img src=x onerror=\"document.title='pwned'\">-{}"
REASON = "</script><script>document.title='pwned'</script> & \"quoted\""
FAILURES = [
    ("ckpt-77", "failed", "not_finite: Loss/total_loss is nan"),
    ("ckpt-80", "corrupt", "shard 0 has 1000 bytes, the index says 2139512"),
]
AT_WORK = {
    "pid": 1,
    "worker": "evaluating",
    "checkpoint": "ckpt-200",
    "done": 100,
    "total": 512,
    "patience_left": {"evaluations": 7},
}


def query(database: Path, sql: str, *arguments: object) -> list[dict[str, object]]:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(sql, arguments)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of 200 evaluations each, and one whose names are hostile."""
    folder = tmp_path_factory.mktemp("runs")
    long = "dogs, with a rather long name of the run"
    record(folder / "cats" / "model_dir", run="cats", evaluations=200, failures=FAILURES)
    dogs = folder / "dogs" / "model_dir"
    record(dogs, run=long, evaluations=200, seed=4, waiting=3, status=AT_WORK)
    record(
        folder / "evil" / "model_dir",
        run=REASON,
        evaluations=5,
        names=HOSTILE,
        categories=[REASON, "<b>bold</b>"],
        failures=[(HOSTILE, "failed", REASON)],
    )
    return folder


@pytest.fixture(scope="module")
def page(runs: Path) -> Iterator[WebPage]:
    """The page of those."""
    page = WebPage(runs)
    yield page
    page.end()


@pytest.fixture
def start() -> Iterator[object]:
    """Starts pages that end with the test."""
    pages: list[WebPage] = []

    def begin(*arguments: object, **environment: str) -> WebPage:
        pages.append(WebPage(*arguments, **environment))
        return pages[-1]

    yield begin
    for one in pages:
        if one.process.poll() is None:
            one.end()


# -- what it answers

VIEWS = (
    *("best", "leaderboard", "boards", "history", "run_state"),
    *("metric_values", "overall_values", "category_values"),
)
# Runs without replicates have no rows of these.
CERTAIN = ("intervals", "ties")


def dashboards(page: WebPage) -> dict[str, dict[str, dict]]:
    """The dashboards as the pages hold them: name to name of a chart to the chart."""
    found = {}
    for name in ("overview", *NAMES.values()):
        code, text = page.answer(f"/-/dashboards/{name}")
        assert code == 200, text
        told = text.split('id="watcher-page">')[1].split("</script>")[0]
        found[name] = json.loads(told)["charts"]
    return found


EVIL = "script-script-document-title-pwned-script-quoted"
NAMES = {"cats": "cats", "dogs": "dogs-with-a-rather-long-name-of-the-run", "evil": EVIL}


def test_what_a_view_answers_is_what_sqlite_answers(page: WebPage, runs: Path):
    for folder, name in NAMES.items():
        database = runs / folder / "model_dir" / "watcher" / "watcher.db"
        for view in VIEWS:
            told = page.rows(f"/{name}/{view}", _size="max")
            assert told == query(database, f"SELECT * FROM {view}")[: len(told)] and told, view


def test_each_canned_query_answers_with_rows_of_the_views(page: WebPage, runs: Path):
    from watcher.store.page_queries import ASKED, SHOWN

    database = runs / "cats" / "model_dir" / "watcher" / "watcher.db"
    given = {"checkpoint": "ckpt-7", "first": "ckpt-7", "second": "ckpt-9"}
    given["metric"] = "Loss/total_loss"
    told = {name: page.rows(f"/cats/{name}", **given) for name in [*SHOWN, *ASKED]}
    scored = query(
        database, "SELECT global_step, score FROM history WHERE score IS NOT NULL ORDER BY 1"
    )
    assert [
        {name: row[name] for name in ("global_step", "score")} for row in told["score_by_step"]
    ] == scored
    (best,) = query(database, "SELECT * FROM best")
    marked = [row for row in told["score_by_step"] if row["place"] == "best"]
    assert [row["checkpoint"] for row in marked] == [best["checkpoint"]]
    assert [row["rank"] for row in told["promoted"]] == [1, 2, 3]
    assert told["promoted"][0]["score"] == best["score"]
    assert told["promoted"][0]["behind"] is None
    for row in told["promoted"][1:]:
        assert row["behind"] == best["score"] - row["score"] > 0
    of_best = query(
        database,
        "SELECT category, value FROM metric_values WHERE checkpoint = ? AND category IS NOT NULL",
        best["checkpoint"],
    )
    shown = {row["category"]: row["best"] for row in told["categories_of_best"]}
    assert shown == {row["category"]: row["value"] for row in of_best} and len(shown) == 12
    assert {(row["checkpoint"], row["state"], row["reason"]) for row in told["failures"]} == {
        *FAILURES
    }
    assert len(told["recent_events"]) == 15
    assert told["states"][0] == {"state": "scored", "checkpoints": 200}
    assert len(told["metrics_of"]) == 4 + len(CATEGORIES) == len(told["compare"])
    assert len(told["metric_by_step"]) == 200 and len(told["slowest"]) == 20
    assert told["waiting"] == []


def test_the_page_closes_up_on_the_same_points_as_the_plot(tmp_path: Path):
    from watcher.plot.close_up import close_up
    from watcher.plot.gather import read_run
    from watcher.plot.series import make_picture
    from watcher.store.page_queries import SHOWN
    from watcher.store.reading import open_reader

    risen = (0.02, 0.15, 0.25, None, 0.3663, 0.3709, 0.3657, 0.3706)
    runs = {
        "risen": risen,
        "noisy": (0.0, *(0.4 + 0.03 * math.sin(at * 2.1) for at in range(30))),
        "rising": (0.02, 0.15, 0.3, 0.4),
        "same": (0.02, 0.3, 0.3, 0.3),
        "before": (0.5, 0.02, 0.4, 0.41, 0.4),
        "none": (None,),
    }
    shown = {}
    for name, values in runs.items():
        folder = make_run(tmp_path / name, scores(*values))
        with open_reader(folder / "watcher") as reader:
            picture = make_picture([read_run(reader)])
        panel = close_up(picture.panels[0]) if picture.panels else None
        rows = query(folder / "watcher" / "watcher.db", SHOWN["score_close_up"].sql)
        drawn = [(row["global_step"], row["score"]) for row in rows]
        assert drawn == (list(panel.curves[0].drawable) if panel else []), name
        shown[name] = len(drawn)
    assert shown == {"risen": 4, "noisy": 30, "rising": 0, "same": 0, "before": 0, "none": 0}


FEW = {"category 00": 3, "category 01": 19, "category 02": 20, "category 03": 200}
CAUTION = "2 categories have fewer than 20 objects: category 00 (3), category 01 (19); "


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has intervals, but for two evaluations, and a run that has none."""
    folder = tmp_path_factory.mktemp("sure")
    made = learning(12, categories=len(FEW))
    make_noisy(folder / "noisy", made, name="noisy", objects=FEW, without={4, 5})
    make_run(folder / "plain", made, name="plain")
    return folder


@pytest.fixture(scope="module")
def noisy_page(noisy: Path) -> Iterator[WebPage]:
    """The page of those."""
    page = WebPage(noisy)
    yield page
    page.end()


def test_the_views_about_certainty_are_answered_and_described(noisy_page: WebPage, noisy: Path):
    database = noisy / "noisy" / "watcher" / "watcher.db"
    for view in CERTAIN:
        told = noisy_page.rows(f"/noisy/{view}", _size="max")
        assert told == query(database, f"SELECT * FROM {view}") and told, view
    assert "Images of the eval set" in noisy_page.answer("/noisy/intervals")[1]
    assert "at one-sided 95 %" in noisy_page.answer("/noisy/ties")[1]


def test_intervals_ranks_and_shares_are_those_of_the_views(noisy: Path):
    from watcher.store.page_queries import SHOWN
    from watcher.store.reading import open_reader
    from watcher.view.certainty import ranks_text

    database = noisy / "noisy" / "watcher" / "watcher.db"
    shown = query(database, SHOWN["promoted"].sql)
    with open_reader(database.parent) as reader:
        board = reader.leaderboard()
    for row, its in zip(shown, board, strict=True):
        assert row["ranks"] == ranks_text(its) and ", tie" in str(shown[0]["ranks"])
        assert {name: row[name] for name in ("low", "high", "p_best")} == {
            name: its[name] for name in ("low", "high", "p_best")
        }
    curve = query(database, SHOWN["score_by_step"].sql)
    ends = query(database, "SELECT low, high FROM history ORDER BY global_step")
    assert [{"low": row["low"], "high": row["high"]} for row in curve] == ends
    assert [place for place, row in enumerate(curve, 1) if row["low"] is None] == [4, 5]
    best = query(database, "SELECT checkpoint FROM best")[0]["checkpoint"]
    of_best = query(
        database,
        "SELECT category, low, high, objects FROM intervals"
        " WHERE checkpoint = ? AND category NOT NULL ORDER BY value DESC",
        best,
    )
    asked = query(database, SHOWN["categories_of_best"].sql)
    assert [{name: row[name] for name in of_best[0]} for row in asked] == of_best


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ({"a": 20, "b": 3000}, None),
        ({"a": 19, "b": 20}, "a category has fewer than 20 objects: a (19); scores come out"),
        (
            {of: place for place, of in enumerate("gfedcba", 1)},
            "7 categories have fewer than 20 objects: g (1), f (2), e (3), d (4), c (5) and 2 more",
        ),
    ],
    ids=["enough", "one", "seven"],
)
def test_categories_with_few_objects_are_named(
    tmp_path: Path, objects: dict[str, int], said: str | None
):
    from watcher.store.queries import caution
    from watcher.store.reading import open_reader

    made = [Made(100, {MAP: 0.3}, {(MAP, of): 0.3 for of in objects})]
    with open_reader(make_noisy(tmp_path, made, objects=objects) / "watcher") as reader:
        told = caution(reader)
    assert told is None if said is None else str(told).startswith(said)


def test_a_score_that_cannot_rank_is_told_at_home_among_the_failures_and_in_the_report(
    tmp_path: Path,
):
    from watcher.store.page_queries import HOME, SHOWN

    folder = make_run(tmp_path / "model_dir", scores(0.5, -1.0, 0.6))
    path = folder / "watcher" / "watcher.db"
    (home,) = query(path, HOME.sql)
    assert "without a score: 1 whose score cannot rank" in json.loads(home["warnings"])
    (row,) = query(path, SHOWN["failures"].sql)
    assert row["checkpoint"] == query(path, "SELECT checkpoint FROM history")[1]["checkpoint"]
    file = tmp_path / "report.html"
    assert cli("web", folder, "--export", file).returncode == 0
    assert f"{row['checkpoint']}: its score cannot rank" in file.read_text()


@pytest.mark.parametrize(
    ("stop", "value", "note"),
    [
        ("no improvement greater than 0 in 3 evaluations", 0, "training is to stop: no impr"),
        ("score 0.5 for a target of 0.4", 2, "training is to stop: score 0.5 for a target"),
        (None, 2, "evaluations without improvement"),
    ],
)
def test_patience_that_is_used_up_is_zero_and_the_note_says_why_training_is_to_stop(
    tmp_path: Path, stop: str | None, value: object, note: str
):
    from watcher.store.page_queries import CARDS

    folder = make_run(tmp_path / "model_dir", scores(0.5, 0.4), stop=stop)
    path = folder / "watcher" / "watcher.db"
    stopping = {"reason": None, "patience_left": {"evaluations": 2}}
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "UPDATE runs SET stopping = ?, settings = ?",
            [json.dumps(stopping), json.dumps({"patience": 3})],
        )
    (card,) = query(path, CARDS["card_patience"].sql)
    assert card["value"] == value and card["note"].startswith(note)
    file = tmp_path / "report.html"
    assert cli("web", folder, "--export", file).returncode == 0
    text = file.read_text().split("Patience left")[1]
    assert ('"value">0<' in text.split("</div>")[0]) == (value == 0)
    assert not stop or note in text


def test_each_chart_has_the_rows_of_its_query_and_none_is_cut_off(page: WebPage, runs: Path):
    charts = dashboards(page)
    assert set(charts["overview"]) == {"runs", "scores_0"}
    for name, its in charts.items():
        for key, chart in its.items():
            for source in chart.get("sources", [{"db": chart.get("db")}]):
                code, text = page.answer(
                    f"/{source['db']}.json?_shape=objects&sql={quote(chart['query'])}"
                )
                told = json.loads(text)
                assert code == 200 and not told["truncated"], (name, key, text)
                assert told["rows"] or chart.get("empty"), (name, key)
    cards = {
        key: page.rows(f"/{NAMES['dogs']}", sql=chart["query"])[0]
        for key, chart in charts[NAMES["dogs"]].items()
        if chart["library"] == "metric"
    }
    assert cards["card_queue"]["value"] == 3
    assert cards["card_patience"] == {"value": 7, "note": "evaluations without improvement"}
    assert cards["card_state"]["note"] == "ckpt-200, 100 of 512 images"
    assert cards["card_last"]["note"] == "ckpt-200, step 20000"


def test_runs_that_rank_by_other_metrics_have_a_chart_each_and_names_of_their_own(tmp_path: Path):
    from watcher.web.plan import ServedRun, make_plan

    def run(folder: str, metric: str) -> ServedRun:
        path = tmp_path / folder / "model_dir"
        return ServedRun(path, path / "watcher" / "watcher.db", False, (1, 1), "model_dir", metric)

    plan = make_plan([run("a", "mAP"), run("b", "Loss/total_loss"), run("Overview", "mAP")])
    dashboards = plan.told["metadata"]["plugins"]["datasette-dashboards"]
    assert list(dashboards) == ["overview", "a-model-dir", "b-model-dir", "overview-model-dir"]
    charts = dashboards["overview"]["charts"]
    shown = {chart["title"]: [one["run"] for one in chart["sources"]] for chart in charts.values()}
    assert shown == {
        "Runs": ["a/model_dir", "b/model_dir", "Overview/model_dir"],
        "Score by step: mAP": ["a/model_dir", "Overview/model_dir"],
        "Score by step: Loss/total_loss": ["b/model_dir"],
    }


def test_tables_are_described_and_what_is_internal_is_hidden(page: WebPage):
    told = json.loads(page.answer("/cats.json")[1])
    hidden = {table["name"] for table in told["tables"] if table["hidden"]}
    internal = {"placements", "replicates", "influences", "image_names", "standings"}
    assert hidden == {*internal, "_sqlite_migrations"}
    assert [one["name"] for one in json.loads(page.answer("/-/databases.json")[1])] == [
        *NAMES.values()
    ]
    text = page.answer("/cats/history")[1]
    assert "Each checkpoint ever seen" in text and "Seconds that the evaluation took" in text
    assert "state" in json.loads(page.answer("/cats/history.json")[1])["facet_results"]
    assert page.answer("/cats/events.csv")[1].startswith("id,")


# -- it only reads


def digest(folder: Path) -> dict[str, tuple[str, float]]:
    return {
        path.name: (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime)
        for path in folder.iterdir()
        if path.suffix == ".db"
    }


def test_nothing_can_be_written(page: WebPage, runs: Path):
    folder = runs / "cats" / "model_dir" / "watcher"
    before = digest(folder)
    for statement in (
        "INSERT INTO events (run_id, at, kind, message) VALUES (1, '', '', '')",
        "WITH x AS (SELECT 1) DELETE FROM events",
        "PRAGMA journal_mode = DELETE",
        "ATTACH DATABASE '/tmp/other.db' AS other",
    ):
        code, text = page.answer(f"/cats.json?sql={quote(statement)}")
        assert code == 400, text
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert page.answer("/cats", method)[0] == 405
    assert page.answer("/cats.db")[0] in (403, 404)
    assert digest(folder) == before


def test_another_name_of_this_machine_is_not_answered(page: WebPage):
    assert page.answer("/", Host="evil.example.org")[0] == 421
    assert page.answer("/", Host=f"localhost:{page.origin.rsplit(':', 1)[1]}")[0] == 200


def test_a_query_that_takes_long_is_cut_off(page: WebPage):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    began = time.monotonic()
    code, _ = page.answer(f"/cats.json?sql={quote(endless)}")
    assert code == 400 and time.monotonic() - began < 60


def test_it_follows_a_run_that_goes_on_and_does_not_hold_it_up(watcher: Watcher, start):
    manager = Manager(watcher.model_dir, max_to_keep=None)
    manager.save(100, model_tensors(1000, "100"))
    watcher.start()
    wait_until(lambda: "scored" in watcher.states().values(), "the first is scored")
    page = start(watcher.model_dir)
    steps = range(200, 1200, 100)
    for step in steps:
        manager.save(step, model_tensors(1000, str(step)))
        page.rows("/model-dir/score_by_step")
    scored = wait_until(
        lambda: len(rows := page.rows("/model-dir/score_by_step")) >= 1 + len(steps) and rows,
        "all are there",
    )
    assert [row["checkpoint"] for row in scored] == [
        row["checkpoint"]
        for row in watcher.query("SELECT checkpoint FROM history WHERE score IS NOT NULL")
    ]
    log = watcher.log.read_text()
    assert "locked" not in log and "busy" not in log
    # It goes on with what is there when the run has ended.
    assert watcher.stop() == 0
    assert page.rows("/model-dir/leaderboard") == watcher.query("SELECT * FROM leaderboard")


@contextlib.contextmanager
def mounted_read_only(folder: Path, run: Path) -> Iterator[str]:
    """A page that sees a folder read-only. Root may write anywhere, so that takes a mount."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mounting takes root")
    port = free_port()
    script = (
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
        f" && exec {sys.executable} -m watcher web {run} --port {port} --datasette {DATASETTE}"
    )
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        said = process.stdout.readline()
        assert "1 run at" in said, process.communicate(timeout=60)[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


def names_at(url: str) -> list[str]:
    with urlopen(f"{url}.json?_shape=array", timeout=60) as answer:
        return [row["checkpoint"] for row in json.loads(answer.read())]


def test_it_reads_a_finished_run_in_a_folder_that_cannot_be_written(tmp_path: Path):
    database = record(tmp_path / "model_dir", run="cats", evaluations=5)
    for path in database.parent.glob("watcher.db-*"):
        path.unlink()
    with mounted_read_only(tmp_path, tmp_path / "model_dir") as origin:
        assert len(names_at(f"{origin}/cats/leaderboard")) == 3
    assert sorted(path.name for path in database.parent.iterdir()) == ["watcher.db"]


def test_it_follows_a_live_run_that_it_cannot_write_and_its_end(watcher: Watcher):
    manager = Manager(watcher.model_dir, max_to_keep=None)
    manager.save(100, model_tensors(1000, "100"))
    watcher.start()
    wait_until(lambda: "scored" in watcher.states().values(), "the first is scored")
    with mounted_read_only(watcher.model_dir, watcher.model_dir) as origin:
        scores = f"{origin}/model-dir/score_by_step"
        assert names_at(scores) == ["ckpt-1"]
        manager.save(200, model_tensors(1000, "200"))
        wait_until(lambda: names_at(scores) == ["ckpt-1", "ckpt-2"], "the second is seen")
        assert watcher.stop() == 0
        assert names_at(scores) == ["ckpt-1", "ckpt-2"]


def test_a_database_made_anew_is_served_instead_of_the_old_one(tmp_path: Path, start):
    old = record(tmp_path / "model_dir", run="cats", evaluations=3)
    page = start(tmp_path / "model_dir")
    assert len(page.rows("/cats/score_by_step")) == 3
    shutil.rmtree(old.parent)
    record(tmp_path / "model_dir", run="cats", evaluations=5)
    wait_until(lambda: len(page.rows("/cats/score_by_step")) == 5, "the new one is read")


def test_whoever_asks_while_another_database_comes_is_answered(tmp_path: Path, start):
    for run in "abcd":
        record(tmp_path / run / "model_dir", run=run, evaluations=1)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "a")
    page, over = start(tmp_path / "runs"), threading.Event()

    def ask() -> int:
        asked = 0
        while not over.is_set():
            assert len(page.rows("/a/score_by_step")) == 1  # a reset connection is an error here
            asked += 1
        return asked

    with ThreadPoolExecutor(4) as askers:
        at_work = [askers.submit(ask) for _ in range(4)]
        try:
            for run in "bcd":
                before = page.serving()
                (tmp_path / "runs" / run).symlink_to(tmp_path / run)
                wait_until(
                    lambda before=before: len(page.serving()) == 1 and page.serving() != before,
                    "it is served anew",
                )
        finally:
            over.set()
        assert all(asker.result() for asker in at_work)


# -- how it starts and ends


def test_what_cannot_be_served_is_one_error_and_a_hint(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    record(tmp_path / "model_dir", run="cats", evaluations=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        asked = {
            "no database at": [tmp_path / "empty", "--port", 0, "--datasette", DATASETTE],
            f"cannot listen on 127.0.0.1:{port}": [tmp_path / "model_dir", "--port", port],
            "the web page needs Datasette": [tmp_path / "model_dir", "--port", 0],
            "--datasette /no/such": [tmp_path / "model_dir", "--datasette", "/no/such"],
            "cannot listen on no.such.host": [tmp_path / "model_dir", "--host", "no.such.host."],
        }
        for said, arguments in asked.items():
            ended = cli("web", *arguments)
            error, hint = ended.stderr.strip().splitlines()[-2:]
            assert ended.returncode == 1 and ended.stdout == "", ended.stderr
            assert error.startswith(f"error: {said}") and hint.startswith("hint: "), ended.stderr
            assert "Traceback" not in ended.stderr
        assert "pip install 'datasette" in cli("web", *asked["the web page needs Datasette"]).stderr


def test_a_database_of_an_earlier_version_is_told_and_not_shown_in_part(tmp_path: Path):
    path = record(tmp_path / "model_dir", run="old", evaluations=3)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP VIEW run_state")
    ended = cli("web", tmp_path / "model_dir", "--datasette", DATASETTE)
    assert ended.returncode == 1
    assert "run_state" in ended.stderr and "`checkpoint-watcher run` brings" in ended.stderr


def test_a_locked_database_is_told_within_seconds(tmp_path: Path):
    database = record(tmp_path / "model_dir", run="cats", evaluations=1)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("BEGIN EXCLUSIVE")
        ended = cli("web", tmp_path / "model_dir", "--port", 0, "--datasette", DATASETTE)
    assert ended.returncode == 1 and "is locked" in ended.stderr and "hint:" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_processes_without_a_word(tmp_path: Path, number: int):
    record(tmp_path / "model_dir", run="cats", evaluations=1)
    page = WebPage(tmp_path / "model_dir")
    (child,) = page.serving()
    assert page.rows("/cats/best")
    assert page.end(number) == (0, "")
    assert not alive(child)


def test_killed_it_takes_datasette_with_it_and_the_other_way_round(tmp_path: Path):
    record(tmp_path / "model_dir", run="cats", evaluations=1)
    page = WebPage(tmp_path / "model_dir")
    (child,) = page.serving()
    page.end(signal.SIGKILL)
    wait_until(lambda: not alive(child), "Datasette ends too")
    page = WebPage(tmp_path / "model_dir")
    os.kill(page.serving()[0], signal.SIGKILL)
    error = page.process.communicate(timeout=60)[1]
    assert page.process.returncode == 1 and "error: Datasette ended with code -9" in error, error


def test_another_host_than_this_one_is_warned_of(tmp_path: Path, start):
    record(tmp_path / "model_dir", run="cats", evaluations=1)
    page = start(tmp_path / "model_dir", "--host", "0.0.0.0")
    page.origin = page.origin.replace("0.0.0.0", "127.0.0.1")
    assert page.answer("/", Host="training-box:8001")[0] == 200
    assert "warning: whoever reaches 0.0.0.0 can read these runs" in page.end()[1]


def test_the_program_datasette_names_its_interpreter(tmp_path: Path):
    from watcher.web.serving import interpreter_of

    program = DATASETTE.with_name("datasette")
    assert interpreter_of(program).samefile(DATASETTE)
    assert interpreter_of(DATASETTE) == DATASETTE


def test_nothing_of_the_daemon_imports_datasette_and_the_extra_is_its_list():
    script = "import sys, watcher.runtime.loop, watcher.cli.run; print([*sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    assert "watcher.runtime.loop" in loaded
    assert not any(name in loaded for name in ("datasette", "uvicorn", "watcher.web"))
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = (ROOT / "deploy" / "requirements" / "web.in").read_text().splitlines()
    assert extra["optional-dependencies"]["web"] == [
        line for line in listed if not line.startswith("#")
    ]


# -- in a browser


def drawn(browser: Browser) -> None:
    """Wait until a dashboard has been read and drawn."""
    browser.until("document.documentElement.dataset.read")
    text = browser.ask("document.getElementById('watcher-fresh').textContent")
    assert "read at" in text, text


def card(browser: Browser, name: str) -> str:
    found = browser.ask(f"document.querySelector('#chart-{name}').innerText")
    return " / ".join(line for line in found.splitlines() if line)


def whole(browser: Browser, file: Path, width: int) -> None:
    """What holds of every page: it is drawn, fits, complains of nothing and asks nobody else."""
    picture = browser.picture(file)
    assert picture.width == width and picture.drawn_lines > 200
    assert browser.overflow() <= 0
    assert browser.complaints == [] and browser.elsewhere() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_run_shows_it_on_a_screen_and_on_a_phone(
    page: WebPage, browser: Browser, tmp_path: Path, runs: Path, width: int
):
    database = runs / "cats" / "model_dir" / "watcher" / "watcher.db"
    (best,) = query(database, "SELECT * FROM best")
    browser.open(f"{page.origin}/-/dashboards/cats", width=width)
    drawn(browser)
    assert card(browser, "card_best") == (
        f"{best['score']:.4f} / {best['checkpoint']}, step {best['global_step']}"
    )
    assert card(browser, "card_queue") == "0 / waiting"
    assert card(browser, "card_patience") == "\u2013 / no watcher is running"
    assert card(browser, "card_state").startswith("not running")
    assert browser.ask("document.querySelectorAll('#chart-promoted tbody tr').length") == 3
    marks = "document.querySelectorAll('#chart-{} svg .mark-{} path').length"
    assert browser.ask(marks.format("score_by_step", "symbol")) >= 200
    assert browser.ask(marks.format("categories_of_best", "rect")) >= len(CATEGORIES)
    labels = browser.ask("document.querySelector('#chart-categories_of_best').textContent")
    assert all(category in labels for category in CATEGORIES)
    assert "not_finite" in card(browser, "failures")
    whole(browser, tmp_path / "page.png", width)


def test_the_page_of_a_run_that_failed_before_its_first_score_says_so(
    browser: Browser, tmp_path: Path, start
):
    ended = {"ended": "metric (foo) is not reported", "ended_at": "2026-11-28T14:00:00.000Z"}
    database = record(tmp_path / "ssd", run="ssd", evaluations=0, waiting=2, status=ended)
    page = start(tmp_path / "ssd")
    browser.open(page.origin + page.start, width=1280)
    drawn(browser)
    assert card(browser, "card_state") == (
        "failed / ended with an error: metric (foo) is not reported"
    )
    for name in ("score_close_up", "categories_of_best", "failures"):
        assert card(browser, name) == "nothing is evaluated yet"
    assert card(browser, "score_by_step") == "no checkpoint has a score yet"
    # At home it stands once, above the others.
    browser.open(page.origin, width=1280)
    drawn(browser)
    assert card(browser, "ssd").startswith(
        "the watcher ended with an error: metric (foo) is not reported / state / failed / best / "
    )
    file = tmp_path / "report.html"
    assert cli("web", tmp_path / "ssd", "--export", file).returncode == 0
    assert "have no categories" not in file.read_text()
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        db.execute(
            "INSERT INTO events (run_id, at, kind, message) VALUES (1, '2026', 'stop', 'enough')"
        )
    (home,) = query(database, HOME.sql)
    assert [one for one in json.loads(str(home["warnings"])) if one] == [
        "the watcher ended with an error: metric (foo) is not reported",
        "early stop: enough",
    ]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_of_a_run_shows_how_sure_its_scores_are(
    noisy_page: WebPage,
    noisy: Path,
    browser: Browser,
    tmp_path: Path,
    width: int,
    scheme: str,
):
    (best,) = query(noisy / "noisy" / "watcher" / "watcher.db", "SELECT * FROM best")
    browser.open(f"{noisy_page.origin}/-/dashboards/noisy", width=width, scheme=scheme)
    drawn(browser)
    bands = "document.querySelectorAll('#chart-{} svg .mark-area path').length"
    assert browser.ask(bands.format("score_by_step")) == 2, "on both sides of those without one"
    legend = browser.ask("document.querySelector('#chart-score_by_step').textContent")
    assert legend.count("95 % interval") == legend.count("evaluated") == 1
    board = card(browser, "promoted")
    assert f"{best['low']:.4f}\u2013{best['high']:.4f}" in board
    # The head of a table is not shown on a phone, where each figure has its name.
    assert "P(best)" in browser.ask("document.querySelector('#chart-promoted').innerHTML")
    assert "-3, tie" in board and share_text(best["p_best"]) in board
    assert CAUTION in card(browser, "categories_of_best")
    whole(browser, tmp_path / "noisy.png", width)
    browser.open(f"{noisy_page.origin}/", width=width, scheme=scheme)
    drawn(browser)
    assert CAUTION in card(browser, "noisy") and "fewer than" not in card(browser, "plain")


def test_the_page_of_a_run_without_intervals_says_nothing_of_them(
    noisy_page: WebPage, browser: Browser
):
    browser.open(f"{noisy_page.origin}/-/dashboards/plain")
    drawn(browser)
    text = browser.ask("document.querySelector('main, .content').innerText")
    assert "interval" not in text and "P(best)" not in text and "ranks" not in text
    assert browser.ask("document.querySelectorAll('#chart-promoted th').length") == 6
    assert browser.complaints == []


@pytest.mark.parametrize("width", [1280, 390])
def test_the_overview_lays_the_runs_over_each_other(
    page: WebPage, browser: Browser, tmp_path: Path, width: int
):
    browser.open(f"{page.origin}/-/dashboards/overview", width=width)
    drawn(browser)
    assert browser.ask("document.querySelectorAll('#chart-runs tbody tr').length") == 3
    legend = browser.ask("document.querySelector('#chart-scores_0').textContent")
    assert legend.count("cats") == 1 and "dogs, with a rather" in legend
    assert browser.ask("document.querySelectorAll('#chart-scores_0 svg .mark-line path').length")
    link = browser.ask("document.querySelector('#chart-runs a').getAttribute('href')")
    assert link == "/-/dashboards/cats"
    whole(browser, tmp_path / "page.png", width)


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_the_home_shows_each_run_at_a_glance_on_any_screen(
    page: WebPage, browser: Browser, tmp_path: Path, runs: Path, width: int, scheme: str
):
    assert page.start == "/"
    browser.open(page.origin + page.start, width=width, scheme=scheme)
    drawn(browser)
    database = runs / "cats" / "model_dir" / "watcher" / "watcher.db"
    (best,) = query(database, "SELECT * FROM best")
    last = query(database, "SELECT score FROM history WHERE checkpoint = 'ckpt-200'")[0]["score"]
    cats = card(browser, "cats")
    assert f"best / {best['score']:.4f} / {best['checkpoint']}, step {best['global_step']}" in cats
    assert f"last / {last:.4f} / ckpt-200, step 20000" in cats
    assert cats.startswith("without a score: 1 corrupt, 1 failed / state / not running / ")
    dogs = card(browser, NAMES["dogs"])
    assert dogs.startswith("state / evaluating / ckpt-200, 100 of 512 images / ")
    assert "queue / 3 / waiting" in dogs and "patience / 7 / evaluations" in dogs
    links = "[...document.querySelectorAll('.watcher-run h2 a')].map(one => one.pathname)"
    assert browser.ask(links) == [f"/-/dashboards/{name}" for name in NAMES.values()]
    ground = browser.ask("getComputedStyle(document.querySelector('.watcher-run')).backgroundColor")
    bright = sum(map(int, re.findall(r"\d+", ground))) / 3
    assert bright < 60 if scheme == "dark" else bright > 240
    whole(browser, tmp_path / "page.png", width)


def test_the_small_curve_has_the_scores_in_their_places(page: WebPage, browser: Browser):
    scored = page.rows("/cats/score_by_step")
    browser.open(f"{page.origin}/")
    drawn(browser)
    text = browser.ask("document.querySelector('#chart-cats polyline').getAttribute('points')")
    points = [tuple(map(float, point.split(","))) for point in text.split()]
    low, high = (of(row["score"] for row in scored) for of in (min, max))
    assert len(points) == len(scored)
    for (x, y), row in zip(points, scored, strict=True):
        assert x == pytest.approx((row["global_step"] - 100) / 199, abs=0.01)
        assert y == pytest.approx(40 * (high - row["score"]) / (high - low), abs=0.01)
    (best,) = (place for place, row in enumerate(scored) if row["rank"] == 1)
    dot = browser.ask("document.querySelector('#chart-cats path').getAttribute('d')")
    assert dot == f"M{text.split()[best]}h0"


def test_a_long_run_has_a_small_curve_of_few_points_with_the_best_and_the_last(tmp_path: Path):
    from watcher.store.page_queries import HOME

    values = [0.1] * 700
    values[123] = 0.9
    folder = make_run(tmp_path / "model_dir", scores(*values), stop="no improvement in 9")
    (row,) = query(folder / "watcher" / "watcher.db", HOME.sql)
    curve = json.loads(str(row["curve"]))
    assert 200 < len(curve) <= 301 and curve[-1][1] == 70_000
    assert [step for _, step, _, is_best in curve if is_best] == [12_400]
    assert [step for _, step, *_ in curve] == sorted(step for _, step, *_ in curve)
    (warning,) = filter(None, json.loads(str(row["warnings"])))
    assert warning == "early stop: no improvement in 9"


def test_what_a_database_holds_is_text_and_never_markup(page: WebPage, browser: Browser):
    for path in ("/", f"/-/dashboards/{EVIL}", "/-/dashboards/overview"):
        browser.open(page.origin + path)
        drawn(browser)
        assert browser.ask("document.querySelectorAll('.watcher-body img').length") == 0
        assert browser.ask("document.title") != "pwned"
        assert "<script>" in browser.ask("document.body.innerText")
        assert browser.complaints == []
    for path in (f"/{EVIL}/history", f"/{EVIL}/events", f"/{EVIL}", "/"):
        browser.open(page.origin + path)
        assert browser.ask("document.title") != "pwned"
        assert browser.ask("document.querySelectorAll('section.content img').length") == 0
        assert browser.elsewhere() == []


def test_the_page_goes_on_by_itself_and_says_so_when_it_cannot(
    tmp_path: Path, browser: Browser, start
):
    database = record(tmp_path / "model_dir", run="cats", evaluations=3)
    page = start(tmp_path / "model_dir")
    browser.open(page.origin + page.start)
    drawn(browser)
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        db.execute(
            "INSERT INTO events (run_id, at, kind, message)"
            " VALUES (1, '2099-01-01T00:00:00.000Z', 'watch', 'something new')"
        )
    browser.until("document.querySelector('#chart-recent_events').innerText.includes('new')")
    browser.until("document.getElementById('watcher-fresh').textContent.includes('2099-01-01')")
    page.end()
    browser.ask("document.dispatchEvent(new Event('visibilitychange'))")
    browser.until("document.getElementById('watcher-fresh').textContent.includes('cannot be read')")
    assert browser.ask("document.querySelectorAll('#chart-promoted tbody tr').length") == 3


# -- the report


def report(runs: Path, run: str, file: Path) -> str:
    ended = cli("web", runs / run / "model_dir", "--export", file)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{file}\n", ""), ended.stderr
    return file.read_text()


@pytest.fixture(scope="module")
def reports(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of two of the runs."""
    folder = tmp_path_factory.mktemp("reports")
    before = {run: digest(runs / run / "model_dir" / "watcher") for run in ("cats", "evil")}
    for run in before:
        report(runs, run, folder / f"{run}.html")
        assert digest(runs / run / "model_dir" / "watcher") == before[run]
    return {run: folder / f"{run}.html" for run in before}


def test_a_report_is_one_file_without_script_or_anything_to_fetch(
    runs: Path, reports: dict[str, Path]
):
    text = reports["cats"].read_text()
    assert "<script" not in text and " onerror" not in text and "@import" not in text
    fetched = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert all(one.startswith("#") for one in fetched)
    assert text.count("<svg") == 2
    (best,) = query(runs / "cats" / "model_dir" / "watcher" / "watcher.db", "SELECT * FROM best")
    words = (
        *(f"{best['score']:.4f}", best["path"], "not_finite", "3.11.7", "Loss/total_loss"),
        *("top_k", *CATEGORIES, "ckpt-1</td>", "shard 0 has 1000 bytes"),
    )
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_report_fits_the_screen_and_the_phone_and_holds_no_markup_of_others(
    reports: dict[str, Path], browser: Browser, tmp_path: Path, width: int, scheme: str
):
    for file in reports.values():
        browser.open(file.as_uri(), width=width, scheme=scheme)
        whole(browser, tmp_path / "report.png", width)
        assert browser.requested == [file.as_uri()]
        shown = "[...document.querySelectorAll('figure')].filter(one => one.clientWidth).length"
        assert browser.ask(shown) == 1
    assert browser.ask("document.title") == f"{REASON}: checkpoint-watcher"
    assert browser.ask("document.querySelectorAll('img, script, b').length") == 0
    text = browser.ask("document.body.innerText")
    assert REASON in text and HOSTILE.format(5) in text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_a_report_shows_how_sure_its_scores_are(
    noisy: Path, browser: Browser, tmp_path: Path, width: int, scheme: str
):
    file = tmp_path / "noisy.html"
    assert cli("web", noisy / "noisy", "--export", file).returncode == 0
    (best,) = query(noisy / "noisy" / "watcher" / "watcher.db", "SELECT * FROM best")
    browser.open(file.as_uri(), width=width, scheme=scheme)
    text = browser.ask("document.body.innerText")
    ends = f"{best['low']:.4f}\u2013{best['high']:.4f}"
    assert text.count(ends) == 3, "in the leaderboard, the metrics and the checkpoints"
    assert CAUTION in text and "-3, tie" in text and "95 % interval" in text
    whole(browser, tmp_path / "noisy.png", width)
    assert cli("web", noisy / "plain", "--export", file).returncode == 0
    plain = file.read_text()
    assert "interval" not in plain and "P(best)" not in plain


def test_a_report_of_a_run_without_scores_and_one_without_matplotlib(tmp_path: Path):
    record(tmp_path / "none" / "model_dir", run="none", evaluations=0)
    text = report(tmp_path, "none", tmp_path / "none.html")
    assert "nothing is promoted yet" in text and "<svg" not in text
    record(tmp_path / "some" / "model_dir", run="some", evaluations=3)
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')\n")
    file = tmp_path / "some.html"
    place = {"PYTHONPATH": str(tmp_path)}
    ended = cli("web", tmp_path / "some" / "model_dir", "--export", file, **place)
    assert ended.returncode == 0 and "warning: no curves in it" in ended.stderr
    assert "the curves are left out" in file.read_text() and "<svg" not in file.read_text()


def test_a_report_that_cannot_be_written_is_an_error_and_leaves_nothing(runs: Path, tmp_path: Path):
    for file in (tmp_path / "no" / "such" / "folder.html", tmp_path):
        ended = cli("web", runs / "cats" / "model_dir", "--export", file)
        assert ended.returncode == 1 and f"error: cannot write {file}" in ended.stderr
        assert "hint:" in ended.stderr and "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
    assert cli("web", runs, "--export", tmp_path / "x.html").returncode == 2

"""The alerts and the dashboard ask for metrics that there are, and fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from fake_trainer import Manager, model_tensors
from faults import Rounds
from pages import page
from prometheus_client.parser import text_string_to_metric_families
from watching import ROOT

from watcher.heartbeat import Heartbeat
from watcher.service.health import Health
from watcher.service.metrics import Metrics, RunCollector

ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboard.json"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What /metrics answers for a run with all settings on."""
    folder = tmp_path_factory.mktemp("run")
    Manager(folder).save(100, model_tensors(1000, "0"))
    rounds = Rounds(folder)
    with rounds.open() as store:
        intake, projector = rounds.begin(store)
        assert rounds.go(store, intake, projector) is None
    settings = rounds.settings.replaced(max_pinned_bytes="1GB")
    health = Health(10)
    status = {"worker": "ready", "patience_left": {"evaluations": 1, "steps": 2}}
    health.show(Heartbeat(turned=0, due=0, status=status))
    parts = settings.run, settings.ranking, settings.retention
    collector = RunCollector(*parts, health, lambda: {("command", "sent"): 1})
    return Metrics(collector)("").body.decode()


@pytest.fixture(scope="module")
def exposed(text: str) -> dict[str, set[str]]:
    """Each metric in that, and its labels."""
    found = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = {"job", "instance", *sample.labels}
    return found


def check_query(query: str, exposed: dict[str, set[str]]) -> None:
    """Every metric in a query exists and has the labels that are asked of it."""
    named = re.findall(r"\b(checkpoint_watcher_\w+|up)\b(?:\{([^}]*)\})?", query)
    assert named, query
    for name, selector in named:
        assert name in exposed, query
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)) <= exposed[name], query


def test_each_alert_asks_for_metrics_that_there_are_and_says_what_to_do(exposed):
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    names = [rule["alert"] for rule in group["rules"]]
    assert len(names) == len(set(names)) >= 4
    for rule in group["rules"]:
        check_query(rule["expr"], exposed)
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_promtool_accepts_the_alerts_and_they_fire_on_their_cases_alone():
    promtool("check", "rules", str(ALERTS))
    promtool("test", "rules", "alerts_test.yml")


def test_promtool_finds_the_metrics_named_and_explained_as_they_should_be(text):
    promtool("check", "metrics", given=text)


def promtool(*arguments: str, given: str = "") -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: apt install prometheus")
    done = subprocess.run(
        [program, *arguments], cwd=ALERTS.parent, input=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def test_each_panel_asks_the_chosen_source_for_metrics_of_the_chosen_runs(exposed):
    for panel in panels():
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            check_query(target["expr"], exposed)
            selectors = re.findall(r"checkpoint_watcher_\w+(\S{0,14})", target["expr"])
            assert all(text.startswith('{run=~"$run"}') for text in selectors), target["expr"]


def test_the_panels_of_the_dashboard_do_not_overlap_and_have_ids_of_their_own():
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))


def test_every_metric_is_documented(exposed):
    cells = re.findall(r"^\| (`[^|]+) \|", page("reference/monitoring"), re.MULTILINE)
    table = set(re.findall(r"`(\w+)`", " ".join(cells)))
    for name in exposed.keys() - {"up"}:
        short = name.removeprefix("checkpoint_watcher_")
        assert short.startswith("process_") or table & {short, f"{short}_total"}, short

"""Environment variables with our prefix that nothing reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

from watching import ROOT, cli

from watcher.cli.variables import known


def warnings_of(folder: Path, *words: str, **environment: str) -> list[str]:
    ended = cli(*words, cwd=folder, **environment)
    return [line for line in ended.stderr.splitlines() if line.startswith("warning: ")]


def test_a_mistyped_variable_is_answered_with_the_one_that_was_meant(tmp_path: Path):
    for words in (["run", "."], ["doctor", "."], ["status", "."]):
        assert warnings_of(tmp_path, *words, CHECKPOINT_WATCHER_TOPK="5") == [
            "warning: CHECKPOINT_WATCHER_TOPK in the environment is not a setting, and does"
            " nothing: did you mean CHECKPOINT_WATCHER_TOP_K?"
        ]


def test_a_variable_like_none_is_a_warning_and_no_error(tmp_path: Path):
    ended = cli("completion", "bash", CHECKPOINT_WATCHER_XYZZY="5")
    assert (ended.returncode, ended.stderr) == (0, "")
    (line,) = warnings_of(tmp_path, "status", ".", CHECKPOINT_WATCHER_XYZZY="5")
    assert line.endswith(
        "CHECKPOINT_WATCHER_XYZZY in the environment is not a setting, and does nothing"
    )


def test_a_variable_that_the_file_alone_can_set_is_told_too(tmp_path: Path):
    assert len(warnings_of(tmp_path, "status", ".", CHECKPOINT_WATCHER_BOARD="x")) == 1


def test_what_kubernetes_tells_of_a_service_of_our_name_is_passed_over(tmp_path: Path):
    service = {
        "CHECKPOINT_WATCHER_SERVICE_HOST": "10.0.0.1",
        "CHECKPOINT_WATCHER_SERVICE_PORT_HEALTH": "8080",
        "CHECKPOINT_WATCHER_PORT": "tcp://10.0.0.1:8080",
        "CHECKPOINT_WATCHER_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert warnings_of(tmp_path, "status", ".", **service) == []


def test_each_variable_that_this_repository_names_is_known():
    own = f":!{Path(__file__).relative_to(ROOT)}"
    search = ["git", "grep", "-hoE", "CHECKPOINT_WATCHER_[A-Z0-9_]+", "--", ".", own]
    ended = subprocess.run(
        [*search, ":!CHANGELOG.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # With a bar before them, which is not our prefix.
    private = {"CHECKPOINT_WATCHER_COMPLETE", "CHECKPOINT_WATCHER_VARIABLES_TOLD"}
    listed = set(ended.stdout.split()) - private
    assert len(listed) > 15 and listed - known() == set()

"""The wheel holds both sides, and what is installed from it finds the worker."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from watching import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked: a folder as it would stand in site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_module_of_both_sides_and_nothing_else(installed: Path):
    for side in ("watcher", "evaluators"):
        ours = {path.relative_to(ROOT) for path in (ROOT / side).rglob("*.py")}
        assert ours and ours <= {path.relative_to(installed) for path in installed.rglob("*.py")}
    files = [path.relative_to(ROOT) for path in (ROOT / "watcher" / "web").rglob("*.*")]
    page = {path for path in files if path.suffix in (".html", ".css", ".js")}
    assert page and all((installed / path).is_file() for path in page)
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {
        "watcher",
        "evaluators",
    }


def test_the_installed_worker_starts_without_the_daemons_packages(installed: Path, tmp_path: Path):
    """Its folder's parent is site-packages: nothing of that may reach the training environment."""
    site = Path(shutil.copytree(installed, tmp_path / "site"))
    (site / "tensorflow.py").write_text("raise SystemExit('leaked from site-packages')\n")
    program = "from watcher.evaluation.od_api import WORKER_FILE; print(WORKER_FILE)"
    worker_file = subprocess.run(
        [sys.executable, "-c", program], cwd=site, capture_output=True, text=True
    ).stdout.strip()
    assert worker_file == str(site / "evaluators" / "worker.py")
    worker = subprocess.Popen(
        [sys.executable, worker_file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with worker:
        worker.stdin.write('{"type": "start", "protocol": 2, "kind": "od-api"}\n')
        worker.stdin.flush()
        said = [json.loads(worker.stdout.readline()) for _ in range(2)]
        answer = said[-1]
    assert answer["code"] == "no_tensorflow"
    assert "is not installed" in answer["message"]

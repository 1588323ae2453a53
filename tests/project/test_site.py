"""The site of docs/: its build is strict, it fits a phone, and it asks no other machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from browser import Browser
from pages import DOCS, ROOT

pytestmark = pytest.mark.slow

ZENSICAL = ROOT / ".venv-docs" / "bin" / "zensical"


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder as `make docs` does."""
    if not ZENSICAL.exists():
        pytest.fail(f"no {ZENSICAL}: `make environments` installs it")
    command = [ZENSICAL, "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "zensical.toml").write_bytes((ROOT / "zensical.toml").read_bytes())
    ran = build(folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder / "build" / "site"


def test_the_site_has_every_page(site: Path):
    for path in DOCS:
        name = path.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / name).stat().st_size > 5000, name


def test_a_dead_link_ends_the_build(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[nowhere](nowhere.md)\n")
    (tmp_path / "zensical.toml").write_text('[project]\nsite_name = "broken"\n')
    ran = build(tmp_path)
    assert ran.returncode != 0 and "page does not exist" in ran.stdout + ran.stderr


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_site_fits_a_phone_and_asks_no_other_machine(site: Path, browser: Browser, scheme: str):
    for name in ("index", "reference/settings", "explanation/faults", "how-to/fine-tune"):
        for width in (390, 1280):
            browser.open((site / f"{name}.html").as_uri(), width=width, scheme=scheme)
            assert browser.overflow() <= 0 and browser.elsewhere() == [], name
            behind = browser.ask("getComputedStyle(document.body).backgroundColor")
            brightest = max(map(int, re.findall(r"\d+", behind)[:3]))
            assert (brightest > 128) == (scheme == "light"), behind

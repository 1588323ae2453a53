"""The pages that a user reads: the README, docs/ and what stands beside them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
BESIDE = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "deploy" / "README.md"]


def page(name: str) -> str:
    """The text of a page of docs/, `how-to/install`."""
    return (ROOT / "docs" / f"{name}.md").read_text()


def everything() -> str:
    """The README and all of docs/, one behind the other."""
    return "\n".join(path.read_text() for path in (README, *DOCS))


def without_code(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """What can stand behind # for a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def shell_blocks(text: str) -> list[str]:
    """The blocks of commands of a page; of those with prompts and output, the commands."""
    blocks = []
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for block in (text for language, text in fenced if language in ("", "sh")):
        lines = block.replace("\\\n", "").splitlines()
        prompted = [line[2:] for line in lines if line.startswith("$ ")]
        blocks.append("\n".join(prompted or lines))
    return blocks

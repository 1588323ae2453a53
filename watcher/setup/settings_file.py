"""The settings file that `init` writes: every setting, with what was found or its default. Pure."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from watcher.config import LaunchSettings, Setting, Settings, describe, names
from watcher.config.devices import TABLES
from watcher.config.evaluator import KINDS, OD_API
from watcher.config.settings import own_names

_WIDTH = 98
_HEADER = """\
Settings of checkpoint-watcher for {model_dir}

A command that is started in the folder of a checkpoint-watcher.toml takes it; run, train and
doctor take one of another place or name with `--config THIS_FILE`, and the others MODEL_DIR.
Flags and the environment (CHECKPOINT_WATCHER_TOP_K=5) override it. Lines with a setting in them
that begin with # are not active: they show its default, or an example where the default is not to
set it."""
_BOARDS = """\
#[[board]]
#metric = "mAP"
#top_k = 3
#[[board]]
#name = "small"
#metric = "mAP_small"
"""

# Of settings that are not set by default: something to begin with, which a run would take.
_EXAMPLES: dict[str, Any] = {
    "mode": "max",
    "average": "top-3",
    "recompute_batch_norm": 512,
    "keep_every_steps": 10000,
    "keep_last": 2,
    "patience": 10,
    "patience_steps": 10000,
    "target": 0.5,
    "divergence": 0.01,
    "max_not_finite": 3,
    "plateau_std": 0.001,
    "trend_below": 0.0005,
    "max_steps": 100000,
    "max_hours": 24,
    "eval_input": 0,
    "sample_1_of_n": 2,
    "eval_cache_mib": 4096,
    "threads": 4,
    "nice": 10,
    "worker_memory_limit": "8GB",
    "max_pinned_bytes": "20GB",
    "listen": 9100,
    "publish": "gs://bucket/run/best",
    "endpoint_url": "https://minio.example.org:9000",
    "region": "eu-central-1",
    "exit_when_idle": 600,
    "drain_timeout": 600,
}
# Those whose help text says what its choices do; of the others they are listed.
_CHOICES = frozenset({"mode", "ties", "coco_backend", "log_format"})
_BY_KIND = {"whole": 1, "number": 1, "text": "...", "switch": False, "list": []}


class Found(msgspec.Struct, frozen=True):
    """A value that was found, and where; nothing where it was given."""

    value: Any
    why: str


@dataclass(slots=True)
class Outlook:
    """What is known of a run before it is started.

    Attributes:
        found: Values by setting.
        gaps: Settings that a run needs and that were not found, with what to fill in.
        notes: What else there is to say about a setting.
        defaults: What settings stand for that are not set, by name.
    """

    found: dict[str, Found] = field(default_factory=dict)
    gaps: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    def found_value(self, name: str) -> Any:
        """Return a value that was found, None where none was."""
        return self.found[name].value if name in self.found else None


def render(outlook: Outlook, model_dir: str) -> str:
    """Return the file: the groups of settings in order, each setting with its help text."""
    lines = [_comment(_HEADER.format(model_dir=model_dir))]
    title, last = "", ""
    for setting in _in_groups(str(outlook.found_value("evaluator") or OD_API)):
        if setting.group != title:
            title = setting.group
            lines.append(f"\n\n# ---- {title} ".ljust(_WIDTH + 2, "-"))
        if setting.name == TABLES:  # beside the key `device` no file has such a table
            lines.append(f"\n{_comment(setting.about)}")
            continue
        if setting.name == "board":
            last = f"\n\n\n# ---- Boards {'-' * 84}\n\n{_comment(setting.about)}\n{_BOARDS}"
            continue
        lines.append("\n" + _entry(setting, outlook))
    # A table takes all keys that come after it.
    return "\n".join(lines) + last.rstrip("\n") + "\n"


def _in_groups(evaluator: str) -> list[Setting]:
    """Return the settings of `run` with a kind of evaluator, then those that only `train` has."""
    own = [one for one in describe(LaunchSettings) if one.name not in names(Settings)]
    others = {name for kind in KINDS if kind != evaluator for name in own_names(kind)}
    return [*(one for one in describe(Settings) if one.name not in others), *own]


def _entry(setting: Setting, outlook: Outlook) -> str:
    about = setting.about
    if setting.kind == "list" and setting.metavar:
        about += f" A list of {setting.metavar}."
    elif setting.name in _CHOICES:
        about += f" One of {', '.join((setting.metavar or '').split('|'))}."
    said = [_comment(about)]
    if note := outlook.notes.get(setting.name):
        said.append(_comment(note))
    found = outlook.found.get(setting.name)
    if found:
        why = [_comment(f"Found: {found.why}.")] if found.why else []
        return "\n".join([*said, *why, _line(setting, found.value)])
    if gap := outlook.gaps.get(setting.name):
        said.append(_comment(f"TO FILL IN: {gap}"))
    return "\n".join([*said, _idle(setting, outlook.defaults)])


def _idle(setting: Setting, defaults: Mapping[str, Any]) -> str:
    """Return the line of a setting that is not set, with its default or an example behind a #."""
    if setting.name in defaults:
        return f"#{_line(setting, defaults[setting.name])}"
    if setting.default not in (None, ""):
        return f"#{_line(setting, setting.default)}"
    if setting.kind in ("switch", "list"):
        return f"#{_line(setting, _BY_KIND[setting.kind])}"
    example = _EXAMPLES.get(setting.name, _BY_KIND[setting.kind])
    return f"#{_line(setting, example)}  # for example"


def _line(setting: Setting, value: Any) -> str:
    # JSON's texts, numbers, truth values and lists are TOML's too.
    return f"{setting.name} = {json.dumps(value, ensure_ascii=False)}"


def _comment(text: str) -> str:
    lines = [
        line
        for part in text.splitlines()
        for line in textwrap.wrap(part, _WIDTH, break_on_hyphens=False, break_long_words=False)
        or [""]
    ]
    return "\n".join(f"# {line}".rstrip() for line in lines)

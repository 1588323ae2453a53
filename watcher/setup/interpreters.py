"""Interpreters: which of this machine's Pythons may be that of the training environment."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from watcher.evaluation.packages import lacking
from watcher.launch.command import interpreter
from watcher.launch.processes import Trainer, strings, value_of

_MOST = 40
_BESIDE = (".venv*/bin/python", "venv*/bin/python", "env/bin/python", "*env/bin/python")
_IN_HOME = (
    *("miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba", ".conda"),
    ".virtualenvs",
)


def candidates(
    model_dir: Path, running: Sequence[Trainer], environment: Mapping[str, str]
) -> list[Path]:
    """List interpreters that may have TensorFlow, the likeliest first.

    That of a trainer on this MODEL_DIR; the active environment's and the others on PATH; those in
    and beside the current folder and MODEL_DIR; conda's and virtualenvwrapper's.
    """
    found = [_interpreter_of(trainer) for trainer in running if trainer.model_dir == model_dir]
    for variable in ("CONDA_PREFIX", "VIRTUAL_ENV"):
        if prefix := environment.get(variable):
            found.append(Path(prefix, "bin", "python"))
    for name in ("python", "python3"):
        if path := shutil.which(name, path=environment.get("PATH")):
            found.append(Path(path))
    here = Path.cwd()
    for folder in dict.fromkeys((here, model_dir, *model_dir.parents[:2], here.parent)):
        beside = [path for pattern in _BESIDE for path in _glob(folder, pattern)]
        found += [path for path in beside if _is_ours(path)]
    home = Path(environment.get("HOME", "/nonexistent"))
    for name in _IN_HOME:
        found += _glob(home / name, "envs/*/bin/python")
        found += _glob(home / name, "*/bin/python")
    # A link is not resolved: an environment is known by it.
    there = [path.absolute() for path in found if path is not None and os.access(path, os.X_OK)]
    # `python` and `python3` of one folder are of one environment, which is asked once.
    return list({path.parent: path for path in reversed(there)}.values())[::-1][:_MOST]


def as_found(python: str, environment: Mapping[str, str]) -> str:
    """Return an interpreter's absolute path, by PATH for a bare name; a link is not resolved."""
    return str(Path(shutil.which(python, path=environment.get("PATH")) or python).absolute())


def with_all(paths: Iterable[Path], packages: Sequence[str]) -> list[Path]:
    """Return, in their order, those that have some packages; imports none of them."""
    paths = list(paths)
    with ThreadPoolExecutor(max_workers=4) as pool:
        have = pool.map(lambda path: lacking(path, packages) == [], paths)
        return [path for path, has in zip(paths, have, strict=True) if has]


def _interpreter_of(trainer: Trainer) -> Path | None:
    process = Path("/proc", str(trainer.pid))
    name = interpreter(strings(process / "cmdline") or [])
    if name is None:
        return None
    if "/" in name:
        try:
            return (process / "cwd").readlink() / name
        except OSError:
            return None
    # As it was found on its PATH; the file itself would be that of the base installation.
    found = shutil.which(name, path=value_of(process, "PATH", hidden="") or "")
    return Path(found) if found else None


def _is_ours(path: Path) -> bool:
    """True for a program of our own or of root's: it will be run, and folders may be shared."""
    try:
        return {path.lstat().st_uid, path.stat().st_uid} <= {0, os.geteuid()}
    except OSError:
        return False


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []

"""Library: load matplotlib or plotext, or say how to get them."""

from __future__ import annotations

import importlib
import os
import stat
import tempfile
from pathlib import Path
from types import ModuleType

from watcher.errors import ConfigError

_CACHE = "checkpoint-watcher-matplotlib"


def load(name: str) -> ModuleType:
    """Import a library of the extra `plot`.

    Raises:
        ConfigError: it is not installed, or broken.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        library = name.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == library
        raise ConfigError(
            f"plot needs {library}, which is not installed where the watcher runs"
            if absent
            else f"plot needs {library}, which cannot be imported: {error}",
            hint="pip install 'checkpoint-watcher[plot]'",
        ) from error


def load_matplotlib() -> ModuleType:
    """Import matplotlib for drawing into files, whatever the user has set it to.

    It keeps a list of fonts that takes long to make. Where its own folder for that cannot be
    written, as in a service or a container, the list is kept in the folder for temporary files.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ["MPLBACKEND"] = "agg"
    if "MPLCONFIGDIR" not in os.environ and not _has_own_folders():
        os.environ["MPLCONFIGDIR"] = str(_temporary_folder())
    return load("matplotlib")


def _has_own_folders() -> bool:
    # matplotlib's rule on Linux; elsewhere both lie in ~/.matplotlib.
    home = os.path.expanduser("~")  # noqa: PTH111 - Path's raises where a user has no home
    return all(
        _may_make(os.environ.get(variable) or f"{home}/{default}")
        for variable, default in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
    )


def _may_make(folder: str) -> bool:
    """True when a folder can be written, or made in one that is there: a missing home is not."""
    path = Path(folder)
    there = path if path.exists() else path.parent
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _temporary_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"{_CACHE}-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix=f"{_CACHE}-"))
    # Everybody may make a folder of this name: only our own is trusted.
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{_CACHE}-"))

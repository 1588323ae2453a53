"""Versions of installed distributions."""

from importlib import metadata


def version_of(*names):
    """Returns the version of the first distribution that is installed, None when none is."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None

"""Being subject to file permissions, whoever runs the tests: root would read anything."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator

import pytest

# Where others reach a folder of ours: what pytest makes is closed to them, TMPDIR among it.
OPEN_TO_ALL = "/tmp"
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_VERSION_3 = 0x20080522  # linux/capability.h: a header of version and pid, two times three words


def bound() -> list[str]:
    """What to put before a command, so that it is subject to permissions."""
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("needs setpriv (util-linux) to test permissions as root")
    overrides = "-dac_override,-dac_read_search"
    return ["setpriv", "--inh-caps", overrides, "--bounding-set", overrides]


@contextlib.contextmanager
def subject_to_permissions() -> Iterator[None]:
    """Let this thread be subject to permissions meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, words = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, words) == 0
    before, words[0] = words[0], words[0] & ~_OVERRIDES
    assert libc.capset(header, words) == 0
    try:
        yield
    finally:
        words[0] = before
        assert libc.capset(header, words) == 0

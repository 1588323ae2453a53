"""Mounts: which file system a path lies on, and what is not to be expected of it."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

_MOUNTINFO = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs", "coda"),
        *("lustre", "gpfs", "beegfs", "ceph", "glusterfs", "pvfs2", "orangefs", "wekafs"),
        *("virtiofs", "vboxsf", "prl_fs"),  # folders of the machine that hosts a virtual one
    )
)
# Folders that are buckets: a file there is an object, written anew as a whole for each change.
_BUCKETS = frozenset(
    f"fuse.{name}"
    for name in ("gcsfuse", "s3fs", "mountpoint-s3", "goofys", "blobfuse2", "geesefs")
)


class Mount(msgspec.Struct, frozen=True):
    """The file system that a path lies on."""

    point: Path
    kind: str

    @property
    def is_remote(self) -> bool:
        """True for network file systems and for those that a program serves (FUSE)."""
        return self.kind in _NETWORK or self.kind == "fuse" or self.kind.startswith("fuse.")

    @property
    def is_bucket(self) -> bool:
        """True for a mounted bucket, in which no database survives."""
        return self.kind in _BUCKETS


def mount_of(path: Path, mountinfo: str) -> Mount | None:
    """Find the mount of an absolute path without links in the text of /proc/self/mountinfo. Pure.

    Its format is in proc(5): the mount point is the fifth field, with octal escapes; the type is
    the first one after a lone dash. Of mounts over each other the last one counts.
    """
    best: Mount | None = None
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        words = fields.split(" ")
        if len(words) < 5 or not rest:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words[4]))
        if path.is_relative_to(point) and (
            best is None or len(point.parts) >= len(best.point.parts)
        ):
            best = Mount(point, rest.split(" ")[0])
    return best


def mount_now(folder: Path) -> Mount | None:
    """Return what a folder lies on now, None where that cannot be told."""
    try:
        return mount_of(folder.resolve(), _MOUNTINFO.read_text(errors="surrogateescape"))
    except (OSError, RuntimeError):
        return None


def is_remote(folder: Path) -> bool:
    """Tell whether a folder lies on a network file system, or one that a program serves."""
    mount = mount_now(folder)
    return mount is not None and mount.is_remote

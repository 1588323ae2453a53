"""Where something large can be kept that is not to be kept in memory."""

import pathlib
import re
import shutil

MOUNTINFO = "/proc/self/mountinfo"
IN_MEMORY = ("tmpfs", "ramfs")


def free_bytes(folder):
    """Returns the room on a folder's disk; 0 where it lies in memory, as a /tmp may do."""
    try:
        mounts = pathlib.Path(MOUNTINFO).read_text()
    except (OSError, ValueError):
        mounts = ""
    if file_system(str(pathlib.Path(folder).resolve()), mounts) in IN_MEMORY:
        return 0
    return shutil.disk_usage(str(folder)).free


def file_system(path, mounts):
    """Returns the type of the file system that an absolute path lies on, "" if that is not told.

    Args:
        path: without links.
        mounts: the text of /proc/self/mountinfo (proc(5)): the mount point is the fifth field, with
            octal escapes, the type the first one after a lone dash.
    """
    parts, longest, found = pathlib.PurePath(path).parts, 0, ""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        words = fields.split(" ")
        if len(words) < 5 or not rest:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code.group(1), 8)), words[4])
        inside = pathlib.PurePath(point).parts
        if parts[: len(inside)] == inside and len(inside) >= longest:
            longest, found = len(inside), rest.split(" ")[0]
    return found

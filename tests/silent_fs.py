"""A file system that raises no events: a read-only view of a folder, over FUSE.

    python tests/silent_fs.py FOLDER COMMAND...

Mounts the view over FOLDER itself, in the mount namespace it is started in, and runs the command
there. What others write into FOLDER from outside is seen inside at once, and as on a network file
system the kernel inside knows nothing of it: no inotify event. Hard links out of it are refused
(EXDEV). Speaks the kernel's protocol (linux/fuse.h, 7.31) through /dev/fuse, without a library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import threading

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH = 1, 2, 3, 14, 15, 17, 18, 25
INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 26, 27, 28, 29, 36, 42
ROOT = 1
HEADER = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
NO_CACHE = struct.pack("<QQII", 0, 0, 0, 0)  # for how long entries and attributes are valid
DIRECT_IO = 1
MAX_WRITE = 1 << 17
PR_SET_PDEATHSIG = 1
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4


class SilentView:
    """Answers the kernel's requests about one flat folder. A node is the inode beneath."""

    def __init__(self, folder: int) -> None:
        self.folder = folder
        self.names: dict[int, str] = {}

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | None:
        """The body of the reply; None when there is none. Raises OSError for an error reply."""
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            return None
        if opcode == INIT:
            limits = struct.pack("<HHIIHHI", 12, 10, MAX_WRITE, 1, 32, 0, 0)
            return struct.pack("<IIII", 7, 31, MAX_WRITE, 0) + limits + bytes(28)
        if opcode == LOOKUP:
            return self.look_up(body.rstrip(b"\0").decode())
        if opcode == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + attributes(self.status(node))
        if opcode == OPEN:
            handle = os.open(self.names[node], os.O_RDONLY, dir_fd=self.folder)
            return struct.pack("<QII", handle, DIRECT_IO, 0)
        if opcode == OPENDIR:
            return struct.pack("<QII", 0, 0, 0)
        if opcode == READ:
            handle, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(handle, size, offset)
        if opcode == READDIR:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self.entries(offset, size)
        if opcode == RELEASE:
            os.close(struct.unpack_from("<Q", body)[0])
            return b""
        if opcode in (RELEASEDIR, FLUSH):
            return b""
        if opcode == STATFS:
            return bytes(80)
        raise OSError(errno.ENOSYS, "not here")

    def status(self, node: int) -> os.stat_result:
        if node == ROOT:
            return os.fstat(self.folder)
        return os.stat(self.names[node], dir_fd=self.folder, follow_symlinks=False)

    def look_up(self, name: str) -> bytes:
        found = os.stat(name, dir_fd=self.folder, follow_symlinks=False)
        self.names[found.st_ino] = name
        return struct.pack("<QQ", found.st_ino, 0) + NO_CACHE + attributes(found)

    def entries(self, offset: int, size: int) -> bytes:
        with os.scandir(self.folder) as found:
            names = sorted(entry.name for entry in found)
        block = b""
        for number, name in enumerate(names[offset:], start=offset + 1):
            encoded = name.encode()
            entry = struct.pack("<QQII", number, number, len(encoded), 0) + encoded
            entry += bytes(-len(entry) % 8)
            if len(block) + len(entry) > size:
                break
            block += entry
        return block


def attributes(found: os.stat_result) -> bytes:
    """struct fuse_attr."""
    times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
    ino = ROOT if stat.S_ISDIR(found.st_mode) else found.st_ino
    return struct.pack(
        "<6Q10I",
        ino,
        found.st_size,
        found.st_blocks,
        *(time // 10**9 for time in times),
        *(time % 10**9 for time in times),
        found.st_mode,
        found.st_nlink,
        0,
        0,
        0,
        4096,
        0,
    )


def serve(device: int, view: SilentView) -> None:
    while True:
        try:
            request = os.read(device, MAX_WRITE + 4096)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):
                continue
            return  # unmounted
        _, opcode, unique, node, *_ = HEADER.unpack_from(request)
        code, body = 0, None
        try:
            body = view.answer(opcode, node, request[HEADER.size :])
        except OSError as error:
            code, body = -(error.errno or errno.EIO), b""
        except KeyError:
            code, body = -errno.ESTALE, b""
        if body is not None:
            os.write(device, struct.pack("<IiQ", 16 + len(body), code, unique) + body)


def main() -> int:
    folder, command = sys.argv[1], sys.argv[2:]
    view = SilentView(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    libc = ctypes.CDLL(None, use_errno=True)
    flags = MS_RDONLY | MS_NOSUID | MS_NODEV
    if libc.mount(b"silent", folder.encode(), b"fuse", flags, options.encode()):
        sys.exit(f"cannot mount fuse: {os.strerror(ctypes.get_errno())}")
    threading.Thread(target=serve, args=(device, view), daemon=True).start()

    def die_with_us() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    with subprocess.Popen(command, preexec_fn=die_with_us) as running:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: running.send_signal(number))
        return running.wait()


if __name__ == "__main__":
    sys.exit(main())

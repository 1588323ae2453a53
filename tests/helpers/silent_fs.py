"""A file system that raises no events: a view of a folder, over FUSE.

    python tests/helpers/silent_fs.py [--writable] FOLDER COMMAND...

Mounts the view over FOLDER itself, in the mount namespace it is started in, and runs the command
there. What others write into FOLDER from outside is seen inside at once, and as on a network file
system the kernel inside knows nothing of it: no inotify event. Hard links out of it are refused
(EXDEV), and those within it with EIO, as rclone's mount does. Speaks the kernel's protocol
(linux/fuse.h, 7.31) through /dev/fuse, without a library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH = 1, 2, 3, 14, 15, 17, 18, 25
SETATTR, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE = 4, 8, 9, 10, 11, 12, 13, 16
FSYNC, FSYNCDIR, CREATE, RENAME2 = 20, 30, 35, 45
CHANGING = (SETATTR, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, CREATE, RENAME2)
SET_MODE, SET_SIZE, SET_TIMES, BY_HANDLE = 1, 8, 16 | 32, 64
INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 26, 27, 28, 29, 36, 42
ROOT = 1
HEADER = struct.Struct("<IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
DIRECT_IO = 1
MAX_WRITE = 1 << 17
PR_SET_PDEATHSIG = 1
MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4


class SilentView:
    """Answers the kernel's requests about a folder. A node is a path beneath it."""

    def __init__(self, folder: int, *, writable: bool) -> None:
        self.folder = folder
        self.writable = writable
        self.paths = {ROOT: "."}
        self.last_node = ROOT

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | None:
        """The body of the reply; None when there is none. Raises OSError for an error reply."""
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            return None
        if opcode == INIT:
            limits = struct.pack("<HHIIHHI", 12, 10, MAX_WRITE, 1, 32, 0, 0)
            return struct.pack("<IIII", 7, 31, MAX_WRITE, 0) + limits + bytes(28)
        if opcode == LOOKUP:
            return self.entry(self.child(node, body))
        if opcode == GETATTR:
            flags, _, handle = struct.unpack_from("<IIQ", body)
            return self.attributes(node, handle if flags & 1 else None)
        if opcode == OPEN:
            flags = struct.unpack_from("<I", body)[0] & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
            return self.opened(os.open(self.paths[node], flags, dir_fd=self.folder))
        if opcode == OPENDIR:
            return struct.pack("<QII", 0, 0, 0)
        if opcode == READ:
            handle, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(handle, size, offset)
        if opcode == READDIR:
            _, offset, size = struct.unpack_from("<QQI", body)
            return self.entries(node, offset, size)
        if opcode == RELEASE:
            os.close(struct.unpack_from("<Q", body)[0])
            return b""
        if opcode in (RELEASEDIR, FLUSH, FSYNC, FSYNCDIR):
            return b""
        if opcode == STATFS:
            blocks = os.fstatvfs(self.folder)
            sizes = (blocks.f_blocks, blocks.f_bfree, blocks.f_bavail, blocks.f_files)
            return struct.pack(
                "<5Q4I", *sizes, blocks.f_ffree, blocks.f_bsize, 255, 4096, 0
            ) + bytes(24)
        if self.writable and opcode in CHANGING:
            return self.change(opcode, node, body)
        raise OSError(errno.ENOSYS, "not here")

    def change(self, opcode: int, node: int, body: bytes) -> bytes:
        if opcode == WRITE:
            handle, offset, size = struct.unpack_from("<QQI", body)
            return struct.pack("<II", os.pwrite(handle, body[40 : 40 + size], offset), 0)
        if opcode == SETATTR:
            return self.set_attributes(node, body)
        if opcode == LINK:
            raise OSError(errno.EIO, "as rclone says it")
        if opcode in (RENAME, RENAME2):
            into = struct.unpack_from("<Q", body)[0]
            old, new = body[8 if opcode == RENAME else 16 :].rstrip(b"\0").split(b"\0")
            return self.rename(self.child(node, old), self.child(into, new))
        if opcode in (UNLINK, RMDIR):
            path = self.child(node, body)
            (os.unlink if opcode == UNLINK else os.rmdir)(path, dir_fd=self.folder)
            self.forget(path)
            return b""
        if opcode == MKDIR:
            path, mode = self.child(node, body[8:]), struct.unpack_from("<I", body)[0]
            os.mkdir(path, mode, dir_fd=self.folder)
            return self.entry(path)
        if opcode == MKNOD:
            path, mode = self.child(node, body[16:]), struct.unpack_from("<I", body)[0]
            os.mknod(path, mode, dir_fd=self.folder)
            return self.entry(path)
        flags, mode = struct.unpack_from("<II", body)
        path = self.child(node, body[16:])
        handle = os.open(path, flags | os.O_CREAT, mode, dir_fd=self.folder)
        return self.entry(path) + self.opened(handle)

    def set_attributes(self, node: int, body: bytes) -> bytes:
        """struct fuse_setattr_in."""
        valid, _, handle, size, _, atime, mtime, _, *nanoseconds = struct.unpack_from(
            "<II6Q3I", body
        )
        mode = struct.unpack_from("<I", body, 68)[0]
        path = f"/proc/self/fd/{self.folder}/{self.paths[node]}"
        if valid & SET_MODE:
            Path(path).chmod(mode & 0o7777)
        if valid & SET_SIZE:
            os.truncate(handle if valid & BY_HANDLE else path, size)
        if valid & SET_TIMES:
            times = (atime * 10**9 + nanoseconds[0], mtime * 10**9 + nanoseconds[1])
            os.utime(path, ns=times)
        return self.attributes(node)

    def child(self, node: int, name: bytes) -> str:
        return f"{self.paths[node]}/{name.split(bytes(1))[0].decode()}"

    def rename(self, old: str, new: str) -> bytes:
        os.rename(old, new, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        self.forget(new)
        for node, path in self.paths.items():
            if path == old or path.startswith(f"{old}/"):
                self.paths[node] = new + path[len(old) :]
        return b""

    def forget(self, path: str) -> None:
        """The next file of that name is another node."""
        self.paths = {node: known for node, known in self.paths.items() if known != path}

    def opened(self, handle: int) -> bytes:
        # What is only read is never cached: others write it from outside.
        return struct.pack("<QII", handle, 0 if self.writable else DIRECT_IO, 0)

    def attributes(self, node: int, handle: int | None = None) -> bytes:
        if node == ROOT:
            found = os.fstat(self.folder)
        elif handle is not None:
            found = os.fstat(handle)
        else:
            found = os.stat(self.paths[node], dir_fd=self.folder, follow_symlinks=False)
        return struct.pack("<QII", 0, 0, 0) + attributes(found, root=node == ROOT)

    def entry(self, path: str) -> bytes:
        """struct fuse_entry_out."""
        found = os.stat(path, dir_fd=self.folder, follow_symlinks=False)
        node = next((node for node, known in self.paths.items() if known == path), None)
        if node is None:
            self.last_node = node = self.last_node + 1
            self.paths[node] = path
        return struct.pack("<QQII", node, 0, 0, 0) + bytes(16) + attributes(found)

    def entries(self, node: int, offset: int, size: int) -> bytes:
        with os.scandir(f"/proc/self/fd/{self.folder}/{self.paths[node]}") as found:
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


def attributes(found: os.stat_result, *, root: bool = False) -> bytes:
    """struct fuse_attr."""
    times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
    ino = ROOT if root else found.st_ino
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
    writable = sys.argv[1] == "--writable"
    folder, *command = sys.argv[1 + writable :]
    view = SilentView(os.open(folder, os.O_RDONLY | os.O_DIRECTORY), writable=writable)
    os.umask(0)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    libc = ctypes.CDLL(None, use_errno=True)
    flags = MS_NOSUID | MS_NODEV | (0 if writable else MS_RDONLY)
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

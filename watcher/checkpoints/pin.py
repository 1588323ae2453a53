"""Pin: keep a checkpoint safe from the trainer's rotation, and prove that it is whole.

The shards are hard-linked: the trainer replaces them by rename, so a link stays what it was. The
index is copied: after a restart without its `checkpoint` file the trainer rewrites `ckpt-2.index`
in the same inode, and a linked index would change under us. Then the pin, not the original, is
verified, and only a verified pin gets its final name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from pathlib import Path

from watcher.checkpoints import bundle
from watcher.data import FoundCheckpoint, Pin
from watcher.errors import CorruptCheckpoint, PinError
from watcher.files import write_new_file

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of one file with another
# A copy would meet these as well. Whatever else a link is refused with means a copy: EXDEV, another
# file system; EPERM, fs.protected_hardlinks; EMLINK, no room for another; EIO, ENOSYS and
# EOPNOTSUPP from file systems that have none.
_NO_COPY_EITHER = (errno.ENOENT, errno.ENOSPC, errno.EDQUOT)

# What was verified byte by byte: digest of the index; device, inode, size and time of each shard.
Verified = set[tuple[str, tuple[tuple[int, ...], ...]]]


def identify(checkpoint: FoundCheckpoint) -> str:
    """Return the sha256 (hex) of the checkpoint's index as it is now; reads nothing else.

    Raises:
        FileNotFoundError: it was rotated away.
        CorruptCheckpoint: the index is larger than any index.
    """
    return hashlib.sha256(bundle.read_index(checkpoint.prefix)).hexdigest()


def unreadable(checkpoint: FoundCheckpoint) -> str | None:
    """Return which file of a checkpoint may not be read and why, None when each can be opened."""
    shards = sorted(checkpoint.prefix.parent.glob(f"{checkpoint.name}.data-*"))
    for file in (bundle.index_path(checkpoint.prefix), *shards):
        try:
            os.close(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"cannot read {file.name}: {error.strerror}{_whose(file, error)}"
    return None


def _whose(file: Path, error: OSError) -> str:
    if not isinstance(error, PermissionError):
        return ""
    with contextlib.suppress(OSError):
        status = file.lstat()
        return f" (owner uid {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def pin(checkpoint: FoundCheckpoint, pins_dir: Path, verified: Verified | None = None) -> Pin:
    """Take a verified pin of a checkpoint, in `pins_dir/<sha256>/<name>`.

    Pinning the same content twice gives the same pin. Does not write to the database, and
    leaves nothing behind when it fails.

    Args:
        checkpoint: What to pin.
        pins_dir: Folder of the pins.
        verified: Gets the pin, so that a link to it needs no verification of its own.

    Raises:
        FileNotFoundError: the checkpoint was rotated away before all of it was pinned.
        IncompleteCheckpoint: it is not finished yet, as far as can be seen.
        CorruptCheckpoint: its bytes are not what its index says.
        PinError: it could neither be linked nor copied.
    """
    index = bundle.read_index(checkpoint.prefix)
    parsed = bundle.parse_index(index)
    working = _make_folder(pins_dir, checkpoint.name)
    try:
        method = "link"
        for shard, size in enumerate(bundle.shard_sizes(parsed)):
            name = bundle.shard_name(checkpoint.name, shard, parsed.num_shards)
            source = checkpoint.prefix.with_name(name)
            _require_size(source, size)
            method = take_file(source, working / name)
        prefix = working / checkpoint.name
        write_new_file(bundle.index_path(prefix), index)
        facts = bundle.verify(prefix)
        if verified is not None:
            verified.add(signature(prefix, facts.sha256))
        final = pins_dir / facts.sha256
        _move_into_place(working, final)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _refusal(checkpoint.name, error, pins_dir) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return Pin(
        prefix=final / checkpoint.name,
        method=method,
        sha256=facts.sha256,
        global_step=facts.global_step,
        size_bytes=facts.size_bytes,
        model_variables=facts.model_variables,
    )


def _make_folder(pins_dir: Path, name: str) -> Path:
    """Make a folder to work in; one that cannot be made is no fault of the checkpoint's."""
    working = pins_dir / f".new-{secrets.token_hex(6)}"
    try:
        try:
            working.mkdir(mode=0o700)
        except FileNotFoundError:  # somebody deleted all pins
            pins_dir.mkdir(mode=0o700)
            working.mkdir(mode=0o700)
    except OSError as error:
        raise _refusal(name, error, pins_dir) from error
    return working


def _refusal(name: str, error: OSError, pins_dir: Path) -> PinError:
    return PinError(
        f"cannot pin {name}: {error.strerror or error}",
        hint=f"check free space and permissions of {pins_dir}",
    )


def take_checkpoint(source: Path, target: Path, *, index_mode: int = 0o600) -> tuple[bytes, str]:
    """Give the prefix `target` the shards of `source` and a copy of its index, under its own name.

    Verifies nothing; the caller does, and clears away what a failure leaves.

    Returns:
        The bytes of the index, and how the shards came there, as `take_file` says it.

    Raises:
        FileNotFoundError, CorruptCheckpoint, OSError: as `take_file` and `bundle.read_index`.
    """
    index = bundle.read_index(source)
    shards = bundle.parse_index(index).num_shards
    method = "link"
    for shard in range(shards):
        method = take_file(
            source.with_name(bundle.shard_name(source.name, shard, shards)),
            target.with_name(bundle.shard_name(target.name, shard, shards)),
        )
    write_new_file(bundle.index_path(target), index, mode=index_mode)
    return index, method


def signature(prefix: Path, sha256: str) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Return what changes when a shard is replaced or written to; links have it in common."""
    shards = bundle.parse_index(bundle.read_index(prefix)).num_shards
    names = (bundle.shard_name(prefix.name, shard, shards) for shard in range(shards))
    found = (prefix.with_name(name).lstat() for name in names)
    return sha256, tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in found)


def release(prefix: Path, pins_dir: Path) -> None:
    """Delete a pin. The trainer's own files and those in `best/` are not touched by this."""
    folder = prefix.parent
    if folder.parent == pins_dir:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(pins_dir: Path, keep: set[str]) -> None:
    """Delete what a crash left in pins_dir: half-made pins, and pins not in `keep` (sha256)."""
    for entry in pins_dir.iterdir():
        ours = entry.name.startswith(".new-") or len(entry.name) == 64
        if ours and entry.name not in keep:
            shutil.rmtree(entry, ignore_errors=True)


def take_file(source: Path, target: Path) -> str:
    """Give `target` the content of a regular file: by hard link, reflink or copy.

    Returns:
        `link`, `reflink` or `copy`, whichever the file system allowed.

    Raises:
        FileNotFoundError: the source is gone.
        CorruptCheckpoint: the source is a symbolic link, a pipe or anything but a regular file.
        OSError: not even a copy was possible.
    """
    _require_regular(source)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_COPY_EITHER:
            raise
        return _copy(source, target)
    try:
        # os.link links a symlink itself, and the source may have become one since the look.
        _require_regular(target)
    except CorruptCheckpoint:
        target.unlink()
        raise
    return "link"


def probe(model_dir: Path, pins_dir: Path) -> str | None:
    """Return why pins of `model_dir` cannot be hard links, None when nothing speaks against it.

    Writes and removes two files of its own in `pins_dir`, nothing in `model_dir`. Where it cannot
    write there at all, nothing is known.
    """
    trial = pins_dir / f".new-{secrets.token_hex(6)}"
    linked = trial.with_name(f"{trial.name}-link")
    try:
        if model_dir.stat().st_dev != pins_dir.stat().st_dev:
            return f"{pins_dir} is on another file system than {model_dir}"
        write_new_file(trial, b"")
        try:
            os.link(trial, linked)
        except OSError as error:
            if error.errno not in _NO_COPY_EITHER:
                return f"the file system of {pins_dir} has no hard links ({error.strerror})"
    except OSError:
        pass
    finally:
        for file in (trial, linked):
            with contextlib.suppress(OSError):
                file.unlink()
    return None


def _require_regular(path: Path) -> int:
    """Return the size of a regular file; what a symlink names is not looked at."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise CorruptCheckpoint(f"{path.name} is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise CorruptCheckpoint(f"{path.name} is not a regular file")
    return status.st_size


def _require_size(path: Path, size_bytes: int) -> None:
    """Refuse a shard of the wrong length before it is copied or read, however long it is."""
    found = _require_regular(path)
    if found != size_bytes:
        raise CorruptCheckpoint(f"{path.name} has {found} bytes, {size_bytes} needed")


def _copy(source: Path, target: Path) -> str:
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            shutil.copyfileobj(reader, writer, 4 << 20)
            method = "copy"
        else:
            method = "reflink"
        writer.flush()
        # As a link has them: when the trainer wrote it, which tells in which order checkpoints
        # were saved, and who may read it in best/.
        status = os.fstat(reader.fileno())
        os.fchmod(writer.fileno(), stat.S_IMODE(status.st_mode))
        os.utime(writer.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
    return method


def _move_into_place(working: Path, final: Path) -> None:
    try:
        working.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # Only verified pins ever get a final name, and the name is the content's own digest.

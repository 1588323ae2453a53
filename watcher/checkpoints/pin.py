"""Pin: keep a checkpoint safe from the trainer's rotation, and prove that it is whole.

The shards are hard-linked: the trainer replaces them by rename, so a link stays what it was. The
index is copied: after a restart without its `checkpoint` file the trainer rewrites `ckpt-2.index`
in the same inode, and a linked index would change under us. Then the pin, not the original, is
verified, and only a verified pin gets its final name. To link takes no time and comes at once; to
verify takes as long as the disk needs, and is done in slices.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from watcher.checkpoints import bundle
from watcher.checkpoints.bundle_format import BundleFormat
from watcher.checkpoints.bundle_index import parse_index
from watcher.errors import CorruptCheckpoint, PinError
from watcher.files.atomic_io import NEW as NEW
from watcher.files.atomic_io import set_mode, set_times, write_new_file
from watcher.files.slices import Progress, Work, finish
from watcher.types import Files, FoundCheckpoint, Pin
from watcher.types import Verified as Verified

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of one file with another
# A copy would meet these as well. Whatever else a link is refused with means a copy: EXDEV, another
# file system; EPERM, fs.protected_hardlinks; EMLINK, no room for another; EIO, ENOSYS and
# EOPNOTSUPP from file systems that have none.
NO_COPY_EITHER = (errno.ENOENT, errno.ENOSPC, errno.EDQUOT)

READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
COPY_BYTES = 4 << 20


def identify(checkpoint: FoundCheckpoint) -> str:
    """Return the sha256 (hex) of the checkpoint's index as it is now; reads nothing else.

    Raises:
        FileNotFoundError: it was rotated away.
        CorruptCheckpoint: the index is larger than any index.
    """
    return hashlib.sha256(bundle.read_index(checkpoint.prefix)).hexdigest()


def digest(prefix: Path) -> str | None:
    """Return the sha256 (hex) of the index at a prefix, None where none can be read."""
    try:
        return hashlib.sha256(bundle.read_index(prefix)).hexdigest()
    except (OSError, CorruptCheckpoint):
        return None


def pin(
    checkpoint: FoundCheckpoint,
    pins_dir: Path,
    format: BundleFormat,
    verified: Verified | None = None,
) -> Pin:
    """Take a verified pin of a checkpoint, in `pins_dir/<sha256>/<name>`.

    Pinning the same content twice gives the same pin, of the first name. Does not write to the
    database, and leaves nothing behind when it fails.

    Args:
        checkpoint: What to pin.
        pins_dir: Folder of the pins.
        format: What the trainer writes.
        verified: Gets the pin, so that a link to it needs no verification of its own.

    Raises:
        FileNotFoundError: the checkpoint was rotated away before all of it was pinned.
        IncompleteCheckpoint: it is not finished yet, as far as can be seen.
        CorruptCheckpoint: its bytes are not what its index says.
        PinError: it could neither be linked nor copied.
    """
    return finish(pinning(checkpoint, pins_dir, format, verified))


def pinning(
    checkpoint: FoundCheckpoint,
    pins_dir: Path,
    format: BundleFormat,
    verified: Verified | None = None,
    progress: Progress | None = None,
) -> Work[Pin]:
    """Do what `pin` does, a few MB at a time.

    After the first step rotation takes nothing any more: what can be linked is linked, and what
    must be copied is open. Once all shards and then the index are there, the half-made pin is left
    where it is if the process ends; `halves` finds it, and `settling` goes on with it.
    """
    progress = progress or Progress()
    index = bundle.read_index(checkpoint.prefix)
    sizes = _shards(checkpoint.name, bundle.shard_sizes(parse_index(index)))
    working = make_folder(pins_dir, checkpoint.name)
    prefix, method = working / checkpoint.name, "link"
    complete = leave = False
    try:
        with contextlib.ExitStack() as opened:
            if readers := _take_hold(checkpoint, working, sizes, opened):
                progress.holds_open = len(readers)
                yield
            for name, reader in readers.items():
                progress.begin(f"copying {checkpoint.name}", sizes[name])
                method = yield from _copying(reader, working / name, progress)
        progress.holds_open = 0
        write_new_file(bundle.index_path(prefix), index)
        complete = True
        del index
        yield
        return (yield from settling(prefix, pins_dir, format, method, verified, progress))
    except GeneratorExit:
        leave = complete
        raise
    except FileNotFoundError:
        raise
    except OSError as error:
        raise refusal(checkpoint.name, error, pins_dir) from error
    finally:
        if not leave:
            shutil.rmtree(working, ignore_errors=True)


def has_all_files(prefix: Path) -> bool:
    """Tell whether an index and each shard that the names of the others speak of are there."""
    shards = list(prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*"))
    counts = {shard.name.rpartition("-of-")[2] for shard in shards}
    return bundle.index_path(prefix).is_file() and counts == {f"{len(shards):05}"}


def _take_hold(
    checkpoint: FoundCheckpoint, working: Path, sizes: dict[str, int], opened: contextlib.ExitStack
) -> dict[str, BinaryIO]:
    """Link what can be linked; returns the shards that must be copied, opened."""
    readers = {}
    for name, size in sizes.items():
        source = checkpoint.prefix.with_name(name)
        _require_size(source, size)
        if reader := link_file(source, working / name):
            readers[name] = opened.enter_context(reader)
    return readers


def settling(
    prefix: Path,
    pins_dir: Path,
    format: BundleFormat,
    method: str,
    verified: Verified | None = None,
    progress: Progress | None = None,
) -> Work[Pin]:
    """Verify a half-made pin that has all its files, and give it its final name.

    Args:
        prefix: Where it is; its folder is the caller's to remove when this fails.
        pins_dir: Folder of the pins.
        format: What the trainer writes.
        method: How its shards came there.
        verified: Gets the pin.
        progress: Is kept up to date.

    Raises:
        As `pin` does; an OSError as it is.
    """
    assert prefix.parent.parent == pins_dir, f"{prefix} is no pin"  # its folder is renamed
    index = bundle.read_index(prefix)
    shards = bundle.shard_sizes(parse_index(index))
    sizes = _shards(prefix.name, shards)
    seen = _signature_of(prefix, sizes, hashlib.sha256(index).hexdigest())
    whole = yield from format.verifying(prefix, index, progress or Progress())
    if verified is not None:
        verified.add(seen)
    final = pins_dir / whole.sha256
    # Pinned before under another name it stays that pin: there is a row that speaks of it.
    there = next((path.stem for path in final.glob("*.index")), prefix.name)
    if not _has_sizes(final / there, _shards(there, shards)):
        shutil.rmtree(final, ignore_errors=True)  # somebody deleted a part of it
        there = prefix.name
    _move_into_place(prefix.parent, final)
    return replace(whole, prefix=final / there, method=method)


def signature_at(prefix: Path) -> Files:
    """Return what a checkpoint there would be found with; empty where there are no files."""
    signature: list[tuple[int, ...]] = []
    with contextlib.suppress(OSError):
        for file in (
            bundle.index_path(prefix),
            *sorted(prefix.parent.glob(f"{prefix.name}.data-*")),
        ):
            status = file.stat()
            signature.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(signature)


def halves(pins_dir: Path) -> Iterator[tuple[Path, str]]:
    """Yield prefix and digest of each half-made pin that only has to be verified."""
    for folder in sorted(pins_dir.glob(f"{NEW}*")):
        try:
            (path,) = folder.glob("*.index")
            prefix = path.with_suffix("")
            index = bundle.read_index(prefix)
            shards = bundle.shard_sizes(parse_index(index))
            for name, size in _shards(prefix.name, shards).items():
                _require_size(prefix.with_name(name), size)
        except (OSError, ValueError, CorruptCheckpoint):
            continue  # no index yet, or a part of one
        yield prefix, hashlib.sha256(index).hexdigest()


def taking_checkpoint(
    source: Path, target: Path, progress: Progress | None = None, *, index_mode: int = 0o600
) -> Work[tuple[bytes, str]]:
    """Give the prefix `target` the shards of `source` and a copy of its index, under its own name.

    Verifies nothing; the caller does, and clears away what a failure leaves.

    Returns:
        The bytes of the index, and how the shards came there: `link`, `reflink` or `copy`.

    Raises:
        FileNotFoundError, CorruptCheckpoint, OSError: as `link_file` and `bundle.read_index`.
    """
    progress = progress or Progress()
    index = bundle.read_index(source)
    parsed = parse_index(index)
    method = "link"
    for shard, size in enumerate(bundle.shard_sizes(parsed)):
        progress.begin(f"copying {target.name}", size)
        method = yield from taking_file(
            source.with_name(bundle.shard_name(source.name, shard, parsed.num_shards)),
            target.with_name(bundle.shard_name(target.name, shard, parsed.num_shards)),
            progress,
        )
    write_new_file(bundle.index_path(target), index, mode=index_mode)
    return index, method


def signature(prefix: Path, sha256: str) -> tuple[str, Files]:
    """Return what changes when a shard is replaced or written to; links have it in common.

    Not the time of the inode's last change (ctime): each link and each rotation moves that. Who
    writes into a file moves its mtime, and who puts another in its place brings another inode.
    """
    sizes = bundle.shard_sizes(parse_index(bundle.read_index(prefix)))
    shards = _shards(prefix.name, sizes)
    return _signature_of(prefix, shards, sha256)


def _signature_of(prefix: Path, shards: Iterable[str], sha256: str) -> tuple[str, Files]:
    return sha256, tuple(file_signature(prefix.with_name(name).lstat()) for name in shards)


def file_signature(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return the part of a signature that one file is: device, inode, size and time."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def make_folder(pins_dir: Path, name: str) -> Path:
    """Make a folder to work in; one that cannot be made is no fault of the checkpoint's."""
    working = pins_dir / f"{NEW}{secrets.token_hex(6)}"
    try:
        try:
            working.mkdir(mode=0o700)
        except FileNotFoundError:  # somebody deleted all pins
            pins_dir.mkdir(mode=0o700)
            working.mkdir(mode=0o700)
    except OSError as error:
        raise refusal(name, error, pins_dir) from error
    return working


def refusal(name: str, error: OSError, pins_dir: Path) -> PinError:
    """Return the error of a checkpoint that can be read and not be kept."""
    return PinError(
        f"cannot pin {name}: {error.strerror or error}",
        hint=f"check free space and permissions of {pins_dir}",
    )


def release(prefix: Path, pins_dir: Path) -> None:
    """Delete a pin. The trainer's own files and those in `best/` are not touched by this."""
    folder = prefix.parent
    if folder.parent == pins_dir:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(pins_dir: Path, keep: set[str]) -> None:
    """Delete what a crash left in pins_dir: half-made pins, and pins not in `keep` (sha256)."""
    for entry in pins_dir.iterdir():
        ours = entry.name.startswith(NEW) or len(entry.name) == 64
        if ours and entry.name not in keep:
            shutil.rmtree(entry, ignore_errors=True)


def taking_file(source: Path, target: Path, progress: Progress) -> Work[str]:
    """Give `target` the content of a regular file, a few MB at a time.

    Returns:
        `link`, `reflink` or `copy`, whichever the file system allowed.

    Raises:
        FileNotFoundError, CorruptCheckpoint: as `link_file`.
        OSError: not even a copy was possible.
    """
    if reader := link_file(source, target):
        return (yield from _copying(reader, target, progress))
    return "link"


def link_file(source: Path, target: Path) -> BinaryIO | None:
    """Give `target` the content of a regular file by hard link.

    Returns:
        None; or where the file system allows no link the source, opened, to be copied from.

    Raises:
        FileNotFoundError: the source is gone.
        CorruptCheckpoint: the source is a symbolic link, a pipe or anything but a regular file.
        OSError: it can neither be linked nor read.
    """
    _require_regular(source)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno in NO_COPY_EITHER:
            raise
        return os.fdopen(os.open(source, READ_ONLY), "rb")
    try:
        # os.link links a symlink itself, and the source may have become one since the look.
        _require_regular(target)
    except CorruptCheckpoint:
        target.unlink()
        raise
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


def _copying(reader: BinaryIO, target: Path, progress: Progress) -> Work[str]:
    """Copy a file by reflink, or a few MB at a time; closes the reader."""
    method = "reflink"
    with reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            method = "copy"
            while data := reader.read(COPY_BYTES):
                writer.write(data)
                progress.add(len(data))
                yield
        writer.flush()
        # As a link has them: when the trainer wrote it, which tells in which order checkpoints
        # were saved, and who may read it in best/.
        status = os.fstat(reader.fileno())
        set_mode(writer.fileno(), stat.S_IMODE(status.st_mode))
        set_times(writer.fileno(), status)
    return method


def _has_sizes(prefix: Path, sizes: dict[str, int]) -> bool:
    try:
        for name, size in sizes.items():
            _require_size(prefix.with_name(name), size)
    except (OSError, CorruptCheckpoint):
        return False
    return bundle.index_path(prefix).is_file()


def _shards(name: str, sizes: Sequence[int]) -> dict[str, int]:
    """Return the file name of each shard of a checkpoint so called, and its size."""
    return {bundle.shard_name(name, n, len(sizes)): size for n, size in enumerate(sizes)}


def _move_into_place(working: Path, final: Path) -> None:
    try:
        working.rename(final)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        # Only verified pins ever get a final name, and the name is the content's own digest.

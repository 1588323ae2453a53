"""Device: turn `--device` into devices to evaluate on, named by UUID. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from watcher.errors import ConfigError
from watcher.evaluation.gpus import Gpu, Listing

_SHORT_UUID = len("GPU-01234567")


class Choice(msgspec.Struct, frozen=True):
    """A device to evaluate on, and why it was chosen.

    Attributes:
        device: `cpu`, a GPU's UUID, or `gpu:N` where nothing tells its UUID.
        label: What to call it in front of people.
        shared: Others compute on that GPU now, watchers that take turns with us aside; None when
            that cannot be told.
    """

    device: str
    reason: str
    label: str = "cpu"
    shared: bool | None = None

    @property
    def is_gpu(self) -> bool:
        """True when other watchers may want it too; the CPU is never taken in turn."""
        return self.device != "cpu"


def choose(
    device: str,
    listing: Listing,
    *,
    visible: str | None = None,
    taken: Collection[str] = (),
    evaluators: Mapping[str, int] | None = None,
    source: str = "as set",
) -> list[Choice]:
    """Return the devices to evaluate on, a worker each: for `auto` one, else those that are named.

    `auto` takes the GPU with the most free memory among those on which nobody computes, else one
    on which only another watcher evaluates, to share it in turn, else the CPU. It sees this moment
    alone: a trainer that starts later is not seen, so start the trainer first or name the device.

    Args:
        device: The setting.
        listing: The GPUs of this machine.
        visible: The watcher's own CUDA_VISIBLE_DEVICES; `auto` takes none that is not in it.
        taken: UUIDs of GPUs that somebody else will use.
        evaluators: UUID to process id of the worker that another watcher has on that GPU.
        source: How the setting came about, the reason for a device that is named.

    Raises:
        ConfigError: a GPU that is named is not there, or is named twice.
    """
    if device == "cpu":
        return [Choice("cpu", source)]
    if device == "auto":
        return [_choose_one(listing, visible, taken, evaluators or {})]
    choices = [_named(part, listing, evaluators or {}, source) for part in device.split(",")]
    if len({choice.device for choice in choices}) < len(choices):
        raise ConfigError(
            f"device ({device}) names a GPU twice", hint="each runs one worker: name each once"
        )
    return choices


def uuid_of(entry: str, gpus: Sequence[Gpu]) -> str:
    """Return the UUID of an index or of the beginning of a UUID; others are left as they are."""
    for gpu in gpus:
        if str(gpu.index) == entry or (not entry.isdigit() and gpu.uuid.startswith(entry)):
            return gpu.uuid
    return entry


def visible_to_cuda(visible: str | None, gpus: Sequence[Gpu]) -> set[str]:
    """Return the UUIDs of the GPUs that a process with this CUDA_VISIBLE_DEVICES computes on.

    Args:
        visible: None when it is not set, so that all are visible.
        gpus: Those of the machine; an entry of `visible` that is none of them is kept as it is.
    """
    if visible is None:
        return {gpu.uuid for gpu in gpus}
    used = set()
    for entry in map(str.strip, visible.split(",")):
        if not entry or entry.startswith("-"):
            break  # CUDA reads no further than the first entry that is no device
        used.add(uuid_of(entry, gpus))
    return used


def _named(part: str, listing: Listing, evaluators: Mapping[str, int], source: str) -> Choice:
    uuid = uuid_of(part.removeprefix("gpu:"), listing.gpus)
    for gpu in listing.gpus:
        if gpu.uuid == uuid:
            busy = f"; {_processes(gpu.computing)} on it already" if gpu.computing else ""
            shared = None
            if gpu.computing is not None:
                shared = bool(gpu.computing - {evaluators.get(uuid, 0)})
            return Choice(uuid, f"{source}{busy}", _label(gpu), shared)
    # An instance of a GPU that MIG divides is not listed, nor is anything without NVML.
    if part.startswith("MIG-") or not listing.gpus:
        return Choice(part, source, part)
    there = ", ".join(_label(gpu) for gpu in listing.gpus)
    raise ConfigError(f"device ({part}) is not there", hint=f"there are: {there}")


def _choose_one(
    listing: Listing,
    visible: str | None,
    taken: Collection[str],
    evaluators: Mapping[str, int],
) -> Choice:
    if not listing.gpus:
        return Choice("cpu", f"no NVIDIA GPU is seen: {listing.problem or 'the machine has none'}")
    ours = visible_to_cuda(visible, listing.gpus)
    obstacles = {gpu: _obstacle(gpu, ours, taken, evaluators) for gpu in listing.gpus}
    free = [gpu for gpu, obstacle in obstacles.items() if obstacle is None]
    if not free:
        reasons = "; ".join(f"gpu:{gpu.index}: {why}" for gpu, why in obstacles.items())
        return Choice("cpu", f"no GPU is free: {reasons}")
    # Of equal ones the last: a trainer that starts later takes the first.
    best = max(free, key=lambda gpu: (gpu.uuid not in evaluators, gpu.free_bytes, gpu.index))
    if best.uuid in evaluators:
        reason = f"only another watcher evaluates on it (process {evaluators[best.uuid]}): in turn"
    else:
        reason = f"no process computes on it, and {best.free_bytes >> 20} MiB of it are free"
    return Choice(best.uuid, reason, _label(best), shared=False)


def _obstacle(
    gpu: Gpu, ours: Collection[str], taken: Collection[str], evaluators: Mapping[str, int]
) -> str | None:
    """Say why a GPU cannot be taken, None when it can."""
    if gpu.uuid in taken:
        return "the trainer's"
    if gpu.uuid not in ours:
        return "not in CUDA_VISIBLE_DEVICES"
    if gpu.split:
        return "divided by MIG, name an instance by its UUID"
    if gpu.computing is None:
        return "who computes on it cannot be told"
    others = gpu.computing - {evaluators.get(gpu.uuid, 0)}
    if others:
        return f"{_processes(others)} on it"
    if 2 * gpu.free_bytes < gpu.total_bytes and gpu.uuid not in evaluators:
        # What computes in another container is not listed, but its memory is.
        return f"only {gpu.free_bytes >> 20} of {gpu.total_bytes >> 20} MiB are free"
    return None


def _processes(pids: Collection[int]) -> str:
    if len(pids) == 1:
        return f"process {next(iter(pids))} computes"
    return f"{len(pids)} processes compute"


def _label(gpu: Gpu) -> str:
    # As much of a UUID as tells GPUs apart; CUDA and we take it for the whole.
    return f"gpu:{gpu.index} {gpu.name} ({gpu.uuid[:_SHORT_UUID]})"

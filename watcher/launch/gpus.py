"""Keeps the evaluation off the trainer's GPUs.

The OD API trains under a MirroredStrategy on every GPU it sees, so the trainer's are those that
CUDA_VISIBLE_DEVICES leaves it, and all of them where it is not set.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from watcher.errors import ConfigError
from watcher.evaluation.device import Choice, choose

_TIMEOUT_SECONDS = 20
_HINT = (
    "give the trainer its own, as in CUDA_VISIBLE_DEVICES=0 checkpoint-watcher train --watch"
    " --device gpu:1 ..., or evaluate on the cpu"
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as nvidia-smi lists it."""

    index: int
    uuid: str
    name: str


def list_gpus() -> list[Gpu]:
    """Ask nvidia-smi; without it, or when it fails, there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        output = subprocess.run(
            [program, "--query-gpu=index,uuid,name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",", 2)] for line in output.splitlines()]
    return [Gpu(int(row[0]), row[1], row[2]) for row in rows if len(row) == 3 and row[0].isdigit()]


def trainers(visible: str | None, gpus: Sequence[Gpu]) -> set[str]:
    """Return what the trainer computes on: the UUIDs of its GPUs, as far as they are known.

    Args:
        visible: CUDA_VISIBLE_DEVICES of the trainer, None when it is not set.
        gpus: Those of the machine; an entry of `visible` that is none of them is kept as it is.
    """
    if visible is None:
        return {gpu.uuid for gpu in gpus}
    used = set()
    for entry in map(str.strip, visible.split(",")):
        if not entry or entry.startswith("-"):
            break  # CUDA reads no further than the first entry that is no device
        used.add(_uuid(entry, gpus))
    return used


def evaluation_device(
    device: str, visible: str | None, order: str | None, gpus: Sequence[Gpu]
) -> Choice:
    """Return the device that the watcher is to use, never one of the trainer's.

    `auto` is settled here, before the trainer is there to be seen on its GPU.

    Args:
        device: The setting.
        visible: CUDA_VISIBLE_DEVICES of the trainer, None when it is not set.
        order: CUDA_DEVICE_ORDER of the trainer.
        gpus: Those of the machine, none when it has no nvidia-smi.

    Raises:
        ConfigError: the device is one of the trainer's, or it cannot be told.
    """
    if device == "cpu":
        return Choice(device, "as set")
    used = trainers(visible, gpus)
    if device == "auto":
        if used and not {gpu.uuid for gpu in gpus} - used:
            return Choice("cpu", "the trainer may use every GPU")
        _refuse_unknown_order(visible, order, gpus)
        return choose(device, taken=used)
    wanted = _uuid(device.removeprefix("gpu:"), gpus)
    if wanted not in used:
        if device.startswith("gpu:"):
            _refuse_unknown_order(visible, order, gpus)
        return Choice(device, "as set")
    why = "CUDA_VISIBLE_DEVICES is not set" if visible is None else f"{visible} is given to it"
    raise ConfigError(f"device ({device}) is a GPU that the trainer uses too: {why}", hint=_HINT)


def _uuid(entry: str, gpus: Sequence[Gpu]) -> str:
    """Return the UUID of an index or of the beginning of a UUID; others are left as they are."""
    for gpu in gpus:
        if str(gpu.index) == entry or (not entry.isdigit() and gpu.uuid.startswith(entry)):
            return gpu.uuid
    return entry


def _refuse_unknown_order(visible: str | None, order: str | None, gpus: Sequence[Gpu]) -> None:
    """Numbers mean the same GPU to CUDA and to nvidia-smi only in one of CUDA's orders."""
    numbers = any(part.strip().isdigit() for part in (visible or "").split(","))
    if numbers and order != "PCI_BUS_ID" and len({gpu.name for gpu in gpus}) > 1:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={visible} may mean another GPU to the trainer than to"
            " nvidia-smi: the GPUs differ, and CUDA counts the fastest first",
            hint="set CUDA_DEVICE_ORDER=PCI_BUS_ID for both, or name the GPUs by UUID",
        )

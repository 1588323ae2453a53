"""Keeps the evaluation off the trainer's GPUs.

The OD API trains under a MirroredStrategy on every GPU it sees, so the trainer's are those that
CUDA_VISIBLE_DEVICES leaves it, and all of them where it is not set.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from watcher.errors import ConfigError
from watcher.evaluation.device import Choice, choose, uuid_of, visible_to_cuda
from watcher.evaluation.gpus import Gpu, Listing

_HINT = (
    "give the trainer its own, as in CUDA_VISIBLE_DEVICES=0 checkpoint-watcher train --watch"
    " --device gpu:1 ..., or evaluate on the cpu"
)


def evaluation_device(
    device: str,
    visible: str | None,
    order: str | None,
    gpus: Sequence[Gpu],
    evaluators: Mapping[str, int] | None = None,
) -> Choice:
    """Return the device that the watcher is to use, or several as set, none of the trainer's.

    `auto` is settled here, before the trainer is there to be seen on its GPU.

    Args:
        device: The setting.
        visible: CUDA_VISIBLE_DEVICES of the trainer, None when it is not set.
        order: CUDA_DEVICE_ORDER of the trainer.
        gpus: Those of the machine, as far as they can be seen.
        evaluators: As for `choose`.

    Raises:
        ConfigError: the device is one of the trainer's, or it cannot be told.
    """
    if device == "cpu":
        return Choice(device, "as set")
    used = visible_to_cuda(visible, gpus)
    if device == "auto":
        if used and not {gpu.uuid for gpu in gpus} - used:
            return Choice("cpu", "the trainer may use every GPU")
        _refuse_unknown_order(visible, order, gpus)
        listing = Listing(tuple(gpus))
        return choose(device, listing, taken=used, evaluators=evaluators)[0]
    for part in device.split(","):
        _refuse_shared(part, visible, order, gpus, used)
    return Choice(device, "as set")


def _refuse_shared(
    device: str, visible: str | None, order: str | None, gpus: Sequence[Gpu], used: Collection[str]
) -> None:
    wanted = uuid_of(device.removeprefix("gpu:"), gpus)
    if wanted in used:
        why = "CUDA_VISIBLE_DEVICES is not set" if visible is None else f"{visible} is given to it"
        raise ConfigError(
            f"device ({device}) is a GPU that the trainer uses too: {why}", hint=_HINT
        )
    if device.startswith("gpu:"):
        _refuse_unknown_order(visible, order, gpus)


def _refuse_unknown_order(visible: str | None, order: str | None, gpus: Sequence[Gpu]) -> None:
    """Numbers mean the same GPU to CUDA and to nvidia-smi only in one of CUDA's orders."""
    numbers = any(part.strip().isdigit() for part in (visible or "").split(","))
    if numbers and order != "PCI_BUS_ID" and len({gpu.name for gpu in gpus}) > 1:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES={visible} may mean another GPU to the trainer than to"
            " nvidia-smi: the GPUs differ, and CUDA counts the fastest first",
            hint="set CUDA_DEVICE_ORDER=PCI_BUS_ID for both, or name the GPUs by UUID",
        )

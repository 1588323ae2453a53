"""Device: whether the device to evaluate on is there, free, and not the trainer's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from watcher.doctor.finding import Finding
from watcher.errors import ConfigError
from watcher.evaluation.device import Choice, choose, visible_to_cuda
from watcher.evaluation.gpus import Gpu, Listing
from watcher.launch.processes import Trainer, command_of

_REMEDY = (
    "give trainer and watcher different GPUs: CUDA_VISIBLE_DEVICES for the trainer, --device for us"
)


def device(
    setting: str,
    listing: Listing,
    running: Sequence[Trainer],
    command: Callable[[int], str] = command_of,
    source: str = "as set",
) -> list[Finding]:
    """Judge `--device` by what computes on the GPUs now.

    Args:
        setting: What is set.
        listing: The GPUs of this machine.
        running: The trainers that are seen.
        command: Gives the command line of a process id.
        source: How the setting came about.
    """
    used = trainers_gpus(running, listing)
    try:
        evaluators = {
            gpu.uuid: pid
            for gpu in listing.gpus
            for pid in gpu.computing or ()
            if is_worker(command(pid))
        }
        choices = choose(
            setting,
            listing,
            visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
            taken=used,
            evaluators=evaluators,
            source=source,
        )
    except ConfigError as error:
        return [Finding("device", "error", error.message, error.hint)]
    gpus = {gpu.uuid: gpu for gpu in listing.gpus}
    return [_judge(choice, gpus.get(choice.device), used, command) for choice in choices]


def trainers_gpus(running: Sequence[Trainer], listing: Listing) -> dict[str, int]:
    """Return the UUIDs of the GPUs that trainers may use, with the trainer's process id.

    A trainer whose environment we may not read is left out: its GPUs show what computes on them.
    """
    return {
        uuid: trainer.pid
        for trainer in running
        if trainer.visible != "unknown"
        for uuid in visible_to_cuda(trainer.visible, listing.gpus)
    }


def _judge(
    choice: Choice, gpu: Gpu | None, used: dict[str, int], command: Callable[[int], str]
) -> Finding:
    if not choice.is_gpu:
        return Finding("device", "ok", f"evaluates on the CPU: {choice.reason}")
    if gpu is None:
        text = f"{choice.device} is asked for, and nothing here lists GPUs"
        return Finding("device", "warning", text, "install nvidia-smi or nvidia-ml-py")
    if trainer := used.get(gpu.uuid):
        text = f"{choice.label} is one that trainer {trainer} computes on"
        return Finding("device", "error", text, _REMEDY)
    others = [pid for pid in sorted(gpu.computing or ()) if not is_worker(command(pid))]
    if others:
        named = ", ".join(f"{pid} ({command(pid)[:60] or 'hidden'})" for pid in others[:3])
        text = f"others compute on {choice.label}: {named}"
        return Finding("device", "warning", text, _REMEDY)
    free = f"{gpu.free_bytes >> 20} of {gpu.total_bytes >> 20} MiB are free"
    return Finding("device", "ok", f"{choice.label}: {free}; {choice.reason}")


def is_worker(words: str) -> bool:
    """True for the command line of an evaluation worker: those take a GPU in turn."""
    return "evaluators/worker.py" in words

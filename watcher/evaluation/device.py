"""Device: turn `--device` into one device that nobody else computes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

_TIMEOUT_SECONDS = 20


@dataclass(frozen=True, slots=True)
class Choice:
    """The device to evaluate on (`cpu`, `gpu:N` or a UUID), and why it was chosen."""

    device: str
    reason: str


def choose(device: str, taken: Collection[str] = ()) -> Choice:
    """Resolve `auto` by asking nvidia-smi; every other value is taken as it is.

    Automatic choice takes the GPU with the most free memory among those on which no process
    computes, by UUID, and the CPU when there is none. It looks once: a trainer that starts later
    is not seen, so start the trainer first or name the device.

    Args:
        device: The setting.
        taken: UUIDs of GPUs that somebody else will use.
    """
    if device != "auto":
        return Choice(device, "as set")
    program = shutil.which("nvidia-smi")
    if program is None:
        return Choice("cpu", "there is no nvidia-smi, so no NVIDIA GPU")
    try:
        gpus = _query(program, "gpu=uuid,memory.free")
        busy = {row[0] for row in _query(program, "compute-apps=gpu_uuid")} | set(taken)
    except (OSError, subprocess.SubprocessError) as error:
        return Choice("cpu", f"nvidia-smi failed: {error}")
    free = [(_mebibytes(row), row[0]) for row in gpus if len(row) == 2 and row[0] not in busy]
    if not free:
        return Choice("cpu", f"each of the {len(gpus)} GPUs is in use")
    memory, uuid = max(free)
    return Choice(uuid, f"no process computes on it, and {memory} MiB of it are free")


def _query(program: str, what: str) -> list[list[str]]:
    output = subprocess.run(
        [program, f"--query-{what}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT_SECONDS,
    ).stdout
    return [[field.strip() for field in line.split(",")] for line in output.splitlines() if line]


def _mebibytes(row: list[str]) -> int:
    return int(row[1]) if row[1].isdecimal() else 0

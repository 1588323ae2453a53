"""GPUs: which this machine has, how much of their memory is free, and what computes on them.

Asked of NVML through nvidia-ml-py where that is installed, else of the program nvidia-smi. Both
count GPUs by their place on the bus.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec

_TIMEOUT_SECONDS = 20


class Gpu(msgspec.Struct, frozen=True):
    """One GPU at the moment of asking.

    Attributes:
        index: As nvidia-smi counts.
        computing: Ids of the processes that compute on it; None when that cannot be told.
        split: It is divided by MIG, so that only its instances can be computed on.
    """

    index: int
    uuid: str
    name: str
    free_bytes: int = 0
    total_bytes: int = 0
    computing: frozenset[int] | None = frozenset()
    split: bool = False


class Listing(msgspec.Struct, frozen=True):
    """The GPUs of this machine; `problem` says why there are none to see."""

    gpus: tuple[Gpu, ...] = ()
    problem: str | None = None


def list_gpus() -> Listing:
    """Look at the GPUs once.

    NVML is asked by another process, this file as a program: the library takes 17 MiB that a daemon
    would keep, and a driver that hangs must not hang it.
    """
    if importlib.util.find_spec("pynvml") is None:
        return _ask_nvidia_smi("there is no nvidia-smi, and nvidia-ml-py is not installed")
    try:
        # -P: the modules beside this file are no libraries.
        gpus = json.loads(_output([sys.executable, "-P", __file__]))
        if isinstance(gpus, str):
            return _ask_nvidia_smi(gpus)
        return Listing(tuple(Gpu(**{**gpu, "computing": _set(gpu["computing"])}) for gpu in gpus))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return _ask_nvidia_smi(f"NVML: {error}")


def list_gpus_for(device: str) -> Listing:
    """Return the GPUs to choose a device from; no driver is asked where the CPU is what is set."""
    return Listing() if device == "cpu" else list_gpus()


def _set(pids: list[int] | None) -> frozenset[int] | None:
    return None if pids is None else frozenset(pids)


def _output(command: list[str]) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_SECONDS
    ).stdout


def main() -> None:
    """Print what NVML says as JSON: a list of GPUs, or a text, why there is none."""
    import pynvml

    # The second says that the driver is older than what nvidia-ml-py was made for.
    refusals = (pynvml.NVMLError, getattr(pynvml, "NVMLLibraryMismatchError", pynvml.NVMLError))
    try:
        pynvml.nvmlInit()
        gpus = [_ask_nvml(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        print(json.dumps(gpus))
    except refusals as error:
        print(json.dumps(f"NVML: {error}"))


def _ask_nvml(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        computing = [process.pid for process in running]
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission):
        computing = None
    try:
        split = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError_NotSupported:
        split = False
    return {
        "index": index,
        "uuid": nvml.nvmlDeviceGetUUID(handle),
        "name": nvml.nvmlDeviceGetName(handle),
        "free_bytes": memory.free,
        "total_bytes": memory.total,
        "computing": computing,
        "split": split,
    }


def _ask_nvidia_smi(otherwise: str) -> Listing:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Listing(problem=otherwise)
    try:
        fields = "index,uuid,name,memory.free,memory.total,mig.mode.current"
        gpus = _query(program, f"gpu={fields}")
        processes = _query(program, "compute-apps=gpu_uuid,pid")
        return Listing(tuple(_read(gpus, processes)))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Listing(problem=f"nvidia-smi failed: {error}")


def _query(program: str, what: str) -> list[list[str]]:
    output = _output([program, f"--query-{what}", "--format=csv,noheader,nounits"])
    return [[field.strip() for field in line.split(",")] for line in output.splitlines() if line]


def _read(gpus: Iterable[list[str]], processes: Iterable[list[str]]) -> Iterable[Gpu]:
    computing: dict[str, set[int]] = defaultdict(set)
    for uuid, pid in processes:
        # One that cannot be named, as `[N/A]`, is there all the same.
        computing[uuid].add(int(pid) if pid.isdecimal() else 0)
    for index, uuid, name, free, total, mig in gpus:
        yield Gpu(
            index=int(index),
            uuid=uuid,
            name=name,
            free_bytes=_mebibytes(free),
            total_bytes=_mebibytes(total),
            computing=frozenset(computing[uuid]),
            split=mig == "Enabled",
        )


def _mebibytes(text: str) -> int:
    return int(text) << 20 if text.isdecimal() else 0


if __name__ == "__main__":
    main()

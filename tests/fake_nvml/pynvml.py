"""A stand-in for nvidia-ml-py, put on PYTHONPATH: answers as that does, from a JSON file.

FAKE_NVML names the file: a list of GPUs, each with `uuid`, `name`, `free`, `total` (bytes),
`computing` (process ids, null when the driver cannot tell) and `mig`; or a string, the error that
NVML starts with. FAKE_NVML_HELD names a folder of what programs hold of them (`holder.py`).
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

NVML_DEVICE_MIG_ENABLE = 1


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_NoPermission(NVMLError):
    pass


def _gpus():
    return json.loads(Path(os.environ["FAKE_NVML"]).read_text())


def _held(handle):
    """Process id to bytes of what living programs hold of a GPU."""
    folder = os.environ.get("FAKE_NVML_HELD")
    found = {}
    for path in Path(folder).iterdir() if folder else ():
        uuid, size = path.read_text().split()
        if uuid == _gpus()[handle]["uuid"] and Path("/proc", path.name).exists():
            found[int(path.name)] = int(size)
    return found


def nvmlInit():
    if isinstance(_gpus(), str):
        raise NVMLError(_gpus())


def nvmlShutdown():
    pass


def nvmlDeviceGetCount():
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetUUID(handle):
    return _gpus()[handle]["uuid"]


def nvmlDeviceGetName(handle):
    return _gpus()[handle].get("name", "Fake GPU")


def nvmlDeviceGetMemoryInfo(handle):
    gpu = _gpus()[handle]
    total = gpu.get("total", 16 << 30)
    free = gpu.get("free", total) - sum(_held(handle).values())
    return SimpleNamespace(total=total, free=free, used=total - free)


def nvmlDeviceGetComputeRunningProcesses(handle):
    computing = _gpus()[handle].get("computing", [])
    if computing is None:
        raise NVMLError_NotSupported("Not Supported")
    pids = [*computing, *_held(handle)]
    return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in pids]


def nvmlDeviceGetMigMode(handle):
    if "mig" not in _gpus()[handle]:
        raise NVMLError_NotSupported("Not Supported")
    return [int(_gpus()[handle]["mig"]), 0]

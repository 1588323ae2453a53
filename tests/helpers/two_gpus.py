"""Two GPUs that a stand-in for nvidia-ml-py tells of, and watchers that evaluate on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fake_trainer import Manager, model_tensors
from watching import ROOT, Watcher

FAKE = ROOT / "tests" / "fake_nvml"
GPUS = [{"uuid": "GPU-a0"}, {"uuid": "GPU-b1"}]
TWO = ["--device", "gpu:0,gpu:1"]
QUICK = ["--retry-seconds", 0.05, "--start-timeout", 60]


class Machine:
    """Two GPUs, and watchers on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.locks = folder / "locks"
        self.locks.mkdir()
        self.answers = folder / "gpus.json"
        self.have(GPUS)
        self.watchers: list[Watcher] = []

    def have(self, gpus: list[dict[str, Any]]) -> None:
        self.answers.write_text(json.dumps(gpus))

    @property
    def environment(self) -> dict[str, object]:
        return {
            "PYTHONPATH": FAKE,
            "FAKE_NVML": self.answers,
            "CHECKPOINT_WATCHER_DEVICE_LOCK_DIR": self.locks,
        }

    def watcher(self, name: str, checkpoints: int) -> Watcher:
        """A run with so many checkpoints in it already."""
        home = self.folder / name
        home.mkdir()
        watcher = Watcher(home)
        save(watcher, range(1, checkpoints + 1))
        self.watchers.append(watcher)
        return watcher

    def start(self, watcher: Watcher, *flags: object, **steer: object) -> Any:
        return watcher.start(
            *QUICK, "--run-name", watcher.model_dir.parent.name, *flags, **self.environment, **steer
        )

    def run(self, watcher: Watcher, *flags: object, **steer: object) -> int:
        return watcher.run(*QUICK, *flags, **self.environment, **steer)


def save(watcher: Watcher, numbers: range) -> None:
    manager = Manager(watcher.model_dir, max_to_keep=None)
    manager.counter = numbers.start - 1
    for number in numbers:
        manager.save(100 * number, model_tensors(4000, number))


def by_device(folder: Path, **more: dict[str, str]) -> str:
    """Steer the stub to keep a log a device, and to do what else is asked of it on one."""
    differing = {gpu["uuid"]: {"STUB_LOG": str(folder / gpu["uuid"])} for gpu in GPUS}
    for uuid, steer in more.items():
        differing[uuid.replace("_", "-")] |= steer
    return json.dumps(differing)


def evaluated_on(folder: Path) -> list[list[str]]:
    logs = [folder / gpu["uuid"] for gpu in GPUS]
    return [log.read_text().split() if log.exists() else [] for log in logs]


def scored(watcher: Watcher) -> set[str]:
    return {name for name, state in watcher.states().items() if state == "scored"}

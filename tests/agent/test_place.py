"""Which device an agent takes of those that its host has."""

from __future__ import annotations

import pytest

from watcher.agent import place
from watcher.errors import ConfigError, WorkerError
from watcher.evaluation import gpus as listed
from watcher.evaluation.device import Choice
from watcher.evaluation.frames import Open
from watcher.evaluation.gpus import Gpu, Listing

GPUS = [
    Gpu(index=0, uuid="GPU-a0", name="A", free_bytes=90, total_bytes=100, computing=frozenset()),
    Gpu(index=1, uuid="GPU-b1", name="B", free_bytes=80, total_bytes=100, computing=frozenset()),
]
BUSY = Gpu(
    index=0, uuid="GPU-a0", name="A", free_bytes=9, total_bytes=100, computing=frozenset({7})
)


def opened(device: str) -> Open:
    return Open(
        protocol=1, watcher="1", evaluators="e", device=device, python="p", run="run", cache_bytes=0
    )


def found(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    visible: str | None,
    gpus: list[Gpu],
    evaluators: dict[str, int] | None = None,
    *,
    alone: bool = False,
) -> Choice | ConfigError | WorkerError:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(listed, "list_gpus", lambda: Listing(tuple(gpus)))
    monkeypatch.setattr(place, "other_evaluators", lambda folder, listing: evaluators or {})
    return place.find(opened(device), alone=alone)


@pytest.mark.parametrize(
    ("device", "visible", "taken"),
    [
        ("auto", None, "GPU-a0"),
        ("auto", "1", "GPU-b1"),
        ("auto", "GPU-b1", "GPU-b1"),
        ("auto", "MIG-0123", "MIG-0123"),
        # A name is a name, whatever the agent sees.
        ("gpu:0", "1", "GPU-a0"),
        ("cpu", "1", "cpu"),
    ],
)
def test_auto_is_what_the_agent_was_given_and_a_name_is_that_device(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, taken: str
):
    choice = found(monkeypatch, device, visible, GPUS)
    assert isinstance(choice, Choice) and choice.device == taken


@pytest.mark.parametrize(
    ("visible", "gpus", "why"),
    [
        (None, [BUSY], "auto: no GPU is free: gpu:0: process 7 computes on it"),
        ("", GPUS, "auto: no GPU is free: gpu:0: not in CUDA_VISIBLE_DEVICES"),
        (None, [], "auto: no NVIDIA GPU is seen"),
    ],
)
def test_without_a_free_gpu_auto_is_nothing_for_now(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: list[Gpu], why: str
):
    said = found(monkeypatch, "auto", visible, gpus)
    assert isinstance(said, WorkerError) and said.message.startswith(why)


def test_what_is_looked_for_while_another_one_evaluates_is_free_of_evaluators(
    monkeypatch: pytest.MonkeyPatch,
):
    """To share one in turn is what is done anyway meanwhile."""
    held = {"GPU-a0": 7}
    free = found(monkeypatch, "auto", None, GPUS, held, alone=True)
    assert isinstance(free, Choice) and free.device == "GPU-b1"
    both = {"GPU-a0": 7, "GPU-b1": 8}
    shared = found(monkeypatch, "auto", None, GPUS, both)
    assert isinstance(shared, Choice) and shared.device == "GPU-a0"
    assert isinstance(found(monkeypatch, "auto", None, GPUS, both, alone=True), WorkerError)


@pytest.mark.parametrize(("evaluators", "shared"), [({}, True), ({"GPU-a0": 7}, False)])
def test_who_evaluates_for_another_watcher_is_no_program_that_a_named_gpu_is_shared_with(
    monkeypatch: pytest.MonkeyPatch, evaluators: dict[str, int], shared: bool
):
    choice = found(monkeypatch, "gpu:0", None, [BUSY], evaluators)
    assert isinstance(choice, Choice) and choice.shared is shared


def test_a_gpu_that_is_not_there_is_wrong_for_good_and_a_folder_that_cannot_be_read_for_now(
    monkeypatch: pytest.MonkeyPatch,
):
    assert isinstance(found(monkeypatch, "gpu:7", None, GPUS), ConfigError)

    def fail(folder: object, listing: object) -> dict[str, int]:
        raise PermissionError("locks")

    monkeypatch.setattr(listed, "list_gpus", lambda: Listing(tuple(GPUS)))
    monkeypatch.setattr(place, "other_evaluators", fail)
    said = place.find(opened("auto"))
    assert isinstance(said, WorkerError) and "cannot look for a device: locks" in said.message

"""Schedules and paces of trainers, for the tests of what is told of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from watcher.doctor.cadence import Pace
from watcher.launch.garden_trainer import GardenTrainer
from watcher.launch.od_trainer import OdTrainer


def od_pace(every: int, steps: int | None = None, **known: Any) -> Pace:
    """Of a model_main_tf2 with these flags."""
    schedule = OdTrainer().schedule(["--checkpoint_every_n", str(every)], None, Path(), {})
    return Pace(replace(schedule, steps=steps, source="set"), **known)


def garden_pace(every: int, steps: int | None, loop: int, **known: Any) -> Pace:
    """Of an official.vision.train with this configuration."""
    values = {"checkpoint_interval": every, "train_steps": steps, "steps_per_loop": loop}
    return Pace(GardenTrainer().schedule([], None, Path(), values), **known)

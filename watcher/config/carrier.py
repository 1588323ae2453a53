"""Settings of where a worker runs, by the kind of carrier."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from watcher.config.devices import DeviceTable, Named, named
from watcher.config.rules import Niceness, NotNegative, about
from watcher.decision.queue_policy import parse_size
from watcher.errors import ConfigError


class LocalSettings(
    msgspec.Struct,
    tag_field="kind",
    tag="local",
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
):
    """The worker process."""

    python: Annotated[
        str | None,
        about(
            "Interpreter of the training environment, which evaluates. Default: this one.",
            "INTERPRETER",
        ),
    ] = None
    working_directory: Annotated[
        str | None,
        about(
            "The folder that the trainer is started in, where relative paths in pipeline.config"
            " begin. Default: that of a trainer at work on MODEL_DIR, else the current folder.",
            "FOLDER",
        ),
    ] = None
    device: Annotated[
        str,
        about(
            "Device to evaluate on: cpu, gpu:N as nvidia-smi counts, or a GPU's UUID; several"
            " GPUs, as gpu:1,gpu:2, run a worker each. auto takes a GPU that no process but"
            " another watcher's uses at the start, else the CPU. gpu-box-2/gpu:1 is one of another"
            " host, reached by ssh or as a [[device]] of the file says; gpu-box-2/auto a free one"
            " there.",
            "DEVICE",
        ),
    ] = "cpu"
    device_tables: Annotated[
        tuple[DeviceTable, ...],
        about(
            "Tables in the file: each is a device, with host one of another host, with the"
            " launcher that starts its worker there. Written as [[device]].",
        ),
    ] = ()
    device_turn_seconds: Annotated[
        float,
        about(
            "How long to keep a GPU that another watcher waits for, while checkpoints wait.",
            "SECONDS",
            ge=0,
        ),
    ] = 600.0
    device_lock_dir: Annotated[
        str | None,
        about(
            "Where the watchers of this machine lock GPUs. Default: checkpoint-watcher in each of"
            " /run/lock, /dev/shm and /tmp that may be written.",
            "FOLDER",
        ),
    ] = None
    accept_host_differences: Annotated[
        NotNegative | None,
        about(
            "Let a machine evaluate of which the figures of a scored checkpoint, measured again,"
            " differ from the recorded ones by at most this. Default: they have to be equal to the"
            " last bit.",
            "TOLERANCE",
        ),
    ] = None
    shard: Annotated[
        Annotated[int, msgspec.Meta(ge=2)] | Literal["auto", "off"],
        about(
            "How many devices may share an evaluation, each a part of the eval set, while they have"
            " none of their own; the score is the same. auto shares those that one device takes"
            " two minutes for.",
            "auto|off|N",
        ),
    ] = "off"
    nice: Annotated[
        Niceness | None, about("Niceness of the evaluation, 0 to 19. Default: none.", "N")
    ] = None
    peace: Annotated[
        Literal["auto", "off", "max"],
        about(
            "How the evaluation gives way to a trainer: auto has it take what others leave of the"
            " CPU, and rest half of the time, while one is seen beside it, unless --nice is given;"
            " max always, and lets it rest two thirds of the time."
        ),
    ] = "auto"
    worker_memory_limit: Annotated[
        int | str | None,
        about(
            "Memory, such as 8GB, above which the worker is replaced after an evaluation."
            " Default: no limit.",
            "SIZE",
        ),
    ] = None
    max_attempts: Annotated[
        int, about("Evaluations that may break off before a checkpoint is failed.", "N", ge=1)
    ] = 3
    retry_seconds: Annotated[
        float,
        about("First delay after a broken evaluation; it doubles each time.", "SECONDS", gt=0),
    ] = 5.0
    start_timeout: Annotated[
        float, about("Time for the worker to import, build and trace.", "SECONDS", gt=0)
    ] = 600.0
    stall_timeout: Annotated[
        float, about("Time without progress after which an evaluation hangs.", "SECONDS", gt=0)
    ] = 600.0

    def interpreter(self) -> str:
        """Return the full path of `python`; a link stays, since an environment is known by it.

        Raises:
            ConfigError: there is no such program.
        """
        wanted = self.python or sys.executable
        if found := shutil.which(wanted):
            return str(Path(found).absolute())
        raise ConfigError(
            f"python ({wanted}) does not exist or cannot be executed",
            hint="give the interpreter of the training environment, /path/to/env/bin/python",
        )

    @property
    def devices(self) -> Named:
        """What `device` asks for, here and on other hosts."""
        return named(self.device, self.device_tables)

    @property
    def device_here(self) -> str:
        """What `device` asks for of this machine; `cpu` where that is nothing, to be on none."""
        return self.devices.here or "cpu"

    @property
    def working_path(self) -> Path:
        """Where relative paths in pipeline.config begin, absolute."""
        return Path(self.working_directory or ".").absolute()

    @property
    def worker_memory_bytes(self) -> int | None:
        """`worker_memory_limit` in bytes."""
        limit = self.worker_memory_limit
        return None if limit is None else parse_size(str(limit))

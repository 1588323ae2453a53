"""Devices: what `--device` may name, here and on other hosts, and the `[[device]]` of the file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from watcher.config.rules import MOST_SECONDS
from watcher.decision.queue_policy import parse_size

TABLES = "device_tables"

_ONE_GPU = r"gpu:[0-9]+|(?:GPU|MIG)-[0-9A-Za-z/-]+"
_HOST = r"[0-9A-Za-z_][0-9A-Za-z_.@-]*"
_HERE = re.compile(rf"cpu|auto|{_ONE_GPU}")
_THERE = re.compile(rf"(?P<host>{_HOST})/(?P<device>cpu|auto|{_ONE_GPU})")
_EXPECTED = (
    "Expected cpu, auto, gpu:N or a GPU's UUID, several GPUs as gpu:1,gpu:2, or what is on another"
    " host as gpu-box-2/gpu:1 or gpu-box-2/auto"
)

# It answers within seconds, or not at all: BatchMode never asks for a password.
_SSH = (
    *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"),
    *("-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=2"),
)


class DeviceTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[device]]` of the file: a device of this machine, or with `host` of another.

    Attributes:
        device: `cpu`, `gpu:N` or a GPU's UUID, or `auto`: on another host a GPU that is free of
            those in CUDA_VISIBLE_DEVICES there, as Slurm sets it for a job, and never the CPU.
        host: What to call the other host. Default: this machine.
        launcher: What starts a program there and joins its input and output. Default: ssh to
            `host`.
        shell: The launcher has a shell there read the command, as ssh does, so it is quoted for
            one. Default: true where the launcher's first word is ssh.
        agent: The command of checkpoint-watcher's agent there.
        python: The training environment's interpreter there. Default: that of `python` here.
        working_directory: Where relative paths in pipeline.config begin there. Default: the folder
            that the launcher starts programs in.
        path_map: Folders here, and where the other host sees the same ones.
        device_lock_dir: As the setting of that name, there.
        cache: Where files that are sent there are kept. Default: checkpoint-watcher in the cache of
            the user there.
        cache_limit: How large that may become.
        connect_timeout: Seconds until the agent has to answer. More for a launcher that waits for
            a place, as srun does.
    """

    device: Annotated[str, Meta(min_length=1)] = "cpu"
    host: Annotated[str, Meta(pattern=rf"^{_HOST}$")] | None = None
    launcher: tuple[str, ...] = ()
    shell: bool | None = None
    agent: Annotated[tuple[str, ...], Meta(min_length=1)] = ("checkpoint-watcher", "agent")
    python: str | None = None
    working_directory: str | None = None
    path_map: dict[str, str] = {}
    device_lock_dir: str | None = None
    cache: str | None = None
    cache_limit: int | str = "20GB"
    connect_timeout: Annotated[float, Meta(gt=0)] = 60.0

    @property
    def name(self) -> str:
        """How `--device` names it."""
        return f"{self.host}/{self.device}" if self.host else self.device

    @property
    def launching(self) -> tuple[str, ...]:
        """The launcher, be it given or not."""
        return self.launcher or (*_SSH, str(self.host))

    @property
    def has_shell(self) -> bool:
        """True when the launcher's command goes through a shell there."""
        if self.shell is not None:
            return self.shell
        return PurePosixPath(self.launching[0]).name == "ssh"


class Named(msgspec.Struct, frozen=True):
    """What `--device` asks for: of this machine in the setting's own words, and of other hosts."""

    here: str | None
    there: tuple[DeviceTable, ...] = ()


def check_device(device: str) -> str:
    """Return the setting; raises ValueError when it is nothing that can be asked for."""
    here: list[str] = []
    parts = device.split(",")
    for part in parts:
        if _HERE.fullmatch(part):
            here.append(part)
        elif not _THERE.fullmatch(part):
            raise ValueError(_EXPECTED)
    if len(here) > 1 and {"cpu", "auto"} & set(here):
        raise ValueError(_EXPECTED)
    if len(set(parts)) < len(parts):
        raise ValueError("Expected each device once: each runs one worker")
    return device


def check_table(table: DeviceTable) -> None:
    """Raise ValueError for a `[[device]]` that cannot be meant."""
    if table.host is None and not _HERE.fullmatch(table.device):
        raise ValueError("Expected cpu, auto, gpu:N or a GPU's UUID")
    if table.host and not _THERE.fullmatch(table.name):
        raise ValueError("Expected cpu, auto, gpu:N or a GPU's UUID for a device of another host")
    for ours, theirs in table.path_map.items():
        if not (ours.startswith("/") and theirs.startswith("/")):
            raise ValueError("Expected absolute folders in path_map")
    if not table.connect_timeout <= MOST_SECONDS:
        raise ValueError(f"Expected a connect_timeout of {MOST_SECONDS} (a year) at most")
    parse_size(str(table.cache_limit))
    own = ("launcher", "python", "path_map", "working_directory")
    if table.host is None and (given := [name for name in own if getattr(table, name)]):
        raise ValueError(f"Expected {given[0]} beside host alone")


def named(device: str, tables: Sequence[DeviceTable]) -> Named:
    """Return what a setting asks for, each device of another host with its table.

    A device without a table of its own has that of another one of its host, else the defaults.
    """
    here, there = [], []
    for part in device.split(","):
        match = None if _HERE.fullmatch(part) else _THERE.fullmatch(part)
        if match is None:
            here.append(part)
            continue
        of_host = [one for one in tables if one.host == match["host"]]
        own = next((one for one in of_host if one.device == match["device"]), None)
        like = own or next(iter(of_host), DeviceTable(host=match["host"]))
        there.append(msgspec.structs.replace(like, device=match["device"]))
    return Named(",".join(here) or None, tuple(there))


def split_tables(content: dict[str, Any]) -> dict[str, Any]:
    """Return a file's settings where `[[device]]` are a setting of their own, and named by another.

    What is no list of tables stays, to be refused as a value of `device`.
    """
    listed = content.get("device")
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
        return content
    names = [
        f"{one['host']}/{one.get('device', 'cpu')}"
        if one.get("host")
        else str(one.get("device", "cpu"))
        for one in listed
    ]
    return {**content, TABLES: listed, "device": ",".join(names)}

"""What `make test-gpu` runs, on a machine with an NVIDIA GPU: what is said of GPUs, on a real one.

Which GPU is chosen, the locks of devices, turns between runs, and what is seen of another program's
memory; without TensorFlow, in a minute or two. It prints a table, with `--write` also into the
benchmarks' results. Exit code 0: all holds; 1: something does not; 3: there is no GPU, nothing ran.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine, write
from benchmarks.table import Row, as_markdown
from fake_trainer import Manager, model_tensors
from hosts import AGENT, write_settings
from watching import ROOT, Watcher, wait_until

from watcher.errors import DeviceTaken
from watcher.evaluation import gpus
from watcher.evaluation.device import choose
from watcher.evaluation.device_lock import DeviceLock, LockFolders
from watcher.evaluation.gpus import Gpu, list_gpus

HOLDS, FAILS, NO_GPU = 0, 1, 3
BUSY_BYTES = 2 << 30
WORKER_BYTES = 512 << 20
# A context of CUDA takes some memory beside what is asked for, and a moment to go.
SLACK_BYTES = 64 << 20
GONE_SECONDS = 30.0
CHECKPOINTS = 4
HERE = Path(__file__).parent
_LOCKING = """
import sys
from watcher.evaluation.device_lock import DeviceLock, LockFolders
with DeviceLock(LockFolders(sys.argv[1]), sys.argv[2], label="it", run="killed").take() as taken:
    taken.note(0)
    print("taken", flush=True)
    sys.stdin.read()
"""


class Untrue(Exception):
    """What should hold does not."""


class Machine:
    """The machine's GPUs and what is run on one of them.

    Attributes:
        gpu: The GPU that `auto` chose while nothing of ours ran.
        go: A file without which no evaluation ends.
    """

    def __init__(self, folder: Path, holder: Path, torch_python: str) -> None:
        self.folder = folder
        self.locks = folder / "locks"
        self.locks.mkdir()
        self.go = folder / "go"
        self.gpu = list_gpus().gpus[0]
        self._holder = holder
        self._torch_python = torch_python

    def look(self) -> Gpu:
        """The GPU now."""
        return next(gpu for gpu in list_gpus().gpus if gpu.uuid == self.gpu.uuid)

    @contextlib.contextmanager
    def busy(self) -> Iterator[dict[str, str]]:
        """Another program that computes on the GPU and holds BUSY_BYTES of it."""
        with subprocess.Popen(
            [self._torch_python, str(self._holder), str(BUSY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": self.gpu.uuid},
        ) as process:
            assert process.stdout
            try:
                said = process.stdout.readline()
                require(bool(said), "the busy program could not take the GPU's memory")
                yield {**json.loads(said), "pid": str(process.pid)}
            finally:
                process.kill()

    def watcher(self, name: str) -> Watcher:
        """A run with checkpoints in it."""
        home = self.folder / name
        home.mkdir()
        watcher = Watcher(home)
        manager = Manager(watcher.model_dir, max_to_keep=None)
        for number in range(1, CHECKPOINTS + 1):
            manager.save(100 * number, model_tensors(4000, number))
        return watcher

    def start(self, watcher: Watcher, *, by_agent: bool = False) -> None:
        """Start it on the GPU, with a worker that takes memory there.

        Args:
            by_agent: As if that were another host's, whose agent takes the GPU.
        """
        here = ["--device", self.gpu.uuid, "--device-lock-dir", self.locks]
        if by_agent:
            table = {
                "host": "there",
                "device": self.gpu.uuid,
                "launcher": ["env"],
                "agent": AGENT,
                "device_lock_dir": str(self.locks),
                "cache": str(self.folder / "cache"),
            }
            here = ["--config", write_settings(watcher.model_dir.parent / "run.toml", [table])]
        watcher.start(
            *("--python", HERE / "worker.py", *here, "--exit-when-idle", 1),
            *("--device-turn-seconds", 1),
            *("--retry-seconds", 0.1, "--run-name", watcher.model_dir.parent.name),
            GPU_HOLDER=self._holder,
            GPU_BYTES=WORKER_BYTES,
            GPU_LOG=self.folder / "workers",
            STUB_SECONDS=0.5,
            # So that the first still has the GPU when the second comes, however slow its start.
            STUB_WAIT="*",
            STUB_WAIT_FOR=self.go,
        )


def require(condition: bool, what: str) -> None:
    """Raise Untrue when something does not hold."""
    if not condition:
        raise Untrue(what)


def seen(machine: Machine) -> str:
    """NVML and nvidia-smi say the same of each GPU."""
    began = time.perf_counter()
    listing = list_gpus()
    took = time.perf_counter() - began
    told = ", ".join(f"{g.name}, {g.total_bytes >> 20} MiB" for g in listing.gpus)
    other = gpus._ask_nvidia_smi("there is no nvidia-smi")
    if other.problem:
        return f"{told}; asked in {took:.2f} s; not compared: {other.problem}"
    pairs = zip(listing.gpus, other.gpus, strict=True)
    same = all((a.uuid, a.total_bytes >> 30) == (b.uuid, b.total_bytes >> 30) for a, b in pairs)
    require(same, f"{listing.gpus} and {other.gpus}")
    return f"{told}; asked in {took:.2f} s"


def idle_is_chosen(machine: Machine) -> str:
    """`auto` takes a GPU on which nobody computes, by its UUID."""
    (choice,) = choose("auto", list_gpus())
    require(choice.is_gpu, choice.reason)
    machine.gpu = next(gpu for gpu in list_gpus().gpus if gpu.uuid == choice.device)
    return choice.reason


def busy_is_seen(machine: Machine) -> str:
    """Another program's memory and process are seen, and `auto` leaves that GPU to it."""
    before = machine.look()
    with machine.busy() as busy:
        require(busy["uuid"] == before.uuid, f"it computes on {busy['uuid']}")
        now = machine.look()
        fell = before.free_bytes - now.free_bytes
        require(fell >= BUSY_BYTES, f"free memory fell by {fell >> 20} MiB alone")
        require(bool(now.computing), "no process is seen to compute")
        (choice,) = choose("auto", list_gpus())
        require(choice.device != before.uuid, f"it is chosen all the same: {choice.reason}")
        (named,) = choose(before.uuid, list_gpus())
        require(named.shared is True, "one that is named is not said to be shared")
    began = time.perf_counter()
    wait_until(lambda: _as_before(machine.look(), before), "its memory is free", GONE_SECONDS)
    took = time.perf_counter() - began
    own = "by its process id" if now.computing == {int(busy["pid"])} else "under another id"
    return (
        f"{busy['how']}: {fell >> 20} MiB less free, seen {own}; {choice.reason};"
        f" free again {took:.1f} s after it was killed"
    )


def _as_before(now: Gpu, before: Gpu) -> bool:
    is_free = now.free_bytes >= before.free_bytes - SLACK_BYTES
    return is_free and now.computing == before.computing


def lock_is_let_go(machine: Machine) -> str:
    """The lock of the GPU is another's until that process is killed, and free at once then."""
    lock = DeviceLock(
        LockFolders(str(machine.locks)), machine.gpu.uuid, label=machine.gpu.name, run="ours"
    )
    command = [sys.executable, "-c", _LOCKING, str(machine.locks), machine.gpu.uuid]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        assert other.stdout
        other.stdout.readline()
        try:
            with contextlib.suppress(DeviceTaken), lock.take():
                raise Untrue("two had it at once")
        finally:
            other.send_signal(signal.SIGKILL)
            other.wait()
    began = time.perf_counter()
    with lock.take():
        return f"taken {1000 * (time.perf_counter() - began):.1f} ms after the other was killed"


def turns_are_taken(machine: Machine) -> str:
    """Two runs on one GPU have its memory in turn, both are scored whole, and it is free after."""
    return _in_turn(machine, by_agent=False)


def an_agent_takes_turns(machine: Machine) -> str:
    """So do two of which one has the GPU by an agent, as on another host."""
    return _in_turn(machine, by_agent=True)


def _in_turn(machine: Machine, *, by_agent: bool) -> str:
    before = machine.look()
    names = [f"{name}-by-agent" if by_agent else name for name in ("first", "second")]
    first, second = map(machine.watcher, names)
    machine.go.unlink(missing_ok=True)
    log = machine.folder / "workers"
    log.unlink(missing_ok=True)
    most, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            computing = machine.look().computing or frozenset()
            most[0] = max(most[0], len(computing - (before.computing or frozenset())))

    sampler = threading.Thread(target=sample)
    try:
        machine.start(first)
        wait_until(lambda: first.status().get("worker") == "evaluating", "the first evaluates", 60)
        sampler.start()
        machine.start(second, by_agent=by_agent)
        waited = wait_until(lambda: second.status().get("waiting_for"), "the second waits", 60)
        machine.go.touch()
        for watcher in (first, second):
            wait_until(lambda w=watcher: _scored(w) == CHECKPOINTS, f"{watcher.model_dir}", 120)
            require(watcher._processes[-1].wait(60) == 0, watcher.log.read_text()[-2000:])
    finally:
        ended.set()
        first.end()
        second.end()
        if sampler.ident is not None:
            sampler.join()
    require(most[0] == 1, f"{most[0]} workers held its memory at once")
    used = {line.split()[1] for line in log.read_text().splitlines()}
    require(used == {machine.gpu.uuid}, f"by CUDA the workers were on {sorted(used)}")
    wait_until(lambda: _as_before(machine.look(), before), "its memory is free", GONE_SECONDS)
    starts = len(log.read_text().splitlines())
    return (
        f"{starts} workers for {2 * CHECKPOINTS} checkpoints, never two at once ({waited[:60]}...)"
    )


def _scored(watcher: Watcher) -> int:
    return list(watcher.states().values()).count("scored")


CHECKS: tuple[Callable[[Machine], str], ...] = (
    seen,
    idle_is_chosen,
    busy_is_seen,
    lock_is_let_go,
    turns_are_taken,
    an_agent_takes_turns,
)


def run(machine: Machine) -> tuple[list[Row], bool]:
    """Returns a row for each check, and whether all hold."""
    rows, all_hold = [], True
    for check in CHECKS:
        what = (check.__doc__ or "").rstrip(".")
        began = time.perf_counter()
        try:
            told, held = check(machine), "holds"
        except Exception as error:  # whatever it is, the others are looked at
            told, held = f"{type(error).__name__}: {error}", "**does not hold**"
            all_hold = False
        rows.append(Row(what, told.replace("|", "/"), f"{time.perf_counter() - began:.1f} s", held))
        print(f"{held}: {what} ({told})", flush=True)
    return rows, all_hold


def main() -> int:
    """Looks at what there is, runs the checks, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="make test-gpu", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the benchmarks' results")
    parser.add_argument("--holder", type=Path, default=HERE / "holder.py", help="what takes memory")
    parser.add_argument(
        "--torch-python", default=sys.executable, help="interpreter with torch, if there is one"
    )
    options: Any = parser.parse_args()
    listing = list_gpus()
    if not listing.gpus:
        print(
            f"no NVIDIA GPU is seen: {listing.problem or 'the machine has none'}", file=sys.stderr
        )
        print("nothing was run, and what was written before stays", file=sys.stderr)
        return NO_GPU
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="test-gpu-") as folder:
        rows, all_hold = run(Machine(Path(folder), options.holder, options.torch_python))
    table = as_markdown(rows)
    took = f"{machine()}; {time.perf_counter() - began:.0f} s in all"
    print(f"\n{table}\n\n{took}")
    if options.write:
        write({"gpu": f"{took}.\n\n{table}\n"})
    return HOLDS if all_hold else FAILS


if __name__ == "__main__":
    sys.exit(main())

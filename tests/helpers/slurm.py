"""A real Slurm on loopback for the tests: munged, slurmctld, and a slurmd with pretended GPUs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from hosts import AGENT
from loopback import free_port
from two_gpus import FAKE
from watching import ROOT, STUB, wait_until

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_FOUND = {
    name: shutil.which(name, path=_PATH) for name in ("munged", "slurmctld", "slurmd", "srun")
}
_LACKING = [name for name, path in _FOUND.items() if path is None]
MISSING = f"no {_LACKING[0]}" if _LACKING else None if os.geteuid() == 0 else "slurmd needs root"

# Its user's own processes, found by their group: nothing of cgroups or of the machine is touched.
_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld}
SlurmdPort={slurmd}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
ReturnToService=2
InactiveLimit=60
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=tests Nodes={host} Default=YES MaxTime=60 State=UP OverSubscribe=NO
"""


class Slurm:
    """One node with so many GPUs, and no job."""

    def __init__(self, folder: Path, gpus: int) -> None:
        """Start it in an empty folder whose path is short: sockets lie in it."""
        folder.mkdir()
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        host = socket.gethostname().partition(".")[0]
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        for number in range(gpus):
            (folder / f"gpu{number}").symlink_to(os.devnull)  # it wants a device of the kernel's
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                host=host,
                folder=folder,
                cpus=os.cpu_count(),
                gpus=gpus,
                **{name: free_port() for name in ("slurmctld", "slurmd")},
            )
        )
        there = f"{folder}/gpu[0-{gpus - 1}]"
        (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={there}\n")
        # Read by its owner alone, or munged will not start.
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._start(
            *("munged", "--foreground", "--force", f"--socket={folder}/munge.socket"),
            *(f"--key-file={key}", f"--pid-file={folder}/munge.pid"),
            *(f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"),
        )
        wait_until((folder / "munge.socket").exists, "munged listens")
        self._start("slurmctld", "-D", "-i")
        self._start("slurmd", "-D", "-N", host)
        wait_until(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T"), "a node", 60)

    def table(self, host: str, folder: Path, **there: object) -> dict[str, Any]:
        """Return the `[[device]]` of a place on it, with the stub evaluator and what steers it."""
        (folder / "locks").mkdir(exist_ok=True)
        given = [f"{name}={value}" for name, value in there.items()]
        conf = f"SLURM_CONF={self.environment['SLURM_CONF']}"
        return {
            "host": host,
            "device": "auto",
            "launcher": ["env", conf, "srun", "--quiet", "--gres=gpu:1"],
            "agent": ["env", f"PYTHONPATH={FAKE}:{ROOT}", *given, *AGENT],
            "python": str(STUB),
            "cache": str(folder / "cache"),
            "device_lock_dir": str(folder / "locks"),
        }

    def _start(self, name: str, *flags: str) -> None:
        with (self._folder / f"{name}.out").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [str(_FOUND[name]), *flags],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def ask(self, *command: str) -> str:
        """Return what one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout

    def jobs(self) -> list[str]:
        """Return the ids of the jobs that run."""
        return self.ask("squeue", "--noheader", "--states=RUNNING", "--format=%i").split()

    def end(self) -> None:
        """Cancel its jobs and end all of it."""
        self.ask("scancel", "--user=root")
        until = time.monotonic() + 20
        while self.jobs() and time.monotonic() < until:
            time.sleep(0.2)
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

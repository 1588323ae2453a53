"""A real dask cluster on loopback for the tests: a scheduler and workers, with TLS or without."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from loopback import free_port
from sets import find_python
from watching import ROOT, STUB, wait_until

PYTHON = ROOT / ".venv-dask" / "bin" / "python"
MISSING = None if PYTHON.exists() else "no .venv-dask: make environments"
BRIDGE = [str(PYTHON), "-m", "watcher.dask_bridge"]


def certificates(folder: Path) -> dict[str, str]:
    """Make a certificate that signs itself, as all sides of the cluster show; flags of dask's."""
    certificate, key = folder / "cluster.crt", folder / "cluster.key"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    words += ["-subj", "/CN=dask", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    return {
        "--tls-ca-file": str(certificate),
        "--tls-cert": str(certificate),
        "--tls-key": str(key),
    }


def other_python(folder: Path, version: tuple[int, int]) -> Path:
    """Return a Python of this version with the same dask, in an environment made in the folder."""
    uv, venv = str(ROOT / ".venv" / "bin" / "uv"), folder / "dask"
    if (found := find_python(version)) is None:
        pytest.skip("there is no Python {}.{} here".format(*version))
    listed = ["--require-hashes", "--no-deps", "-r", ROOT / "deploy" / "requirements" / "dask.txt"]
    for command in (
        ["venv", "--quiet", "--python", found, venv],
        ["pip", "install", "--quiet", "--python", venv, *listed],
    ):
        made = subprocess.run([uv, *map(str, command)], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"dask cannot be installed for {found}: {made.stderr[-500:]}")
    return venv / "bin" / "python"


class Cluster:
    """A scheduler, and workers that come and go.

    Attributes:
        address: Of the scheduler.
        scheduler: Its process, the first one.
    """

    def __init__(self, folder: Path, tls: dict[str, str] | None = None, **there: object) -> None:
        """Start a scheduler; `there` is the environment of what runs on its workers."""
        self._folder, self._tls = folder, tls or {}
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._environment |= {name: str(value) for name, value in there.items()}
        self.address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{free_port()}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.schedule()

    def schedule(self) -> subprocess.Popen[bytes]:
        """Start the scheduler."""
        scheduler = self._start("scheduler", "--host", self.address)
        wait_until(lambda: "Scheduler at" in self._log.read_text(), "the scheduler is there")
        return scheduler

    def work(self, *flags: str, python: Path = PYTHON) -> subprocess.Popen[bytes]:
        """Start a worker with one device, on any Python that has the same dask."""
        own = [
            "--no-nanny",
            "--nthreads",
            "1",
            "--resources",
            "EVAL_GPU=1",
            "--death-timeout",
            "60",
        ]
        own += ["--local-directory", str(self._folder), *flags]
        worker = self._start("worker", self.address, *own, python=python)
        wait_until(lambda: "Registered to" in self._log.read_text(), "the worker is there")
        return worker

    def _start(self, kind: str, *words: str, python: Path = PYTHON) -> subprocess.Popen[bytes]:
        self._log = self._folder / f"{kind}-{len(self._processes)}.log"
        tls = [word for pair in self._tls.items() for word in pair]
        command = [
            str(python),
            "-m",
            f"distributed.cli.dask_{kind}",
            *words,
            "--no-dashboard",
            *tls,
        ]
        with self._log.open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._processes.append(process)
        return process

    def bridge(self, *flags: str) -> list[str]:
        """Return the launcher that places something on this cluster."""
        tls = [word for pair in self._tls.items() for word in pair]
        return [*BRIDGE, self.address, *tls, *flags, "--"]

    def table(self, host: str, agent: list[str], **more: object) -> dict[str, object]:
        """Return the `[[device]]` of a place on it, with the stub evaluator there."""
        cache = str(self._folder / "cache")
        table = {"host": host, "launcher": self.bridge(), "agent": agent, "python": str(STUB)}
        return {**table, "cache": cache, **more}

    def end(self) -> None:
        """End all of it."""
        for process in self._processes:
            process.kill()
            process.wait()

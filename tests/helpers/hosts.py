"""Other hosts for the tests: a real sshd on the loopback address, reached by a real ssh."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopback import free_port
from watching import ROOT, STUB, alive, wait_until

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
MISSING = None if SSHD and shutil.which("ssh") and shutil.which("ssh-keygen") else "no sshd or ssh"
AGENT = [sys.executable, "-m", "watcher", "agent"]


class Sshd:
    """One sshd with keys of its own; `host(name)` is a name that its ssh configuration knows."""

    def __init__(
        self, folder: Path, environment: dict[str, str], prefix: Sequence[str] = ()
    ) -> None:
        """Start it in an empty folder.

        Args:
            environment: What programs there get.
            prefix: Put before each command, `nsenter ...` say.
        """
        self.folder, self._prefix = folder, list(prefix)
        folder.mkdir()
        for name in ("host", "user", "wrong"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        self.port = free_port()
        shutil.copyfile(folder / "user.pub", folder / "authorized_keys")
        known = (folder / "host.pub").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {known}")
        given = " ".join(f'"{name}={value}"' for name, value in environment.items())
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nUsePAM no\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nPidFile none\n"
            f"MaxStartups 100\nMaxSessions 100\nPasswordAuthentication no\nSetEnv {given}\n"
        )
        (folder / "ssh_config").write_text(
            f"Host *\nHostName 127.0.0.1\nPort {self.port}\nUser {getpass.getuser()}\n"
            f"UserKnownHostsFile {folder}/known_hosts\nStrictHostKeyChecking yes\n"
            "IdentitiesOnly yes\nBatchMode yes\nLogLevel ERROR\nConnectTimeout 30\n"
            f"Host * !stranger\nIdentityFile {folder}/user\n"
            f"Host stranger\nIdentityFile {folder}/wrong\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Listen again, after `end`."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        log = (self.folder / "sshd.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*self._prefix, str(SSHD), "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        program = f"import socket; socket.create_connection(('127.0.0.1', {self.port}), 5)"
        asking = [*self._prefix, sys.executable, "-c", program]
        wait_until(lambda: not subprocess.run(asking, stderr=subprocess.DEVNULL).returncode, "up")

    def end(self) -> None:
        """Listen no more; sessions that there are go on."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def launcher(self, host: str, *more: str) -> list[str]:
        """Return the launcher of a host of that name; `stranger` has a key that is not let in."""
        return ["ssh", "-F", str(self.folder / "ssh_config"), *more, host]


def write_settings(path: Path, tables: Sequence[dict[str, Any]]) -> Path:
    """Write a settings file that has these `[[device]]`; a table without a host is home's."""
    lines = []
    for table in tables:
        lines.append("[[device]]")
        for name, value in table.items():
            text = json.dumps(value)
            if isinstance(value, dict):
                pairs = ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items())
                text = "{" + pairs + "}"
            lines.append(f"{name} = {text}")
    path.write_text("\n".join(lines) + "\n")
    return path


def far(sshd: Sshd, host: str, device: str = "cpu", **more: Any) -> dict[str, Any]:
    """Return the `[[device]]` of a host that sshd serves, with the stub evaluator there."""
    table = {
        "host": host,
        "device": device,
        "launcher": sshd.launcher(host),
        "agent": AGENT,
        "python": str(STUB),
        "cache": str(sshd.folder / "cache"),
    }
    return {**table, **more}


def processes(*words: str) -> list[int]:
    """Return the ids of the living processes whose command line has all these words.

    Other tests run beside this one: a word must be this test's own, its folder or its port.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            pid = int(path.parent.name)
            if all(word in line for word in words) and pid != os.getpid() and alive(pid):
                found.append(pid)
    return found


def agents(folder: Path) -> list[int]:
    """Return the ids of the living agents whose environment names the folder of a test."""
    found = []
    named = re.compile(re.escape(os.fsencode(folder)) + rb"[/\0]")
    for pid in processes("watcher agent"):
        with contextlib.suppress(OSError):
            if named.search(Path(f"/proc/{pid}/environ").read_bytes()):
                found.append(pid)
    return found


def parents(pid: int) -> list[int]:
    """Return the ids of a process's parent, of that one's, and so on."""
    found = []
    while pid > 1:
        with contextlib.suppress(OSError):
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
            found.append(pid)
            continue
        break
    return found


def environment_there(**more: object) -> dict[str, str]:
    """Return the environment of programs on another host: ours, and what steers the stub."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), **{name: str(value) for name, value in more.items()}}

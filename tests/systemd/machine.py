"""A small Debian with its own systemd, booted in a container by systemd-nspawn.

The base, a debootstrap with the daemon's packages, is made once and kept under `build/systemd`. A
machine is that with what it changes in memory (an overlay), mounted where only its own processes
see it. When it is closed nothing of it is left: no process, mount, control group or file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from watching import ROOT, wait_until

BUILD = ROOT / "build" / "systemd"
LIST = ROOT / "deploy" / "requirements" / "daemon.txt"
# The first Debian whose python3 is new enough for the daemon.
SUITE = os.environ.get("DEBIAN_SUITE", "bookworm")
MIRROR = os.environ.get("DEBIAN_MIRROR")  # else debootstrap's own default
PACKAGES = "systemd,systemd-sysv,dbus,procps,python3,python3-venv"
PYTHON_VERSION = "3.11"
NEEDED = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
}
_BOOT_SECONDS = 60


class CommandFailed(AssertionError):
    """A command in the machine ended with an exit code that nobody expected."""


def what_is_missing() -> str | None:
    """Say what this computer lacks for booting a machine, None when nothing is."""
    packages = missing_packages()
    if packages:
        return f"apt install {' '.join(packages)}"
    if os.geteuid() != 0:
        return "root: a container is booted"
    return None


def missing_packages() -> list[str]:
    """Name the Debian packages whose programs are not here."""
    return [package for tool, package in NEEDED.items() if not shutil.which(tool)]


def command(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command of this computer; what it said is in the error when it fails."""
    line = [str(word) for word in words]
    done = subprocess.run(line, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(line)}\n{done.stdout}{done.stderr}")
    return done


# -- the base


def base() -> Path:
    """Return the folder of the base, made now if there is none for these packages."""
    key = hashlib.sha256(f"{SUITE} {PACKAGES} {MIRROR}".encode() + LIST.read_bytes()).hexdigest()
    folder = BUILD / f"base-{key[:12]}"
    if not folder.is_dir():
        for old in BUILD.glob("base-*"):
            shutil.rmtree(old)
        unfinished = BUILD / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        BUILD.mkdir(parents=True, exist_ok=True)
        print(f"making {folder} (debootstrap {SUITE})", file=sys.stderr)
        _debootstrap(unfinished)
        _install_packages(unfinished)
        unfinished.rename(folder)
    return folder


# In memory, since dpkg syncs each file; in a namespace of its own, so that no mount outlives it.
_DEBOOTSTRAP = """
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/root"
debootstrap --variant=minbase --include="$3" "$4" "$1/root" ${5:+"$5"}
rm -r "$1"/root/var/cache/apt "$1"/root/var/lib/apt/lists "$1"/root/usr/share/doc
cp -a "$1/root" "$2"
"""


def _debootstrap(folder: Path) -> None:
    workplace = folder.with_name("debootstrap")
    workplace.mkdir(exist_ok=True)
    script = ["unshare", "--mount", "sh", "-ec", _DEBOOTSTRAP, "sh"]
    command(*script, workplace, folder, PACKAGES, SUITE, *([MIRROR] if MIRROR else []))
    workplace.rmdir()


def _install_packages(folder: Path) -> None:
    """Install the daemon's locked packages, offline: they are downloaded outside."""
    wheels = folder / "wheels"
    machine = platform.machine()
    tags = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")
    platforms = [f"--platform={tag}_{machine}" for tag in tags]
    command(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--require-hashes", "--no-deps", "--only-binary=:all:", "-r", LIST, "--dest", wheels),
        *("--implementation=cp", f"--python-version={PYTHON_VERSION}", *platforms),
    )
    shutil.copy(LIST, wheels / "daemon.txt")
    run_in(folder, "python3", "-m", "venv", "/opt/checkpoint-watcher")
    run_in(
        folder,
        *("/opt/checkpoint-watcher/bin/pip", "install", "--quiet", "--no-index", "--no-deps"),
        *("--require-hashes", "--find-links", "/wheels", "-r", "/wheels/daemon.txt"),
    )
    shutil.rmtree(wheels)


def run_in(folder: Path, *words: str) -> str:
    """Run a command in a root folder in which no system is running."""
    nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--as-pid2"]
    machine = f"--machine=checkpoint-watcher-{os.getpid()}"
    own = [*nspawn, "--private-network", "--pipe", machine, "-D", folder]
    with _own_control_group(f"checkpoint-watcher-{os.getpid()}") as enter:
        return command(*enter, *own, *words).stdout


# -- a machine


# Mounts, in a namespace of its own; then boots. With --keep-unit a reboot ends systemd-nspawn with
# this exit code, for its caller to boot again.
_KEEPER = """
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
shift 2
while :; do
    code=0
    "$@" || code=$?
    [ $code = 133 ] || exit $code
done
"""


class Machine:
    """A machine on top of the base; `boot` starts it, `close` ends it and forgets what it wrote."""

    def __init__(self) -> None:
        self.name = f"checkpoint-watcher-test-{os.getpid()}"
        self._folder = BUILD / self.name
        self._console = BUILD / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._resources = contextlib.ExitStack()

    def boot(self, *options: str) -> None:
        """Boot, and wait until everything that starts by itself has started.

        Args:
            options: More options of systemd-nspawn.
        """
        lower = base()
        self._folder.mkdir(exist_ok=True)
        self._resources.callback(self._folder.rmdir)
        enter = self._resources.enter_context(_own_control_group(self.name))
        console = self._resources.enter_context(self._console.open("wb"))
        keeper = ["unshare", "--mount", "sh", "-ec", _KEEPER, "sh", self._folder, lower]
        nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"]
        nspawn += [f"--machine={self.name}", "-D", str(self._folder / "root"), *options, "--boot"]
        self._process = subprocess.Popen(
            [*enter, *keeper, *nspawn],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
        self._wait_for_boot()

    def reboot(self) -> None:
        """Reboot, as `systemctl reboot` does it."""
        before = self._leader()
        self.run("systemctl", "reboot", expect=None)
        wait_until(lambda: self._leader() not in (None, before), "it boots again", _BOOT_SECONDS)
        self._wait_for_boot()

    def run(self, *words: object, expect: int | None = 0, seconds: float = 60) -> str:
        """Run a command in the machine; returns what it printed.

        Args:
            expect: Its exit code; None for any.
        """
        enter = ["nsenter", f"--target={self._leader()}", "--all", "--"]
        done = subprocess.run(
            [*enter, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )
        if expect is not None and done.returncode != expect:
            line = " ".join(map(str, words))
            raise CommandFailed(f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def path(self, inside: str | Path) -> Path:
        """Return where a file of the machine can be reached on this computer, until it reboots."""
        return Path(f"/proc/{self._leader()}/root") / Path(inside).relative_to("/")

    def close(self) -> None:
        """Switch it off; what it wrote is gone."""
        if self._process and self._process.poll() is None:
            if leader := self._leader():
                os.kill(leader, signal.SIGRTMIN + 4)  # systemd(1): power off
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                if leader:  # with it goes its process namespace
                    os.kill(leader, signal.SIGKILL)
                self._process.wait()
        self._resources.close()

    def _leader(self) -> int | None:
        """The process id of the machine's first process, as this computer counts."""
        assert self._process
        if self._process.poll() is not None:
            console = self._console.read_text(errors="replace")
            raise AssertionError(f"the machine is off\n{console[-2000:]}")
        nspawn = _child(self._process.pid)
        return _child(nspawn) if nspawn else None

    def _wait_for_boot(self) -> None:
        def booted() -> bool:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                if self._leader() is None:
                    return False
                state = self.run("systemctl", "is-system-running", expect=None, seconds=5)
                return state.strip() in ("running", "degraded")
            return False

        wait_until(booted, "it has booted", _BOOT_SECONDS)


def _child(process: int) -> int | None:
    try:
        found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return None
    return int(found[0]) if found else None


@contextlib.contextmanager
def _own_control_group(name: str) -> Iterator[list[str]]:
    """Yield the beginning of a command that runs the rest of it in control groups of its own.

    systemd in the container makes groups below the one it is started in; here they can be removed.
    """
    roots = [Path("/sys/fs/cgroup") / hierarchy for hierarchy in ("systemd", "unified", "")]
    groups = [root / name for root in roots if (root / "cgroup.procs").exists()]
    for group in groups:
        group.mkdir(exist_ok=True)
    enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
    try:
        yield ["sh", "-c", f'{enter}exec "$@"', "sh"]
    finally:
        for group in groups:
            _remove_group(group)


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + 10
    while group.is_dir():
        folders = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
        try:
            for folder in [*folders, group]:
                folder.rmdir()
        except OSError:  # its last processes are still ending
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def set_up() -> None:
    """Install what is missing, where that can be done, make the base, and boot it once."""
    packages = missing_packages()
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"installing {' '.join(packages)}", file=sys.stderr)
        command("apt-get", "update", "-qq")
        command("apt-get", "install", "-qq", "--no-install-recommends", *packages)
    if missing := what_is_missing():
        sys.exit(f"make test-systemd needs {missing}")
    try:
        base()
        machine = Machine()
        try:
            machine.boot()
        finally:
            machine.close()
    except (CommandFailed, AssertionError, OSError) as error:
        sys.exit(f"make test-systemd: no machine can be booted here: {error}")


if __name__ == "__main__":
    set_up()

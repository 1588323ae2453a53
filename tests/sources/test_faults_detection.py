"""Nothing is missed when events are lost, folders are exchanged, or model_dir holds anything else.

Each fault is a real one: a stopped process, an exchanged folder, a limit of the kernel in a
namespace of its own, a failing system call.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors, write_checkpoint
from faults import end_strace, need_strace
from watching import Watcher, cli, wait_until

from watcher.checkpoints.bundle import verify

SIZE = 20_000
BATCH = 30


def save(manager: Manager, count: int, seed: str = "") -> list[str]:
    """Save so many checkpoints; returns their names."""
    names = []
    for _ in range(count):
        step = 100 * (manager.save_counter + 1)
        names.append(manager.save(step, model_tensors(SIZE, f"{seed}{step}")).name)
    return names


def scored(watcher: Watcher, names: list[str]) -> bool:
    states = watcher.states()
    return all(states.get(name) == "scored" for name in names)


def events(watcher: Watcher) -> str:
    """The run's diary about its watch, a line each."""
    rows = watcher.query("SELECT message FROM events WHERE kind = 'watch' ORDER BY id")
    return "\n".join(row["message"] for row in rows)


def started(watcher: Watcher, *flags: object, **environment: object) -> subprocess.Popen[bytes]:
    process = watcher.start(*flags, **environment)
    wait_until(lambda: watcher.status().get("worker") == "ready", "the daemon is ready")
    return process


@pytest.fixture
def elsewhere(watcher: Watcher, tmp_path: Path) -> list[object]:
    """The run keeps its database outside model_dir; the flags for that."""
    state, best = tmp_path / "state", tmp_path / "best"
    watcher.database, watcher.best_dir = state / "watcher.db", best
    return ["--state-dir", state, "--best-dir", best]


def in_namespace(watcher: Watcher, *setup: str) -> None:
    """Run the daemon after shell commands in a user and mount namespace of its own."""
    script = "; ".join(("set -e", *setup, 'exec "$@"'))
    watcher.prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    trial = subprocess.run([*watcher.prefix, "true"], capture_output=True, text=True)
    if trial.returncode:
        pytest.skip(f"no namespaces for this user (unshare): {trial.stderr.strip()}")


# -- 1: events dropped


def test_events_dropped_by_the_kernel_are_made_up_for_by_the_rescan(watcher: Watcher):
    # The kernel holds 16,384 events (fs.inotify.max_queued_events); these are 36,000, and the
    # checkpoints come after them.
    daemon = started(watcher, "--rescan-seconds", 1, "--top-k", 1)
    manager = Manager(watcher.model_dir, max_to_keep=None)
    daemon.send_signal(signal.SIGSTOP)
    for number in range(12_000):
        unfinished = watcher.model_dir / f"{number}.tmp"
        unfinished.touch()
        unfinished.rename(watcher.model_dir / f"events.out.{number}")
    names = save(manager, BATCH)
    time.sleep(1.5)
    daemon.send_signal(signal.SIGCONT)
    wait_until(lambda: scored(watcher, names), "all are scored", 60)
    # It knows that events were lost, polls, and trusts them again once one comes.
    assert "degraded to polling: no event announced ckpt-" in events(watcher)
    assert watcher.status()["watch"].startswith("no event announced")
    save(manager, 1)
    wait_until(lambda: watcher.status()["watch"] == "events", "events are trusted again")


# -- 2: the folder exchanged


@pytest.mark.parametrize("how", ["deleted", "renamed away"])
def test_another_model_dir_in_its_place_is_watched_and_nothing_is_mixed_up(
    watcher: Watcher, elsewhere: list[object], tmp_path: Path, how: str
):
    started(watcher, *elsewhere, "--rescan-seconds", 0.5)
    old = save(Manager(watcher.model_dir), 3, "old")
    wait_until(lambda: scored(watcher, old), "the first folder's are scored")
    away = tmp_path / "away"
    if how == "deleted":
        shutil.rmtree(watcher.model_dir)
    else:
        watcher.model_dir.rename(away)
    wait_until(lambda: "No such file" in (watcher.status()["problem"] or ""), "status says so")
    shown = cli("status", watcher.model_dir, *elsewhere[:2], COLUMNS="400").stdout
    assert "No such file" in shown
    watcher.model_dir.mkdir()
    wait_until(lambda: watcher.status()["watch"] == "events", "the new folder is watched")
    if away.exists():
        save(Manager(away), 1, "written after it went away")
    new = save(Manager(watcher.model_dir), 2, "new")
    wait_until(lambda: len(watcher.query("SELECT 1 FROM history WHERE score")) == 5, "new ones too")
    assert new == old[:2]  # the same names, other content
    rows = watcher.query("SELECT checkpoint, sha256 FROM history ORDER BY rowid")
    assert [row["checkpoint"] for row in rows] == [*old, *new]
    assert len({row["sha256"] for row in rows}) == 5
    assert watcher.status()["problem"] is None
    assert how == "deleted" or "is another folder than before" in events(watcher)
    for row in watcher.query("SELECT path, sha256 FROM leaderboard"):
        assert verify(Path(row["path"])).sha256 == row["sha256"]


@pytest.mark.parametrize("how", ["deleted", "renamed away"])
def test_a_model_dir_that_goes_with_the_database_in_it_ends_the_run_with_a_clear_error(
    watcher: Watcher, tmp_path: Path, how: str
):
    daemon = started(watcher, "--rescan-seconds", 0.5)
    save(Manager(watcher.model_dir), 2)
    wait_until(lambda: len(watcher.leaderboard()) == 2, "it works")
    time.sleep(0.5)
    if how == "deleted":
        while watcher.model_dir.exists():  # the daemon may write meanwhile
            shutil.rmtree(watcher.model_dir, ignore_errors=True)
    else:
        watcher.model_dir.rename(tmp_path / "away")
    watcher.model_dir.mkdir()
    save(Manager(watcher.model_dir), 1, "new")
    assert daemon.wait(timeout=60) == 1
    assert "was deleted or replaced while in use" in watcher.log.read_text()
    assert {path.name for path in watcher.model_dir.iterdir()} == {
        "checkpoint",
        "ckpt-1.index",
        "ckpt-1.data-00000-of-00001",
    }, "nothing of the old run is in the new folder"
    watcher.run()
    assert watcher.states() == {"ckpt-1": "scored"}


# -- 3: the event threads


def untraced(status: Path) -> bool:
    try:
        return "TracerPid:\t0" in status.read_text()
    except (FileNotFoundError, ProcessLookupError):  # the thread has ended
        return False


@contextlib.contextmanager
def failing_in_threads(daemon: subprocess.Popen[bytes], trace: Path, call: str) -> Iterator[None]:
    """The first such call in each thread but the main one fails."""
    tasks = {int(task.name) for task in Path(f"/proc/{daemon.pid}/task").iterdir()}
    attach = [f"--attach={task}" for task in tasks - {daemon.pid}]
    inject = f"--inject={call}:error=EIO:when=1"
    strace = subprocess.Popen(["strace", "-o", trace, *attach, f"--trace={call}", inject])
    others = [Path(f"/proc/{daemon.pid}/task/{task}/status") for task in tasks - {daemon.pid}]
    try:
        wait_until(lambda: not any(map(untraced, others)), "all are traced")
        yield
        assert f"{call}(" in trace.read_text() and "INJECTED" in trace.read_text()
    finally:
        end_strace(strace)


def test_a_dead_event_thread_is_noticed_and_the_rescan_goes_on(watcher: Watcher, tmp_path: Path):
    need_strace()
    daemon = started(watcher, "--rescan-seconds", 1)
    manager = Manager(watcher.model_dir)
    with failing_in_threads(daemon, tmp_path / "trace", "read"):
        names = save(manager, 3)
        wait_until(lambda: scored(watcher, names), "the rescan finds them")
        said = "the thread that reads file system events died"
        wait_until(lambda: said in events(watcher), "the status says what happened")
        assert watcher.status()["watch"] != "events"
    names = save(manager, 2)
    wait_until(lambda: scored(watcher, names), "new ones are found as well")


def test_an_event_that_cannot_wake_the_loop_is_taken_up_all_the_same(
    watcher: Watcher, tmp_path: Path
):
    need_strace()
    daemon = started(watcher, "--rescan-seconds", 10)
    with failing_in_threads(daemon, tmp_path / "trace", "write"):
        asked = time.monotonic()
        names = save(Manager(watcher.model_dir), 1)
        wait_until(lambda: scored(watcher, names), "it is found")
        assert time.monotonic() - asked < 8, "long before the rescan"
    assert watcher.status()["watch"] == "events", "no thread died of it"


# -- 4 and 5: machines without events or hard links


def test_without_inotify_it_polls_and_finds_the_same(watcher: Watcher):
    in_namespace(watcher, "echo 0 > /proc/sys/user/max_inotify_instances")
    started(watcher, "--rescan-seconds", 10)
    assert (
        watcher.status()["watch"]
        == "no file system events: [Errno 24] inotify instance limit reached"
    )
    manager = Manager(watcher.model_dir, max_to_keep=3)
    began = time.monotonic()
    for _ in range(4):
        names = save(manager, 1)
        wait_until(lambda names=names: scored(watcher, names), "it is scored")
    assert time.monotonic() - began < 25, "it does not wait for three rescans"
    assert "degraded to polling" in cli("status", watcher.model_dir, COLUMNS="400").stdout


def test_without_watches_it_polls_and_finds_the_same(watcher: Watcher):
    in_namespace(watcher, "echo 0 > /proc/sys/user/max_inotify_watches")
    started(watcher)
    assert "inotify watch limit reached" in watcher.status()["watch"]
    names = save(Manager(watcher.model_dir), 2)
    wait_until(lambda: scored(watcher, names), "all are scored")


def test_pins_on_another_file_system_are_copies_and_status_says_so(watcher: Watcher):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == watcher.model_dir.stat().st_dev:
        pytest.skip("no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        watcher.database = Path(folder) / "state" / "watcher.db"
        started(watcher, "--state-dir", watcher.database.parent)
        names = save(Manager(watcher.model_dir), 3)
        wait_until(lambda: scored(watcher, names), "all are scored")
        methods = watcher.query("SELECT DISTINCT pin_method FROM checkpoints")
        assert methods == [{"pin_method": "copy"}]
        assert "is on another file system than" in watcher.status()["pins"]
        assert events(watcher).count("pins are copies") == 1
        shown = cli("status", watcher.model_dir, "--state-dir", watcher.database.parent)
        assert "pins are copies" in shown.stdout
        (best,) = wait_until(lambda: watcher.query("SELECT path, sha256 FROM best"), "a best")
        assert verify(Path(best["path"])).sha256 == best["sha256"]
        watcher.stop()


@pytest.mark.parametrize("refusal", ["EPERM", "EIO"])
def test_where_links_are_refused_pins_are_copies_and_status_says_so(
    watcher: Watcher, tmp_path: Path, refusal: str
):
    inject = f"--inject=link,linkat:error={refusal}"
    watcher.prefix = [
        "strace",
        "-D",
        "-f",
        "-o",
        str(tmp_path / "trace"),
        "--trace=link,linkat",
        inject,
    ]
    started(watcher)
    names = save(Manager(watcher.model_dir), 2)
    wait_until(lambda: scored(watcher, names), "all are scored")
    assert watcher.query("SELECT DISTINCT pin_method FROM checkpoints") == [{"pin_method": "copy"}]
    assert "has no hard links (" in watcher.status()["pins"]
    assert watcher.stop() == 0


# -- 6: an index that is not finished


def test_an_index_that_stays_half_written_is_not_pinned_before_it_is_whole(watcher: Watcher):
    daemon = started(watcher)
    pins = watcher.model_dir / "watcher" / "pins"
    before, began = cpu_seconds(daemon.pid), time.monotonic()
    slow = threading.Thread(
        target=write_checkpoint,
        args=(watcher.model_dir, "ckpt-1", 100, model_tensors(SIZE, "slow")),
        kwargs={"index_pause": 4.0},
    )
    slow.start()
    seen = []
    while slow.is_alive():
        seen += [path for path in pins.iterdir() if not path.name.startswith(".")]
        time.sleep(0.01)
    assert not seen
    share = (cpu_seconds(daemon.pid) - before) / (time.monotonic() - began)
    assert share < 0.2, "it waits, it does not spin"
    wait_until(lambda: scored(watcher, ["ckpt-1"]), "it is scored once it is whole")
    assert watcher.query("SELECT count(*) AS n FROM checkpoints") == [{"n": 1}]


def test_an_index_that_is_empty_at_first_is_waited_for(watcher: Watcher):
    started(watcher)
    prefix = write_checkpoint(watcher.model_dir, "ckpt-2", 200, model_tensors(SIZE, "x"))
    index = prefix.with_name("ckpt-3.index")
    shutil.copy(
        prefix.with_name("ckpt-2.data-00000-of-00001"),
        index.with_name("ckpt-3.data-00000-of-00001"),
    )
    index.touch()
    wait_until(lambda: scored(watcher, ["ckpt-2"]), "the other one goes on")
    time.sleep(1)
    assert "ckpt-3" not in watcher.states()
    write_checkpoint(watcher.model_dir, "ckpt-3", 300, model_tensors(SIZE, "y"))
    wait_until(lambda: scored(watcher, ["ckpt-3"]), "it is scored once it is whole")


# -- 9: a trainer killed in the middle of a save


@pytest.mark.parametrize("stage", ["temp", "data"])
def test_what_a_killed_trainer_left_is_ignored_and_left_alone(watcher: Watcher, stage: str):
    started(watcher)
    manager = Manager(watcher.model_dir)
    names = save(manager, 2)
    with pytest.raises(SystemExit):
        manager.save(300, model_tensors(SIZE, "lost"), die_at=stage)
    left = {path: path.stat().st_mtime_ns for path in watcher.model_dir.glob("ckpt-3*")}
    assert left
    again = save(Manager(watcher.model_dir), 0) or names
    wait_until(lambda: scored(watcher, again), "the whole ones are scored")
    assert set(watcher.states()) == {"ckpt-1", "ckpt-2"}
    assert {path: path.stat().st_mtime_ns for path in watcher.model_dir.glob("ckpt-3*")} == left
    restarted = save(Manager(watcher.model_dir), 2)
    wait_until(lambda: scored(watcher, restarted), "the trainer goes on under the same name")


# -- 11: a model_dir full of other things


def hostile_names(folder: Path, outside: Path) -> None:
    """Files that look like checkpoints and are none, and names that nobody expects."""
    (folder / "ckpt-50.index").symlink_to(outside.with_name(f"{outside.name}.index"))
    (folder / "ckpt-50.data-00000-of-00001").symlink_to(
        outside.with_name(f"{outside.name}.data-00000-of-00001")
    )
    shutil.copy(outside.with_name(f"{outside.name}.index"), folder / "ckpt-51.index")
    (folder / "ckpt-51.data-00000-of-00001").symlink_to(
        outside.with_name(f"{outside.name}.data-00000-of-00001")
    )
    os.mkfifo(folder / "ckpt-52.index")
    shutil.copy(outside.with_name(f"{outside.name}.index"), folder / "ckpt-53.index")
    os.mkfifo(folder / "ckpt-53.data-00000-of-00001")
    (folder / "ckpt-54.index").mkdir()
    (folder / "ckpt-55.index").symlink_to("ckpt-55.index")
    for name in (b"ckpt-\xff.index", b"ckpt-1\n.index", b"$(touch x).index", b"ckpt-1;id.index"):
        (folder / os.fsdecode(name)).touch()
    (folder / ("ckpt-" + "9" * 200 + ".index")).touch()
    (folder / "checkpoint").write_text(
        f'model_checkpoint_path: "{outside}"\nall_model_checkpoint_paths: "{outside}"\n'
    )


def test_ten_thousand_other_files_pipes_and_links_out_of_model_dir_change_nothing(
    watcher: Watcher, tmp_path: Path
):
    outside = write_checkpoint(tmp_path / "outside", "ckpt-9", 900, model_tensors(SIZE, "secret"))
    hostile_names(watcher.model_dir, outside)
    # An access time before the modification time moves with the first read.
    os.utime(outside.with_name("ckpt-9.index"), ns=(1, 2))
    for number in range(10_000):
        (watcher.model_dir / f"events.out.tfevents.{number}.host").touch()
    for number in range(1, 4):
        write_checkpoint(watcher.model_dir, f"ckpt-{number}", number, model_tensors(SIZE, number))
    assert watcher.run("--grace-seconds", 1) == 0
    rows = {row["checkpoint"]: row for row in watcher.query("SELECT * FROM history")}
    assert {name: row["state"] for name, row in rows.items()} == {
        **dict.fromkeys(("ckpt-1", "ckpt-2", "ckpt-3"), "scored"),
        "ckpt-51": "corrupt",
        "ckpt-53": "corrupt",
    }
    assert rows["ckpt-51"]["reason"] == "ckpt-51.data-00000-of-00001 is a symbolic link"
    assert rows["ckpt-53"]["reason"] == "ckpt-53.data-00000-of-00001 is not a regular file"
    assert outside.with_name("ckpt-9.index").stat().st_atime_ns == 1
    assert not {"ckpt-9", "ckpt-50"} & set(watcher.evaluations())
    pinned = (watcher.model_dir / "watcher" / "pins").glob("*/*")
    assert all(path.is_file() and not path.is_symlink() for path in pinned)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

"""The fake trainer leaves the files and makes the calls that TensorFlow's manager does.

`test_bundle_tensorflow.py` compares the bytes.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import fake_trainer
import pytest
from fake_trainer import Manager

from watcher.checkpoints.bundle import verify
from watcher.errors import IncompleteCheckpoint

PROGRAM = Path(fake_trainer.__file__)


def run_trainer(model_dir: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), str(model_dir), "--interval", "0", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def names(model_dir: Path) -> list[str]:
    return sorted(path.name for path in model_dir.iterdir())


def test_program_keeps_the_latest_and_names_them_in_the_state_file(tmp_path: Path) -> None:
    done = run_trainer(tmp_path, "--saves", 5, "--max-to-keep", 2, "--shards", 2)
    assert done.returncode == 0, done.stderr
    shards = [f"data-0000{n}-of-00002" for n in range(2)]
    assert names(tmp_path) == [
        "checkpoint",
        *(f"ckpt-{number}.{suffix}" for number in (4, 5) for suffix in (*shards, "index")),
    ]
    state = (tmp_path / "checkpoint").read_text()
    assert state.startswith('model_checkpoint_path: "ckpt-5"\n')
    assert re.findall(r'all_model_checkpoint_paths: "(.*)"', state) == ["ckpt-4", "ckpt-5"]
    assert [verify(tmp_path / f"ckpt-{n}").global_step for n in (4, 5)] == [300, 400]


def test_first_checkpoint_has_no_model_unless_asked(tmp_path: Path) -> None:
    run_trainer(tmp_path / "like_od", "--saves", 2)
    first, second = (verify(tmp_path / "like_od" / f"ckpt-{n}") for n in (1, 2))
    assert (first.global_step, first.model_variables) == (0, 0)
    assert (second.global_step, second.model_variables) == (100, 8)
    run_trainer(tmp_path / "other", "--saves", 1, "--no-untrained-first")
    assert verify(tmp_path / "other" / "ckpt-1").model_variables == 8


def test_restarted_trainer_goes_on_counting(tmp_path: Path) -> None:
    run_trainer(tmp_path, "--saves", 3)
    run_trainer(tmp_path, "--saves", 2)
    facts = verify(tmp_path / "ckpt-5")
    assert facts.global_step == 400
    assert Manager(tmp_path).save_counter == 5


def test_restart_without_state_rewrites_the_index_in_the_same_inode(tmp_path: Path) -> None:
    run_trainer(tmp_path, "--saves", 2)
    index, data = tmp_path / "ckpt-2.index", tmp_path / "ckpt-2.data-00000-of-00001"
    before = index.stat().st_ino, data.stat().st_ino, verify(tmp_path / "ckpt-2").sha256
    (tmp_path / "kept").hardlink_to(data)  # or the new data could get the old inode again
    run_trainer(tmp_path, "--saves", 2, "--forget-state", "--seed", "other")
    after = index.stat().st_ino, data.stat().st_ino, verify(tmp_path / "ckpt-2").sha256
    assert before[0] == after[0]
    assert before[1] != after[1]
    assert before[2] != after[2]


@pytest.mark.parametrize("stage", ["temp", "data", "index"])
def test_death_in_the_middle_of_a_save_leaves_what_tensorflow_leaves(
    tmp_path: Path, stage: str
) -> None:
    done = run_trainer(tmp_path, "--saves", 2, "--die-at", stage)
    assert done.returncode == 1
    left = names(tmp_path)
    assert "ckpt-2_temp" in left
    assert ("ckpt-2.data-00000-of-00001" in left) == (stage != "temp")
    assert ("ckpt-2.index" in left) == (stage == "index")
    if stage == "index":
        with pytest.raises(IncompleteCheckpoint):
            verify(tmp_path / "ckpt-2")
    assert verify(tmp_path / "ckpt-1").global_step == 0


def system_calls(trace: str, model_dir: Path) -> list[str]:
    """The calls that change the folder, each as `call name`, random parts left out."""
    calls = []
    pattern = re.compile(
        r"(openat|rename|unlink|mkdir|rmdir)\((?:AT_FDCWD, )?\"([^\"]*)\"(?:, \"([^\"]*)\")?(.*)"
    )
    for line in trace.splitlines():
        found = pattern.search(line)
        if not found or str(model_dir) not in line or "ENOENT" in line or "EEXIST" in line:
            continue
        call, first, second, rest = found.groups()
        if call == "openat" and "O_CREAT" not in rest:
            continue
        path = Path(second or first).relative_to(model_dir)
        calls.append(call + " " + re.sub(r"(tempstate|\.tmp)\w+", r"\1", str(path)))
        if call == "openat":
            assert "O_WRONLY|O_CREAT|O_TRUNC" in rest
    return calls


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: apt-get install strace")
def test_calls_are_made_in_tensorflows_order(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    model_dir = tmp_path / "model_dir"
    model_dir.mkdir()
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=openat,rename,unlink,mkdir,rmdir"]
    program = [sys.executable, str(PROGRAM), str(model_dir), "--saves", "2", "--max-to-keep", "1"]
    subprocess.run([*command, *program], check=True, timeout=60, capture_output=True)
    expected = []
    for number in (1, 2):
        name = f"ckpt-{number}"
        part = f"{name}_temp/part-00000-of-00001"
        data = "data-00000-of-00001"
        expected += [
            f"mkdir {name}_temp",
            f"openat {part}.{data}.tempstate",
            f"rename {part}.{data}",
            f"openat {part}.index.tempstate",
            f"rename {part}.index",
            f"rename {name}.{data}",
            f"openat {name}.index",
            f"unlink {part}.index",
            f"rmdir {name}_temp",
            "openat checkpoint.tmp",
            "rename checkpoint",
        ]
        if number == 2:
            expected += ["unlink ckpt-1.index", f"unlink ckpt-1.{data}"]
        expected += ["openat checkpoint.tmp", "rename checkpoint"]
    assert system_calls(trace.read_text(), model_dir) == expected

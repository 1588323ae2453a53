"""What the evaluator tells of its machine, and what follows from that with its real numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from evaluator_client import environment
from trained import Trained
from watching import Watcher

from evaluators.machine import instructions

X86 = (
    "processor : 0\nflags\t\t: fpu sse sse2 sse4_1 sse4a smep smap avx avx2 fma avx512f amx_bf16\n"
)
ARM = "processor : 0\nFeatures\t: fp asimd asimdhp cpuid sve sve2 smeb16f32 bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "told"),
    [
        (X86, ["amx_bf16", "avx", "avx2", "avx512f", "fma", "sse4_1"]),
        (ARM, ["asimd", "asimdhp", "bf16", "smeb16f32", "sve", "sve2"]),
        ("", []),
        (None, []),
    ],
)
def test_of_a_cpu_those_instruction_sets_are_told_that_kernels_are_chosen_by(
    tmp_path: Path, cpuinfo: str | None, told: list[str]
):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert instructions(tmp_path / "cpuinfo").split()[1:] == told


@pytest.mark.tensorflow
@pytest.mark.slow
@pytest.mark.remote
@pytest.mark.timeout(1200)
def test_without_onednn_the_real_evaluator_proves_itself_or_is_left_out(
    trained: Trained, watcher: Watcher
):
    def save(name: str) -> None:
        for path in sorted(trained.first.glob(f"{name}.*")):
            shutil.copy(path, watcher.model_dir)

    def run(**variables: str) -> int:
        quiet = {name: environment()[name] for name in ("CUDA_VISIBLE_DEVICES",)}
        flags = [*trained.flags(), "--exit-when-idle", 0.2, "--replicates", 0]
        return watcher.start(*flags, **quiet, **variables).wait(500)

    save("ckpt-2")
    assert run() == 0
    save("ckpt-3")
    ended = run(TF_ENABLE_ONEDNN_OPTS="0")
    machines: list[dict[str, Any]] = watcher.query("SELECT * FROM machine_state ORDER BY machine")
    home = json.loads(machines[0]["parts"])
    assert home["device"] == "cpu" and len(home["instructions"].split()) > 1
    if home["onednn"] == "off":  # a CPU on which TensorFlow has it off by itself
        assert ended == 0 and len(machines) == 1
        return
    other = json.loads(machines[1]["parts"])
    assert (home["onednn"], other["onednn"]) == ("on", "off")
    assert {**home, "onednn": ""} == {**other, "onednn": ""}
    # Whether a bit differs is the CPU's affair.
    equal = machines[1]["standing"] == "equal"
    assert (ended, machines[1]["checkpoint"]) == (0 if equal else 1, "ckpt-2")
    assert watcher.states()["ckpt-3"] == ("scored" if equal else "pending")
    if not equal:
        said = watcher.log.read_text()
        assert "its machine differs from that of the scores (onednn off, not on)" in said
        size = machines[1]["largest"]
        assert (
            run(TF_ENABLE_ONEDNN_OPTS="0", CHECKPOINT_WATCHER_ACCEPT_HOST_DIFFERENCES=f"{size!r}")
            == 0
        )
        assert watcher.states()["ckpt-3"] == "scored"

"""What of a training environment changes the numbers, as far as it can be told without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluators.device import device_numbers
from evaluators.disk import file_system, free_bytes


@pytest.mark.parametrize(
    ("capability", "allowed", "tf32"),
    [((8, 0), True, True), ((9, 0), True, True), ((8, 0), False, False), ((7, 5), True, False)],
)
def test_scores_of_gpus_that_multiply_with_tf32_are_told_apart_from_others(
    capability: tuple[int, int], allowed: bool, tf32: bool
):
    assert device_numbers(capability, allowed) == {"kind": "gpu", "tf32": tf32}


def test_a_gpu_that_does_not_say_what_it_is_is_still_no_cpu():
    assert device_numbers(None, True) == {"kind": "gpu", "tf32": False}


MOUNTS = """22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw
36 22 0:33 / /tmp rw,nosuid shared:2 - tmpfs tmpfs rw
37 36 259:2 / /tmp/on\\040disk rw - xfs /dev/nvme1n1 rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/tmp", "tmpfs"), ("/tmp/a", "tmpfs"), ("/tmp/on disk/a", "xfs"), ("/tmpx", "ext4")],
)
def test_a_path_is_on_the_file_system_that_is_mounted_nearest_above_it(path: str, kind: str):
    assert file_system(path, MOUNTS) == kind


def test_memory_that_looks_like_a_disk_has_no_room_for_an_eval_set(tmp_path: Path):
    shared = Path("/dev/shm")
    if file_system(str(shared), Path("/proc/self/mountinfo").read_text()) != "tmpfs":
        pytest.skip("no memory is mounted here")
    assert free_bytes(shared) == 0
    assert free_bytes(tmp_path) > 0

"""What of a training environment changes the numbers, as far as it can be told without a GPU."""

from __future__ import annotations

import pytest

from evaluators.compat import device_numbers


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

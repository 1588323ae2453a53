"""When other tools stop, as small models of their published rules; `other_keepers` has the rest.

Each class follows one tool's rule in our own words: `see` takes one evaluation and returns True
when the tool would stop training after it, `restart` is what the tool is left with when its process
ended and began again on the same folder.

Where the training environment has the tool, `test_the_models_do_what_the_tools_themselves_do`
holds the model to it. The rules of Lightning, MMEngine, Ultralytics, Orbax and Ray were held once,
with random sequences, to the classes of the releases named; what surrounds those classes
(`min_epochs`, what a resume brings back, `best.pt`, `save_best`) was read, not run.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import pstdev
from typing import Literal, Protocol

Mode = Literal["max", "min"]


class Stopper(Protocol):
    def see(self, step: int, score: float) -> bool: ...
    def restart(self) -> None: ...


def beats(mode: Mode, score: float, other: float) -> bool:
    return score > other if mode == "max" else score < other


def worst(mode: Mode) -> float:
    return -math.inf if mode == "max" else math.inf


def nearer(mode: Mode, score: float, delta: float) -> float:
    """Return the score moved by delta towards the worse side."""
    return score - delta if mode == "max" else score + delta


class KerasEarlyStopping:
    """`keras.callbacks.EarlyStopping`, Keras 2.13.1 (3.x has the same rule).

    An epoch improves when it is better than the best by more than `min_delta`, whose sign is
    dropped. Epochs before `start_from_epoch` are not looked at. Every other epoch is waited for,
    NaN too, and the first never stops. All is forgotten when `fit` begins.
    """

    def __init__(
        self,
        mode: Mode = "max",
        patience: int = 0,
        min_delta: float = 0.0,
        start_from_epoch: int = 0,
    ) -> None:
        self.mode, self.patience, self.min_delta = mode, patience, abs(min_delta)
        self.unseen, self.epochs = start_from_epoch, 0
        self.restart()

    def restart(self) -> None:
        self.best, self.waited = worst(self.mode), 0

    def see(self, step: int, score: float) -> bool:
        self.epochs += 1
        if self.epochs <= self.unseen:
            return False
        if beats(self.mode, nearer(self.mode, score, self.min_delta), self.best):
            self.best, self.waited = score, 0
            return False
        self.waited += 1
        return self.waited >= self.patience and self.epochs > 1


class LightningEarlyStopping:
    """`EarlyStopping` of PyTorch Lightning 2.6.6, with the Trainer's `min_epochs`.

    Not finite stops at once (`check_finite`), so does a score strictly beyond `stopping_threshold`
    or strictly worse than `divergence_threshold`. A verdict is never withdrawn: one given before
    `min_epochs` waits for it (issue 19966, open). Best, count and *patience* are in the
    checkpoint and come back with it; the verdict is not.
    """

    def __init__(
        self,
        mode: Mode = "max",
        patience: int = 3,
        min_delta: float = 0.0,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
        min_epochs: int = 0,
    ) -> None:
        self.mode, self.patience, self.min_delta = mode, patience, min_delta
        self.target, self.limit = stopping_threshold, divergence_threshold
        self.check_finite, self.min_epochs = check_finite, min_epochs
        self.best, self.waited, self.epochs, self.verdict = worst(mode), 0, 0, False

    def restart(self) -> None:
        self.verdict = False

    def see(self, step: int, score: float) -> bool:
        self.epochs += 1
        self.verdict |= self._judge(score)
        return self.verdict and self.epochs >= self.min_epochs

    def _judge(self, score: float) -> bool:
        if self.check_finite and not math.isfinite(score):
            return True
        if self.target is not None and beats(self.mode, score, self.target):
            return True
        if self.limit is not None and beats(self.mode, self.limit, score):
            return True
        if beats(self.mode, nearer(self.mode, score, self.min_delta), self.best):
            self.best, self.waited = score, 0
            return False
        self.waited += 1
        return self.waited >= self.patience


class MMEngineEarlyStopping:
    """`EarlyStoppingHook` of MMEngine 0.10.7.

    An evaluation is waited for only when it is strictly worse than the best plus `min_delta`:
    a tie and a gain of just `min_delta` improve, and so does NaN, when `check_finite` is off.
    `min_delta` is 0.1 unless set. Nothing of it is in a checkpoint.
    """

    def __init__(
        self,
        mode: Mode = "max",
        patience: int = 5,
        min_delta: float = 0.1,
        check_finite: bool = True,
    ) -> None:
        self.mode, self.patience, self.min_delta = mode, patience, min_delta
        self.check_finite = check_finite
        self.restart()

    def restart(self) -> None:
        self.best, self.waited = worst(self.mode), 0

    def see(self, step: int, score: float) -> bool:
        if self.check_finite and not math.isfinite(score):
            return True
        if beats(self.mode, nearer(self.mode, self.best, -self.min_delta), score):
            self.waited += 1
            return self.waited >= self.patience
        self.best, self.waited = score, 0
        return False


class UltralyticsEarlyStopping:
    """`EarlyStopping` of Ultralytics 8.4.190.

    Stops `patience` epochs after the best one, evaluated or not. As long as the best is exactly 0,
    each epoch is the best. Its state is in the checkpoint (in older releases it was not).
    """

    def __init__(self, patience: int = 100) -> None:
        self.patience, self.best, self.best_epoch, self.epoch = patience, 0.0, 0, 0

    def restart(self) -> None:
        pass

    def see(self, step: int, score: float | None) -> bool:
        self.epoch += 1
        if score is None:
            return False
        if self.best == 0.0 or score > self.best:
            self.best, self.best_epoch = score, self.epoch
        return self.epoch - self.best_epoch >= self.patience


class EstimatorNoImprovement:
    """`stop_if_no_increase_hook` and `stop_if_no_decrease_hook` of tf.estimator 2.13.

    Walks all evaluations in the event files from step `min_steps` on, each time anew: those before
    do not exist for it. Stops when any one of them, at any time, was `max_steps` or more after the
    best until then. NaN is the best when it comes first, and never improved upon.
    """

    def __init__(self, mode: Mode, max_steps: int, min_steps: int = 0) -> None:
        self.mode, self.max_steps, self.min_steps = mode, max_steps, min_steps
        self.events: list[tuple[int, float]] = []

    def restart(self) -> None:
        pass

    def see(self, step: int, score: float) -> bool:
        self.events.append((step, score))
        best: tuple[int, float] | None = None
        for at, value in self.events:
            if at < self.min_steps:
                continue
            if best is None or beats(self.mode, value, best[1]):
                best = (at, value)
            if at - best[0] >= self.max_steps:
                return True
        return False


class EstimatorThreshold:
    """`stop_if_higher_hook` and `stop_if_lower_hook` of tf.estimator 2.13: strictly beyond it."""

    def __init__(self, mode: Mode, threshold: float) -> None:
        self.mode, self.threshold, self.crossed = mode, threshold, False

    def restart(self) -> None:
        pass

    def see(self, step: int, score: float) -> bool:
        self.crossed |= beats(self.mode, score, self.threshold)
        return self.crossed


class RayPlateau:
    """`TrialPlateauStopper` of Ray Tune 2.60.0.

    Stops when the population standard deviation of the last `num_results` is strictly below `std`.
    One that is not finite makes it NaN, which is below nothing.
    """

    def __init__(self, std: float = 0.01, num_results: int = 4, grace_period: int = 4) -> None:
        self.std, self.window, self.grace = std, deque[float](maxlen=num_results), grace_period
        self.results = 0

    def restart(self) -> None:
        pass

    def see(self, step: int, score: float) -> bool:
        self.results += 1
        self.window.append(score)
        if self.results < self.grace or len(self.window) < (self.window.maxlen or 0):
            return False
        return all(map(math.isfinite, self.window)) and pstdev(self.window) < self.std

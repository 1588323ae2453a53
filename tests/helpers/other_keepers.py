"""Which checkpoints other tools keep, as small models of their published rules.

`see` takes one evaluation, `restart` is what the tool is left with when its process ended and began
again on the same folder, `holds` lists the steps it has kept so far, the one it calls the best
first. How they were held to the tools themselves is said in `other_stoppers`.
"""

from __future__ import annotations

import math
import sys
from typing import Literal, Protocol

from other_stoppers import Mode, beats, worst


class Keeper(Protocol):
    def see(self, step: int, score: float) -> None: ...
    def restart(self) -> None: ...
    def holds(self) -> list[int]: ...


class KerasModelCheckpoint:
    """`keras.callbacks.ModelCheckpoint(save_best_only=True)`, Keras 2.13.1.

    Strictly better than the best so far, which is forgotten at a restart (keras issue 17012, open;
    `initial_value_threshold` can be given by hand). Mode `auto` of 2.13 means max only for names
    with `acc` or that begin with `fmeasure`.
    """

    def __init__(self, mode: Literal["max", "min", "auto"] = "max", monitor: str = "score") -> None:
        if mode == "auto":
            mode = "max" if "acc" in monitor or monitor.startswith("fmeasure") else "min"
        self.mode: Mode = mode
        self.kept: list[int] = []
        self.restart()

    def restart(self) -> None:
        self.best = worst(self.mode)

    def see(self, step: int, score: float) -> None:
        if beats(self.mode, score, self.best):
            self.best, self.kept = score, [step]

    def holds(self) -> list[int]:
        return self.kept


class LightningModelCheckpoint:
    """`ModelCheckpoint(save_top_k=k)` of PyTorch Lightning 2.6.6.

    Free places take whatever comes; NaN takes one as the worst there is. Then only what is
    strictly better than the worst kept gets in, and of equally bad ones the oldest leaves.
    """

    def __init__(self, mode: Mode = "max", k: int = 1) -> None:
        self.mode, self.k = mode, k
        self.kept: list[tuple[int, float]] = []

    def restart(self) -> None:
        pass

    def see(self, step: int, score: float) -> None:
        if len(self.kept) == self.k:
            out = self.kept[0]
            for one in self.kept:
                if beats(self.mode, out[1], one[1]):
                    out = one
            if not beats(self.mode, score, out[1]):
                return
            self.kept.remove(out)
        self.kept.append((step, worst(self.mode) if math.isnan(score) else score))

    def holds(self) -> list[int]:
        sign = -1 if self.mode == "max" else 1
        return [step for step, _ in sorted(self.kept, key=lambda one: sign * one[1])]


class EstimatorBestExporter:
    """`BestExporter` of tf.estimator 2.13.

    Exports what is strictly better than the best in the event files, and always the first it sees,
    which is then the one to beat (tensorflow issue 47396). Keeps the newest `exports_to_keep`.
    """

    def __init__(self, mode: Mode = "min", exports_to_keep: int = 5) -> None:
        self.mode, self.keep = mode, exports_to_keep
        self.best: float | None = None
        self.kept: list[int] = []

    def restart(self) -> None:
        self.best = None

    def see(self, step: int, score: float) -> None:
        if self.best is None or beats(self.mode, score, self.best):
            self.best = score
            self.kept = [step, *self.kept][: self.keep]

    def holds(self) -> list[int]:
        return self.kept


class OrbitNewBestMetric:
    """`orbit.actions.NewBestMetric`, Orbit of tf-models-official 2.15.0.

    Strictly better than the best so far, at first the worst finite number. The best is in a file
    when one is named, else forgotten at a restart.
    """

    def __init__(self, mode: Mode = "max", persistent: bool = True) -> None:
        self.mode, self.persistent = mode, persistent
        self.kept: list[int] = []
        self._forget()

    def _forget(self) -> None:
        self.best = math.copysign(sys.float_info.max, worst(self.mode))

    def restart(self) -> None:
        if not self.persistent:
            self._forget()

    def see(self, step: int, score: float) -> None:
        if beats(self.mode, score, self.best):
            self.best, self.kept = score, [step]

    def holds(self) -> list[int]:
        return self.kept


class ModelGardenBestCheckpoint:
    """`BestCheckpointExporter` of tf-models-official 2.15.0.

    The first is kept whatever it is; then what is strictly better. One is kept, and its metrics
    in `info.json`, which is read again at a restart.
    """

    def __init__(self, mode: Mode = "max") -> None:
        self.mode = mode
        self.best: float | None = None
        self.kept: list[int] = []

    def restart(self) -> None:
        pass

    def see(self, step: int, score: float) -> None:
        if self.best is None or beats(self.mode, score, self.best):
            self.best, self.kept = score, [step]

    def holds(self) -> list[int]:
        return self.kept


class OrbaxBestN:
    """Preservation policy `BestN` of Orbax 0.12.8, applied after each save.

    Keeps the last n in the order of Python's stable `sorted`, ascending for max and reversed for
    min: of equals the newer, and NaN stays where it happens to stand.
    """

    def __init__(self, mode: Mode = "max", n: int = 1) -> None:
        self.mode, self.n = mode, n
        self.kept: list[tuple[int, float]] = []

    def restart(self) -> None:
        pass

    def _order(self) -> list[tuple[int, float]]:
        return sorted(self.kept, key=lambda one: one[1], reverse=self.mode == "min")

    def see(self, step: int, score: float) -> None:
        self.kept.append((step, score))
        best = {at for at, _ in self._order()[-self.n :]}
        self.kept = [one for one in self.kept if one[0] in best]

    def holds(self) -> list[int]:
        return [step for step, _ in reversed(self._order())]


class UltralyticsBest:
    """`best.pt` of Ultralytics 8.4.190: written whenever the fitness equals the best fitness.

    So an epoch that only ties takes the place of the older one. The best fitness is restored on
    resume. The detection fitness is made of metrics whose NaN counts as 0.
    """

    def __init__(self) -> None:
        self.best: float | None = None
        self.kept: list[int] = []

    def restart(self) -> None:
        pass

    def see(self, step: int, score: float) -> None:
        fitness = 0.0 if math.isnan(score) else score
        self.best = fitness if self.best is None else max(self.best, fitness)
        if fitness == self.best:
            self.kept = [step]

    def holds(self) -> list[int]:
        return self.kept


class MMEngineSaveBest:
    """`CheckpointHook(save_best=...)` of MMEngine 0.10.7: strictly better; kept over a resume."""

    def __init__(self, mode: Mode = "max") -> None:
        self.mode, self.best = mode, worst(mode)
        self.kept: list[int] = []

    def restart(self) -> None:
        pass

    def see(self, step: int, score: float) -> None:
        if beats(self.mode, score, self.best):
            self.best, self.kept = score, [step]

    def holds(self) -> list[int]:
        return self.kept

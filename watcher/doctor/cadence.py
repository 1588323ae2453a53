"""Cadence: how often the trainer saves, which steps it never saves, and whether we keep up. Pure.

model_main_tf2 runs 100 steps at a time and looks only then whether it is time to save: that is
every ceil(checkpoint_every_n / 100) * 100 steps. It does not save at the end. Model Garden runs
steps_per_loop at a time, saves after the first of them, and saves at the end.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

import msgspec

from watcher.doctor.finding import Finding, duration
from watcher.launch.trainer_kind import Schedule
from watcher.types import FoundCheckpoint

_ENOUGH = 2
# No detector trains as fast: the small one of the demo does 14 steps a second.
_MOST_STEPS_A_SECOND = 100
_SAME_SECONDS = 1.0


class Pace(msgspec.Struct, frozen=True):
    """How fast checkpoints come and are dealt with.

    Attributes:
        schedule: When the trainer saves, and how long it trains.
        save_seconds: Between two saves, None when unknown.
        eval_seconds: Of one evaluation, None when unknown.
        workers: Evaluations at the same time.
        queue_policy: As set.
        doubt: Why the times of the files tell nothing of the pace, None when they do.
        begun: The step that training goes on from.
        faster: What makes an evaluation faster, as flags with commas behind them.
    """

    schedule: Schedule
    save_seconds: float | None = None
    eval_seconds: float | None = None
    workers: int = 1
    queue_policy: str = "all"
    doubt: str | None = None
    begun: int = 0
    faster: str = ""


class Plan(msgspec.Struct, frozen=True):
    """What a training comes to.

    Attributes:
        begins: The step that it goes on from.
        ends: Its last step.
        saves: Trained checkpoints on the way.
        lost: Steps after the last of them.
        remedy: What saves those, too; empty when there are none.
    """

    begins: int
    ends: int
    saves: int
    lost: int
    remedy: str = ""


def plan(pace: Pace) -> Plan | None:
    """Return what the training comes to, None where its steps are not known."""
    schedule = pace.schedule
    if not schedule.steps or schedule.every is None:
        return None
    steps, interval = max(schedule.steps - pace.begun, 0), schedule.interval
    if not schedule.saves_at_end:
        steps = -(-steps // schedule.loop) * schedule.loop
    ends = pace.begun + steps
    if not steps:
        more = f"set {schedule.steps_name} to more than {ends}, or name another MODEL_DIR"
        return Plan(ends, ends, 0, 0, more)
    if schedule.saves_at_end:
        first = interval if pace.begun else schedule.loop
        return Plan(pace.begun, ends, 1 + max(0, -(-(steps - first) // interval)), 0)
    saves, lost = divmod(steps, interval)
    if not lost:
        return Plan(pace.begun, ends, saves, lost)
    proposed = [ends - lost] * (saves > 0) + [ends - lost + interval]
    said = " or ".join(map(str, proposed))
    every = str(schedule.loop)
    if steps > schedule.loop:
        every = f"a multiple of {schedule.loop} that divides {steps}"
    # As `--checkpoint_every_n to 100`.
    remedy = f"set {schedule.steps_name} to {said}, or {schedule.set_every}to {every}"
    return Plan(pace.begun, ends, saves, lost, remedy)


def save_seconds(found: Sequence[FoundCheckpoint]) -> float | None:
    """Return the median seconds between saves in a row, None when there are too few."""
    pairs = [seconds for seconds in _between(found) if seconds > 0]
    return statistics.median(pairs) if len(pairs) >= _ENOUGH else None


def doubt(
    found: Sequence[FoundCheckpoint], interval: int, found_seconds: float | None = None
) -> str | None:
    """Say why the files' times cannot be those at which the trainer saved, as after a copy.

    Args:
        found: The checkpoints that lie in a folder.
        interval: The trainer's steps between two saves.
        found_seconds: Between two discoveries of the watcher, None when that is not known.

    Returns:
        None where the times can be trusted, or are too few to say.
    """
    pairs = _between(found)
    if len(pairs) < _ENOUGH:
        return None
    # A trainer that starts over makes one that is older than the one before it.
    if sum(seconds < 0 for seconds in pairs) > 1:
        return "their files' times are not in the order of their numbers (copied files?)"
    between = statistics.median(pairs)
    if between * _MOST_STEPS_A_SECOND < interval:
        apart = f"their files' times lie {max(between, 0.0):.2g} s apart"
        return f"{apart}, too little for a training (copied files?)"
    if found_seconds is not None and found_seconds < between / 2:
        return "the last ones were there already when the watcher started"
    return None


def step_between(steps: Mapping[int, int]) -> int | None:
    """Return the steps between two saves, from global steps by save counter; None for too few."""
    trained = sorted((counter, step) for counter, step in steps.items() if step > 0)
    gaps = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(trained)]
    gaps = [gap for gap in gaps if gap > 0]
    return round(statistics.median(gaps)) if gaps else None


def newest(found: Sequence[FoundCheckpoint]) -> FoundCheckpoint:
    """Return the one that was written last; of those of one second, that with the last number."""
    last = max(checkpoint.written_at for checkpoint in found)
    late = [one for one in found if one.written_at > last - _SAME_SECONDS]
    return max(late, key=lambda checkpoint: checkpoint.save_counter)


def _between(found: Sequence[FoundCheckpoint]) -> list[float]:
    """Return the seconds between saves in a row; less than 0 where the times are in no order."""
    ordered = sorted(found, key=lambda checkpoint: checkpoint.save_counter)
    # The first is saved before the model is built, and says nothing about the pace.
    return [
        after.written_at - before.written_at
        for before, after in pairwise(ordered)
        if after.save_counter == before.save_counter + 1 and before.save_counter > 1
    ]


def rounding(schedule: Schedule) -> str:
    """Say how often the trainer saves, for a number that it does not keep to."""
    each = f"each {schedule.loop} steps"
    each += f" ({schedule.loop_name})" if schedule.loop_name else ""
    return (
        f"{schedule.every_name} is {schedule.every} ({schedule.source}), and the trainer saves"
        f" every {schedule.interval} steps: it looks only {each}"
    )


def saving(pace: Pace) -> list[Finding]:
    """Say at which steps the trainer saves, and which last steps are never saved."""
    schedule, interval = pace.schedule, pace.schedule.interval
    found = []
    if schedule.every is None:
        text = "how often the trainer saves is not known yet: params.yaml will say it"
        return [Finding("saving", "note", text)]
    if schedule.saves_at_end and not schedule.every:
        text = f"{schedule.every_name} is 0 ({schedule.source}): the trainer saves nothing at all"
        return [Finding("saving", "error", text, f"{schedule.set_every}1000")]
    if interval != schedule.every:
        remedy = f"{schedule.set_every}{interval}, or another multiple of {schedule.loop}"
        found.append(Finding("saving", "warning", rounding(schedule), remedy))
    known = plan(pace)
    if known is None:
        text = f"a checkpoint every {interval} steps ({schedule.source})"
        return found or [Finding("saving", "ok", text)]
    if known.remedy:
        found.append(Finding("saving", "warning", unsaved(pace, known), known.remedy))
    else:
        text = f"{known.saves} checkpoints in {known.ends} steps, one every {interval}"
        found.append(Finding("saving", "ok", f"{text} ({schedule.source}); the last step is saved"))
    return found


def unsaved(pace: Pace, known: Plan) -> str:
    """Say which steps are never saved, for a plan that loses some, or has none."""
    schedule = pace.schedule
    every = f"a save every {schedule.interval} steps, {schedule.source}"
    if known.ends == known.begins:
        return (
            f"training is at step {known.begins} already, and {schedule.steps_name} is"
            f" {schedule.steps}: nothing is trained, and no trained checkpoint is saved"
        )
    if not known.saves:
        first = known.begins + schedule.interval
        return (
            f"training ends at step {known.ends}, before the first save at step {first}:"
            f" no trained checkpoint is saved ({every})"
        )
    return (
        f"training ends at step {known.ends}, and the last checkpoint will be that of step"
        f" {known.ends - known.lost}: the last {known.lost} steps are never saved ({every})"
    )


def keeping_up(pace: Pace) -> list[Finding]:
    """Say whether evaluations are faster than saves, and how far the queue would grow."""
    if pace.doubt:
        text = (
            f"how fast checkpoints come is not known: {pace.doubt};"
            " look again while the trainer saves here"
        )
        return [Finding("pace", "note", text)]
    if pace.save_seconds is None or pace.eval_seconds is None:
        missing = "time between saves" if pace.save_seconds is None else "time of an evaluation"
        text = f"the {missing} is not known yet: look again when three checkpoints were scored"
        return [Finding("pace", "note", text)]
    each = pace.eval_seconds / pace.workers
    times = f"an evaluation takes {duration(pace.eval_seconds)}"
    times += f" ({pace.workers} at a time)" if pace.workers > 1 else ""
    times += f", a checkpoint comes every {duration(pace.save_seconds)}"
    if each <= pace.save_seconds:
        return [Finding("pace", "ok", f"{times}: the queue does not grow")]
    growth = 3600 / pace.save_seconds - 3600 / each
    if pace.queue_policy != "all":
        text = f"{times}: some are skipped, as queue_policy ({pace.queue_policy}) says"
        return [Finding("pace", "ok", text)]
    schedule = pace.schedule
    needed = schedule.rounded(int(schedule.interval * each / pace.save_seconds))
    return [
        Finding(
            "pace",
            "warning",
            f"{times}: the queue grows by {growth:.0f} an hour"
            + (_backlog(pace, each) if schedule.steps else ""),
            f"{pace.faster}--queue-policy latest, or save every {needed} steps",
        )
    ]


def _backlog(pace: Pace, each: float) -> str:
    assert pace.schedule.steps and pace.save_seconds is not None
    saves = pace.schedule.steps // pace.schedule.interval
    hours = saves * (each - pace.save_seconds)
    return f"; after {saves} checkpoints it would go on for {duration(hours)} after the trainer"

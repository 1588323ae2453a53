"""View: which scores were measured on a machine that is not known to give those of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from watcher.decision.machines import parts_text
from watcher.store.machines import machine_states, machines_of
from watcher.store.rows import Rows

_AS_THE_OTHERS = ("reference", "equal")
_MOST_NAMES = 5


class Remark(msgspec.Struct, frozen=True):
    """What is to be known of the scores of one machine.

    Attributes:
        machine: Its number.
        standing: `accepted`, `differs` or `unproven`.
        differs: In which parts it differs from the machine of the other scores.
        largest: By how much its figures do, None where that is not known or one was no number.
        tolerance: Up to where it was let in.
        checkpoints: Names of those that were measured there.
    """

    machine: int
    standing: str
    differs: str
    largest: float | None
    tolerance: float | None
    checkpoints: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """It in a sentence."""
        some, more = self.checkpoints[:_MOST_NAMES], len(self.checkpoints) - _MOST_NAMES
        names = ", ".join(some) + (f" and {more} more" if more > 0 else "")
        were = "was" if len(self.checkpoints) == 1 else "were"
        far = "" if self.largest is None else f" by up to {self.largest:.2g}"
        how = {
            "accepted": f"whose figures differ{far}; --accept-host-differences"
            f" {self.tolerance or 0:g} let it in",
            "differs": f"whose figures differ{far}: `requeue` has them measured anew",
            "unproven": "which has not proved itself",
        }[self.standing]
        return f"{names} {were} measured on another machine ({self.differs}), {how}"


def remarks(reader: Rows, names: Mapping[int, str]) -> list[Remark]:
    """Return what is to be known of evaluations by the machine they were made on, none for nothing.

    Args:
        reader: The run.
        names: Evaluation id to the name of its checkpoint.
    """
    states = machine_states(reader)
    reference = next((one for one in states.values() if one["standing"] == "reference"), None)
    of: dict[int, list[str]] = {}
    for id_, machine in machines_of(reader, list(names)).items():
        of.setdefault(machine, []).append(names[id_])
    return [
        Remark(
            machine,
            state["standing"],
            parts_text(reference["parts"], state["parts"]),
            state["largest"],
            state["tolerance"],
            tuple(of[machine]),
        )
        for machine, state in states.items()
        if reference and machine in of and state["standing"] not in _AS_THE_OTHERS
    ]


def standing_of(reader: Rows, evaluation_id: int) -> dict[str, Any]:
    """Return `machine, machine_standing` of an evaluation, each None where it is not known."""
    machine = machines_of(reader, [evaluation_id]).get(evaluation_id)
    state = machine_states(reader).get(machine) if machine else None
    return {"machine": machine, "machine_standing": state and state["standing"]}

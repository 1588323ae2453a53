"""Runs the benchmarks named on the command line, or all, and prints a table of each.

`--write` puts the tables into RESULTS.md, with the machine they were measured on and how busy it
was; tables of benchmarks that were not run now stay.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from pathlib import Path

from benchmarks.table import Row, as_markdown

BENCHMARKS = (
    "coco",
    "daemon",
    "evaluator",
    "families",
    "eval_sets",
    "garden",
    "scale",
    "growth",
    "workers",
    "buckets",
)
# Of the method and not of the program: it changes with none of its versions, so it is run by name.
STUDIES = ("averages", "coverage")
RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    """One line about the machine: what a reader needs to compare figures."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores ({platform.machine()}), {memory:.0f} GiB, "
        f"Python {platform.python_version()}, Linux {platform.release().split('-')[0]}"
    )


def parts(name: str) -> list[str]:
    """Return `name:part` for each part of a benchmark that has parts, else the name alone."""
    if name not in (*BENCHMARKS, *STUDIES):
        return [name]
    module = importlib.import_module(f"benchmarks.{name}")
    return [f"{name}:{part}" for part in getattr(module, "PARTS", ())] or [name]


def write(sections: dict[str, str]) -> None:
    """Put these sections into RESULTS.md and leave the others in it."""
    kept = RESULTS.read_text().split("\n## ")[1:] if RESULTS.exists() else []
    found = {name: text for name, _, text in (part.partition("\n\n") for part in kept)}
    found = {name: text.rstrip("\n") + "\n" for name, text in {**found, **sections}.items()}
    head = "# Benchmark results\n\n`make bench`, on a machine shared with other work.\n"
    RESULTS.write_text(head + "".join(f"\n## {name}\n\n{text}" for name, text in found.items()))


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = ", ".join((*BENCHMARKS, *STUDIES))
    parser.add_argument("names", nargs="*", help=f"of {known}; default all but averages")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--small", action="store_true", help="only see whether it runs")
    arguments = parser.parse_args()
    names = [part for name in arguments.names or BENCHMARKS for part in parts(name)]
    if unknown := {name.partition(":")[0] for name in names} - {*BENCHMARKS, *STUDIES}:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    sections = {}
    for name in names:
        print(f"\n{name} ...", flush=True)
        before = os.getloadavg()[0]
        module, _, part = name.partition(":")
        benchmark = importlib.import_module(f"benchmarks.{module}")
        vars(benchmark).update(getattr(benchmark, "SMALL", {}) if arguments.small else {})
        rows: list[Row] = benchmark.run(part) if part else benchmark.run()
        table = as_markdown(rows)
        print(table, flush=True)
        load = f"load average {before:.1f} before, {os.getloadavg()[0]:.1f} after"
        sections[name] = f"{machine()}; {load}.\n\n{table}\n"
        if arguments.write:
            write(sections)


if __name__ == "__main__":
    main()

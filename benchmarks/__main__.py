"""The benchmarks from the command line; see `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import (
    asleep,
    children,
    crew,
    energy,
    filling,
    growth,
    logs,
    machine,
    peers,
    places,
    plot,
    reading,
    report,
    startup,
    throughput,
    waking,
)
from benchmarks.places import PROVIDERS, Place
from benchmarks.rounds import Line

RESULTS = Path(__file__).with_name("results")
PAPER = 150
"""Columns of the table where there is no terminal."""
FILL_ROUNDS = 3
NAMES = ("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9", "S10", "S11", "S12", "S13", "S14")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it."""

    names: frozenset[str]
    size: throughput.Size
    fill: int
    fill_on: Sequence[str]
    log_lines: int
    child_rows: int
    cold_rounds: int
    table: int
    peer_rows: int
    queues: peers.Size
    few_rounds: int
    """Of what takes long: S7, S9, S10."""
    sizes: Sequence[int]
    """Tables of so many rows, for claims."""
    sizes_on: Sequence[str]
    asleep: int
    asleep_on: Sequence[str]
    beats: int
    crews: Sequence[int]
    crew_on: Sequence[str]
    crew_rows: int
    waking: waking.Size
    waking_on: Sequence[str]
    energy: int
    energy_on: Sequence[str]
    python: Path | None = None
    """The interpreter of the predecessor; None: without it."""

    @property
    def rounds(self) -> int:
        return self.size.rounds


def measured(plan: Plan, ready: Sequence[Place]) -> Iterator[Line]:
    """One line after the other, as they are taken."""
    for place in ready:
        yield from _of_place(plan, place)
    if "S11" in plan.names:
        yield from startup.measured(plan.rounds)
    if "S13" in plan.names:
        yield reading.measured(plan.table, plan.rounds)
    if "S2" in plan.names and plan.python is not None:
        yield peers.of_sqlite(plan.python, plan.peer_rows, plan.size)


def _of_place(plan: Plan, place: Place) -> Iterator[Line]:
    for at_once in throughput.AT_ONCE:
        if ("S3" if at_once == 1 else "S1") in plan.names:
            yield throughput.measured(place, at_once, plan.size)
    if "S2" in plan.names and place.provider == "postgresql":
        yield from peers.of_postgres(place, plan.size, plan.queues)
    if "S4" in plan.names and place.provider == "sqlite":
        yield children.measured(place, plan.child_rows, plan.rounds, plan.cold_rounds)
    if {"S5", "S6"} & plan.names and place.provider in plan.fill_on:
        lines = filling.measured(place, plan.fill, FILL_ROUNDS)
        yield from (line for line in lines if line.name in plan.names)
    if "S7" in plan.names and place.provider in plan.sizes_on:
        yield from growth.measured(place, plan.sizes, plan.few_rounds)
    if "S8" in plan.names:
        yield from logs.measured(place, plan.log_lines, plan.rounds)
    if "S9" in plan.names and place.provider in plan.asleep_on:
        yield from asleep.measured(place, plan.asleep, plan.few_rounds, plan.beats)
    if "S10" in plan.names and place.provider in plan.crew_on:
        yield from crew.measured(place, plan.crews, plan.crew_rows, plan.few_rounds)
    if "S12" in plan.names and place.provider in plan.waking_on:
        yield waking.measured(place, plan.waking)
    if "S14" in plan.names and place.provider in plan.energy_on:
        yield from energy.measured(place, plan.energy, plan.few_rounds)


def _plan(given: argparse.Namespace) -> Plan:
    names = frozenset(given.only or NAMES)
    wants_predecessor = given.peers or given.legacy_python or (peers.is_there() and not given.quick)
    python = peers.interpreter(given.legacy_python) if wants_predecessor else None
    if given.quick:
        return Plan(
            names=names,
            size=throughput.Size(3, 1),
            fill=25_000,
            fill_on=PROVIDERS[:2],
            log_lines=15_000,
            child_rows=2_000,
            cold_rounds=0,
            table=25_000,
            peer_rows=200,
            queues=peers.Size(1, 4_000, {"pgqueuer": (200,), "procrastinate": (50,)}),
            few_rounds=1,
            sizes=(20_000,),
            sizes_on=PROVIDERS[:2],
            asleep=10_000,
            asleep_on=PROVIDERS[:1],
            beats=2,
            crews=(1, 2),
            crew_on=PROVIDERS[1:2],
            crew_rows=2_000,
            waking=waking.Size(1, 1),
            waking_on=PROVIDERS[1:2],
            energy=1_000,
            energy_on=PROVIDERS[:1],
            python=python,
        )
    return Plan(
        names=names,
        size=throughput.Size(5, 10),
        fill=1_000_000,
        fill_on=PROVIDERS,
        log_lines=200_000,
        child_rows=20_000,
        cold_rounds=5,
        table=100_000,
        peer_rows=1_000,
        queues=peers.Size(5, 20_000, {"pgqueuer": (10, 50, 200, 1_000), "procrastinate": (1, 10, 50, 200)}),
        few_rounds=3,
        sizes=(100_000, 1_000_000),
        sizes_on=PROVIDERS,
        asleep=10_000,
        asleep_on=PROVIDERS,
        beats=10,
        crews=crew.CREWS,
        crew_on=PROVIDERS,
        crew_rows=20_000,
        waking=waking.Size(5, 4),
        waking_on=PROVIDERS,
        energy=20_000,
        energy_on=PROVIDERS,
        python=python,
    )


def _words(known: Sequence[str]) -> type[list[str]]:
    def split(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",")]
        for word in words:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return words

    return split  # type: ignore[return-value]


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description="asyncexp against its limits, in the same run")
    parser.add_argument("--quick", action="store_true", help="the short form: a minute or little more on two cores")
    parser.add_argument("--only", type=_words(NAMES), metavar="S1,S3,…", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--databases", type=_words(PROVIDERS), default=list(PROVIDERS), metavar="sqlite,…")
    parser.add_argument("--json", type=Path, help="where the figures go (default: benchmarks/results/)")
    parser.add_argument("--peers", action="store_true", help="S2 with PyExperimenter 1.4.2, too; makes .venv-legacy")
    parser.add_argument("--legacy-python", type=Path, help="S2 with the PyExperimenter of this interpreter too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, shows, and writes JSON and a plot."""
    given = _parsed(arguments)
    path: Path = given.json or RESULTS / ("quick.json" if given.quick else "full.json")
    began = time.monotonic()
    run(_plan(given), given.databases, path)
    print(f"{time.monotonic() - began:.0f} s; figures: {path}", file=sys.stderr)


def run(plan: Plan, providers: Sequence[str], path: Path) -> list[Line]:
    """Measures a plan; the JSON goes to `path`, line by line, the plots beside it."""
    console = Console() if sys.stdout.isatty() else Console(width=PAPER)
    lines: list[Line] = []
    with places.places(providers) as ready:
        facts = machine.facts(ready)
        with console.status("measuring …") as status:
            began = time.monotonic()
            for line in measured(plan, ready):
                lines.append(line)
                line.facts["took_seconds"] = round(time.monotonic() - began, 1)
                began = time.monotonic()
                report.write(lines, facts, path)
                status.update(f"{line.name} {line.database} {line.at_once or ''}: {line.score:.2f}; going on …")
    facts["machine"]["load_after"] = machine.load()
    report.show(lines, facts, console)
    report.write(lines, facts, path)
    plot.draw(lines, path.with_suffix(".png"))
    return lines


if __name__ == "__main__":
    main()

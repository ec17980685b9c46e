"""S9: ten thousand experiments asleep at once in one worker: what each holds, and what the worker does meanwhile.

A process of its own runs a few that sleep, then all of them, and reads its memory both times; the limit is a
bare asyncio task each with the same keyfields. What tracemalloc counts is taken in another process, for it
makes everything larger and slower.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from asyncexp import ResultProcessor
from benchmarks import study
from benchmarks.places import Place
from benchmarks.processes import child, say
from benchmarks.profile import counting
from benchmarks.rounds import Line, all_in_turns

FEW = 10
BEAT_SECONDS = 0.5
"""Instead of 15, so that there are some to count; what the worker does while all sleep is that much more."""

Told = dict[str, Any]


def measured(place: Place, count: int, rounds: int, beats: int) -> Iterator[Line]:
    """Lines for the memory of each, the statements of a beat and the share of a core.

    With more than one round, the facts of the first have what tracemalloc counts.
    """
    asked = partial(_told, place, count, beats)
    sides = {side: partial(asked, side, "rss") for side in ("bare", "ours")}
    taken = all_in_turns(rounds, sides)
    traced = {side: asked(side, "tracemalloc")["each_kb"] for side in sides if rounds > 1}
    line = partial(Line, "S9", database=place.shown, at_once=count, judged="figure")

    def figures(name: str) -> tuple[Sequence[float], Sequence[float]]:
        return [told[name] for told in taken["bare"]], [told[name] for told in taken["ours"]]

    statements = [told["statements"] for told in taken["ours"]]
    facts = {"experiments": count, "traced_kb_each": traced}
    last = taken["ours"][-1]["sent"]
    yield line("asleep; limit: bare tasks", "kB each", *figures("each_kb"), reach=10.0, beyond=4.0, facts=facts)
    yield line("asleep; limit: one", "statements a beat", [1.0] * rounds, statements, reach=1.0, facts={"sent": last})
    what = f"asleep, a beat each {BEAT_SECONDS:g} s; limit: bare tasks"
    yield line(
        what, "% of a core", *figures("core_percent"), reach=5.0, facts={"beats": beats, "beat_seconds": BEAT_SECONDS}
    )


def _told(place: Place, count: int, beats: int, side: str, memory: str) -> Told:
    """What one process measured; every experiment proved to have slept and ended."""
    with place.empty() as (folder, target):
        total = FEW + count
        study.prepared(folder, target, total)
        with child("asleep", str(folder), side, memory, str(count), str(beats)) as process:
            told = process.hear()
        if side == "ours":
            [(done,)] = study.run(study.ask(target, f"SELECT COUNT(*) FROM {study.TABLE} WHERE status = 'done'"))
            assert done == total, (done, total)
        return told


# ------------------------------------------------------------------------------------- in the process


class Beds:
    """Where experiments sleep until they are woken."""

    def __init__(self, wanted: int) -> None:
        self.all_asleep = asyncio.Event()
        self._wanted = wanted
        self._morning = asyncio.Event()
        self._sleeping = 0

    async def sleep(self) -> None:
        self._sleeping += 1
        if self._sleeping == self._wanted:
            self.all_asleep.set()
        await self._morning.wait()

    def wake(self) -> None:
        self._morning.set()


class Scale:
    """Weighs this process when few are asleep, and when many are."""

    def __init__(self, memory: str) -> None:
        self._memory = memory
        if memory == "tracemalloc":
            tracemalloc.start()

    def weigh(self) -> float:
        """Bytes now."""
        gc.collect()
        if self._memory == "tracemalloc":
            return float(tracemalloc.get_traced_memory()[0])
        return float(psutil.Process().memory_info().rss)


async def _quiet(counts: Counter[str], beats: int) -> Told:
    """What happens while all sleep, over so many beats."""
    counts.clear()
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(beats * BEAT_SECONDS)
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    sent = dict(counts)
    statements = counts["statements"] + counts["single statements"]
    return {"core_percent": cpu / wall * 100, "statements": statements / beats, "sent": sent}


async def _ours(folder: Path, count: int, beats: int, scale: Scale) -> Told:
    with counting() as counts:
        async with study.joined(folder) as made:
            weights, quiet = [], {}
            for number in (FEW, count):
                beds = Beds(number)

                async def experiment(_: study.Keys, __: ResultProcessor, ___: study.Keys, beds: Beds = beds) -> None:
                    await beds.sleep()

                keywords: dict[str, Any] = {"n_jobs": number, "max_experiments": number, "progress": False}
                running = asyncio.ensure_future(made.execute(experiment, heartbeat_interval=BEAT_SECONDS, **keywords))
                await beds.all_asleep.wait()
                weights.append(scale.weigh())
                quiet = await _quiet(counts, beats) if number == count else {}
                beds.wake()
                summary = await running
                assert summary.done == number, summary
    return {"weights": weights, **quiet}


async def _bare(count: int, beats: int, scale: Scale) -> Told:
    async def experiment(keyfields: study.Keys, beds: Beds) -> int:
        await beds.sleep()
        return int(keyfields["number"])

    weights, quiet = [], {}
    for number in (FEW, count):
        beds = Beds(number)
        tasks = [asyncio.ensure_future(experiment({"number": n, "kind": "a"}, beds)) for n in range(number)]
        await beds.all_asleep.wait()
        weights.append(scale.weigh())
        quiet = await _quiet(Counter(), beats) if number == count else {}
        beds.wake()
        await asyncio.gather(*tasks)
    return {"weights": weights, **quiet}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.asleep")
    parser.add_argument("folder", type=Path)
    parser.add_argument("side", choices=("ours", "bare"))
    parser.add_argument("memory", choices=("rss", "tracemalloc"))
    parser.add_argument("count", type=int)
    parser.add_argument("beats", type=int)
    given = parser.parse_args()
    scale = Scale(given.memory)
    work = _bare if given.side == "bare" else partial(_ours, given.folder)
    told = asyncio.run(work(given.count, given.beats, scale))
    few, many = told.pop("weights")
    say(**told, each_kb=(many - few) / (given.count - FEW) / 1e3)


if __name__ == "__main__":
    main()

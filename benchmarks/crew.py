"""S10: several worker processes on one table, against one.

The processes are started once for each database and stay for all rounds; each opens the table, runs a few rows to
be warm, and waits until all are. The rate is that of the table's own dates, the proof the table and what each
worker noted.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from asyncexp import ResultProcessor
from asyncexp.db.base import Target
from benchmarks import study
from benchmarks.places import Place
from benchmarks.processes import Child, child, heard, say
from benchmarks.rounds import Line, all_in_turns

CREWS = (1, 2, 4, 8)
AT_ONCE = 50
"""In each process."""
WANTED = {"postgresql": 0.8, "sqlite": 0.5}
"""Of the largest crew: the server, or the file, is shared."""


def measured(place: Place, crews: Sequence[int], rows: int, rounds: int) -> Iterator[Line]:
    """A line for each crew of more than one; the limit is one alone, in the same rounds."""
    with ExitStack() as stack:
        workers = [stack.enter_context(child("crew")) for _ in range(max(crews))]
        sides = {size: partial(_figure, place, workers[:size], rows) for size in crews}
        taken = all_in_turns(rounds, sides)
    rates = {size: [rate for rate, _ in figures] for size, figures in taken.items()}
    one, *several = crews
    for size in several:
        facts = {"rows": rows, "processes": size, "shares": [share for _, share in taken[size]]}
        what = f"{size} worker processes, {AT_ONCE} at once each; limit: {one}"
        reach = WANTED.get(place.provider) if size == max(CREWS) else None
        wanted = (reach, None if reach is None else 1.0)
        yield Line(
            "S10", what, "experiments/s", rates[one], rates[size], place.shown, size * AT_ONCE, *wanted, facts=facts
        )


def _figure(place: Place, workers: Sequence[Child], rows: int) -> tuple[float, list[int]]:
    """Experiments a second of all together, and how many each ran."""
    warm_up = AT_ONCE * len(workers)
    total = rows + warm_up
    with place.empty() as (folder, target):
        study.prepared(folder, target, total)
        for worker in workers:
            worker.tell(folder=str(folder))
        noted = [worker.hear()["ids"] for worker in workers]
        for worker in workers:
            worker.tell()
        shares = [worker.hear()["ids"] for worker in workers]
        prove_once([*noted, *shares], total)
        study.run(study.prove(target, total))
        seconds = study.run(_seconds(target, warm_up))
    return rows / seconds, [len(ids) for ids in shares]


def prove_once(noted: Sequence[Sequence[int]], rows: int) -> None:
    """Sees in what the workers noted that every row was run, and none by two."""
    times = Counter(id_ for ids in noted for id_ in ids)
    twice = [id_ for id_, often in times.items() if often > 1]
    assert not twice, f"run more than once: {twice}"
    assert len(times) == rows, (len(times), rows)


async def _seconds(target: Target, warm_up: int) -> float:
    """From the first start behind the warm-up to the last end."""
    found = await study.ask(target, f'SELECT "start_date", "end_date" FROM "{study.TABLE}"')
    starts, ends = zip(*((_date(start), _date(end)) for start, end in found), strict=True)
    return float((max(ends) - sorted(starts)[warm_up]).total_seconds())


def _date(raw: Any) -> datetime:
    return datetime.fromisoformat(str(raw))


# ------------------------------------------------------------------------------------- in the workers


async def _work(folder: Path, messages: Iterator[dict[str, Any]]) -> list[int]:
    """Runs a few rows, says so, waits to be told, runs until there are no more; the IDs of these."""
    ids: list[int] = []

    async def experiment(keyfields: study.Keys, results: ResultProcessor, _: study.Keys) -> None:
        await results.process_results({"result": float(keyfields["number"])})
        ids.append(int(results.experiment_id))

    async with study.joined(folder) as made:
        await made.execute(experiment, n_jobs=AT_ONCE, max_experiments=AT_ONCE, progress=False)
        say(ids=ids)
        ids = []
        next(messages)
        await made.execute(experiment, n_jobs=AT_ONCE, progress=False)
    return ids


def main() -> None:
    messages = heard()
    for message in messages:
        say(ids=asyncio.run(_work(Path(message["folder"]), messages)))


if __name__ == "__main__":
    main()

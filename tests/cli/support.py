"""What happens to a study while the command line looks at it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor
from tests.cli.shell import Shell

Keys = dict[str, Any]
LONG = "a value that no terminal has room for " * 6
ODD = "two\nlines, [red]no markup[/red], \x1b[2J🙂"


def log_lines(number: int, count: int = 3) -> list[dict[str, Any]]:
    return [{"step": step, "note": ODD if step == 1 else f"{number}.{step}"} for step in range(count)]


async def some_ran(experimenter: Experimenter) -> None:
    """IDs 1 to 7: done, error, error, error without traceback, paused, created, created; odd values everywhere."""
    kinds = [LONG, ODD, None, "null", "a", "b", "c"]
    await experimenter.fill_table_with_rows([{"number": n, "kind": kind} for n, kind in enumerate(kinds)])

    async def run(keyfields: Keys, results: ResultProcessor, _: Keys) -> ExperimentStatus | None:
        number = keyfields["number"]
        await results.heartbeat(0.5, ODD)
        await results.process_logs({"steps": log_lines(number)})
        await results.process_results({"result": 0.1 + 0.2, "text": f"{LONG}\n{ODD}"})
        if number in (1, 2):
            raise ValueError(f"bad number {number}\nin [two] lines")
        return {3: ExperimentStatus.ERROR, 4: ExperimentStatus.PAUSED}.get(number)

    await experimenter.execute(run, max_experiments=5, n_jobs=1, pool="task", progress=False, max_errors=-1)


async def fill(shell: Shell) -> None:
    """Makes the table and the rows of its configuration; a process less than `asyncexp fill`."""
    async with shell.experimenter() as experimenter:
        await experimenter.fill_table_from_config()


KEYFIELDS = {"number": {"type": "INT", "values": [0]}, "kind": {"type": "VARCHAR(255)", "values": ["a"]}}


@asynccontextmanager
async def running(experimenter: Experimenter, count: int) -> AsyncIterator[None]:
    """So many experiments run meanwhile; they end as done afterwards."""
    all_began = asyncio.Event()
    began: list[int] = []
    go_on = asyncio.Event()

    async def run(keyfields: Keys, results: ResultProcessor, _: Keys) -> None:
        await results.heartbeat(0.25, ODD)
        await results.process_logs({"steps": {"step": 0, "note": f"of {keyfields['number']}"}})
        await results.flush()
        began.append(keyfields["number"])
        if len(began) == count:
            all_began.set()
        await go_on.wait()
        await results.process_logs({"steps": {"step": 1, "note": "the last"}})

    call = asyncio.create_task(
        experimenter.execute(run, max_experiments=count, n_jobs=count, pool="task", progress=False)
    )
    try:
        await asyncio.wait_for(all_began.wait(), 60)
        yield
    finally:
        go_on.set()
        await call

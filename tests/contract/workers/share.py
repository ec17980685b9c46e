"""One of several workers on the same rows: notes each call in a file, waits a little, reports a result."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from typing import Any, Literal

from asyncexp import ResultProcessor, SyncResultProcessor
from tests.contract.workers.common import ARGUMENTS, note, say, study, wait_for_word

FILE, KIND = ARGUMENTS


async def as_task(keys: dict[str, Any], results: ResultProcessor, _: dict[str, Any]) -> None:
    note(FILE, f"{results.experiment_id} {os.getpid()}")
    await asyncio.sleep(0.002)
    await results.process_logs({"steps": {"step": keys["number"], "note": str(os.getpid())}})
    await results.process_results({"result": keys["number"] * 2, "text": str(os.getpid())})


def plainly(keys: dict[str, Any], results: SyncResultProcessor, _: dict[str, Any]) -> None:
    note(FILE, f"{results.experiment_id} {os.getpid()}")
    results.process_logs({"steps": {"step": keys["number"], "note": str(os.getpid())}})
    results.process_results({"result": keys["number"] * 2, "text": str(os.getpid())})


async def main() -> None:
    async with study() as experimenter:
        await experimenter.counts()
        say("ready")
        wait_for_word()
        function = as_task if KIND == "task" else plainly
        pool: Literal["task", "process"] = "process" if KIND == "process" else "task"
        summary = await experimenter.execute(function, pool=pool, random_order=KIND == "random", progress=False)
    say(asdict(summary))


if __name__ == "__main__":
    asyncio.run(main())

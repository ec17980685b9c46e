"""A worker whose experiments wait for the test, and that tells what becomes of them and what it logs.

Its further arguments: the kind of function (a key of `FUNCTIONS`), the file that opens their gate, and for each call
of `execute`, all made at once, its keywords as JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asyncexp import ResultProcessor, SyncResultProcessor
from asyncexp.errors import ExperimentLostError
from tests.contract.shared import Gate
from tests.contract.workers.common import ARGUMENTS, say, study

Keys = dict[str, Any]
GATE = Gate(Path(ARGUMENTS[1]))
LATE = -1


def began(results: ResultProcessor | SyncResultProcessor) -> None:
    say(["began", int(results.experiment_id), os.getpid()])


async def task_holds(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    """Reports that it began, and a result when it is let go."""
    await results.process_logs({"steps": {"step": results.attempt}})
    await results.process_results({"text": f"attempt {results.attempt}"})
    began(results)
    try:
        await GATE.passed()
    except asyncio.CancelledError:
        say(["cancelled", int(results.experiment_id)])
        raise
    await results.process_results({"result": keys["number"]})


def holds(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
    """As `task_holds`; it does not see that it is cancelled."""
    results.process_logs({"steps": {"step": results.attempt}})
    results.process_results({"text": f"attempt {results.attempt}"})
    began(results)
    GATE.wait()
    results.process_results({"result": keys["number"]})


async def task_is_late(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    """Reports although it was told, or before it is, and waits for its cancellation."""
    began(results)
    try:
        await GATE.passed()
        try:
            await results.process_logs({"steps": {"step": LATE}})
            await results.process_results({"result": LATE})
        except ExperimentLostError:
            say(["refused", int(results.experiment_id)])
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        say(["cancelled", int(results.experiment_id)])
        raise


def thread_is_late(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
    began(results)
    GATE.wait()
    try:
        results.process_logs({"steps": {"step": LATE}})
        results.process_results({"result": LATE})
    except ExperimentLostError:
        say(["refused", int(results.experiment_id)])
        raise


def child_is_late(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
    """Nothing but a signal ends it."""
    began(results)
    GATE.wait()
    while True:
        with suppress(Exception):
            results.process_logs({"steps": {"step": LATE}})
            results.process_results({"result": LATE})
        time.sleep(0.01)


async def task_blocks(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    """The first one blocks the event loop until it is let go."""
    began(results)
    if keys["number"] == 0:
        GATE.wait()
    await results.process_results({"result": keys["number"]})


async def task_blocks_when_told(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    """Several begin, and then the first one blocks."""
    began(results)
    if keys["number"] == 0:
        await Gate(GATE.path.with_suffix(".block")).passed()
        GATE.wait()
    await GATE.passed()
    await results.process_results({"result": keys["number"]})


FUNCTIONS: dict[str, Any] = {
    function.__name__: function
    for function in (task_holds, holds, task_is_late, thread_is_late, child_is_late, task_blocks, task_blocks_when_told)
}


class Teller(logging.Handler):
    """Tells the test what the worker logs."""

    def emit(self, record: logging.LogRecord) -> None:
        say(["log", record.levelname, record.getMessage()])


async def main() -> None:
    logger = logging.getLogger("asyncexp-tests")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(Teller())
    function, calls = FUNCTIONS[ARGUMENTS[0]], ARGUMENTS[2:]
    async with study() as experimenter:
        await experimenter.counts()
        summaries = await asyncio.gather(*(experimenter.execute(function, **json.loads(each)) for each in calls))
    for summary in summaries:
        say(asdict(summary))


if __name__ == "__main__":
    asyncio.run(main())

"""A worker that says which experiments begin and how its `execute` ended.

Its further arguments: the kind of function (a key of `FUNCTIONS`), and keywords of `execute` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import asdict
from typing import Any

from asyncexp import ExperimentStatus, ResultProcessor, SyncResultProcessor
from tests.contract.shared import until
from tests.contract.workers.common import ARGUMENTS, say, study

Keys = dict[str, Any]


async def task_hangs(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    say(["began", int(results.experiment_id)])
    await asyncio.Event().wait()


def thread_hangs(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
    say(["began", int(results.experiment_id)])
    threading.Event().wait()


async def task_listens(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    say(["began", int(results.experiment_id)])
    await until(lambda: results.should_stop)
    await results.process_results({"result": keys["number"]})


def thread_listens(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
    say(["began", int(results.experiment_id)])
    while not results.should_stop:
        time.sleep(0.01)
    results.process_results({"result": keys["number"]})


async def task_saves(keys: Keys, results: ResultProcessor, _: Keys) -> ExperimentStatus:
    await task_listens(keys, results, {})
    return ExperimentStatus.PAUSED if keys["number"] % 2 else ExperimentStatus.CREATED


FUNCTIONS = {
    function.__name__: function for function in (task_hangs, thread_hangs, task_listens, thread_listens, task_saves)
}


async def main() -> None:
    function, keywords = ARGUMENTS
    async with study() as experimenter:
        summary = await experimenter.execute(FUNCTIONS[function], **json.loads(keywords))
    say(asdict(summary))


if __name__ == "__main__":
    asyncio.run(main())

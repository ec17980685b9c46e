"""Attaches to an experiment and says what it came to: the return value, or the error's class and message.

Its further arguments: the experiment's id as pickled hex digits, the kind of function (`def` or `async`), a note.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket

from asyncexp import ResultProcessor, SyncResultProcessor
from asyncexp.errors import ExperimentLostError
from tests.contract.workers.common import ARGUMENTS, say, study


def plain(results: SyncResultProcessor) -> list[int]:
    results.process_logs({"steps": [{"step": step, "note": ARGUMENTS[2]} for step in range(3)]})
    results.process_results({"text": f"{ARGUMENTS[2]} on {socket.gethostname()}"})
    results.heartbeat(0.5, "half-way")
    return [int(results.experiment_id), results.attempt, os.getpid()]


async def coroutine(results: ResultProcessor) -> list[int]:
    await results.process_logs({"steps": [{"step": step, "note": ARGUMENTS[2]} for step in range(3)]})
    await results.process_results({"text": f"{ARGUMENTS[2]} on {socket.gethostname()}"})
    await results.heartbeat(0.5, "half-way")
    return [int(results.experiment_id), results.attempt, os.getpid()]


async def main() -> None:
    experiment_id = pickle.loads(bytes.fromhex(ARGUMENTS[0]))  # noqa: S301  (from the test)
    experimenter = study()
    try:
        if ARGUMENTS[1] == "def":
            say(await experimenter.attach(plain, experiment_id))
        else:
            say(await experimenter.attach(coroutine, experiment_id))
    except ExperimentLostError as lost:
        say([type(lost).__name__, str(lost)])


if __name__ == "__main__":
    asyncio.run(main())

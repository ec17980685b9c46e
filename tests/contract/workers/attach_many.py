"""Forks children that all attach to one experiment, and log and flush at the same moment, when told to.

Its further arguments: the experiment's id as pickled hex digits, how many children, and how many calls each makes.
Says "attached" when all of them are, and at the end their exit codes.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import traceback

from asyncexp import Experimenter, ResultProcessor, SyncResultProcessor
from asyncexp.experiment import ExperimentId
from tests.contract.workers.common import ARGUMENTS, say, study, wait_for_word

COUNT, CALLS = map(int, ARGUMENTS[1:])
LINES = 10
"""In each call."""
FLUSH_EVERY = 4


def lines(call: int, child: int) -> dict[str, list[dict[str, object]]]:
    return {"steps": [{"step": LINES * call + line, "note": str(child)} for line in range(LINES)]}


def in_child(experimenter: Experimenter, experiment_id: ExperimentId, child: int, ready: int, go: int) -> int:
    def plain(results: SyncResultProcessor) -> int:
        os.write(ready, b".")
        os.read(go, 1)
        for call in range(CALLS):
            results.process_logs(lines(call, child))
            if call % FLUSH_EVERY == 0:
                results.flush()
        return child

    async def coroutine(results: ResultProcessor) -> int:
        os.write(ready, b".")
        await asyncio.to_thread(os.read, go, 1)
        for call in range(CALLS):
            await results.process_logs(lines(call, child))
            if call % FLUSH_EVERY == 0:
                await results.flush()
        return child

    if child % 2:
        return asyncio.run(experimenter.attach(plain, experiment_id))
    return asyncio.run(experimenter.attach(coroutine, experiment_id))


async def look(experimenter: Experimenter) -> None:
    """Has the driver imported, once for all children."""
    async with experimenter:
        await experimenter.counts()


def main() -> None:
    experiment_id = pickle.loads(bytes.fromhex(ARGUMENTS[0]))  # noqa: S301  (from the test)
    experimenter = study()
    asyncio.run(look(experimenter))
    ready, say_ready = os.pipe()
    go, say_go = os.pipe()
    children = []
    for child in range(COUNT):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                os.close(say_go)
                code = 0 if in_child(experimenter, experiment_id, child, say_ready, go) == child else 2
            except BaseException:  # noqa: BLE001  (a forked child must not run what follows)
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    os.close(say_ready)
    attached = 0
    while attached < COUNT and (more := os.read(ready, COUNT)):
        attached += len(more)
    say("attached" if attached == COUNT else f"{attached} attached")
    wait_for_word()
    os.close(say_go)
    say([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children])


if __name__ == "__main__":
    main()

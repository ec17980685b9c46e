"""Forks many processes that share the rows of one SQLite file, all at once.

Its further arguments: the file that notes what was executed, the gate that experiments wait for, and how many
processes. Says their exit codes.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from pathlib import Path

from tests.contract.shared import Gate, Seen
from tests.contract.workers.common import ARGUMENTS, say, study
from tests.contract.workers.fault import Task

RAN, GO_ON, COUNT = Seen(Path(ARGUMENTS[0])), Gate(Path(ARGUMENTS[1])), int(ARGUMENTS[2])


async def share(ready: int, go: int) -> None:
    async with study() as experimenter:
        await experimenter.counts()
        os.write(ready, b".")
        await asyncio.to_thread(os.read, go, 1)
        await experimenter.execute(Task(RAN, GO_ON), n_jobs=1, progress=False)


def in_child(ready: int, go: int) -> int:
    try:
        asyncio.run(share(ready, go))
    except BaseException:  # noqa: BLE001  (a forked child must not run what follows)
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    ready, say_ready = os.pipe()
    go, say_go = os.pipe()
    asyncio.run(look())  # has the driver imported, once for all
    pids = []
    for _ in range(COUNT):
        pid = os.fork()
        if not pid:
            os.close(say_go)
            os._exit(in_child(say_ready, go))
        pids.append(pid)
    os.close(say_ready)
    begun = 0
    while begun < COUNT and (more := os.read(ready, COUNT)):
        begun += len(more)
    os.close(say_go)
    say([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])


async def look() -> None:
    async with study() as experimenter:
        await experimenter.counts()


if __name__ == "__main__":
    main()

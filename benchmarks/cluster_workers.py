"""Many workers of a cluster in one process: each an `Experimenter` of its own, all on one event loop.

To the database they are what a machine with as many processes is: each has its connections, its service thread, its
row among the workers and its lease. The process takes a host's name of its own, so that workers of other processes
are not asked after by their process ids, as they are not on other machines.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from asyncexp import Experimenter, ResultProcessor, Summary
from benchmarks import study
from benchmarks.asleep import Beds
from benchmarks.processes import heard, say

LOG = "workers.log"
Told = dict[str, Any]


class Bunch:
    """The workers of this process, and what they were told to do."""

    def __init__(self, folder: Path, count: int, interval_seconds: float) -> None:
        self._made = [study.joined(folder) for _ in range(count)]
        self._keywords: dict[str, Any] = {
            "heartbeat_interval": interval_seconds,
            "lease": 4 * interval_seconds,
            "progress": False,
            "handle_signals": False,
        }
        self._beds = Beds(0)
        self._running: list[asyncio.Future[Summary]] = []

    async def claim(self, workers: int, rows: int) -> Told:
        """So many of them take so many rows each; returns when all those experiments sleep."""
        beds = self._beds = Beds(workers * rows)
        for made in self._made[:workers]:
            self._run(made, beds, n_jobs=rows, max_experiments=rows)
        asleep: asyncio.Future[Any] = asyncio.ensure_future(beds.all_asleep.wait())
        waited: list[asyncio.Future[Any]] = [asleep, *self._running]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not asleep.done():
            ended = [run.result() for run in self._running if run.done()]
            raise RuntimeError(f"{len(ended)} workers ended before all had a row: {ended[:3]}")
        return {"at": time.time()}

    def queue(self, skip: int) -> Told:
        """All but the first so many ask for rows until there are none and none runs anywhere."""
        for made in self._made[skip:]:
            self._run(made, Beds(0), n_jobs=1, until="finished")
        return {}

    async def wake(self) -> Told:
        """Lets the experiments end; returns when all calls have."""
        self._beds.wake()
        running, self._running = self._running, []
        return {"done": sum([(await run).done for run in running])}

    async def close(self) -> Told:
        await asyncio.gather(*(made.aclose() for made in self._made))
        return self.weight()

    def weight(self) -> Told:
        """What this process holds now."""
        me = psutil.Process()
        memory = me.memory_info().rss
        others = sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())  # of this event loop
        return {"threads": me.num_threads() - others, "files": me.num_fds(), "memory_mb": memory / 1e6}

    def _run(self, made: Experimenter, beds: Beds, **keywords: Any) -> None:
        async def experiment(keyfields: study.Keys, results: ResultProcessor, _: study.Keys) -> None:
            await beds.sleep()
            await results.process_results({"result": float(keyfields["number"])})

        self._running.append(asyncio.ensure_future(made.execute(experiment, **self._keywords, **keywords)))

    async def obey(self, do: str, **told: Any) -> Told:
        if do == "claim":
            return await self.claim(**told)
        if do == "queue":
            return self.queue(**told)
        if do == "weigh":
            return self.weight()
        return await {"wake": self.wake, "close": self.close}[do]()


def _quiet(folder: Path) -> None:
    """What a thousand workers have to say goes into one file, and not on the screen."""
    handler = logging.FileHandler(folder / LOG)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger("asyncexp-benchmarks").addHandler(handler)


async def _serve(folder: Path, number: int, count: int, interval_seconds: float) -> None:
    if number:
        socket.gethostname = lambda: f"machine-{number}"
    _quiet(folder)
    bunch = Bunch(folder, count, interval_seconds)
    inbox: asyncio.Queue[Told | None] = asyncio.Queue()
    obeying = threading.Lock()
    threading.Thread(target=_listen, args=(inbox, asyncio.get_running_loop(), obeying), daemon=True).start()
    say(pid=os.getpid(), **bunch.weight())
    while (message := await inbox.get()) is not None:
        with obeying:
            told = await bunch.obey(**message)
        say(**told)


def _listen(inbox: asyncio.Queue[Told | None], loop: asyncio.AbstractEventLoop, obeying: threading.Lock) -> None:
    """Hands over what the parent says, and ends this process if it is gone while an answer is due."""
    for message in heard():
        loop.call_soon_threadsafe(inbox.put_nowait, message)
    if obeying.locked():
        os._exit(1)
    loop.call_soon_threadsafe(inbox.put_nowait, None)


def main() -> None:
    folder, number, count, interval_seconds = sys.argv[1:]
    asyncio.run(_serve(Path(folder), int(number), int(count), float(interval_seconds)))


if __name__ == "__main__":
    main()

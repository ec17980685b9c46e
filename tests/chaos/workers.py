"""The worker processes of a storm: started, struck, replaced, and accounted for."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Self, TypeVar

import psutil

from tests.chaos.worker import Role
from tests.contract.support import PROJECT

T = TypeVar("T")
LOOK_SECONDS = 0.1
ENDS_BY = {signal.SIGKILL, signal.SIGTERM}
UNSEEMLY = ("Traceback", "Exception ignored", "never retrieved")
FROM_ASYNCPG = "Future exception was never retrieved\nfuture: <Future finished exception=ConnectionDoesNotExistError"
"""asyncpg leaves it behind when the session is ended between two parts of a COPY, whose caller gets another error."""
TOLD_CHARACTERS = 6_000
"""Of what a worker that does not end has said."""
LONGEST_PAUSE_SECONDS = 0.8
"""Before a worker that ended is replaced."""


@dataclass(frozen=True, slots=True)
class Post:
    """A place to be filled by one worker after another."""

    role: Role
    configuration: Path
    credentials: Path | None


@dataclass(eq=False, slots=True)
class Life:
    """One worker process, from its start to its end."""

    role: Role
    process: asyncio.subprocess.Process
    log: Path
    began: float
    """Seconds since the epoch: the database's clock is the same one."""
    doomed: float | None = None
    """When the first signal that ends it was sent."""
    signals: set[signal.Signals] = field(default_factory=set)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def lives(self) -> bool:
        return self.process.returncode is None

    def strike(self, which: signal.Signals) -> bool:
        """Sends a signal; whether there was anybody to get it."""
        if not self.lives:
            return False
        self.signals.add(which)
        if which in ENDS_BY and self.doomed is None:
            self.doomed = time.time()
        with suppress(ProcessLookupError):
            # The method of `process` would ask first whether it has died, and swallow what the event loop waits for.
            os.kill(self.pid, which)
            return True
        return False

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def where(self) -> str:
        """What a worker that does not end is at: its state, and the last it said, which is where its threads are."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            below = [(child.pid, child.status(), child.cmdline()[:4]) for child in self.descendants()]
            said = self.log.read_text(errors="replace")[-TOLD_CHARACTERS:]
            return f"{self.log.name} ({process.status()}, {process.cpu_times()}, {below}): {said}"
        return f"{self.log.name} (gone)"

    def complaint(self) -> str | None:
        """What is wrong with how it ended, if anything is."""
        said = self.log.read_text(errors="replace").replace(FROM_ASYNCPG, "")
        if self.process.returncode not in {0, *(-which for which in self.signals & ENDS_BY)}:
            return f"worker {self.log.name} ended with {self.process.returncode}: {said.strip().splitlines()[-1:]}"
        for line in said.splitlines():
            if any(words in line for words in UNSEEMLY):
                return f"worker {self.log.name} left an error behind: {line}"
        return None


async def soon_empty(look: Callable[[], list[T]], seconds: float) -> list[T]:
    """What there is to see, once that is nothing, or when so long has passed."""
    for _ in range(int(seconds / LOOK_SECONDS)):
        if not (left := look()):
            return left
        await asyncio.sleep(LOOK_SECONDS)
    return look()


class Workers:
    """One process a post. While the storm goes on, whoever ends is replaced after a moment.

    Args:
        mark: in the environment of every process that descends from these.
    """

    def __init__(self, folder: Path, posts: Sequence[Post], mark: str, seed: str) -> None:
        self.lives: list[Life] = []
        self._folder = folder
        self._posts = posts
        self._mark = mark
        self._random = Random(f"{seed}/workers")
        self._storming = True
        self._started = 0
        self._working: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._working = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._working.cancel()
        await asyncio.wait([self._working])
        for life in self.living:
            life.strike(signal.SIGKILL)
        await asyncio.gather(*(life.process.wait() for life in self.lives))

    @property
    def living(self) -> list[Life]:
        return [life for life in self.lives if life.lives]

    def must_work(self) -> None:
        """Raises what kept the workers from being started."""
        if self._working.done():
            self._working.result()

    async def finish(self, limit_seconds: float) -> bool:
        """The storm is over: whoever was struck is replaced once more; whether all ended by themselves in time."""
        self._storming = False
        await asyncio.wait([self._working], timeout=limit_seconds)
        self.must_work()
        return self._working.done()

    async def run_once(self, post: Post, limit_seconds: float) -> None:
        """One more worker, until it ends or has had its time."""
        life = await self._start(post)
        with suppress(TimeoutError):
            await asyncio.wait_for(life.process.wait(), limit_seconds)

    async def left(self, patience_seconds: float) -> list[str]:
        """Processes that are still there, a while after all workers ended."""
        return await soon_empty(lambda: list(self._descended()), patience_seconds)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            for post in self._posts:
                group.create_task(self._fill(post))

    async def _fill(self, post: Post) -> None:
        while True:
            life = await self._start(post)
            await life.process.wait()
            if not self._storming and life.doomed is None:
                return
            await asyncio.sleep(self._random.uniform(0, LONGEST_PAUSE_SECONDS))

    async def _start(self, post: Post) -> Life:
        log = self._folder / "logs" / f"{self._started:04}-{post.role.machine or 'here'}-{post.role.function}"
        self._started += 1
        began = time.time()
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-W", "error", "-m", "tests.chaos.worker"),
                *(str(post.configuration), str(post.credentials or ""), post.role.packed()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=PROJECT,
                env=os.environ | {"TMPDIR": str(self._folder / "tmp"), "CHAOS": self._mark},
            )
        self.lives.append(Life(post.role, process, log, began))
        return self.lives[-1]

    def _descended(self) -> Iterator[str]:
        """By their environment: whoever lost his parent is no child of anybody here any more."""
        mark = f"CHAOS={self._mark}".encode()
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                    yield f"{process.pid} ({' '.join(process.cmdline())[:200]})"

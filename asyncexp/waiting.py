"""Waiting in one thread for what another does, so that an interruption there breaks nothing and is not lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Begin = Callable[[], Coroutine[Any, Any, T]]

LOOK_SECONDS = 0.5


class Once:
    """What one thread waits for and another sets, once.

    Not `threading.Event`, nor a future: Ctrl-C in their `wait` can leave a lock taken, and who sets waits for ever.
    """

    def __init__(self) -> None:
        self._unset = threading.Lock()
        self._unset.acquire()

    def set(self) -> None:
        self._unset.release()

    def wait(self) -> None:
        """Returns when it is set; once. Looks for signals meanwhile: one just before a wait does not interrupt that."""
        while not self.wait_at_most(LOOK_SECONDS):
            continue

    def wait_at_most(self, seconds: float) -> bool:
        """Whether it was set within that time; to be asked again only after a no."""
        return self._unset.acquire(timeout=seconds)


class Call(Generic[T]):
    """A coroutine on the event loop of another thread, and how it ended.

    All of its asyncio is made, and dropped, on the loop: where an interruption comes into a finaliser, it is lost.

    Args:
        begin: makes the coroutine.
        over: called on the loop when it has ended.
    """

    value: T
    failure: BaseException | None = None
    """What it raised, SystemExit and the like included, which a task would not keep to itself."""
    cancelled = False
    """Whether its task was cancelled; with the loop's end, for example."""

    def __init__(self, begin: Begin[T], over: Callable[[], object]) -> None:
        self._coroutine = begin
        self._over = over
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """To be called on the loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        """To be called on the loop: ends it, as far as it has come."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            self.value = await self._coroutine()
        except BaseException as failure:  # noqa: BLE001
            self.cancelled = isinstance(failure, asyncio.CancelledError) and _being_cancelled()
            self.failure = failure

    def _end(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():  # before it began
            self.cancelled = True
        self._over()

    def result(self) -> T:
        """What it returned, or raised; once, and only after its end."""
        failure, self.failure = self.failure, None
        if failure is None:
            return self.value
        try:
            raise failure
        finally:
            del failure  # its traceback refers to this frame


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

"""Running `def` functions in the thread that waits for the run, as a script would call them itself."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from enum import Enum, auto

from asyncexp.pools.base import Cancelled, Done, Handle, Job, Result
from asyncexp.pools.task import called
from asyncexp.signals import interrupt_again, interrupt_main

INSIST_SECONDS = 0.5
LOOK_SECONDS = 0.5
"""So often a waiting thread looks for signals: one that comes just before a wait begins does not interrupt it."""


class CallerPool:
    """The thread that calls `serve` runs the functions; the run itself is on the event loop of another.

    Args:
        interruptible: `serve` is called in the main thread, whose signals are ours: a function can be ended.
    """

    ahead = 0

    def __init__(self, *, interruptible: bool) -> None:
        self._interruptible = interruptible
        self._calls: queue.SimpleQueue[CallerHandle | None] = queue.SimpleQueue()

    def start(self, job: Job, begun: Callable[[], None], done: Done) -> Handle:
        handle = CallerHandle(job, done, interruptible=self._interruptible)
        self._calls.put(handle)
        begun()
        return handle

    async def close(self) -> None:
        return

    def abandon(self) -> None:
        self.end()

    def serve(self) -> None:
        """Runs what comes, in this thread, until `end`.

        Raises:
            KeyboardInterrupt: it came here or into a function, and not from us; that experiment has not ended yet.
        """
        while (handle := self._next()) is not None:
            handle.run()
            del handle

    def _next(self) -> CallerHandle | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._calls.get(timeout=LOOK_SECONDS)

    def end(self) -> None:
        """No more calls come: `serve` returns when the function under way, if any, has; from any thread."""
        self._calls.put(None)


class _Stage(Enum):
    WAITING = auto()
    INSIDE = auto()
    BROKEN = auto()
    """An interruption that was not ours ended it: what becomes of the row is the run's to say."""
    ENDED = auto()


class CallerHandle:
    """One call: made and cancelled on the event loop, run in the thread that serves."""

    def __init__(self, job: Job, done: Done, *, interruptible: bool) -> None:
        self.killable = True
        self._job = job
        self._done = done
        self._interruptible = interruptible
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._stage = _Stage.WAITING
        self._asked = False
        self._over = False

    @property
    def inside(self) -> bool:
        """Whether the function is under way."""
        return self._stage is _Stage.INSIDE

    # ------------------------------------------------------------------------------ on the event loop

    def cancel(self) -> None:
        with self._lock:
            self._asked = True
            if self.inside and self._interruptible:
                # Sent under the lock: once the function is left, no interruption of ours comes.
                interrupt_main(self)
                self._loop.call_later(INSIST_SECONDS, self._insist)
            if self._stage in (_Stage.INSIDE, _Stage.ENDED):
                return
            self._stage = _Stage.ENDED
        self._loop.call_soon(self._tell, Cancelled())

    def _insist(self) -> None:
        with self._lock:
            if self.inside and interrupt_again(self):
                self._loop.call_later(INSIST_SECONDS, self._insist)

    def withdraw(self) -> None:
        return

    def hurry(self) -> None:
        return

    def abandon(self) -> None:
        self._over = True

    def _tell(self, result: Result) -> None:
        if not self._over:
            self._over = True  # an interruption may come just after its end was told
            self._done(result)

    # --------------------------------------------------------------------------- in the calling thread

    def run(self) -> None:
        """Calls the function, unless the call was cancelled before it began."""
        try:
            if self._enter():
                self._tell_loop(self._result())
        except KeyboardInterrupt:
            self._leave(_Stage.BROKEN)
            raise

    def _result(self) -> Result:
        try:
            result = called(self._job, self._loop, through=(KeyboardInterrupt,))
            self._leave(_Stage.ENDED)
            return result
        except KeyboardInterrupt:
            if not self._asked:
                raise
            self._leave(_Stage.ENDED)
            return Cancelled()

    def _tell_loop(self, result: Result) -> None:
        # The loop is gone if the function outlived its worker; then nobody waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell, result)

    def _enter(self) -> bool:
        with self._lock:
            if self._stage is not _Stage.WAITING:
                return False
            self.killable = self._interruptible
            self._stage = _Stage.INSIDE
            return True

    def _leave(self, stage: _Stage) -> None:
        with self._lock:
            self.killable = True
            self._stage = stage

"""An event loop on a thread of its own, for callers that wait."""

from __future__ import annotations

import asyncio
import atexit
import functools
import multiprocessing.process
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar

from asyncexp.db.whole import immortal
from asyncexp.errors import DatabaseConnectionError
from asyncexp.waiting import Begin, Call, Once

P = ParamSpec("P")
T = TypeVar("T")

JOIN_LIMIT_SECONDS = 10.0
EXIT_LIMIT_SECONDS = 60.0
"""So long the interpreter's exit waits for rows to be given back and for connections to be closed."""


class Background:
    """The event loop of one owner: started by the first call, and again by one after `close`, or in a forked child.

    Any thread may call it. Whoever forgets to close it calls `end`; at the interpreter's exit that is done.

    Args:
        last: awaited on the loop before it ends.
    """

    def __init__(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._last = last
        self._loop: _Loop | None = None

    def wait(self, begin: Begin[T]) -> T:
        """What the coroutine returns; as `run`."""
        over = Once()
        return self.run(begin, over.wait, over.set)

    def run(self, begin: Begin[T], meanwhile: Callable[[], object], over: Callable[[], object]) -> T:
        """Runs a coroutine on the loop; what it returns.

        Args:
            begin: makes it, on the loop: an interruption on the way there leaves none that nobody awaits.
            meanwhile: called in this thread, until `over` was called. An exception in it (Ctrl-C) cancels the
                coroutine, and is raised when that has ended.

        Raises:
            RuntimeError: this is the loop's own thread, which would wait for itself.
            DatabaseConnectionError: it was closed meanwhile.
        """
        work = _Work(begin, over)
        try:
            with _lock:
                work.post(self._running())
            meanwhile()
        except BaseException:
            work.abort()
            raise
        try:
            if work.closed:
                raise DatabaseConnectionError("The experimenter was closed while a call was under way.")
            return work.call.result()
        finally:
            del work  # its exception would refer to this frame, and this frame to it

    def _running(self) -> _Loop:
        if self._loop is None or self._loop not in _running:
            self._loop = _Loop(self._last)
        if threading.current_thread() is self._loop.thread:
            raise RuntimeError(
                "This call would wait for itself: an `async def` function and a progress function run on the event "
                "loop of their PyExperimenter. Make the call in another thread, or with an `Experimenter` of its own."
            )
        return self._loop

    def close(self) -> None:
        """Ends the loop; calls under way elsewhere are told. Twice is no error."""
        if self._loop is None or self._loop not in _running:
            return
        self._loop.closing = True
        self.wait(self._last)
        with _lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.end()
            loop.thread.join(JOIN_LIMIT_SECONDS)

    def end(self) -> None:
        """Has the loop end by itself, and does not wait for it: garbage is collected in any thread, at any moment."""
        if self._loop in _running:
            self._loop.end()


class _Work(Generic[T]):
    """A call on the loop, which may be given up from the thread that waits for it."""

    def __init__(self, begin: Begin[T], over: Callable[[], object]) -> None:
        self.call = Call(begin, self._end)
        self._over = over
        self._gone = Once()
        self._loop: _Loop | None = None
        self._begun = False

    @property
    def closed(self) -> bool:
        """Whether it was closed under it, rather than ended."""
        if self.call.cancelled:
            return True
        return self._loop is not None and self._loop.closing and isinstance(self.call.failure, DatabaseConnectionError)

    def post(self, loop: _Loop) -> None:
        self._loop = loop
        loop.loop.call_soon_threadsafe(self._begin)

    def abort(self) -> None:
        """Cancels it, as far as it has come; returns when it has ended."""
        if self._loop is None:
            return
        self._loop.loop.call_soon_threadsafe(self._abort)
        self._gone.wait()

    def _begin(self) -> None:
        self._begun = True
        self.call.begin()

    def _abort(self) -> None:
        if self._begun:
            self.call.cancel()
        else:  # it was interrupted before it was handed over
            self._end()

    def _end(self) -> None:
        self._gone.set()
        self._over()


class _Loop:
    """One life of the thread and its loop."""

    def __init__(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="asyncexp loop", daemon=True)
        self.closing = False
        self._last = last
        self._ending = asyncio.Event()
        _see_to_the_exit()
        _running.add(self)
        try:
            self.thread.start()
        except BaseException:
            _running.discard(self)
            self.loop.close()
            raise

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self._live())
        finally:
            _running.discard(self)

    async def _live(self) -> None:
        await self._ending.wait()
        await self._last()

    def end(self) -> None:
        try:
            self.loop.call_soon_threadsafe(self._ending.set)
        except RuntimeError:  # it has just ended
            return


_running: set[_Loop] = set()
"""The loops of this process."""
_lock = threading.Lock()
"""Held while a loop is started, and while a call is handed to it: none is handed to a loop that ends."""


@functools.cache
def _see_to_the_exit() -> None:
    """Before other finalisers, which would take away connections under the loops."""
    atexit.register(_end_all)
    if multiprocessing.process.parent_process() is not None:  # such a process ends without `atexit`
        from multiprocessing.util import Finalize

        Finalize(None, _end_all, exitpriority=100)


def _end_all() -> None:
    until = time.monotonic() + EXIT_LIMIT_SECONDS
    loops = list(_running)
    for loop in loops:
        loop.end()
    for loop in loops:
        loop.thread.join(max(0.0, until - time.monotonic()))


def _leave_to_parent() -> None:
    """A forked child has the loops, not their threads; they are never closed, for that would reach the parent's."""
    global _lock
    _lock = threading.Lock()
    immortal(*(loop.loop for loop in _running))
    _running.clear()
    _see_to_the_exit.cache_clear()


os.register_at_fork(after_in_child=_leave_to_parent)


class DaemonThreads(ThreadPoolExecutor):
    """Resolves names and finds out facts also while the interpreter ends, when its own executors take no more work."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        threading.Thread(target=_answer, args=(future, lambda: fn(*args, **kwargs)), daemon=True).start()
        return future


def _answer(future: Future[T], job: Callable[[], T]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(job())
        except BaseException as failure:  # noqa: BLE001  (raised to who waits for it)
            future.set_exception(failure)

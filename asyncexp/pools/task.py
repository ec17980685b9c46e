"""Running functions in this process: `async def` as tasks on the loop, `def` in threads."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable
from functools import partial

from asyncexp.pools.base import Cancelled, Done, Handle, Job, Result, own, raised, returned
from asyncexp.results import ResultProcessor, from_thread


class TaskPool:
    """One task a call: a task of its own keeps cancellation and context variables of one call from the next."""

    ahead = 0

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def start(self, job: Job, begun: Callable[[], None], done: Done) -> Handle:
        begun()
        handle = TaskHandle(done)
        handle.task = self._loop.create_task(handle.run(job))
        return handle

    async def close(self) -> None:
        return

    def abandon(self) -> None:
        return


class TaskHandle:
    """One task; it reports its own end, which is cheaper than a callback for each."""

    killable = True
    task: asyncio.Task[None]

    def __init__(self, done: Done) -> None:
        self._done = done
        self._begun = False

    async def run(self, job: Job) -> None:
        self._begun = True
        result = await _guarded(job)
        if isinstance(result, Cancelled):
            # A loop that shuts down cancels every task in one turn; the run must learn of it before this end.
            asyncio.get_running_loop().call_soon(self._done, result)
        else:
            self._done(result)

    def cancel(self) -> None:
        self.task.cancel()
        if not self._begun:  # it will never run, and so never report
            self._begun = True
            self.task.add_done_callback(lambda _: self._done(Cancelled()))

    def withdraw(self) -> None:
        return

    def hurry(self) -> None:
        return

    def abandon(self) -> None:
        _left_alone.add(self.task)
        self.task.add_done_callback(_left_alone.discard)


_left_alone: set[asyncio.Task[None]] = set()
"""Tasks that swallowed their cancellation; held so that they are not collected half-way."""


async def _guarded(job: Job) -> Result:
    # SystemExit and KeyboardInterrupt would leave the event loop itself if a task let them out.
    processor = ResultProcessor(job.experiment_id, job.report)
    try:
        value = await job.function(dict(job.keyfields), processor, own(job.custom))
        return returned(value, forgotten=processor.unawaited > 0)
    except asyncio.CancelledError:
        return Cancelled()
    except BaseException as failure:  # noqa: BLE001
        return raised(failure)


class ThreadPool:
    """One thread a call at a time, reused.

    The threads are daemons: one that never comes back does not keep the interpreter from ending.
    """

    ahead = 0

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: list[_Thread] = []
        self._made = 0

    def start(self, job: Job, begun: Callable[[], None], done: Done) -> Handle:
        begun()
        thread = self._idle.pop() if self._idle else self._new()
        handle = ThreadHandle()

        def back(result: Result) -> None:
            if handle.abandoned:
                thread.end()
            else:
                self._idle.append(thread)
            done(result)

        thread.run(partial(called, job, self._loop), back)
        return handle

    def _new(self) -> _Thread:
        self._made += 1
        return _Thread(self._loop, f"asyncexp-{self._made}")

    async def close(self) -> None:
        for thread in self._idle:
            thread.end()
        while self._idle:
            self._idle.pop().join()

    def abandon(self) -> None:
        for thread in self._idle:
            thread.end()


class ThreadHandle:
    killable = False

    def __init__(self) -> None:
        self.abandoned = False

    def cancel(self) -> None:
        return

    def withdraw(self) -> None:
        return

    def hurry(self) -> None:
        return

    def abandon(self) -> None:
        self.abandoned = True


class _Thread:
    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._calls: queue.SimpleQueue[tuple[Callable[[], Result], Done] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], Result], back: Done) -> None:
        self._calls.put((call, back))

    def end(self) -> None:
        self._calls.put(None)

    def join(self) -> None:
        self._thread.join()

    def _work(self) -> None:
        while (given := self._calls.get()) is not None:
            call, back = given
            result = call()
            try:
                self._loop.call_soon_threadsafe(back, result)
            except RuntimeError:  # the loop is gone: nobody waits, and no more calls come
                return
            del given, call, back, result


def called(job: Job, loop: asyncio.AbstractEventLoop, *, through: tuple[type[BaseException], ...] = ()) -> Result:
    """Calls a `def` function in this thread; what it reports goes to the loop of another.

    Args:
        through: exceptions that are not the experiment's.
    """
    if job.use is None:
        return _called(job, loop, through)
    with job.use.in_this_thread():
        return _called(job, loop, through)


def _called(job: Job, loop: asyncio.AbstractEventLoop, through: tuple[type[BaseException], ...]) -> Result:
    try:
        processor = from_thread(ResultProcessor(job.experiment_id, job.report), loop)
        value = job.function(dict(job.keyfields), processor, own(job.custom))
    except through:
        raise
    except BaseException as failure:  # noqa: BLE001  (sys.exit in a thread must end its row, not the thread)
        return raised(failure)
    if inspect.iscoroutine(value):
        value.close()
    return returned(value)

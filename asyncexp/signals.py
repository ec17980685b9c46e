"""SIGINT and SIGTERM stop the runs of this process: the first gracefully, the second at once.

Python calls handlers in the main thread alone; a run is told on its own event loop, whichever thread that is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, Literal, Protocol

Name = Literal["SIGINT", "SIGTERM"]
NAMES: tuple[Name, ...] = ("SIGINT", "SIGTERM")
_names: dict[int, Name] = {signal.SIGINT: "SIGINT", signal.SIGTERM: "SIGTERM"}


class Stoppable(Protocol):
    def signalled(self, name: Name) -> None: ...


class Interruptible(Protocol):
    @property
    def inside(self) -> bool:
        """Whether the main thread is where it may be interrupted."""
        ...


Hearing = Callable[[Stoppable], AbstractContextManager[None]]
"""`heard`, where another thread has the handlers `installed`."""

_installed: dict[object, asyncio.AbstractEventLoop | None] = {}
"""Who wants the handlers, and on which loop. The first installs them, the last puts the old ones back."""
_runs: list[tuple[Stoppable, asyncio.AbstractEventLoop]] = []
"""Runs that stop by signal."""
_before: dict[Name, Any] = {}
"""The handlers that were there before the first."""
_interrupted: list[Interruptible] = []
"""Where the main thread is to be interrupted, by a signal that we send to ourselves."""


@contextmanager
def handled(run: Stoppable, insist: bool | Hearing | None) -> Iterator[None]:
    """While inside, the signals stop `run`; to be entered on its event loop.

    Args:
        insist: None: only in the main thread and only if SIGTERM has its default action; False: not at all;
            `heard`: the thread that waits for this run has seen to the handlers.

    Raises:
        RuntimeError: `insist` is true and this is not the main thread.
    """
    if callable(insist):
        with insist(run):
            yield
        return
    with installed(insist) as they_are:
        if not they_are:
            yield
            return
        with heard(run):
            yield


@contextmanager
def installed(insist: bool | None) -> Iterator[bool]:
    """While inside, the signals stop the runs that are `heard`, if that is wanted: whether it is. As `handled`."""
    if not _wanted(insist):
        yield False
        return
    if not _installed:
        _install()
    me = object()
    _installed[me] = asyncio._get_running_loop()
    try:
        yield True
    finally:
        _remove([me])


def abandon(loop: asyncio.AbstractEventLoop) -> None:
    """What ran on a loop that was closed is stopped by no signal any more: the last one's end puts the handlers back.

    Outside the main thread, which alone may do that, it is left to the next signal.
    """
    if threading.current_thread() is threading.main_thread():
        _runs[:] = [entry for entry in _runs if entry[1] is not loop]
        _remove([me for me, its in _installed.items() if its is loop])


def _remove(those: list[object]) -> None:
    those = [me for me in those if me in _installed]  # not in a forked child, nor long after the loop was closed
    for me in those:
        del _installed[me]
    if those and not _installed:
        _wakes.close()
        _put_back()


@contextmanager
def heard(run: Stoppable) -> Iterator[None]:
    """While inside, a signal is told to `run`, on this event loop."""
    entry = (run, asyncio.get_running_loop())
    _runs.append(entry)
    try:
        yield
    finally:
        if entry in _runs:  # not in a forked child
            _runs.remove(entry)


def interrupt_main(target: Interruptible) -> None:
    """Raises KeyboardInterrupt in the main thread if that is still inside `target`; while `installed`, from any thread.

    What the main thread does, a system call too, is interrupted by a signal of our own.
    """
    _interrupted.append(target)
    _nudge_main()


def interrupt_again(target: Interruptible) -> bool:
    """Whether the main thread has not noticed yet; then the signal is sent again.

    One that comes between Python's last look and the system call it is about to make does not interrupt that.
    """
    if target not in _interrupted:
        return False
    _nudge_main()
    return True


def _nudge_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _wanted(insist: bool | None) -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    if insist and not in_main:
        raise RuntimeError("handle_signals=True works in the main thread only; Python delivers signals there.")
    if insist is not None:
        return insist
    return in_main and (bool(_installed) or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)


def _install() -> None:
    for name in NAMES:
        _before[name] = signal.signal(getattr(signal, name), _arrived)
    _wakes.open()


class _Wakes:
    """Wakes the main thread's event loop at a signal that the kernel hands to another thread.

    Python's own handler runs in the main thread as soon as that does anything; one that waits for a loop's
    events does not, of itself.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: tuple[int, int] = (-1, -1)

    def open(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # who waits here without one looks up now and then
            return
        reads, writes = os.pipe()
        for end in (reads, writes):
            os.set_blocking(end, False)
        before = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        if before != -1:  # somebody has signals told to this loop already
            signal.set_wakeup_fd(before)
            os.close(reads)
            os.close(writes)
            return
        loop.add_reader(reads, os.read, reads, 4096)
        self._loop, self._ends = loop, (reads, writes)

    def close(self, *, forked: bool = False) -> None:
        """Forked: the loop's selector is the parent's, too."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        signal.set_wakeup_fd(-1)
        if not forked and not loop.is_closed():
            loop.remove_reader(self._ends[0])
        for end in self._ends:
            os.close(end)


_wakes = _Wakes()


def _arrived(number: int, _: FrameType | None) -> None:
    if _interrupted:
        targets = _interrupted[:]
        _interrupted.clear()
        if any(target.inside for target in targets):
            raise KeyboardInterrupt
        return
    alive = [(run, loop) for run, loop in _runs if not loop.is_closed()]
    if _runs and not alive:  # they were left half-way, and will not put the old handlers back
        _forget()
        _wakes.close()
        _put_back()
        signal.raise_signal(number)
    for run, loop in alive:
        loop.call_soon_threadsafe(run.signalled, _names[number])


def _forget() -> None:
    _installed.clear()
    _runs.clear()
    _interrupted.clear()


def _put_back() -> None:
    for name, handler in _before.items():
        if handler is not None:
            signal.signal(getattr(signal, name), handler)
    _before.clear()


def _leave_to_parent() -> None:
    """A forked child answers signals as if nothing ran: the runs are its parent's."""
    _forget()
    _wakes.close(forked=True)
    _put_back()


os.register_at_fork(after_in_child=_leave_to_parent)

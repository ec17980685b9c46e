"""How a command that runs experiments is told to end from outside, other than by a request through the table."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Terminal:
    """The standard streams that are a terminal. Once it is gone, they lead nowhere: prints cost no experiment."""

    def __init__(self) -> None:
        self._streams = [descriptor for descriptor in (0, 1, 2) if os.isatty(descriptor)]

    def let_go_if_gone(self) -> None:
        """In any thread."""
        gone = [descriptor for descriptor in self._streams if not os.isatty(descriptor)]
        if gone:
            self._streams = [descriptor for descriptor in self._streams if descriptor not in gone]
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in gone:
                os.dup2(nowhere, descriptor)
            os.close(nowhere)


class _Lasting(io.RawIOBase):
    """Writes to a descriptor, and nowhere once that takes no more."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any) -> int | None:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:
            return None
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor)
            os.close(nowhere)
            return len(data)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """While inside, a reader that goes (`| tee`, to which Ctrl-C comes first) costs no experiment that prints."""
    before = sys.stdout, sys.stderr
    made = [None if each.isatty() else _lasting(each) for each in before]
    sys.stdout, sys.stderr = (new or old for new, old in zip(made, before, strict=True))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for new in filter(None, made):
            new.detach().detach()  # type: ignore[attr-defined]


def _lasting(stream: TextIO) -> io.TextIOWrapper:
    stream.flush()
    raw = io.BufferedWriter(_Lasting(stream.fileno()))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=True)


class Ending:
    """What has come meanwhile."""

    by_signal = False


@contextmanager
def handled(terminal: Terminal) -> Iterator[Ending]:
    """While inside, SIGTERM cancels this task, unless a run has it; a terminal that is closed counts as SIGTERM.

    But who ignores SIGHUP (`nohup`) goes on. To be entered in the main thread, on the task's event loop.
    """
    ending = Ending()
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "a coroutine runs in a task"

    def end(*_: object) -> None:
        ending.by_signal = True
        loop.call_soon_threadsafe(task.cancel)

    def hung_up(*_: object) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the shell sends it, and then the kernel: once is meant
        terminal.let_go_if_gone()
        signal.raise_signal(signal.SIGTERM)

    ignored = signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL
    before = signal.signal(signal.SIGTERM, end)
    if not ignored:
        signal.signal(signal.SIGHUP, hung_up)
    try:
        yield ending
    finally:
        signal.signal(signal.SIGTERM, before)
        if not ignored:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)

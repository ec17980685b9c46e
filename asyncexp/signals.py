"""SIGINT and SIGTERM stop the runs of this process: the first gracefully, the second at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

NAMES: tuple[Literal["SIGINT", "SIGTERM"], ...] = ("SIGINT", "SIGTERM")


class Stoppable(Protocol):
    def signalled(self, name: Literal["SIGINT", "SIGTERM"]) -> None: ...


_runs: list[Stoppable] = []
"""Runs that stop by signal. The first installs the handlers, the last puts the old ones back."""
_before: dict[str, Any] = {}
"""The handlers that were there before the first."""


@contextmanager
def handled(run: Stoppable, insist: bool | None) -> Iterator[None]:
    """While inside, the signals stop `run`.

    Args:
        insist: None: only in the main thread and only if SIGTERM has its default action; False: not at all.

    Raises:
        RuntimeError: `insist` is true and this is not the main thread.
    """
    if not _wanted(insist):
        yield
        return
    if not _runs:
        _install()
    _runs.append(run)
    try:
        yield
    finally:
        if run in _runs:  # not in a forked child
            _runs.remove(run)
        if not _runs:
            _restore()


def _wanted(insist: bool | None) -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    if insist and not in_main:
        raise RuntimeError("handle_signals=True works in the main thread only; Python delivers signals there.")
    if insist is not None:
        return insist
    return in_main and (bool(_runs) or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)


def _install() -> None:
    loop = asyncio.get_running_loop()
    for name in NAMES:
        _before[name] = signal.getsignal(getattr(signal, name))
        loop.add_signal_handler(getattr(signal, name), _deliver, name)


def _deliver(name: Literal["SIGINT", "SIGTERM"]) -> None:
    for run in _runs:
        run.signalled(name)


def _restore() -> None:
    if _before:
        loop = asyncio.get_running_loop()
        for name in _before:
            loop.remove_signal_handler(getattr(signal, name))
        _put_back()


def _put_back() -> None:
    for name, handler in _before.items():
        if handler is not None:
            signal.signal(getattr(signal, name), handler)
    _before.clear()


def _leave_to_parent() -> None:
    """A forked child answers signals as if nothing ran: what it inherited would tell the parent's loop of its own."""
    if _before:
        signal.set_wakeup_fd(-1)
        _put_back()
    _runs.clear()


os.register_at_fork(after_in_child=_leave_to_parent)

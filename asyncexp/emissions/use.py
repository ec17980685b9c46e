"""What one attempt used: its worker says when it begins and ends, the meter counts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from asyncexp.emissions.amounts import NOTHING, SHORTEST_SECONDS, UNKNOWN, Key, Row

if TYPE_CHECKING:
    from asyncexp.emissions.account import Account
    from asyncexp.emissions.measuring import Meter


class Child(Protocol):
    """A child process in which experiments run."""

    pid: int | None
    loading_cpu: float
    """Seconds of CPU that it took before its first experiment, which are nobody's own."""


class Use:
    """What one attempt used. Its worker says when it begins, is over, and has ended; the meter does the rest."""

    # Not one of these is set for each: experiments may be short, and many.
    began: float | None = None
    over: float | None = None
    ended = False
    kept = False
    pid: int | None = None
    """The child process that it runs in."""
    child_had_used = 0.0
    """Seconds of CPU that this had used before its first experiment."""
    clock: tuple[int, float] | None = None
    """The CPU clock of the thread that it runs in, and what that showed when it began."""
    cpu: float | None = None
    """Seconds of CPU from begin to end, where they can be told."""
    counted = 0.0
    """Seconds of CPU that are shared out already."""
    spent = NOTHING
    was_seen = False
    """A reading found it running: what it used is told from there on, and not by how long it took."""
    was_measured = False

    def __init__(self, meter: Meter, account: Account, key: Key) -> None:
        self._meter = meter
        self.account = account
        self.key = key

    def begin(self) -> None:
        """The function is called."""
        self.began = time.monotonic()
        self._meter.add(self)

    def stop(self) -> None:
        """The function has returned, or nobody waits for it any more."""
        if self.over is None:
            self.over = time.monotonic()

    def end(self, *, kept: bool) -> None:
        """Its end is committed, or it was lost; only one that is `kept` gets a row."""
        self.stop()
        if self.began is not None and not self.ended:
            self.kept = kept
            self.ended = True
            self._meter.remove(self, self.began, self.over or self.began)

    def runs_in(self, child: Child) -> None:
        self.pid, self.child_had_used = child.pid, child.loading_cpu

    @contextmanager
    def in_this_thread(self) -> Iterator[None]:
        """While its function runs in this thread and no other experiment does."""
        began = time.thread_time()
        if hasattr(time, "pthread_getcpuclockid"):
            self.clock = (time.pthread_getcpuclockid(threading.get_ident()), began)
        try:
            yield
        finally:
            self.cpu, self.clock = time.thread_time() - began, None

    @property
    def seconds(self) -> float:
        """How long it took, once it is over."""
        return max(SHORTEST_SECONDS, (self.over or 0.0) - (self.began or 0.0))

    def row(self) -> Row:
        """Its row, once it has ended."""
        seconds = self.seconds
        told = self.account.tracker.knows_emissions
        return (*self.key, seconds, *(self.spent.rates(seconds, emissions=told) if self.was_measured else UNKNOWN))

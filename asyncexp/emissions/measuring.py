"""The thread that measures for all workers of a process: when it does, and to whom it delivers."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from asyncexp.emissions.amounts import UNKNOWN, Brief, Columns, Rates, Spent, kept_of
from asyncexp.emissions.clock import Clock, Reading
from asyncexp.emissions.sharing import lived_since, share_out
from asyncexp.emissions.tracker import HANGING_SECONDS
from asyncexp.emissions.use import Use

if TYPE_CHECKING:
    from asyncexp.emissions.account import Account

LEAST_SHARE = 100
"""A measurement that takes long is made seldom: at most so much of the time goes into measuring."""
WARM_UP_AFTER_SECONDS = 0.25
"""Calls that are over by then never pay for the tracker's start."""


class Meter:
    """Measures for all workers of this process, on a thread that lives while there are any."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # A worker that is collected as garbage leaves in whatever thread that happens, maybe inside of these: the lock
        # can be taken twice, and the queue, unlike an event, can be put into while it is being waited for.
        self._lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._accounts: list[Account] = []
        self._opened: list[Account] = []
        """Those whose tracker the thread has to close."""
        self._running: dict[Use, None] = {}
        self._asked: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._busy_since: float | None = None
        self._clock = Clock()
        self._last: Reading | None = None
        self._took = 0.0
        self.starts = 0
        """How often a tracker's start has begun or ended: odd while one starts."""

    # ------------------------------------------------------------------------------ for the workers

    def join(self, account: Account) -> None:
        with self._lock:
            self._accounts.append(account)
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="asyncexp energy", daemon=True)
                thread.start()
                self._thread = thread
        self._wake.put(None)

    def leave(self, account: Account) -> None:
        """Forgets a worker."""
        if self.pid != os.getpid():
            return  # a forked child has it without its thread, which may have held the lock
        with self._lock:
            if account in self._accounts:
                self._accounts.remove(account)
        for use in [use for use in list(self._running) if use.account is account]:
            self._running.pop(use, None)
        self._wake.put(None)

    def works_not_for(self, account: Account) -> bool:
        return self._thread is None or account not in self._opened

    def add(self, use: Use) -> None:
        self._running[use] = None
        if (since := self._busy_since) is not None and use.began is not None and use.began - since > HANGING_SECONDS:
            use.account.give_up(TimeoutError(f"it has been at one measurement for over {HANGING_SECONDS:g} s"))

    def remove(self, use: Use, began: float, over: float) -> None:
        # First added, then removed: whoever looks in between sees it twice and not never.
        if use.account.off:
            pass
        elif use.pid is None and use.cpu is None and not use.was_seen:
            # As plain numbers: objects that are kept, if only for a second, keep the garbage collector busy.
            use.account.brief.extend((use.key[0] if use.kept else 0, use.key[1], began, over))
        else:
            use.account.ended.append(use)
        self._running.pop(use, None)

    def look(self) -> None:
        """Measures now."""
        self._wake.put(None)

    def settle(self, done: Callable[[], None]) -> None:
        self._asked.append(done)
        self._wake.put(None)

    # ---------------------------------------------------------------------------------- in the thread

    def _work(self) -> None:
        self._wait_before_start()
        while not self._is_done():
            try:
                self._work_once()
            except BaseException as failure:  # noqa: BLE001  (the calls of the time go on without energy)
                self._busy_since = None
                for account in list(self._accounts):
                    account.give_up(failure)

    def _work_once(self) -> None:
        self._busy_since = time.monotonic()
        self._close_those_gone()
        self._open_new()
        if self._accounts:
            self._turn()
        self._busy_since = None
        if self._accounts:
            self._pause()

    def _is_done(self) -> bool:
        with self._lock:
            if self._accounts or self._opened:
                return False
            self._thread = None
            return True

    def _wait_before_start(self) -> None:
        until = time.monotonic() + WARM_UP_AFTER_SECONDS
        while self._accounts and (rest := until - time.monotonic()) > 0:
            self._sleep(rest)

    def _sleep(self, seconds: float | None = None) -> None:
        """Until somebody wakes it."""
        with suppress(Empty):
            self._wake.get(timeout=seconds)
        for _ in range(self._wake.qsize()):
            self._wake.get_nowait()

    def _pause(self) -> None:
        """Until it is time for the next measurement, somebody asks for one, or experiments are to run again."""
        active = [account.settings.interval for account in list(self._accounts) if account.active]
        if active:
            self._sleep(max(min(active), LEAST_SHARE * self._took))
        else:
            self._last = None  # what is spent from here on is nobody's
            self._sleep()

    def _open_new(self) -> None:
        for account in [each for each in list(self._accounts) if each not in self._opened]:
            self._opened.append(account)
            self.starts += 1
            try:
                account.tracker.open()
                account.ready = True
            except BaseException as failure:  # noqa: BLE001  (whatever it is, no experiment is to suffer from it)
                account.give_up(failure)
            self.starts += 1

    def _close_those_gone(self) -> None:
        for account in [each for each in self._opened if each not in self._accounts]:
            with suppress(BaseException):
                account.tracker.close()
            self._opened.remove(account)

    def _turn(self) -> None:
        """One measurement, shared out."""
        began = time.thread_time()
        asked = [self._asked.popleft() for _ in range(len(self._asked))]
        running = list(self._running)
        for use in running:
            use.was_seen = True
        accounts = [account for account in list(self._accounts) if account.ready and not account.off]
        ended = [use for account in accounts for use in account.take_ended()]
        brief = {account: account.take_brief() for account in accounts}
        before, now = self._last, self._clock.read()
        self._last = now
        spent = {account: found for account in accounts if (found := _measured(account)) is not None}
        each = dict.fromkeys(spent, UNKNOWN)
        if before is not None:
            told = set(ended)
            uses = [*ended, *(use for use in running if use not in told)]
            lived = sum(lived_since(before.at, seconds, begins) for _, _, seconds, begins in brief.values())
            each = share_out(before, now, uses, lived, spent)
        for account, rates in each.items():
            rows = [use.row() for use in ended if use.kept and use.account is account]
            columns = [list(column) for column in zip(*rows, strict=True)]
            _deliver(account, _brief_columns(brief[account], rates), columns)
        self._took = time.thread_time() - began
        for done in asked:
            done()


def _brief_columns(brief: Brief, rates: Rates) -> Columns:
    ids, attempts, seconds, _ = kept_of(brief)
    return [ids, attempts[0] if len(set(attempts)) == 1 else attempts, seconds, *rates]


def _deliver(account: Account, *tables: Columns) -> None:
    if account.off:
        return
    filled = [columns for columns in tables if columns and columns[0]]
    for columns in filled:
        account.deliver(columns, account.tracker.facts)
    try:
        for columns in filled:
            account.tracker.save(columns)
    except Exception as failure:  # noqa: BLE001  (a file that cannot be written costs no row)
        account.give_up(failure)


def _measured(account: Account) -> Spent | None:
    try:
        return account.tracker.measure()
    except BaseException as failure:  # noqa: BLE001  (whatever it is, no experiment is to suffer from it)
        account.give_up(failure)
        return None


_meter: Meter | None = None
_making = threading.Lock()


def meter() -> Meter:
    """That of this process: a forked child inherits another's, without its thread."""
    global _meter
    with _making:
        if _meter is None or _meter.pid != os.getpid():
            _meter = Meter()
        return _meter

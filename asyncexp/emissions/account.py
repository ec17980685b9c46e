"""One worker's side of the meter: what it is asked, what has ended, and what became of measuring."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from asyncexp.emissions.amounts import UNKNOWN, Brief, Columns, Key, kept_of
from asyncexp.emissions.measuring import meter
from asyncexp.emissions.settings import Settings
from asyncexp.emissions.tracker import Tracker
from asyncexp.emissions.use import Use

Deliver = Callable[[Columns, Mapping[str, Any]], None]
"""Takes rows and what else they have in common, by name; called in the measuring thread."""


class Account:
    """One worker's side of the meter.

    Args:
        deliver: is given the rows of attempts that have ended; called in the measuring thread.
        failed: is told, once, why energy can no longer be measured; also there.
    """

    def __init__(
        self, settings: Settings, logger: logging.Logger, deliver: Deliver, failed: Callable[[BaseException], None]
    ) -> None:
        self.tracker = Tracker(settings, logger)
        self.settings = settings
        self.deliver = deliver
        self.failed = failed
        self.ready = False
        """The tracker measures."""
        self.off = False
        """It does no longer, or never will."""
        self.failure: BaseException | None = None
        self.brief: deque[float] = deque()
        """ID (0 for one that gets no row), attempt, begin, end of those that have ended, and no more is known of."""
        self.ended: deque[Use] = deque()
        """The others that have ended."""
        self._taking = threading.Lock()
        self.active = 0
        """Calls under way whose experiments are measured."""
        self._meter = meter()
        self._starts = 0

    def join(self) -> None:
        """Begins to measure; warms up in the thread if need be."""
        try:
            self._meter.join(self)
        except RuntimeError as failure:  # the machine starts no more threads
            self.give_up(failure)

    def begin(self) -> None:
        """Experiments are about to run."""
        self.active += 1
        self._meter.look()

    def rest(self) -> None:
        """One call of `begin` is over."""
        self.active -= 1

    def use(self, key: Key) -> Use | None:
        """What an attempt is to report to; None when nothing is measured any more."""
        return None if self.off else Use(self._meter, self, key)

    def settle(self, done: Callable[[], None]) -> bool:
        """Measures now; `done` is called in the thread when the rows of all that has ended are delivered.

        False, and nothing is called, while there is nothing to measure with: then ask for `unmeasured`.
        """
        if not self.ready or self.off:
            return False
        self._starts = self._meter.starts
        self._meter.settle(done)
        return True

    @property
    def waited_for_another(self) -> bool:
        """Whether another worker's tracker kept the thread busy with its start since the last `settle`."""
        return self._meter.starts != self._starts or self._meter.starts % 2 == 1

    def give_up(self, why: BaseException) -> None:
        """Measures no more; from any thread."""
        if not self.off:
            self.off, self.failure = True, why
            self._meter.leave(self)
            self.failed(why)

    def leave(self) -> Columns | None:
        """Measures no more; rows of attempts that have ended and were never settled, if there are any."""
        self.forget()
        return self.unmeasured()

    def forget(self) -> None:
        """Measures no more, and nobody asks for rows; from any thread, whatever that is in the midst of."""
        self.off = True
        self._meter.leave(self)

    def unmeasured(self) -> Columns | None:
        """Rows of attempts that have ended and were never settled, if there are any; mostly only how long they took."""
        rows = [use.row() for use in self.take_ended() if use.kept]
        ids, attempts, seconds, _ = kept_of(self.take_brief())
        rows += [
            (number, attempt, lived, *UNKNOWN) for number, attempt, lived in zip(ids, attempts, seconds, strict=True)
        ]
        return [list(column) for column in zip(*rows, strict=True)] or None

    def take_brief(self) -> Brief:
        """Those that `brief` holds, and holds no longer."""
        with self._taking:
            flat: list[Any] = [self.brief.popleft() for _ in range(len(self.brief) // 4 * 4)]
        began = flat[2::4]
        return flat[0::4], flat[1::4], [b - a for a, b in zip(began, flat[3::4], strict=True)], began

    def take_ended(self) -> list[Use]:
        """Those that `ended` holds, and holds no longer."""
        with self._taking:
            return [self.ended.popleft() for _ in range(len(self.ended))]

    @property
    def is_over(self) -> bool:
        """Whether no thread works for it any more."""
        return self._meter.works_not_for(self)

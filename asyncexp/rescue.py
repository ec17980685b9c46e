"""Who is dead: two signs for a worker anywhere, one look for a process of this machine.

Whoever waits too long loses time; whoever is too quick takes rows from the living. The fence keeps the
rows whole even then, but their work would be done twice.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from asyncexp.store import rescue
from asyncexp.store.rescue import Place, Rescued, Sign, Suspect
from asyncexp.store.study import Study

INTERVALS = 2
"""So many of its own intervals a rescuer sees no sign of a worker whose lease is over."""
HICCUP_SECONDS = 1.0
"""So late a look may be on a busy machine."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the workers came to."""

    rescued: bool = False
    """Rows were taken back."""
    again_in: float | None = None
    """Seconds until it is known whether a worker with rows is dead; None if there is none in question."""
    in_question: tuple[int, ...] = ()
    """Those workers."""


class Rescuer:
    """Looks for dead workers and takes back their rows.

    Args:
        me: id of the worker that looks.
        place: where this process is.
        interval_seconds: of its own sign of life.
        max_attempts: as configured now.
    """

    def __init__(
        self,
        me: int,
        place: Place,
        interval_seconds: float,
        max_attempts: Callable[[], int],
        logger: logging.Logger,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._me = me
        self._place = place
        self._interval = interval_seconds
        self._patience = INTERVALS * interval_seconds
        self._max_attempts = max_attempts
        self._logger = logger
        self._clock = clock
        self._seen: dict[int, tuple[Sign, float]] = {}
        """The last sign of each worker whose lease is over, and when it was first seen."""
        self._looked_at = 0.0

    def forget(self) -> None:
        """The database was away: what others could not write meanwhile says nothing about them."""
        self._seen.clear()

    async def look(self, study: Study) -> Look:
        """Takes back the rows of the workers that are known to be dead now.

        Raises:
            Outage, MissingTable: as the database; what was found so far stands.
        """
        found = await rescue.suspects(study, self._me, self._place)
        now = self._clock()
        if now - self._looked_at > max(self._patience, HICCUP_SECONDS):
            self.forget()  # it was kept from looking; what kept it may have kept others from giving signs
        self._looked_at = now
        self._seen = {one.id: self._seen[one.id] for one in found if one.late and one.id in self._seen}
        waits: dict[int, float] = {}
        rescued = False
        for suspect in found:
            if not await self._is_dead(study, suspect, waits):
                continue
            rescued |= await self._take_back(study, suspect, waits)
        return Look(rescued, min(waits.values(), default=None), tuple(waits))

    async def _is_dead(self, study: Study, suspect: Suspect, waits: dict[int, float]) -> bool:
        if self._has_died_here(suspect):
            return True
        if not suspect.late:
            return False
        now = self._clock()
        sign, since = self._seen.get(suspect.id, (None, now))
        if sign != suspect.sign:
            if not await rescue.has_rows(study, suspect.id):
                return True  # nothing is taken from it
            self._logger.warning(
                "%s is late; if it gives no sign for another %g s its rows are taken over.",
                _capital(suspect),
                self._patience,
            )
            self._seen[suspect.id] = (suspect.sign, now)
            since = now
        left = since + self._patience - now
        if left > 0:
            waits[suspect.id] = left
        return left <= 0

    def _has_died_here(self, suspect: Suspect) -> bool:
        """Whether its process was on this machine, and is no more."""
        here = self._place.known and suspect.place == self._place
        return here and suspect.pid != os.getpid() and is_gone(suspect.pid)

    async def _take_back(self, study: Study, dead: Suspect, waits: dict[int, float]) -> bool:
        rescued = await rescue.rescue(study, dead, self._max_attempts())
        if rescued is None:
            self._logger.info(
                "%s is not taken over now: it gave a sign at the last moment or is in the middle of a transaction, "
                "or somebody else was quicker.",
                _capital(dead),
            )
            waits[dead.id] = self._interval
            return False
        self._seen.pop(dead.id, None)
        self._say(dead, rescued)
        return bool(rescued.back)

    def _say(self, dead: Suspect, rescued: Rescued) -> None:
        if rescued.back:
            self._logger.warning("%s is dead; back from it, to run again: %s", _capital(dead), _listed(rescued.back))
        if rescued.ended:
            self._logger.error(
                "%s is dead; ended as `error` because too many workers were lost while they ran (max_attempts): %s",
                _capital(dead),
                _listed(rescued.ended),
            )


def is_gone(pid: int) -> bool:
    """Whether no such process runs on this machine; one that is dead and not yet buried does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's
        return False
    import psutil  # a tenth of a second, and needed only where another worker is on this machine

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:  # perhaps only hidden from us (`hidepid`)
        return False


def _capital(suspect: Suspect) -> str:
    return f"W{str(suspect)[1:]}"


def _listed(ids: tuple[int, ...], most: int = 20) -> str:
    shown = ", ".join(map(str, ids[:most]))
    return shown if len(ids) <= most else f"{shown}, and {len(ids) - most} more"

"""How fast the workers are, as far as their totals tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncexp.store.look import Overview
    from asyncexp.store.workers import WorkerInfo

WINDOW_SECONDS = 60.0
WINDOW_ENDS = 16
"""The rate covers at least so many ended experiments: those of an hour each have one too."""
MOST_MARKS = 1_000
SURPRISING = 3.0
"""Where so many experiments should have ended, none says something."""

Mark = Mapping[int, tuple[datetime, int]]
"""Worker -> its last sign of life, and what it had ended by then."""


class Pace:
    """The rate of one look, or of several: then by how the workers' totals have changed since.

    A worker's totals come with its signs of life, which are further apart than looks can be: it is the time between
    the signs that counts.
    """

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._marks: deque[Mark] = deque([_mark(overview)])

    def note(self, overview: Overview) -> None:
        """Takes one more look into account."""
        self._overview = overview
        mark = _mark(overview)
        if mark != self._marks[-1]:
            self._marks.append(mark)
        while (len(self._marks) > 2 and self._is_enough(self._marks[1])) or len(self._marks) > MOST_MARKS:
            self._marks.popleft()

    def _is_enough(self, mark: Mark) -> bool:
        changes = [_change(mark[worker.id], worker) for worker in _live(self._overview) if worker.id in mark]
        seconds, ended = max((each[0] for each in changes), default=0.0), sum(each[1] for each in changes)
        return seconds >= WINDOW_SECONDS and ended >= WINDOW_ENDS

    @property
    def rate(self) -> float:
        """Experiments that the live workers end in a second."""
        return sum(self._of(worker) for worker in _live(self._overview))

    def _of(self, worker: WorkerInfo) -> float:
        born = worker.started, 0
        seconds, ended = _change(born, worker)
        whole = ended / seconds if seconds > 0 else 0.0
        recent_seconds, recent = _change(self._marks[0].get(worker.id, born), worker)
        if recent_seconds <= 0 or (not recent and whole * recent_seconds < SURPRISING):
            return whole
        return recent / recent_seconds

    def eta_seconds(self, condition: Mapping[str, Any] | None) -> float | None:
        """Until no row is open at this rate; None where nothing can be said: nothing ends, or only some rows count."""
        counts = self._overview.counts
        still = counts["created"] + counts["running"]
        return still / self.rate if still and self.rate > 0 and not condition else None


def _live(overview: Overview) -> list[WorkerInfo]:
    return [worker for worker in overview.workers if worker.state == "live" and worker.role == "worker"]


def _mark(overview: Overview) -> Mark:
    return {worker.id: (worker.heartbeat, worker.ended_done + worker.ended_error) for worker in _live(overview)}


def _change(before: tuple[datetime, int], worker: WorkerInfo) -> tuple[float, int]:
    then, ended = before
    return (worker.heartbeat - then).total_seconds(), worker.ended_done + worker.ended_error - ended

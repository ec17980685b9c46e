"""The plain values that everything else talks about: status, experiment, outcome, summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, SupportsInt


class ExperimentStatus(StrEnum):
    """The state of a row; `ALL` stands for every state in `reset_experiments` and `delete_experiments`."""

    CREATED = "created"
    RUNNING = "running"
    DONE = "done"
    ERROR = "error"
    PAUSED = "paused"
    ALL = "all"


class ExperimentId(int):
    """The ID of a row that also carries its attempt and worker, through a pickle too.

    It is an `int` in every respect; `attach` uses the rest to join that very attempt and no later one.
    """

    attempt: int
    worker: int

    def __new__(cls, value: SupportsInt, attempt: int, worker: int) -> ExperimentId:
        made = super().__new__(cls, int(value))
        made.attempt = attempt
        made.worker = worker
        return made

    def __reduce__(self) -> tuple[type[ExperimentId], tuple[int, int, int]]:
        return ExperimentId, (int(self), self.attempt, self.worker)


@dataclass(frozen=True, slots=True)
class Experiment:
    """One attempt at one row, as it was claimed."""

    id: ExperimentId
    keyfields: Mapping[str, Any]
    continues: str | None = None
    """`"created"` or `"paused"` if an earlier attempt's results and logs are carried on, else None."""


@dataclass(frozen=True, slots=True)
class Running:
    """An experiment under way; times are naive UTC."""

    id: int
    keyfields: Mapping[str, Any]
    attempt: int
    worker: int | None
    """The ID of the worker that runs it."""
    started: datetime | None
    """When it began; None while it waits for a free child process."""
    heartbeat: datetime | None
    """Its function's last sign of life, as far as that is known."""
    progress: float | None
    """A fraction, as told by `heartbeat`."""
    message: str | None


@dataclass(frozen=True, slots=True)
class Failure:
    """An experiment that ended in error."""

    id: int
    attempt: int
    line: str
    """The last line of its traceback."""
    place: str | None = None
    """Exception and last frame of the user's code: failures with the same place failed alike."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the calls of `execute` on an `Experimenter` are at, as this process knows without asking the database."""

    running: tuple[Running, ...]
    """Those that began first come first."""
    failures: tuple[Failure, ...]
    """The latest, of the calls under way; at most 100 of each."""
    away_seconds: float | None
    """For how long the database has not answered; None while it does."""
    beat_seconds: float | None
    """How old the worker's latest sign of life is; None before the first."""
    lease_seconds: float
    """At that age others take the worker for dead."""


OUTCOMES = ("done", "error", "paused", "released", "lost", "retried")
SHOWN_ERRORS = 5

StoppedBy = Literal["SIGINT", "SIGTERM", "stop", "cancelled", "max_errors", "outage"]


@dataclass(frozen=True, slots=True)
class Summary:
    """What one call of `execute` did: how many attempts ended how, and how long it took."""

    done: int = 0
    error: int = 0
    paused: int = 0
    released: int = 0
    """Attempts put back to `created`: by a stop, by `release`, by a returned `CREATED`."""
    lost: int = 0
    """Attempts whose row was taken away meanwhile; nothing of them was written."""
    retried: int = 0
    """Attempts that failed and were put back for another try."""
    running: int = 0
    """Experiments under way (0 at the end)."""
    left: int | None = None
    """Rows still open, those under way included; None while unknown."""
    seconds: float = 0.0
    stopped_by: StoppedBy | None = None
    errors: tuple[str, ...] = field(default=(), repr=False)
    """The last lines of the first few errors."""

    def _repr_html_(self) -> str:
        from asyncexp import html  # a child process needs none of it

        counted = [(name, f"{count:,}") for name in OUTCOMES if (count := getattr(self, name))]
        facts: list[tuple[str, object]] = [*counted, ("seconds", f"{self.seconds:.1f}")]
        if self.left is not None:
            facts.append(("left", f"{self.left:,}"))
        if self.stopped_by:
            facts.append(("stopped by", self.stopped_by))
        facts += [("error", line) for line in dict.fromkeys(self.errors)][:SHOWN_ERRORS]
        return html.table("Experiments of this call" if counted else "Nothing to do", facts)

"""The plain values that everything else talks about: status, experiment, outcome, summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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

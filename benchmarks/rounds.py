"""Pairs of figures taken in turns, so that a machine that slows down slows both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")
K = TypeVar("K")

Judged = Literal["rate", "time", "excess", "figure"]
"""What a line's score is: ours over the limit, of rates; the same, of times; what ours is above it; ours alone.

More is better for rates only.
"""


@dataclass(frozen=True)
class Line:
    """One line of the table: the figures of all rounds, and where page 6 of the design wants their score."""

    name: str
    what: str
    unit: str
    limit: Sequence[float]
    ours: Sequence[float]
    database: str = ""
    at_once: int | None = None
    reach: float | None = None
    beyond: float | None = None
    judged: Judged = "rate"
    facts: dict[str, Any] = field(default_factory=dict)
    peer: str = ""
    """Who the limit is, if it is another program."""
    memory_mb: Sequence[float] = ()
    """How much our process grew at most, in each round."""
    memory_most_mb: float | None = None

    @property
    def score(self) -> float:
        """Of the medians."""
        return self._score(statistics.median(self.ours), statistics.median(self.limit))

    @property
    def scores(self) -> list[float]:
        """Of each round's pair."""
        return [self._score(ours, limit) for ours, limit in zip(self.ours, self.limit, strict=True)]

    def _score(self, ours: float, limit: float) -> float:
        if self.judged == "figure":
            return ours
        return ours - limit if self.judged == "excess" else ours / limit

    @property
    def verdict(self) -> str:
        """`beyond`, `reached`, `below`, or empty where nothing is asked."""
        if self.memory_most_mb is not None and max(self.memory_mb) > self.memory_most_mb:
            return "below"
        if self.reach is None:
            return ""
        if self.beyond is not None and self._at_least(self.beyond):
            return "beyond"
        return "reached" if self._at_least(self.reach) else "below"

    def _at_least(self, wanted: float) -> bool:
        return self.score >= wanted if self.judged == "rate" else self.score <= wanted

    def as_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("name", "what", "database", "at_once", "unit")},
            "limit": _summary(self.limit),
            "ours": _summary(self.ours),
            self.judged if self.judged in ("excess", "figure") else "ratio": {
                "of_medians": self.score,
                "min": min(self.scores),
                "max": max(self.scores),
            },
            **{name: getattr(self, name) for name in ("reach", "beyond", "verdict")},
            **({"memory_mb": _summary(self.memory_mb)} if self.memory_mb else {}),
            **{name: value for name in ("peer", "facts") if (value := getattr(self, name))},
        }


def _summary(figures: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(figures),
        "min": min(figures),
        "max": max(figures),
        "rounds": list(figures),
    }


def in_turns(rounds: int, limit: Callable[[], float], ours: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Figures of both sides, taken alternately; who goes first changes, too."""
    taken = all_in_turns(rounds, {"limit": limit, "ours": ours})
    return taken["limit"], taken["ours"]


def all_in_turns(rounds: int, sides: Mapping[K, Callable[[], T]]) -> dict[K, list[T]]:
    """Figures of any number of sides, taken in turns, every other round in the opposite order."""
    taken: dict[K, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            gc.collect()
            taken[name].append(measure())
    return taken


class Stopwatch:
    """Adds up the seconds spent inside `with stopwatch.running():`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

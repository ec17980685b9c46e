"""Pairs of figures taken in turns, so that a machine that slows down slows both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Line:
    """One line of the table: the figures of all rounds, and where page 6 of the design wants their ratio.

    A figure is better the higher it is, unless `excess` is true.
    """

    name: str
    what: str
    unit: str
    limit: Sequence[float]
    ours: Sequence[float]
    database: str = ""
    at_once: int | None = None
    reach: float | None = None
    beyond: float | None = None
    excess: bool = False
    """What counts is how much ours lies above the limit, in the unit; less is better."""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Ours over the limit, of the medians; or the excess."""
        ours, limit = statistics.median(self.ours), statistics.median(self.limit)
        return ours - limit if self.excess else ours / limit

    @property
    def scores(self) -> list[float]:
        """The same of each round's pair."""
        pairs = zip(self.ours, self.limit, strict=True)
        return [ours - limit if self.excess else ours / limit for ours, limit in pairs]

    @property
    def verdict(self) -> str:
        """`beyond`, `reached`, `below`, or empty where nothing is asked."""
        if self.reach is None:
            return ""
        if self.beyond is not None and self._at_least(self.beyond):
            return "beyond"
        return "reached" if self._at_least(self.reach) else "below"

    def _at_least(self, wanted: float) -> bool:
        return self.score <= wanted if self.excess else self.score >= wanted

    def as_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("name", "what", "database", "at_once", "unit")},
            "limit": _summary(self.limit),
            "ours": _summary(self.ours),
            "excess" if self.excess else "ratio": {
                "of_medians": self.score,
                "min": min(self.scores),
                "max": max(self.scores),
            },
            **{name: getattr(self, name) for name in ("reach", "beyond", "verdict")},
            **({"facts": self.facts} if self.facts else {}),
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
    taken: dict[str, list[float]] = {"limit": [], "ours": []}
    sides = [("limit", limit), ("ours", ours)]
    for number in range(rounds):
        for name, measure in sides if number % 2 == 0 else sides[::-1]:
            gc.collect()
            taken[name].append(measure())
    return taken["limit"], taken["ours"]


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

"""What is measured, and the rows that become of it: energies, emissions, rates, columns. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SHORTEST_SECONDS = 1e-6

Key = tuple[int, int]
Rates = tuple[float | None, float | None, float | None, float | None]
"""kWh of CPU, GPU and RAM, and kg of CO2 equivalent, a second; None: not measured."""
UNKNOWN: Rates = (None, None, None, None)
Row = tuple[int, int, float, float | None, float | None, float | None, float | None]
"""(ID, attempt, seconds, *rates)"""
Brief = tuple[list[int], list[int], list[float], list[float]]
"""IDs, 0 for those that get no row; attempts; seconds; begins."""
Columns = Sequence[Any]
"""Rows by column, as a list, or as the one value that all have."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What the tracker measured: kWh, and kg of CO2 equivalent."""

    cpu: float = 0.0
    gpu: float = 0.0
    ram: float = 0.0
    kilograms: float = 0.0

    def since(self, before: Spent) -> Spent:
        return Spent(*(max(0.0, a - b) for a, b in zip(self._all, before._all, strict=True)))

    def plus(self, other: Spent, share: float, of_cpu: float) -> Spent:
        """And so much of another; of its CPU's, `of_cpu`. Emissions follow the energy of all three."""
        cpu, gpu, ram = other.cpu * of_cpu, other.gpu * share, other.ram * share
        energy = other.cpu + other.gpu + other.ram
        of_all = (cpu + gpu + ram) / energy if energy else share
        return Spent(self.cpu + cpu, self.gpu + gpu, self.ram + ram, self.kilograms + other.kilograms * of_all)

    def rates(self, seconds: float, *, emissions: bool) -> Rates:
        """The same a second; emissions only if they can be told."""
        kilograms = self.kilograms / seconds if emissions else None
        return self.cpu / seconds, self.gpu / seconds, self.ram / seconds, kilograms

    @property
    def _all(self) -> tuple[float, float, float, float]:
        return self.cpu, self.gpu, self.ram, self.kilograms


NOTHING = Spent()


def kept_of(brief: Brief) -> Brief:
    """Those that get a row."""
    ids, attempts, seconds, began = brief
    seconds = [max(SHORTEST_SECONDS, lived) for lived in seconds]
    if 0 not in ids:
        return ids, attempts, seconds, began
    places = [place for place, number in enumerate(ids) if number]
    return (
        [ids[place] for place in places],
        [attempts[place] for place in places],
        [seconds[place] for place in places],
        [began[place] for place in places],
    )

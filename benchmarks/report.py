"""The table on the screen, and the JSON beside it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rounds import Line

COLOURS = {"beyond": "green", "reached": "yellow", "below": "red"}


def show(lines: Sequence[Line], facts: dict[str, Any], console: Console) -> None:
    """Medians; in brackets the least and the most of all rounds."""
    table = Table(title="asyncexp against its limits, in the same run")
    for name in ("line", "what", "database"):
        table.add_column(name)
    for name in ("at once", "limit", "ours", "ratio", "wanted"):
        table.add_column(name, justify="right")
    table.add_column("")
    for line in lines:
        table.add_row(*_cells(line))
    console.print(table)
    console.print(
        "Ratio: ours over the limit, of medians \\[least–most of a round's pair]; with a unit: what ours is above it, "
        "or ours alone.\nMB: what our process grew by at most."
    )
    machine = facts["machine"]
    console.print(
        f"{machine['processor']}, {machine['usable_cores']} cores, load {machine['load_before'][0]} before and "
        f"{machine['load_after'][0]} after, "
        f"a disk write confirmed in {machine['sync_ms']} ms"
    )


def _cells(line: Line) -> list[str]:
    verdict = line.verdict
    colour = COLOURS.get(verdict)
    return [
        line.name,
        line.what,
        line.database,
        "" if line.at_once is None else str(line.at_once),
        _spread(line.limit, line.unit),
        _spread(line.ours, line.unit) + (f"\n+{max(line.memory_mb):,.0f} MB" if line.memory_mb else ""),
        _score(line),
        " | ".join(f"{wanted:.3g}" for wanted in (line.reach, line.beyond) if wanted is not None),
        f"[{colour}]{verdict}[/]" if colour else "",
    ]


def _spread(figures: Sequence[float], unit: str) -> str:
    middle = _number(statistics.median(figures))
    return f"{middle} {unit.replace('experiments', 'exp')}\n\\[{_number(min(figures))}–{_number(max(figures))}]"


def _number(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def _score(line: Line) -> str:
    unit = f" {line.unit}" if line.judged in ("excess", "figure") else ""
    return f"{line.score:.3g}{unit}\n\\[{min(line.scores):.3g}–{max(line.scores):.3g}]"


def write(lines: Sequence[Line], facts: dict[str, Any], path: Path) -> None:
    """Facts and lines as JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**facts, "lines": [line.as_dict() for line in lines]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")

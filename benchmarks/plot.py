"""Throughput against slots, ours and the limit, a panel for each database."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rounds import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIMIT, OURS = "#8a8f98", "#0b6e99"


def draw(lines: Sequence[Line], path: Path) -> bool:
    """Writes a PNG of the lines S1 and S3; whether there were enough of them for a curve."""
    curves = _curves(lines)
    if not curves:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(curves), figsize=(4.6 * len(curves), 4.4), squeeze=False, sharey=True)
    for panel, (database, curve) in zip(panels[0], curves.items(), strict=True):
        _panel(panel, database, curve)
    panels[0][0].set_ylabel("no-op experiments a second")
    figure.suptitle("One worker, every result committed: asyncexp and a bare driver loop on the same table")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return True


def _curves(lines: Sequence[Line]) -> dict[str, list[Line]]:
    curves: dict[str, list[Line]] = {}
    for line in lines:
        if line.name in ("S1", "S3"):
            curves.setdefault(line.database, []).append(line)
    ordered = {name: sorted(curve, key=lambda line: line.at_once or 0) for name, curve in curves.items()}
    return {name: curve for name, curve in ordered.items() if len(curve) > 1}


def _panel(panel: Axes, database: str, curve: Sequence[Line]) -> None:
    slots = [line.at_once or 0 for line in curve]
    sides = [("bare driver (limit)", LIMIT, [line.limit for line in curve])]
    sides.append(("asyncexp", OURS, [line.ours for line in curve]))
    for label, colour, rounds in sides:
        panel.plot(slots, [statistics.median(r) for r in rounds], "o-", color=colour, label=label, linewidth=2)
        panel.fill_between(slots, [min(r) for r in rounds], [max(r) for r in rounds], color=colour, alpha=0.15)
    for line, at_once in zip(curve, slots, strict=True):
        panel.annotate(
            f"{line.score:.2f}",
            (at_once, statistics.median(line.ours)),
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
            color=OURS,
            fontsize=9,
        )
    panel.margins(x=0.08, y=0.12)
    panel.set(xscale="log", yscale="log", title=database, xlabel="experiments at once")
    panel.set_xticks(slots, [str(s) for s in slots])
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.grid(visible=True, alpha=0.25)
    panel.legend(frameon=False, loc="upper left")

"""Throughput against slots, and the time of a claim against the size of the table; a panel for each database."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.growth import SMALL
from benchmarks.rounds import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIMIT, OURS = "#8a8f98", "#0b6e99"
OTHERS = ("#c0562f", "#7a9a3c", "#8c6bb1", "#d1a53a")
Points = dict[int, Sequence[float]]
"""x -> the figures of all rounds."""
Panels = Mapping[str, Sequence[Line]]
"""Database -> its lines."""


def draw(lines: Sequence[Line], path: Path) -> list[Path]:
    """Writes a PNG of throughput and one of claims, where there are lines for a curve; which were written."""
    written: list[Path] = []
    if slots := {name: own for name, own in _panels(lines, "S1", "S3").items() if len(own) > 1}:
        title = "One worker, every result committed: asyncexp and a bare driver loop on the same table"
        peers = [line for line in lines if line.peer]
        written.append(_written(path, title, "no-op experiments a second", slots, partial(_throughput, peers=peers)))
    if sizes := _panels(lines, "S7"):
        title = "Time of a claim, committed; dashed: after half of the rows are done"
        beside = path.with_name(f"{path.stem}-growth{path.suffix}")
        written.append(_written(beside, title, "milliseconds", sizes, _claims))
    return written


def _panels(lines: Iterable[Line], *names: str) -> dict[str, list[Line]]:
    panels: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.name in names:
            panels[line.database].append(line)
    return dict(panels)


def _written(path: Path, title: str, y: str, panels: Panels, fill: Callable[[Axes, Sequence[Line]], None]) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(max(7, 4.8 * len(panels)), 4.6), squeeze=False, sharey=True)
    for panel, (database, lines) in zip(axes[0], panels.items(), strict=True):
        panel.set(xscale="log", yscale="log", title=database)
        fill(panel, lines)
        panel.margins(x=0.08, y=0.12)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        panel.xaxis.minorticks_off()
        panel.grid(visible=True, alpha=0.25)
        panel.legend(frameon=False, fontsize=8)
    axes[0][0].set_ylabel(y)
    figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _curve(panel: Axes, points: Points, label: str | None, colour: str, style: str = "o-") -> None:
    """Medians, and a band from the least to the most."""
    xs = sorted(points)
    panel.plot(xs, [statistics.median(points[x]) for x in xs], style, color=colour, label=label, linewidth=2)
    panel.fill_between(xs, [min(points[x]) for x in xs], [max(points[x]) for x in xs], color=colour, alpha=0.12)


def _throughput(panel: Axes, lines: Sequence[Line], peers: Sequence[Line]) -> None:
    _curve(panel, {line.at_once or 0: line.limit for line in lines}, "bare driver (limit)", LIMIT)
    _curve(panel, {line.at_once or 0: line.ours for line in lines}, "asyncexp", OURS)
    others: defaultdict[str, Points] = defaultdict(dict)
    for line in peers:
        if line.database == lines[0].database:
            others[line.peer][line.facts["peer_at_once"]] = line.limit
    for colour, (peer, points) in zip(OTHERS, others.items(), strict=False):
        _curve(panel, points, peer, colour)
    for line in lines:
        where = (line.at_once or 0, statistics.median(line.ours))
        below: dict[str, Any] = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center", "fontsize": 9}
        panel.annotate(f"{line.score:.2f}", where, color=OURS, **below)
    slots = sorted({x for points in others.values() for x in points} | {line.at_once or 0 for line in lines})
    panel.set_xticks(slots, [str(slot) for slot in slots])
    panel.set_xlabel("at once" + (" (pgqueuer: in a batch)" if any("pgq" in peer for peer in others) else ""))


def _claims(panel: Axes, lines: Sequence[Line]) -> None:
    kinds: defaultdict[tuple[str, int], dict[bool, Points]] = defaultdict(lambda: defaultdict(dict))
    for line in lines:
        points = kinds[line.facts["kind"], line.at_once or 0][line.facts["half_done"]]
        points |= {SMALL: line.limit, line.facts["rows"]: line.ours}
    colours = (OURS, *OTHERS)
    for colour, ((kind, count), states) in zip(colours, kinds.items(), strict=False):
        for half_done, points in states.items():
            label = None if half_done else f"{kind}: {count} row{'s' if count > 1 else ''}"
            _curve(panel, points, label, colour, "o--" if half_done else "o-")
    sizes = sorted({SMALL} | {line.facts["rows"] for line in lines})
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
    panel.set_xlabel("rows in the table")

"""What a server's own settings of durability bring and cost, for experiments that do nothing.

    python -m benchmarks.settings postgresql

Every setting in turn, again and again: one experiment at a time, and 200. `docs/performance.md` has the figures.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks import throughput
from benchmarks.places import Place, places

VARIANTS = {
    "postgresql": ("synchronous_commit", ("on", "off")),
    "mysql": ("innodb_flush_log_at_trx_commit", ("1", "2")),
}
AT_ONCE = (1, 50, 200)


def measured(place: Place, rounds: int, factor: int) -> dict[tuple[str, int], list[float]]:
    """(value of the setting, experiments at once) -> experiments a second, of each round."""
    name, values = VARIANTS[place.provider]
    taken: dict[tuple[str, int], list[float]] = {}
    for at_once in AT_ONCE:
        count = throughput.rows(place.provider, at_once, factor)
        for _ in range(rounds):
            for value in values:
                change(place, name, value)
                taken.setdefault((value, at_once), []).append(throughput.ours(place, at_once, count))
    return taken


def change(place: Place, name: str, value: str) -> None:
    """Sets it for connections to come."""
    assert place.server is not None
    if place.provider == "mysql":
        place.server.sql(f"SET GLOBAL {name} = {value}")
        return
    place.server.sql(f"ALTER SYSTEM SET {name} = '{value}'")
    place.server.sql("SELECT pg_reload_conf()")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.settings", description=__doc__)
    parser.add_argument("database", choices=sorted(VARIANTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--factor", type=int, default=5, help="so many times the rows of the quick benchmark")
    given = parser.parse_args(arguments)
    with places([given.database]) as [place]:
        taken = measured(place, given.rounds, given.factor)
    name, values = VARIANTS[given.database]
    table = Table("experiments at once", *(f"{name} = {value}" for value in values), title=place.shown)
    for at_once in AT_ONCE:
        rates = [taken[value, at_once] for value in values]
        shown = (f"{statistics.median(each):,.0f}/s  [{min(each):,.0f}–{max(each):,.0f}]" for each in rates)
        table.add_row(str(at_once), *(text.replace("[", "\\[") for text in shown))
    Console().print(table)


if __name__ == "__main__":
    main()

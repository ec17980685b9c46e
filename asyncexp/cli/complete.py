"""What the shell offers when Tab is pressed: columns and their values, statuses, log tables, by the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import typer

from asyncexp.cli.place import Place
from asyncexp.errors import PyExperimenterError

if TYPE_CHECKING:
    from asyncexp.config.models import Configuration

MOST = 200
"""Values of a keyfield that are offered."""


def where(ctx: typer.Context, incomplete: str) -> list[str]:
    """`kernel=` for `ke`, `kernel=rbf` for `kernel=r`."""
    return [each for each in _conditions(ctx, incomplete) if each.startswith(incomplete)]


def _conditions(ctx: typer.Context, incomplete: str) -> Iterator[str]:
    name, equals, _ = incomplete.partition("=")
    for configuration in _configuration(ctx):
        for key in configuration.database.table.keyfields:
            if not equals:
                yield f"{key.name}="
            elif key.name == name:
                yield from (f"{name}={'null' if value is None else value}" for value in islice(key.values or (), MOST))


def statuses(incomplete: str) -> list[str]:
    from asyncexp.experiment import ExperimentStatus

    return [status.value for status in ExperimentStatus if status.value.startswith(incomplete)]


def logtables(ctx: typer.Context, incomplete: str) -> list[str]:
    found = _configuration(ctx)
    return [log.name for each in found for log in each.database.logtables if log.name.startswith(incomplete)]


def results(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keyfields and resultfields."""
    tables = [each.database.table for each in _configuration(ctx)]
    names = [column.name for table in tables for column in table.resultfields]
    names += [key.name for table in tables for key in table.keyfields]
    return [name for name in names if name.startswith(incomplete)]


def _configuration(ctx: typer.Context) -> list[Configuration]:
    """That of the command line as far as it is typed; none if there is none, for Tab complains of nothing."""
    given: dict[str, Any] = {name: ctx.params.get(name) for name in ("config", "credentials", "table", "database")}
    with suppress(PyExperimenterError, OSError):
        return [Place(**given).configuration]
    return []

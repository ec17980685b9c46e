"""`status`: how the study stands, once or for as long as somebody watches."""

from __future__ import annotations

from typing import Annotated

import typer

from asyncexp.cli import look, options, output
from asyncexp.cli.command import command
from asyncexp.cli.pace import Pace
from asyncexp.cli.place import Place

PANEL = "Watch"


@command(PANEL)
async def status(
    place: Place,
    where: options.Where = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float,
        typer.Option(
            min=0.1, metavar="SECONDS", help="Between two looks with --watch; ten times what a look takes at least."
        ),
    ] = 2.0,
) -> int | None:
    """How the study stands: counts, rate, ETA, workers, what runs longest. Dates are UTC.

    \b
    Examples:
      asyncexp status
      asyncexp status --watch
      asyncexp status --where kernel=rbf --where kernel=poly
      asyncexp status --json | jq .counts.done
    """
    from rich.console import Group

    from asyncexp.cli import watching

    condition = place.where(where)
    if watch:
        return await watching.watch(place, condition, interval)
    async with place.open() as experimenter:
        overview = await experimenter.overview(condition, longest=look.LONGEST)
    pace = Pace(overview)
    if place.json:
        output.write_json(look.document(place, overview, pace.rate, pace.eta_seconds(condition)))
    else:
        output.say(Group(*look.screen(place, overview, pace.rate, pace.eta_seconds(condition), condition)))
    return None

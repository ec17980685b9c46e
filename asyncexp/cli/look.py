"""Commands that look: `status`, `workers`, `show`."""

from __future__ import annotations

from asyncexp.cli.command import command
from asyncexp.cli.place import Place

PANEL = "Watch"


@command(PANEL)
async def status(place: Place) -> None:
    """How the study stands: counts, rate, workers, what runs longest.

    \b
    Examples:
      asyncexp status
      asyncexp status --json | jq .counts.done
    """
    from asyncexp.cli import output

    async with place.open() as experimenter:
        overview = await experimenter.overview()
    if place.json:
        output.write_json(overview)
        return
    for name, number in overview.counts.items():
        output.say(f"{name:8} {number:,}")

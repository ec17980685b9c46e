"""`asyncexp errors`: what went wrong, how often, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncexp.cli import cells, options, output, tracebacks
from asyncexp.cli.command import command
from asyncexp.cli.place import Place

if TYPE_CHECKING:
    from asyncexp.store.read import ErrorGroup

PANEL = "Watch"
MOST_IDS = 10


@command(PANEL)
async def errors(
    place: Place,
    where: options.Where = None,
    all_ids: Annotated[bool, typer.Option("--all-ids", help="All IDs, and not only the first.")] = False,
    traceback: Annotated[bool, typer.Option(help="One traceback of each group.")] = True,
    full: options.Full = False,
) -> None:
    """The errors by exception and the line that raised it, the most frequent first.

    \b
    Examples:
      asyncexp errors
      asyncexp errors --no-traceback
      asyncexp errors --where kernel=rbf --all-ids
      asyncexp errors --json | jq '.[0].ids'
    """
    async with place.open() as experimenter:
        groups = await experimenter.errors(place.where(where), by="place")
    if place.json:
        output.write_json([_document(group, traceback) for group in groups])
        return
    for group in groups:
        _show(group, all_ids, full=full, traceback=traceback)
    _foot(groups, where or [])


def _document(group: ErrorGroup, traceback: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "exception": group.exception,
        "message": message(group),
        "frame": group.frame,
        "count": group.count,
        "ids": group.ids,
    }
    return {**found, "traceback": group.example} if traceback else found


def message(group: ErrorGroup) -> str:
    """What the exception of the first of them says, or what stands in place of one."""
    text = tracebacks.summed(group.example)
    return text if group.exception is None else text.partition(":")[2].strip()


def _show(group: ErrorGroup, every_id: bool, *, full: bool, traceback: bool) -> None:
    from rich.text import Text

    words = cells.one_line(message(group))
    head = Text.assemble((f"{group.count:,} × ", "bold"), (group.exception or words, "bold red"))
    if group.exception and words:
        head.append(f": {words}")
    output.say(head, cut=not full)
    if group.frame:
        output.say(f"  {cells.near(group.frame)}")
    shown = cells.ranges(group.ids)
    output.say(f"  ID {cells.some(shown, len(shown) if every_id else MOST_IDS)}")
    if traceback and group.frame:
        output.say(tracebacks.tail(group.example, whole=full or not output.out().is_terminal))
    output.say()


def _foot(groups: Sequence[ErrorGroup], where: Sequence[str]) -> None:
    import shlex

    if not groups:
        output.say("No errors." if not where else "No errors there.")
        return
    rest = "".join(f" --where {shlex.quote(each)}" for each in where)
    many = f"{output.count(sum(group.count for group in groups), 'error')} of {output.count(len(groups), 'kind')}"
    output.say(f"{many}. When the cause is mended: `asyncexp retry{rest}`")
    if len(groups) > 1 and len(ids := cells.ranges(groups[0].ids)) <= MOST_IDS:
        output.say(f"Only the first kind: `asyncexp retry {' '.join(ids)}`")

"""`asyncexp workers`: who works on the table, and who did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from asyncexp.cli import cells, output
from asyncexp.cli.command import command
from asyncexp.cli.place import Place

if TYPE_CHECKING:
    from rich.text import Text

    from asyncexp.store.workers import WorkerInfo

PANEL = "Watch"
HEADINGS = ("state", "id", "name", "machine", "pid", "since", "last sign", "runs", "done", "error", "commit", "SLURM")
NUMBERS = ("pid", "since", "last sign", "runs", "done", "error")
SETTLED = timedelta(days=1)
"""So long a lost worker is told of whose rows others have taken over."""
LEASES = 1.5
"""Live workers look for the rows of dead ones once a lease, and then wait for two of their own intervals."""


@command(PANEL)
async def workers(
    place: Place,
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that have stopped.")] = False,
) -> None:
    """The workers of the table: where they are, what they run, when they last gave a sign of life.

    \b
    Examples:
      asyncexp workers
      asyncexp workers --all
      asyncexp workers --json
    """
    async with place.open() as experimenter:
        overview = await experimenter.overview(longest=0)
    shown = [each for each in overview.workers if every or _counts(each, overview.at)]
    if place.json:
        output.write_json(shown)
        return
    if shown:
        _show(shown, overview.at)
    for line in _foot(shown, overview.workers, overview.at):
        output.say(line)


def _counts(worker: WorkerInfo, now: datetime) -> bool:
    """Whether it is told of without being asked for."""
    if worker.state == "lost" and worker.rescued is not None:
        return now - worker.rescued < SETTLED
    return worker.state != "stopped"


def _show(shown: Sequence[WorkerInfo], now: datetime) -> None:
    """A line each where they are long enough, else a few."""
    console = output.out()
    rows = [_row(each, now) for each in shown]
    used = [place for place, name in enumerate(HEADINGS) if name != "SLURM" or any(str(row[place]) for row in rows)]
    headings = [HEADINGS[place] for place in used]
    lines = list(output.plain_lines([headings, *([row[place] for place in used] for row in rows)]))
    if not console.is_terminal or max(map(len, lines)) <= console.width:
        output.grid(headings, [[row[place] for place in used] for row in rows], right=NUMBERS)
        return
    for each, row in zip(shown, rows, strict=True):
        _block(each, dict(zip(HEADINGS, row, strict=True)))


def _row(worker: WorkerInfo, now: datetime) -> list[str | Text]:
    from rich.text import Text

    return [
        Text(worker.state, output.WORKER_STYLES.get(worker.state, "")),
        str(worker.id),
        cells.one_line(worker.name),
        cells.one_line(worker.machine),
        str(worker.pid),
        cells.age(worker.started, now),
        cells.age(worker.heartbeat, now),
        f"{worker.running:,}",
        f"{worker.ended_done:,}",
        f"{worker.ended_error:,}",
        cells.commit(worker.git_commit, worker.git_dirty),
        cells.slurm(worker.slurm_job_id, worker.slurm_array_job_id, worker.slurm_array_task_id) or "",
    ]


def _block(worker: WorkerInfo, row: dict[str, str | Text]) -> None:
    from rich.text import Text

    output.say(Text.assemble(row["state"], f"  {row['id']}  ", (f"{row['name']} on {row['machine']}", "bold")))
    output.say(
        f"  runs {row['runs']}, done {row['done']}, error {row['error']}; last sign {row['last sign']} ago, "
        f"pid {row['pid']}"
    )
    slurm = f", SLURM {row['SLURM']}" if str(row["SLURM"]) else ""
    output.say(Text(f"  since {cells.moment(worker.started)} UTC, commit {row['commit']}{slurm}", "dim"))


def _foot(shown: Sequence[WorkerInfo], every: Sequence[WorkerInfo], now: datetime) -> Iterator[Text]:
    from rich.text import Text

    live = any(each.state == "live" and each.role == "worker" for each in every)
    for each in shown:
        if each.state == "lost":
            yield Text(f"{each.id} is lost: {_fate(each, now, live=live)}", "yellow")
        elif each.state == "live" and each.stop_requested:
            yield Text(f"{each.id} stops, asked to by {each.stop_requested}", "yellow")
        elif each.role == "attached":
            yield Text(f"{each.id} is attached to experiment {each.experiment_id}")
    hidden = len(every) - len(shown)
    if not every:
        yield Text("No worker yet: `asyncexp run module:function`")
    elif not shown:
        yield Text(f"No worker is live; {hidden:,} were there before: `asyncexp workers --all`")
    elif hidden:
        yield Text(f"{hidden:,} more have stopped: `asyncexp workers --all`", "dim")


def _fate(worker: WorkerInfo, now: datetime, *, live: bool) -> str:
    """What becomes of the rows of a lost one, and when."""
    from asyncexp.progress import span_text

    if worker.rescued is not None:
        return f"others took over what it ran, {cells.age(worker.rescued, now)} ago"
    if not worker.running:
        return "nothing of it is left to take over"
    what = output.count(worker.running, "experiment")
    if live:
        return f"others take over its {what} within {span_text(LEASES * worker.lease)}"
    return f"its {what} will be taken over as soon as a worker runs: `asyncexp run module:function`"

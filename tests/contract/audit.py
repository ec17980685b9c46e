"""The invariants of a table after a fault, looked at by SQL and by a list of what was executed.

They take it that experiments are those of `tests.contract.workers.fault`, whose results and log lines name the
attempt that wrote them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from asyncexp.db.base import Target
from tests.contract.sql import fetch as sql
from tests.contract.support import audit

KEPT = ("done", "error", "paused", "created")
"""Outcomes of attempts whose results stay in their row."""


async def invariants(
    target: Target, count: int, ran: Iterable[Sequence[int]] | None = None, *, killed: int = 0
) -> dict[str, int]:
    """Checks a table that was filled with `count` numbers and in which nothing runs; how many rows are in each status.

    Args:
        ran: (ID, attempt) for each time that the function was called.
        killed: how many workers were given no chance to say that they ended.
    """
    found = await audit(target)  # every end has a start, each attempt ended once
    await _no_row_is_lost(target, count)
    await _attempts_follow_each_other(target)
    await _what_was_written_is_of_the_attempt_that_counts(target)
    open_workers = 'SELECT COUNT(*) FROM "experiments_workers" WHERE "stopped" IS NULL'
    assert await sql(target, open_workers) == [(killed,)], "workers that did not say that they ended"
    if ran is not None:
        await _executed_once(target, [(int(row), int(attempt)) for row, attempt in ran])
    return found


async def _no_row_is_lost(target: Target, count: int) -> None:
    rows = await sql(target, 'SELECT "ID", "number" FROM "experiments" ORDER BY "number"')
    assert [number for _, number in rows] == list(range(count))
    assert len({row for row, _ in rows}) == count


async def _attempts_follow_each_other(target: Target) -> None:
    """Attempts are numbered as they ended, and none began before the one before it was over."""
    text = 'SELECT "experiment_id", "attempt", "ended" FROM "experiments_attempts" ORDER BY "experiment_id", "attempt"'
    last: dict[int, tuple[int, Any]] = {}
    for row, attempt, ended in await sql(target, text):
        before, when = last.get(row, (0, ended))
        assert attempt > before, f"row {row}: attempt {attempt} after {before}"
        assert ended >= when, f"row {row}: attempt {attempt} ended before {before}"
        last[row] = attempt, ended
    text = 'SELECT "ID", "_attempt", "start_date", "end_date", "_continues" FROM "experiments"'
    for row, attempt, start, end, continues in await sql(target, text):
        before, when = last.get(row, (0, None))
        assert attempt >= before, f"row {row} forgot attempt {before}"
        assert start is None or end is None or end >= start
        if attempt > before and when is not None and start is not None and continues is None:
            assert start >= when, f"row {row}: two leases at once"


async def _what_was_written_is_of_the_attempt_that_counts(target: Target) -> None:
    text = 'SELECT "experiment_id", "attempt", "outcome" FROM "experiments_attempts"'
    outcomes = {(row, attempt): outcome for row, attempt, outcome in await sql(target, text)}
    for row, status, attempt, result, number, words in await sql(
        target, 'SELECT "ID", "status", "_attempt", "result", "number", "text" FROM "experiments"'
    ):
        if status == "done":
            outcomes[row, attempt] = "done"
            assert (result, words.split()[0]) == (2 * number, str(attempt)), f"row {row}: results of another attempt"
        elif words is not None:
            assert outcomes[row, int(words.split()[0])] in KEPT, f"row {row} keeps what was to be forgotten"
    lines = await sql(target, 'SELECT "experiment_id", "_attempt", "step", "note" FROM "experiments__steps"')
    assert all(step == attempt for _, attempt, step, _ in lines), "lines under another attempt than wrote them"
    counts = Counter((row, attempt, note) for row, attempt, _, note in lines)
    assert not (doubled := [line for line, many in counts.items() if many > 1]), doubled
    for key in (key for key, outcome in outcomes.items() if outcome == "done"):
        assert {note for row, attempt, note in counts if (row, attempt) == key} == {"begun", "ended"}, key


async def _executed_once(target: Target, ran: list[tuple[int, int]]) -> None:
    """The canary: no attempt was executed twice, and each that was accepted was executed."""
    doubled = [key for key, many in Counter(ran).items() if many > 1]
    assert not doubled, f"executed twice: {doubled}"
    rows = await sql(target, 'SELECT "ID", "_attempt", "status" FROM "experiments"')
    attempts = {row: attempt for row, attempt, _ in rows}
    assert all(attempt <= attempts[row] for row, attempt in ran), "executed and forgotten"
    ended = {(row, attempt) for row, attempt, status in rows if status in ("done", "error", "paused")}
    assert not (never := ended - set(ran)), f"ended and never executed: {sorted(never)}"

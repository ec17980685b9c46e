"""The audit of a storm: what the tables say, what the ledger kept, and what the functions wrote, side by side.

I1 no row lost. I2 attempts only grow. I3 one accepted end an attempt, with the results and logs of that attempt.
I4 every end has a start. I5 no row is taken from a worker that is alive by the database's clock. (I6, no outcome
guessed, and I7, nothing left, show in these and in what the storm itself saw.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from asyncexp.db.base import Target
from tests.chaos import ledger
from tests.chaos.experiments import ATTACHED_FROM, FAILURE, kind_of
from tests.chaos.journal import Entry, Journal
from tests.chaos.ledger import Change, State
from tests.chaos.storm import MAX_ATTEMPTS, RETRIES, Outcome
from tests.contract.sql import fetch

Key = tuple[int, int]
"""(ID, attempt)."""
CLOCK_SECONDS = 0.005
"""How coarse SQLite's clock is, and more."""
OPEN = {"created", "paused", "running"}
DEATH = "ChildProcessError: the child process died before the function returned"
MEANT = (FAILURE, f"{DEATH}: killed by SIGKILL", f"{DEATH}: together with the process that starts children")
"""What the errors of this storm say."""
BY_STATUS = {"done": "done", "paused": "paused", "created": "created", "error": "error", "raises": "retried"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the main table."""

    id: int
    number: int
    status: str
    attempt: int
    token: str | None
    result: float | None
    complete: int
    """1 if it has the dates of a start and of an end."""


@dataclass(frozen=True, slots=True)
class Past:
    """A row of the table of attempts: one that ended other than done."""

    id: int
    attempt: int
    worker: int
    outcome: str
    traceback: str | None


@dataclass
class Report:
    """What came of a storm."""

    violations: list[str]
    statuses: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    begun: int = 0
    """Attempts whose function was called."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """Of the attempts at rows that are there, other than done."""
    resets: int = 0
    lost: int = 0
    """Experiments that are gone, or were never finished."""
    doubled: int = 0
    """Attempts with more than one end, and calls of the function beyond one an attempt."""


@dataclass(frozen=True)
class Evidence:
    """All that there is to go by."""

    outcome: Outcome
    rows: Sequence[Row]
    pasts: Mapping[Key, Past]
    logs: Mapping[Key, list[tuple[int, str]]]
    """(step, token)."""
    changes: Mapping[int, list[Change]]
    workers: Mapping[int, int]
    """Worker -> process."""
    began: Mapping[Key, list[Entry]]
    ends: Mapping[Key, Entry]


async def audited(outcome: Outcome) -> Report:
    """Looks at everything; what must not be is among the violations."""
    evidence = await _gather(outcome)
    report = Report([*outcome.violations])
    report.statuses.update(row.status for row in evidence.rows)
    report.outcomes.update(past.outcome for past in evidence.pasts.values())
    report.attempts = sum(_is_claim(change) for changes in evidence.changes.values() for change in changes)
    report.begun = sum(map(len, evidence.began.values()))
    report.resets = sum(change.new is None for changes in evidence.changes.values() for change in changes)
    lost, doubled = list(_lost(evidence)), list(_doubled(evidence))
    report.lost, report.doubled = len(lost), len(doubled)
    report.violations += [*lost, *doubled]
    for look in (_order_of_changes, _ends_as_meant, _results, _logs, _leases, _functions):
        report.violations += look(evidence)
    if outcome.target.provider == "sqlite":
        found = await fetch(outcome.target, "PRAGMA integrity_check")
        report.violations += [f"the file is damaged: {line}" for (line,) in found if line != "ok"]
    return report


# ---------------------------------------------------------------------------------------- gathering


async def _gather(outcome: Outcome) -> Evidence:
    target = outcome.target
    pasts = [
        Past(*row)
        for row in await fetch(
            target, 'SELECT "experiment_id", "attempt", "worker", "outcome", "traceback" FROM "experiments_attempts"'
        )
    ]
    changes: defaultdict[int, list[Change]] = defaultdict(list)
    for change in await ledger.read(target):
        changes[change.id].append(change)
    began: defaultdict[Key, list[Entry]] = defaultdict(list)
    ends: dict[Key, Entry] = {}
    for entry in Journal(outcome.folder / "journal"):
        if entry.what == "began":
            began[entry.key].append(entry)
        else:
            ends[entry.key] = entry
    workers = await fetch(target, 'SELECT "id", "pid" FROM "experiments_workers"')
    return Evidence(
        outcome,
        await _rows(target),
        {(past.id, past.attempt): past for past in pasts},
        await _lines(target),
        changes,
        dict(workers),
        began,
        ends,
    )


async def _rows(target: Target) -> list[Row]:
    complete = 'CASE WHEN "start_date" IS NULL OR "end_date" IS NULL THEN 0 ELSE 1 END'
    names = f'"ID", "number", "status", "_attempt", "text", "result", {complete}'
    rows = await fetch(target, f'SELECT {names} FROM "experiments" ORDER BY "ID"')
    return [Row(*row) for row in rows]


async def _lines(target: Target) -> dict[Key, list[tuple[int, str]]]:
    lines: defaultdict[Key, list[tuple[int, str]]] = defaultdict(list)
    text = 'SELECT "experiment_id", "_attempt", "step", "note" FROM "experiments__steps" ORDER BY "ID"'
    for experiment_id, attempt, step, note in await fetch(target, text):
        lines[experiment_id, attempt].append((step, note))
    return lines


def _is_claim(change: Change) -> bool:
    return change.new is not None and change.new.status == "running" and not _ran(change)


def _ran(change: Change) -> bool:
    return change.old is not None and change.old.status == "running"


def _is_end(change: Change) -> bool:
    return _ran(change) and (change.new is None or change.new.status != "running")


# ------------------------------------------------------------------------------------------- I1, I3


def _lost(evidence: Evidence) -> Iterator[str]:
    counts = Counter(row.number for row in evidence.rows)
    for number in sorted(evidence.outcome.numbers):
        if counts[number] != 1:
            yield f"I1: experiment number {number} is there {counts[number]} times"
    for row in evidence.rows:
        if row.number not in evidence.outcome.numbers:
            yield f"I1: nobody asked for experiment {row}"
        if row.status in OPEN:
            yield f"I1: experiment {row} was not finished"


def _doubled(evidence: Evidence) -> Iterator[str]:
    for experiment_id, changes in evidence.changes.items():
        for attempt, count in Counter(
            change.old.attempt for change in changes if _is_end(change) and change.old
        ).items():
            if count > 1:
                yield f"I3: attempt {attempt} at experiment {experiment_id} ended {count} times"
    for key, entries in evidence.began.items():
        if len(entries) > 1:
            yield f"I3: the function was called {len(entries)} times for {key}"


# ------------------------------------------------------------------------------------------- I2, I3


def _order_of_changes(evidence: Evidence) -> Iterator[str]:
    """One state leads to the next; only a claim begins an attempt, and nobody else writes while it runs."""
    for experiment_id, changes in evidence.changes.items():
        before: State | None = None
        for change in changes:
            if change.old != before:
                yield f"experiment {experiment_id} was {before}, and then {change} was made of it"
            if before is not None and before.status in ("done", "error") and change.new is not None:
                yield f"I3: experiment {experiment_id} was {before.status}, and then {change}"
            if (wrong := _wrong_step(change)) is not None:
                yield f"{wrong}: {change}"
            before = change.new


def _wrong_step(change: Change) -> str | None:
    old, new = change.old, change.new
    if old is None:
        return None if new is not None and new[:2] == ("created", 0) else "a row that begins otherwise"
    if new is None:
        return None if old.status == "done" else "a row was deleted that was not done"
    if _is_claim(change):
        return None if new.attempt == old.attempt + 1 and new.worker else "I2: a claim is one more attempt of a worker"
    if new.attempt != old.attempt:
        return "I2: an attempt that nobody claimed"
    if _ran(change) and new.status == "running" and new.worker != old.worker:
        return "I5: a running row went from one worker to another"
    return None


def _results(evidence: Evidence) -> Iterator[str]:
    """What is written into a row is of the attempt that runs then, and what is done has it all."""
    tokens = {entries[0].token: key for key, entries in evidence.began.items()}
    for experiment_id, changes in evidence.changes.items():
        for change in changes:
            if change.new is None or change.new.token is None or (change.old and change.old.token == change.new.token):
                continue
            if tokens.get(change.new.token) != (experiment_id, change.new.attempt) or change.new.status != "running":
                yield f"I3: results of {tokens.get(change.new.token)} were written: {change}"
    for row in evidence.rows:
        if row.status not in ("done", "error"):
            continue
        if not row.complete:
            yield f"I4: {row} has no start or no end"
        whole = (row.id, row.attempt), row.number * 0.5
        if row.status == "done" and (tokens.get(row.token or ""), row.result) != whole:
            yield f"I3: the results of {row} are those of {tokens.get(row.token or '')}"


# ----------------------------------------------------------------------------------------------- I4


def _ends_as_meant(evidence: Evidence) -> Iterator[str]:
    """Each attempt ended once, as its function said or for a fault that there was."""
    for row in evidence.rows:
        pasts = [evidence.pasts.get((row.id, attempt)) for attempt in range(1, row.attempt + 1)]
        if row.status == "done" and pasts and pasts.pop() is not None:
            yield f"I3: {row} is done, and ended otherwise, too"
        if None in pasts:
            yield f"I4: of {row} attempt {pasts.index(None) + 1} never ended"
        yield from _too_many(row, [past for past in pasts if past is not None], evidence.outcome.seed)
    known = {row.id: row.attempt for row in evidence.rows}
    for past in evidence.pasts.values():
        if past.attempt > known.get(past.id, 0):
            yield f"I4: an end without an attempt: {past}"
        if past.outcome in ("retried", "error") and not _is_meant(past):
            yield f"an error that nobody meant: {past}"


def _is_meant(past: Past) -> bool:
    last = (past.traceback or "").strip().splitlines()[-1:]
    if not last:
        return past.outcome == "error"  # returned
    lost = last[0].startswith("ExperimentLostError: ") and "workers were lost" in last[0]
    return lost or any(words in last[0] for words in MEANT)


def _too_many(row: Row, pasts: Sequence[Past], seed: str) -> Iterator[str]:
    counts = Counter(past.outcome for past in pasts)
    if counts["lost"] > MAX_ATTEMPTS or counts["retried"] > RETRIES:
        yield f"{row} was tried too often: {counts}"
    if row.status == "error" and pasts:
        last = pasts[-1].traceback or ""
        by_loss = "workers were lost" in last and counts["lost"] == MAX_ATTEMPTS
        by_failure = "workers were lost" not in last and counts["retried"] == RETRIES
        if not (by_loss or by_failure or (not last and kind_of(seed, row.number) == "says_error")):
            yield f"{row} ended as error too early: {counts}"
    if row.status == "done" and kind_of(seed, row.number) in ("fails", "says_error"):
        yield f"{row} could not be done"


def _functions(evidence: Evidence) -> Iterator[str]:
    """What the functions say that they did is what became of their attempts."""
    claimed = {
        (change.id, change.new.attempt)
        for changes in evidence.changes.values()
        for change in changes
        if change.new is not None and _is_claim(change)
    }
    for key in evidence.began.keys() - claimed:
        yield f"I4: a function ran for {key}, which nobody claimed"
    for row in evidence.rows:
        if row.status == "done" and _said(evidence, (row.id, row.attempt)) != "done":
            yield f"I3: {row} is done, and its function said {_said(evidence, (row.id, row.attempt))!r}"
    for key, past in evidence.pasts.items():
        if past.outcome in ("paused", "created") and _said(evidence, key) != past.outcome:
            yield f"I3: {past}, and its function said {_said(evidence, key)!r}"


def _said(evidence: Evidence, key: Key) -> str | None:
    return evidence.ends[key].how if key in evidence.ends else None


# --------------------------------------------------------------------------------------------- logs


def _logs(evidence: Evidence) -> Iterator[str]:
    """Logs are of their attempt, in order, none twice; all of them, if the attempt ended by itself."""
    attempts = {row.id: row.attempt for row in evidence.rows}
    for key, lines in evidence.logs.items():
        if key[1] > attempts.get(key[0], 0):
            yield f"I3: logs of {key}, which is not there"
        began = evidence.began.get(key)
        strange = {note for _, note in lines} - ({began[0].token} if began else set())
        if strange:
            yield f"I3: logs of {strange} among those of {key}"
        own, attached = _split(lines)
        if own != list(range(len(own))) or attached != list(range(len(attached))):
            yield f"I3: the logs of {key} are not in order, or doubled, or have gaps: {own}, {attached}"
    for row in evidence.rows:
        for attempt in range(1, row.attempt + 1):
            yield from _incomplete(evidence, row, (row.id, attempt))


def _split(lines: Sequence[tuple[int, str]]) -> tuple[list[int], list[int]]:
    own = [step for step, _ in lines if step < ATTACHED_FROM]
    return own, [step - ATTACHED_FROM for step, _ in lines if step >= ATTACHED_FROM]


def _incomplete(evidence: Evidence, row: Row, key: Key) -> Iterator[str]:
    past, end = evidence.pasts.get(key), evidence.ends.get(key)
    if end is None or not (past is None or past.outcome in ("paused", "created") or _ended_by_itself(past)):
        return
    own, attached = _split(evidence.logs.get(key, []))
    if (len(own), len(attached)) != (end.lines, end.attached):
        yield f"I3: of {key} ({row.status}) {end} there are {len(own)} and {len(attached)} log lines"


def _ended_by_itself(past: Past) -> bool:
    return past.outcome in ("retried", "error") and (not past.traceback or FAILURE in past.traceback)


# ----------------------------------------------------------------------------------------------- I5


def _leases(evidence: Evidence) -> Iterator[str]:
    """A row was taken from a worker whose lease was over, or whose process was dead on this machine."""
    dead: dict[int, float] = {
        life.pid: life.doomed
        for life in evidence.outcome.lives
        if life.doomed is not None and life.role.machine is None
    }
    for past in evidence.pasts.values():
        if past.outcome != "lost" and "Lost: " not in (past.traceback or ""):
            continue
        pid = evidence.workers.get(past.worker, 0)
        for end in evidence.changes[past.id]:
            taken = _is_end(end) and end.old is not None and end.old.attempt == past.attempt
            late = end.over is not None and end.at >= end.over - CLOCK_SECONDS
            if taken and not late and not (pid in dead and dead[pid] <= end.at):
                yield f"I5: taken from a worker that lived (pid {pid}), {end.over} not being over at {end.at}: {past}"

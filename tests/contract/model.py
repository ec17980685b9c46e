"""A study in memory: what page "The life of a row" of the documentation promises, written a second time.

It knows no SQL and nothing of the store. A test does the same to both and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

Key = tuple[int, int]
"""(ID, attempt)"""

HIDDEN = ("lost", "released", "retried")


@dataclass
class Row:
    """One experiment."""

    id: int
    number: int
    status: str = "created"
    attempt: int = 0
    worker: int | None = None
    result: float | None = None
    text: str | None = None
    error: str | None = None
    continues: str | None = None
    started: bool = False
    ended: bool = False
    delayed: bool = False
    asked: str | None = None
    counted_from: int = 0
    attempts: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Attempt -> (worker, outcome), of those that ended other than done."""
    lines: list[tuple[int, int]] = field(default_factory=list)
    """(attempt, step)"""

    @property
    def key(self) -> Key:
        return self.id, self.attempt

    @property
    def shown(self) -> list[tuple[int, int]]:
        return [line for line in self.lines if self.attempts.get(line[0], (0, ""))[1] not in HIDDEN]

    def count(self, outcome: str) -> int:
        return sum(n > self.counted_from and how == outcome for n, (_, how) in self.attempts.items())

    def runs_as(self, worker: int, attempt: int) -> bool:
        return (self.status, self.worker, self.attempt) == ("running", worker, attempt)


@dataclass(frozen=True)
class Ending:
    """How an attempt is to end."""

    outcome: str
    error: str | None = None
    delay: float = 0.0
    retries: int = 0


@dataclass(frozen=True)
class Sent:
    """What a worker sends for one attempt."""

    key: Key
    values: tuple[float, str] | None = None
    steps: tuple[int, ...] = ()
    end: Ending | None = None


@dataclass
class Answer:
    """What became of it: attempts refused, and those ended with their outcome and delay."""

    refused: set[Key] = field(default_factory=set)
    ended: dict[Key, tuple[str, float]] = field(default_factory=dict)


@dataclass
class Member:
    """A worker, as the others can see it."""

    sign: int = 0
    """Changes with all that it writes of itself."""
    late: bool = False
    stopped: bool = False
    requests: int = 0
    watched: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Workers that were late with rows when this one looked -> (their sign, when it was first seen)."""


class Model:
    """A table of experiments and its workers."""

    def __init__(self, patience_seconds: float, max_attempts: int) -> None:
        self.rows: dict[int, Row] = {}
        self.members: dict[int, Member] = {}
        self._patience = patience_seconds
        self._max_attempts = max_attempts

    def running(self, worker: int) -> list[Row]:
        return [row for row in self._in_order() if row.runs_as(worker, row.attempt)]

    def _in_order(self) -> list[Row]:
        return [self.rows[number] for number in sorted(self.rows)]

    def _held(self, worker: int, key: Key) -> Row | None:
        row = self.rows.get(key[0])
        return row if row is not None and row.runs_as(worker, key[1]) else None

    # ------------------------------------------------------------------------------- what workers do

    def claim(
        self, worker: int, count: int, status: str, *, early: bool, above: int = 0, ids: Sequence[int] | None = None
    ) -> list[Key]:
        """The attempts taken, in the order of their IDs from the one behind `above` on."""
        chosen = [row for row in self._in_order() if ids is None or row.id in ids]
        open_rows = [row for row in chosen if row.status == status and (early or not row.delayed)]
        behind_first = sorted(open_rows, key=lambda row: row.id <= above)
        taken = behind_first[:count]
        for row in taken:
            row.continues = "paused" if status == "paused" else row.continues
            row.status, row.worker, row.attempt = "running", worker, row.attempt + 1
            row.started, row.ended, row.delayed, row.error, row.asked = True, False, False, None, None
        return [row.key for row in taken]

    def flush(self, worker: int, sent: Iterable[Sent]) -> Answer:
        answer = Answer()
        for one in sorted(sent, key=lambda each: each.key):
            row = self._held(worker, one.key)
            if row is None:
                answer.refused.add(one.key)
                continue
            if one.values is not None:
                row.result, row.text = one.values
            row.lines += [(row.attempt, step) for step in one.steps]
            if one.end is not None:
                answer.ended[one.key] = self._end(row, worker, one.end)
        self.wrote(worker)
        return answer

    def end_from_outside(self, worker: int, ends: dict[Key, Ending]) -> dict[Key, tuple[str, float]]:
        held = [(row, end) for key, end in ends.items() if (row := self._held(worker, key)) is not None]
        return {row.key: self._end(row, worker, end) for row, end in held}

    def _end(self, row: Row, worker: int, end: Ending) -> tuple[str, float]:
        outcome, delay = end.outcome, end.delay
        if outcome == "error" and row.count("retried") < end.retries:
            outcome = "retried"
        if outcome != "done":
            row.attempts[row.attempt] = (worker, outcome)
        if outcome in ("done", "error", "paused"):
            row.status, row.ended, row.asked = outcome, True, None
            row.error, delay = end.error, 0.0
        else:
            _put_back(row, keep=outcome == "created", delayed=delay > 0)
        return outcome, delay

    def release_unknown(self, worker: int, known: Collection[Key]) -> list[int]:
        strange = [row for row in self.running(worker) if row.key not in known]
        for row in strange:
            self._end(row, worker, Ending("released"))
        return [row.id for row in strange]

    # ---------------------------------------------------------------------------------- signs of life

    def wrote(self, worker: int) -> None:
        self.members[worker].sign += 1

    def beat(self, worker: int) -> int:
        """How many requests there were to this worker."""
        self.wrote(worker)
        self.members[worker].late = False
        return self.members[worker].requests

    def look(self, worker: int, now: float, is_dead: Callable[[int], bool]) -> None:
        """This worker looks for dead ones; `is_dead` says whose process is known to be gone."""
        me = self.members[worker]
        for number, other in self.members.items():
            if number == worker or other.stopped:
                continue
            if is_dead(number) or self._is_silent(me, number, other, now):
                self.rescue(number)
            elif not other.late:
                me.watched.pop(number, None)

    def _is_silent(self, me: Member, number: int, other: Member, now: float) -> bool:
        if not other.late or not self.running(number):
            return False
        sign, since = me.watched.get(number, (None, now))
        if sign != other.sign:
            me.watched[number] = (other.sign, now)
            return False
        return now - since >= self._patience

    def rescue(self, worker: int) -> None:
        rows = self.running(worker)
        for row in rows:
            outcome = "lost" if row.count("lost") < self._max_attempts else "error"
            self._end(row, worker, Ending(outcome, error="too often"))
        self.members[worker].requests += bool(rows)

    def ask(self, ids: Sequence[int], kind: str) -> list[int]:
        asked = [row for row in self._in_order() if row.id in ids and row.status == "running"]
        for row in asked:
            row.asked = kind
        for worker in {row.worker for row in asked if row.worker is not None}:
            self.members[worker].requests += 1
        return [row.id for row in asked]

    # ------------------------------------------------------------------------------------ from outside

    def chosen(self, statuses: Collection[str]) -> list[Row]:
        """Rows of these statuses; of none named, all but the running ones."""
        return [row for row in self._in_order() if (row.status in statuses if statuses else row.status != "running")]

    def delete(self, rows: Sequence[Row]) -> None:
        for worker in {row.worker for row in rows if row.status == "running" and row.worker is not None}:
            self.members[worker].requests += 1
        for row in rows:
            del self.rows[row.id]

    def retry(self, rows: Iterable[Row]) -> None:
        for row in rows:
            row.counted_from = row.attempt
            worker, _ = row.attempts[row.attempt]
            row.attempts[row.attempt] = (worker, "retried")
            _put_back(row)


def _put_back(row: Row, *, keep: bool = False, delayed: bool = False) -> None:
    if keep:
        row.status, row.continues = "created", "created"
    else:
        row.status = "paused" if row.continues == "paused" else "created"
        if row.continues is None:
            row.result, row.text, row.started = None, None, False
    row.worker, row.error, row.asked, row.ended, row.delayed = None, None, None, False, delayed

"""The store against a model in memory: whatever happens in whatever order, both say the same.

Three workers on a real database, each with its own connection and a clock of its own that is wrong, take rows, write,
freeze, die, come back late, lose answers, while somebody resets and deletes beside them. After every step each row,
each attempt and each log line must be what the model says, and the invariants must hold of what the database holds.

Single steps drawn at random seldom meet in the one order that hurts, so the orders that do are rules of their own.
`TEST_EXAMPLES` asks for so many runs, `TEST_RANDOM` for others each time; a failure then says how to
repeat it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from asyncexp.db import connect
from asyncexp.db.base import DataRefused, Row, Target
from asyncexp.errors import DatabaseQueryError
from asyncexp.experiment import Experiment
from asyncexp.rescue import Rescuer
from asyncexp.schema import BIGINT, DOUBLE, INT, TEXT, Column, Schema, quote
from asyncexp.store import life, read, rescue, setup, workers
from asyncexp.store.claim import Wanted, Worker
from asyncexp.store.flush import End, Flushed, Unit
from asyncexp.store.rescue import Place, end_from_outside
from asyncexp.store.rows import fill_rows
from asyncexp.store.settle import release_unknown, settle
from asyncexp.store.study import Condition, Study
from asyncexp.store.together import store
from tests.contract import sql
from tests.contract.model import Answer, Ending, Key, Member, Model, Sent
from tests.contract.model import Row as Expected

T = TypeVar("T")
Step = Callable[[], Coroutine[Any, Any, T]]

EXAMPLES = {"sqlite": 24, "postgresql": 10, "mysql": 10}
"""Runs in about ten seconds each."""
SCHEMA = Schema(
    "experiments",
    (Column("number", BIGINT),),
    (Column("result", DOUBLE), Column("text", TEXT)),
    False,
    {"steps": (Column("step", INT), Column("note", TEXT))},
)
SKEWS = {"A": 0.0, "B": 600.0, "C": -600.0}
"""Worker -> seconds by which its process's clock is wrong."""
LEASE, INTERVAL, PATIENCE, MAX_ATTEMPTS, DELAY = 60.0, 15.0, 30.0, 2, 300.0
REFUSED = 13
"""A step that the database does not take."""
HERE, ELSEWHERE = Place("here", "boot", "namespace"), Place("elsewhere", "another boot", "namespace")
SILENT = logging.Logger("model", logging.CRITICAL)
FIRST_PID = 100_000_000
"""Above what Linux gives."""


def refuses_to_warn(text: str) -> None:
    raise AssertionError(text)


# --------------------------------------------------------------------------------------------- the real thing


class World:
    """The tables on a database, and one connection for each worker and for those beside them."""

    def __init__(self, target: Target) -> None:
        self._runner = asyncio.Runner()
        self.outside = self._study(target)
        self.of = {letter: self._study(target) for letter in SKEWS}
        self.do(lambda: setup.create(self.outside))
        self.do(lambda: sql.forbid(target, "experiments__steps", "step", REFUSED))
        self.ids = iter(range(1, 1_000_000))

    def _study(self, target: Target) -> Study:
        return Study(connect(target), SCHEMA, refuses_to_warn)

    def do(self, step: Step[T]) -> T:
        return self._runner.run(step())

    def close(self) -> None:
        for study in (self.outside, *self.of.values()):
            self.do(study.db.close)
        self._runner.close()

    def change(self, text: str, **values: Any) -> int:
        return self.do(lambda: self.outside.execute(self.outside.db, text, **values))

    def empty(self) -> None:
        for table in SCHEMA.tables:
            self.change(f"DELETE FROM {quote(table.name)}")

    def look(self) -> Seen:
        return self.do(lambda: Seen.of(self.outside))


@dataclass
class Seen:
    """All that the tables hold."""

    rows: list[Row]
    attempts: list[Row]
    lines: list[Row]
    shown: list[Row]
    requests: list[Row]

    @classmethod
    async def of(cls, study: Study) -> Seen:
        main, attempts, dialect = study.main, study.attempts, study.dialect
        table = SCHEMA.logs["steps"]
        return cls(
            await study.fetch(
                study.db,
                'SELECT "ID", "number", "status", "_attempt", "_worker", "result", "text", "error", "_continues", '
                '"_counted_from", "_request", "start_date", "end_date", '
                f'CASE WHEN "_not_before" > {dialect.now} THEN 1 ELSE 0 END FROM {main} ORDER BY "ID"',
            ),
            await study.fetch(
                study.db,
                f'SELECT "experiment_id", "attempt", "worker", "outcome", "ended" FROM {attempts} ORDER BY 1, 2',
            ),
            await study.fetch(
                study.db, f'SELECT "experiment_id", "_attempt", "step" FROM {quote(table.name)} ORDER BY "ID"'
            ),
            (await read.rows(study, table, read.visible(study, table, Condition())))[1],
            await study.fetch(study.db, f'SELECT "id", "requests" FROM {study.workers} ORDER BY "id"'),
        )


@dataclass
class Slot:
    """One worker, living or not."""

    letter: str
    worker: Worker
    pid: int
    study: Study
    rescuer: Rescuer
    place: Place
    clock: list[float]
    """The monotonic clock of its process."""
    number: int = 0
    known: list[Key] = field(default_factory=list)
    """What it thinks it runs."""
    lost_answer: LostAnswer | None = None


@dataclass
class LostAnswer:
    """A flush whose answer did not arrive."""

    number: int
    sent: list[Sent]
    wanted: Wanted | None
    answer: Answer | None
    """What the database would have said; None if the flush was rolled back."""


# --------------------------------------------------------------------------------------------------- choices

LETTERS = st.sampled_from(sorted(SKEWS))
OTHERS = st.integers(1, len(SKEWS) - 1)
PICKS = st.integers(0, 1000)
DELAYS = st.sampled_from([0.0, DELAY])
ENDINGS = st.one_of(
    st.sampled_from([Ending("done"), Ending("error"), Ending("error", "Traceback"), Ending("paused")]),
    st.builds(Ending, st.just("error"), st.just("Traceback"), DELAYS, st.integers(1, 2)),
    st.builds(Ending, st.sampled_from(["created", "released"]), st.none(), DELAYS),
)
STATUSES = st.sets(st.sampled_from(["created", "running", "done", "error", "paused"]), max_size=3)


@dataclass(frozen=True)
class Plan:
    """What is to be sent, for an attempt yet to be picked."""

    pick: int
    value: int | None
    steps: list[int]
    end: Ending | None


PLANS = st.builds(
    Plan, PICKS, st.none() | st.integers(0, 9), st.lists(st.integers(0, 9), max_size=2), st.none() | ENDINGS
)


def picked(items: Sequence[T], pick: int) -> T:
    return items[pick % len(items)]


# ------------------------------------------------------------------------------------------------ the machine


class Machine(RuleBasedStateMachine):
    """Does each step to the store and to the model."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.world.empty()
        self.model = Model(PATIENCE, MAX_ATTEMPTS)
        self.dead: set[int] = set()
        self.numbers = iter(range(100, 1_000_000))
        self.history: list[tuple[Slot, Key]] = []
        """Every attempt ever taken, and by whom."""
        self.filled: set[int] = set()
        self.highest: dict[int, int] = {}
        self.slots = {letter: self._new_slot(letter) for letter in SKEWS}

    def _new_slot(self, letter: str) -> Slot:
        number = next(self.world.ids)
        place, pid = ELSEWHERE if letter == "C" else HERE, FIRST_PID + number
        worker, clock = Worker(number, letter, str(place.machine)), [0.0]
        rescuer = Rescuer(number, place, INTERVAL, lambda: MAX_ATTEMPTS, SILENT, clock=lambda: clock[0])
        slot = Slot(letter, worker, pid, self.world.of[letter], rescuer, place, clock)
        facts = {"boot_id": place.boot_id, "pid_namespace": place.pid_namespace, "pid": pid}
        self._as(slot, lambda: workers.register(slot.study, worker, LEASE, facts))
        self.model.members[number] = Member()
        return slot

    def _as(self, slot: Slot, step: Step[T]) -> T:
        """Does a step in that worker's process, by its clock."""
        with clock_off_by(SKEWS[slot.letter]):
            return self.world.do(step)

    # -------------------------------------------------------------------------------------- single steps

    def fill(self, numbers: set[int]) -> None:
        study = self.world.outside
        filled = self.world.do(lambda: fill_rows(study, [{"number": number} for number in sorted(numbers)]))
        missing = sorted(numbers - {row.number for row in self.model.rows.values()})
        assert (filled.added, filled.existed) == (len(missing), len(numbers) - len(missing))
        self._learn(missing)
        self._check()

    def _learn(self, numbers: Sequence[int]) -> None:
        """Takes over the new IDs of rows that were added in this order."""
        known = [*self.highest, 0]
        found = {row[1]: int(row[0]) for row in self.world.look().rows if row[0] not in self.model.rows}
        assert [number for number, _ in sorted(found.items(), key=lambda item: item[1])] == list(numbers)
        for number, experiment_id in found.items():
            assert experiment_id > max(known), "an ID was used again"
            self.model.rows[experiment_id] = Expected(experiment_id, number)
            self.filled.add(number)

    def flush(self, slot: Slot, sent: Sequence[Sent] = (), wanted: Wanted | None = None) -> None:
        answer, taken = self._expected(slot, sent, wanted)
        flushed = self._send(slot, sent, wanted)
        assert (flushed.refused, ended(flushed)) == (answer.refused, answer.ended)
        assert [list(map(key_of, claimed)) for claimed in flushed.claimed] == ([taken] if wanted else [])
        self._believe(slot, answer, taken)
        self._check()

    def _send(self, slot: Slot, sent: Sequence[Sent], wanted: Wanted | None) -> Flushed:
        slot.number += 1
        study, number, units = slot.study, slot.number, units_of(slot.study, sent)
        claims = [wanted] if wanted else []

        return self._as(slot, lambda: store(study, slot.worker, units, claims, number))

    def _expected(self, slot: Slot, sent: Sequence[Sent], wanted: Wanted | None) -> tuple[Answer, list[Key]]:
        worker = slot.worker.id
        answer = self.model.flush(worker, sent)
        if wanted is None:
            return answer, []
        taken = self.model.claim(
            worker, wanted.count, wanted.status, early=wanted.early, above=wanted.above, ids=wanted.ids
        )
        self.history += [(slot, key) for key in taken]
        return answer, taken

    def _believe(self, slot: Slot, answer: Answer, taken: Iterable[Key] = ()) -> None:
        gone = answer.refused | set(answer.ended)
        slot.known = [key for key in slot.known if key not in gone] + list(taken)

    def claim(self, slot: Slot, count: int, status: str = "created") -> None:
        self.flush(slot, wanted=Wanted(count, status))

    def send_what_is_refused(self, slot: Slot, sent: Sequence[Sent], wanted: Wanted | None) -> None:
        """One value that the database does not take: all of it is undone."""
        with pytest.raises((DataRefused, DatabaseQueryError), match=r"refused|not this|constraint"):
            self._send(slot, sent, wanted)
        self._check()

    def lose_answer(self, slot: Slot, sent: list[Sent], wanted: Wanted | None, *, landed: bool) -> None:
        """A flush that was committed or not, and nobody says which."""
        answer = None
        if landed:
            answer, _ = self._expected(slot, sent, wanted)
            self._send(slot, sent, wanted)
        else:
            slot.number += 1
        slot.lost_answer = LostAnswer(slot.number, sent, wanted, answer)
        self._check()

    def settle(self, slot: Slot) -> None:
        """Does as the writer does: asks, gives back rows that it does not know, and sends again what did not land."""
        lost, slot.lost_answer = slot.lost_answer, None
        assert lost is not None
        units = units_of(slot.study, lost.sent)
        landed = self._as(slot, lambda: settle(slot.study, slot.worker, units, lost.number))
        expected = None if lost.answer is None else self._as_it_stands(slot, lost.sent, lost.answer)
        assert (None if landed is None else (landed.refused, ended(landed))) == (
            None if expected is None else (expected.refused, expected.ended)
        )
        if expected is not None:
            self._believe(slot, expected)
        self.release_unknown(slot)
        if expected is None:
            self.flush(slot, lost.sent, lost.wanted)

    def _as_it_stands(self, slot: Slot, sent: Sequence[Sent], answer: Answer) -> Answer:
        """The answer that was lost, but for what happened to the rows since then."""
        now = Answer()
        for one in sent:
            row = self.model.rows.get(one.key[0])
            ended = None if row is None else answer.ended.get(one.key)
            if row is not None and one.end is not None and one.end.outcome == "error":
                # Written for it by another, or followed by a retry by hand, it looks the same.
                worker, outcome = row.attempts.get(one.key[1], (0, ""))
                if worker == slot.worker.id and outcome in ("error", "retried"):
                    ended = outcome, one.end.delay if outcome == "retried" and one.end.retries else 0.0
            if ended is not None:
                now.ended[one.key] = ended
            elif row is None or one.end is not None or not row.runs_as(slot.worker.id, one.key[1]):
                now.refused.add(one.key)
        return now

    def release_unknown(self, slot: Slot) -> None:
        given_back = self._as(slot, lambda: release_unknown(slot.study, slot.worker, set(slot.known)))
        assert given_back == self.model.release_unknown(slot.worker.id, slot.known)
        self._check()

    def end_from_outside(self, slot: Slot, ends: dict[Key, Ending]) -> None:
        real = {key: end_of(end) for key, end in ends.items()}
        got = self._as(slot, lambda: end_from_outside(slot.study, slot.worker.id, real))
        expected = Answer(ended=self.model.end_from_outside(slot.worker.id, ends))
        assert ended(Flushed(ended=got)) == expected.ended
        self._believe(slot, expected)
        self._check()

    def beat(self, slot: Slot) -> None:
        told = self._as(slot, lambda: workers.beat(slot.study, slot.worker.id, 0, 0))
        assert told is not None
        assert told.requests == self.model.beat(slot.worker.id)
        asked = self._as(slot, lambda: workers.requests(slot.study, slot.worker.id))
        assert sorted((one.key, one.kind) for one in asked) == [
            (row.key, row.asked) for row in self.model.running(slot.worker.id) if row.asked
        ]

    def expire(self, slot: Slot) -> None:
        """No sign of it has come for longer than its lease, by the database's clock."""
        then = self.world.outside.dialect.later.format(seconds=f"-{LEASE + 60}")
        self.world.change(
            f'UPDATE {self.world.outside.workers} SET "heartbeat" = {then} WHERE "id" = :id', id=slot.worker.id
        )
        self.model.members[slot.worker.id].late = True
        self.model.wrote(slot.worker.id)

    def look(self, slot: Slot, seconds: float) -> None:
        """It looks for dead workers, so many seconds later by its own monotonic clock."""
        slot.clock[0] += seconds
        self._as(slot, lambda: slot.rescuer.look(slot.study))
        self.model.look(slot.worker.id, slot.clock[0], lambda number: slot.place == HERE and self._died_here(number))
        self._check()

    def _died_here(self, number: int) -> bool:
        return FIRST_PID + number in self.dead

    def dies(self, slot: Slot) -> None:
        """Its process ends, and another takes its place. What it had sent may still arrive."""
        if slot.place == HERE:
            self.dead.add(slot.pid)
        self.slots[slot.letter] = self._new_slot(slot.letter)

    def leaves(self, slot: Slot) -> None:
        """Ends in good order."""
        slot.known, slot.lost_answer = [], None
        self.release_unknown(slot)
        self._as(slot, lambda: workers.say_stopped(slot.study, slot.worker.id, 0, 0))
        self.model.members[slot.worker.id].stopped = True
        self.slots[slot.letter] = self._new_slot(slot.letter)

    # -------------------------------------------------------------------------------------------- rules

    def _free(self, letter: str, by: int = 0) -> Slot:
        """A worker by its letter, or one so many places further, that waits for no answer."""
        letters = sorted(SKEWS)
        slot = self.slots[letters[(letters.index(letter) + by) % len(letters)]]
        if slot.lost_answer:
            self.settle(slot)
        return slot

    def _sent(self, slot: Slot, plans: Sequence[Plan]) -> list[Sent]:
        """Something for attempts of its own, and for any others that there ever were."""
        sent: dict[Key, Sent] = {}
        for plan in plans:
            own = bool(slot.known) and plan.pick % 3 > 0
            if own or self.history:
                key = picked(slot.known, plan.pick) if own else picked(self.history, plan.pick // 3)[1]
                sent[key] = sent_for(key, plan)
        return list(sent.values())

    def _taken(self, slot: Slot, count: int) -> list[Key]:
        """Attempts that it has just begun; at least one."""
        before = set(slot.known)
        self.fill({next(self.numbers)})
        self.claim(slot, count)
        return [key for key in slot.known if key not in before]

    def _new_row(self) -> int:
        number = next(self.numbers)
        self.fill({number})
        [experiment_id] = [row.id for row in self.model.rows.values() if row.number == number]
        return experiment_id

    def _rescued(self, slot: Slot, rescuer: Slot) -> None:
        self.expire(slot)
        self.look(rescuer, 0)
        self.look(rescuer, PATIENCE)
        assert not self.model.running(slot.worker.id)

    @initialize(numbers=st.sets(st.integers(0, 9), min_size=2, max_size=6), letter=LETTERS, other=OTHERS, plan=PLANS)
    def begins(self, numbers: set[int], letter: str, other: int, plan: Plan) -> None:
        """With the three that no safeguard survives the loss of."""
        self.fill(numbers)
        self.a_row_is_written_to_by_who_must_not(letter, other, plan)
        self.all_workers_live(letter, other)
        self.a_worker_gives_a_sign_at_the_last_moment(letter, other, plan.value is None)

    @rule(numbers=st.sets(st.integers(0, 9), min_size=1, max_size=4))
    def somebody_fills(self, numbers: set[int]) -> None:
        self.fill(numbers)

    @rule(letter=LETTERS, count=st.integers(1, 3), paused=st.booleans(), early=st.booleans(), pick=st.integers(0, 9))
    def a_worker_claims(self, letter: str, count: int, paused: bool, early: bool, pick: int) -> None:
        above = picked(sorted(self.model.rows), pick) if pick % 2 and self.model.rows else 0
        self.flush(
            self._free(letter), wanted=Wanted(count, "paused" if paused else "created", early=early, above=above)
        )

    @rule(letter=LETTERS, pick=PICKS)
    def a_worker_claims_one_row(self, letter: str, pick: int) -> None:
        rows = list(self.model.rows.values())
        if rows:
            row = picked(rows, pick)
            status = row.status if row.status in ("created", "paused") else "created"
            self.flush(self._free(letter), wanted=Wanted(1, status, ids=(row.id,), early=True))

    @rule(letter=LETTERS, plans=st.lists(PLANS, min_size=1, max_size=4), claims=st.booleans())
    def a_worker_writes(self, letter: str, plans: list[Plan], claims: bool) -> None:
        slot = self._free(letter)
        self.flush(slot, self._sent(slot, plans), Wanted(2) if claims else None)

    @rule(pick=PICKS, plan=PLANS)
    def something_old_arrives(self, pick: int, plan: Plan) -> None:
        if self.history:
            slot, key = picked(self.history, pick)
            if slot.lost_answer is None:
                self.flush(slot, [sent_for(key, plan)])

    @rule(letter=LETTERS, plans=st.lists(PLANS, max_size=3), claims=st.booleans(), outside=st.booleans())
    def a_worker_writes_what_is_refused(self, letter: str, plans: list[Plan], claims: bool, outside: bool) -> None:
        slot = self._free(letter, 1) if outside else self._free(letter)
        key = picked(slot.known, plans[0].pick if plans else 0) if slot.known else self._taken(slot, 1)[0]
        sent = {one.key: one for one in self._sent(slot, plans)}
        sent[key] = Sent(key, (key[1] * 100.0, "never"), (1, REFUSED), Ending("done"))
        if key in [row.key for row in self.model.running(slot.worker.id)]:
            self.send_what_is_refused(slot, list(sent.values()), Wanted(2) if claims else None)

    @rule(letter=LETTERS, picks=st.lists(PICKS, min_size=1, max_size=3), end=ENDINGS)
    def a_blocked_worker_s_attempts_are_ended_for_it(self, letter: str, picks: list[int], end: Ending) -> None:
        slot = self._free(letter)
        keys = [key for _, key in self.history]
        if keys:
            self.end_from_outside(slot, {picked(slot.known or keys, pick): end for pick in picks})

    @rule(letter=LETTERS)
    def a_worker_beats(self, letter: str) -> None:
        self.beat(self.slots[letter])

    @rule(letter=LETTERS)
    def a_worker_is_not_heard_of(self, letter: str) -> None:
        self.expire(self.slots[letter])

    @rule(letter=LETTERS, seconds=st.sampled_from([0.0, 10.0, PATIENCE]))
    def a_worker_looks_for_dead_ones(self, letter: str, seconds: float) -> None:
        self.look(self.slots[letter], seconds)

    @rule(letter=LETTERS)
    def a_worker_dies(self, letter: str) -> None:
        self.dies(self.slots[letter])

    @rule(letter=LETTERS)
    def a_worker_leaves(self, letter: str) -> None:
        self.leaves(self.slots[letter])

    @rule(letter=LETTERS, plans=st.lists(PLANS, max_size=3), count=st.integers(0, 2), landed=st.booleans())
    def an_answer_is_lost(self, letter: str, plans: list[Plan], count: int, landed: bool) -> None:
        slot = self._free(letter)
        wanted = Wanted(count) if count else None
        over = {key for owner, key in self.history if owner is slot and key not in slot.known}
        sent = [one for one in self._sent(slot, plans) if one.key not in over]  # no attempt ends twice in one worker
        self.lose_answer(slot, sent, wanted, landed=landed)

    @rule(statuses=STATUSES, pick=PICKS, all_rows=st.booleans(), anew=st.booleans())
    def somebody_resets_or_deletes(self, statuses: set[str], pick: int, all_rows: bool, anew: bool) -> None:
        ids = None if all_rows else [row.id for row in self.model.rows.values() if (row.id + pick) % 3 == 0]
        self.reset_or_delete(statuses, ids, anew=anew)

    @rule(pick=PICKS)
    def somebody_retries_errors(self, pick: int) -> None:
        self.retry([row.id for row in self.model.rows.values() if (row.id + pick) % 3])

    @rule(kind=st.sampled_from(["cancel", "release"]), pick=PICKS)
    def somebody_asks(self, kind: str, pick: int) -> None:
        ids = [row.id for row in self.model.rows.values() if (row.id + pick) % 2]
        asked = self.world.do(lambda: workers.ask(self.world.outside, ids, kind, "somebody"))
        assert asked == self.model.ask(ids, kind)
        self._check()

    @rule()
    def what_waited_may_be_claimed(self) -> None:
        past = self.world.outside.dialect.later.format(seconds="-1")
        self.world.change(
            f'UPDATE {self.world.outside.main} SET "_not_before" = {past} WHERE "_not_before" IS NOT NULL'
        )
        for row in self.model.rows.values():
            row.delayed = False

    @rule()
    def everything_comes_to_an_end(self) -> None:
        """Whatever has happened, every row can still be run."""
        for letter in SKEWS:
            slot = self._free(letter)
            self.flush(slot, [Sent(key, end=Ending("done")) for key in slot.known])
        rescuer = self.slots["A"]
        for member in self.model.members.values():
            if not member.stopped:
                member.late = True
                member.sign += 1
        then = self.world.outside.dialect.later.format(seconds=f"-{LEASE + 60}")
        self.world.change(f'UPDATE {self.world.outside.workers} SET "heartbeat" = {then}')
        self.look(rescuer, 0)
        self.look(rescuer, PATIENCE)
        for status in ("created", "paused"):
            self.flush(rescuer, wanted=Wanted(1_000, status, early=True))
            self.flush(rescuer, [Sent(key, end=Ending("done")) for key in rescuer.known])
        assert {row.status for row in self.model.rows.values()} <= {"done", "error"}

    # ----------------------------------------------------------------------- rules of several steps

    def a_row_is_written_to_by_who_must_not(self, letter: str, other: int, plan: Plan) -> None:
        """By another worker, for another attempt, after its end."""
        slot, stranger = self._free(letter), self._free(letter, other)
        [key, *_] = self._taken(slot, 1)
        self.flush(stranger, [sent_for(key, plan)])
        self.flush(slot, [sent_for((key[0], key[1] + 1), plan)])
        self.flush(slot, [Sent(key, end=Ending("done"))])
        self.flush(slot, [sent_for(key, plan)])

    def all_workers_live(self, letter: str, other: int) -> None:
        """Nobody is taken for dead, whatever their clocks say."""
        for each in SKEWS:
            self.beat(self._free(each))
        slot, looks = self._free(letter), self._free(letter, other)
        keys = self._taken(slot, 1)
        self.look(looks, 0)
        self.look(looks, PATIENCE)
        assert [row.key for row in self.model.running(slot.worker.id)] == keys

    @rule(letter=LETTERS, other=OTHERS, count=st.integers(1, 2), taken=st.booleans(), plan=PLANS)
    def a_worker_is_rescued_and_finishes_late(
        self, letter: str, other: int, count: int, taken: bool, plan: Plan
    ) -> None:
        """Claim, expire, rescue; maybe the row runs elsewhere by then; then the late end."""
        slot, rescuer = self._free(letter), self._free(letter, other)
        keys = self._taken(slot, count)
        self._rescued(slot, rescuer)
        if taken:
            self.claim(rescuer, 10)
        self.flush(slot, [sent_for(key, plan) for key in keys])
        self.flush(slot, [Sent(key, (key[1] * 100.0, "late"), (1,), Ending("done")) for key in keys])

    @rule(letter=LETTERS, other=OTHERS, plan=PLANS)
    def a_worker_gets_its_own_row_again(self, letter: str, other: int, plan: Plan) -> None:
        """What its lost attempt still sends is not of the new one."""
        slot, rescuer = self._free(letter), self._free(letter, other)
        [first, *_] = self._taken(slot, 1)
        self._rescued(slot, rescuer)
        self.flush(slot, wanted=Wanted(1, ids=(first[0],), early=True))
        second = (first[0], first[1] + 1)
        self.flush(slot, [sent_for(first, plan)])
        self.flush(slot, [sent_for(second, plan), Sent(first, (100.0, "late"), (1,), Ending("done"))])

    @rule(letter=LETTERS, other=OTHERS, writes=st.booleans())
    def a_worker_gives_a_sign_at_the_last_moment(self, letter: str, other: int, writes: bool) -> None:
        """Between the rescuer's look at it and the rescue."""
        slot, rescuer = self._free(letter), self._free(letter, other)
        self._taken(slot, 2)
        self.expire(slot)
        found = self._as(rescuer, lambda: rescue.suspects(rescuer.study, rescuer.worker.id, rescuer.place))
        [dead] = [one for one in found if one.id == slot.worker.id]
        assert dead.late
        self.flush(slot) if writes else self.beat(slot)
        assert self._as(rescuer, lambda: rescue.rescue(rescuer.study, dead, MAX_ATTEMPTS)) is None
        self._check()

    @rule(letter=LETTERS, other=OTHERS, away=st.booleans(), writes=st.booleans())
    def a_late_worker_gives_signs_between_two_looks(self, letter: str, other: int, away: bool, writes: bool) -> None:
        """Or the database was away for the one that looks: both times the wait begins anew."""
        slot, rescuer = self._free(letter), self._free(letter, other)
        keys = self._taken(slot, 1)
        self.expire(slot)
        self.look(rescuer, 0)
        if away:
            rescuer.rescuer.forget()
            self.model.members[rescuer.worker.id].watched.clear()
        else:
            self.flush(slot) if writes else self.beat(slot)
            self.expire(slot)
        self.look(rescuer, PATIENCE)
        assert set(keys) <= {row.key for row in self.model.running(slot.worker.id)}
        self.look(rescuer, PATIENCE)
        assert not self.model.running(slot.worker.id)

    @rule(letter=LETTERS, other=OTHERS)
    def a_row_kills_its_workers(self, letter: str, other: int) -> None:
        """Until it has had its attempts; after a retry by hand it has as many again."""
        slot, rescuer, experiment_id = self._free(letter), self._free(letter, other), self._new_row()
        for _ in range(2):
            for _ in range(MAX_ATTEMPTS + 1):
                assert self.model.rows[experiment_id].status == "created"
                self.flush(slot, wanted=Wanted(1, ids=(experiment_id,), early=True))
                self._rescued(slot, rescuer)
            assert self.model.rows[experiment_id].status == "error"
            self.retry([experiment_id])
        self.flush(slot, [Sent(key, end=Ending("done")) for key in slot.known])

    @rule(letter=LETTERS, retries=st.integers(1, 2), delay=DELAYS, lost=st.booleans())
    def a_row_fails_until_it_has_had_its_tries(self, letter: str, retries: int, delay: float, lost: bool) -> None:
        """And after a retry by hand as many again."""
        slot, experiment_id = self._free(letter), self._new_row()
        for attempt in range(1, 2 * retries + 3):
            assert self.model.rows[experiment_id].status == "created"
            self.flush(slot, wanted=Wanted(1, ids=(experiment_id,), early=True))
            failed = Ending("error", "Traceback", delay, retries)
            failure = Sent((experiment_id, attempt), (attempt * 100.0, "failed"), (1,), failed)
            if lost:
                self.lose_answer(slot, [failure], None, landed=True)
                self.settle(slot)
            else:
                self.flush(slot, [failure])
            if attempt == retries + 1:
                self.retry([experiment_id])
        assert self.model.rows[experiment_id].status == "error"

    @rule(letter=LETTERS, other=OTHERS, count=st.integers(1, 3), landed=st.booleans(), end=ENDINGS, meanwhile=OTHERS)
    def a_claim_s_answer_is_lost_and_settled(
        self, letter: str, other: int, count: int, landed: bool, end: Ending, meanwhile: int
    ) -> None:
        slot, rescuer = self._free(letter), self._free(letter, other)
        [key, *_] = self._taken(slot, 1)
        self.fill({next(self.numbers)})
        self.lose_answer(slot, [Sent(key, (key[1] * 100.0, "lost"), (1,), end)], Wanted(count), landed=landed)
        if meanwhile == 2:
            self._rescued(slot, rescuer)
            self.claim(rescuer, 1)
        self.settle(slot)

    @rule(letter=LETTERS, other=OTHERS, landed=st.booleans())
    def a_late_end_s_answer_is_lost(self, letter: str, other: int, landed: bool) -> None:
        """Of a row that was taken away before: at first for another try, then for good."""
        slot, rescuer, experiment_id = self._free(letter), self._free(letter, other), self._new_row()
        for _ in range(MAX_ATTEMPTS + 1):
            self.flush(slot, wanted=Wanted(1, ids=(experiment_id,), early=True))
            [key] = [key for key in slot.known if key[0] == experiment_id][-1:]
            self._rescued(slot, rescuer)
            self.lose_answer(slot, [Sent(key, end=Ending("done"))], None, landed=landed)
            self.settle(slot)

    @rule(letter=LETTERS, other=OTHERS, plan=PLANS, lost=st.booleans())
    def a_paused_row_is_taken_up_and_lost(self, letter: str, other: int, plan: Plan, lost: bool) -> None:
        """What it had when it was paused stays."""
        slot, rescuer = self._free(letter), self._free(letter, other)
        [key, *_] = self._taken(slot, 1)
        self.flush(slot, [Sent(key, (key[1] * 100.0, "paused"), (1, 2), Ending("paused"))])
        self.flush(rescuer, wanted=Wanted(1, "paused", ids=(key[0],), early=True))
        later = (key[0], key[1] + 1)
        self.flush(rescuer, [Sent(later, (later[1] * 100.0, "on"), (3,))])
        if lost:
            self._rescued(rescuer, slot)
        self.flush(rescuer, [sent_for(later, plan)])

    @rule(
        letter=LETTERS, statuses=st.sampled_from([["running"], ["running", "created"]]), anew=st.booleans(), plan=PLANS
    )
    def a_row_is_reset_under_its_worker(self, letter: str, statuses: list[str], anew: bool, plan: Plan) -> None:
        slot = self._free(letter)
        keys = self._taken(slot, 2)
        self.flush(slot, [Sent(key, (key[1] * 100.0, "before"), (1,)) for key in keys])
        self.reset_or_delete(set(statuses), None, anew=anew)
        self.flush(slot, [sent_for(key, plan) for key in keys], Wanted(3))

    def reset_or_delete(self, statuses: set[str], ids: list[int] | None, *, anew: bool) -> None:
        study = self.world.outside
        rows = [row for row in self.model.chosen(statuses) if ids is None or row.id in ids]
        which = life.selection(study, sorted(statuses), Condition(), ids)
        change = life.reset if anew else life.delete
        assert self.world.do(lambda: change(study, which)) == len(rows)
        self.model.delete(rows)
        self.filled -= {row.number for row in rows}
        self._learn([row.number for row in rows] if anew else [])
        self._check()

    def retry(self, ids: list[int]) -> None:
        study, rows = self.world.outside, [row for row in self.model.chosen(["error"]) if row.id in ids]
        which = life.selection(study, ["error"], Condition(), ids)
        assert self.world.do(lambda: life.retry(study, which)) == len(rows)
        self.model.retry(rows)
        self._check()

    # ------------------------------------------------------------------------------------------- checks

    def _check(self) -> None:
        seen = self.world.look()
        self._compare(seen)
        self._hold_invariants(seen)

    def _compare(self, seen: Seen) -> None:
        rows = [self.model.rows[number] for number in sorted(self.model.rows)]
        assert [as_seen(row) for row in seen.rows] == [as_expected(row) for row in rows]
        assert [row[:4] for row in seen.attempts] == [
            (row.id, attempt, *row.attempts[attempt]) for row in rows for attempt in sorted(row.attempts)
        ]
        assert by_row(seen.lines) == [(row.id, *line) for row in rows for line in row.lines]
        shown = [(row[1], row[-1], row[3]) for row in seen.shown]
        assert by_row(shown) == [(row.id, *line) for row in rows for line in row.shown]
        assert [tuple(row) for row in seen.requests] == [(n, m.requests) for n, m in sorted(self.model.members.items())]

    def _hold_invariants(self, seen: Seen) -> None:
        """I1 to I5 of what the tables hold, whatever the model says; I6 is `settle`'s."""
        assert sorted(row[1] for row in seen.rows) == sorted(self.filled), "I1: a row is lost, or is there twice"
        ends = {(row[0], row[1]): row for row in seen.attempts}
        for number, _, status, attempt, _, result, _, _, continues, _, _, start, end, _ in seen.rows:
            assert attempt >= self.highest.get(number, 0), "I2: an attempt went back"
            self.highest[number] = attempt
            own = [key for key in ends if key[0] == number]
            running = status in ("running", "done")
            assert len(own) + running == attempt, "I3: an attempt ended twice, or never"
            assert ((number, attempt) in ends) == (not running and attempt > 0), "I3: two ends of one attempt"
            if result is not None and not continues:
                assert int(result) // 100 == attempt, "I3: results of another attempt"
            assert end is None or start is not None, "I4: an end without a start"
            if end is not None:
                assert end >= start, "I4: an end before its start"
            if running and continues != "paused" and attempt > 1:
                assert start >= ends[number, attempt - 1][4], "I5: begun before the attempt before it had ended"


# ------------------------------------------------------------------------------------------------- translation


def sent_for(key: Key, plan: Plan) -> Sent:
    value = None if plan.value is None else (key[1] * 100.0 + plan.value, f"attempt {key[1]}")
    return Sent(key, value, tuple(plan.steps), plan.end)


def units_of(study: Study, sent: Sequence[Sent]) -> list[Unit]:
    return [
        Unit(
            one.key,
            dict(zip(("result", "text"), one.values, strict=True)) if one.values else None,
            [[("steps", (study.now(), step, "note"))] for step in one.steps],
            end_of(one.end) if one.end else None,
        )
        for one in sent
    ]


def end_of(end: Ending) -> End:
    outcome: Any = end.outcome
    if end.retries:
        return End(outcome, end.error, retries=end.retries, retry_delay_seconds=end.delay)
    return End(outcome, end.error, delay_seconds=end.delay)


def ended(flushed: Flushed) -> dict[Key, tuple[str, float]]:
    return {key: (how.outcome, how.delay_seconds) for key, how in flushed.ended.items()}


def key_of(experiment: Experiment) -> Key:
    return int(experiment.id), experiment.id.attempt


def as_seen(row: Row) -> tuple[Any, ...]:
    number, key, status, attempt, worker, result, text, error, continues, counted, asked, start, end, delayed = row
    stamps = start is not None, end is not None, bool(delayed)
    return (number, key, status, attempt, worker, result, text, bool(error), continues, counted, asked, *stamps)


def as_expected(row: Expected) -> tuple[Any, ...]:
    first = (row.id, row.number, row.status, row.attempt, row.worker, row.result, row.text, bool(row.error))
    return (*first, row.continues, row.counted_from, row.asked, row.started, row.ended, row.delayed)


def by_row(lines: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Lines in the order of their experiments, and of each in the order in which they were written."""
    return sorted((tuple(line) for line in lines), key=lambda line: line[0])


@contextmanager
def clock_off_by(seconds: float) -> Iterator[None]:
    """Makes this process's clock wrong, as far as the store reads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncexp.store.study.time", SimpleNamespace(time=lambda: time.time() + seconds))
        yield


# ------------------------------------------------------------------------------------------------------ the test


def chosen_settings(provider: str) -> settings:
    """The same runs each time, unless others are asked for; those are shrunk, too, which takes minutes."""
    random = "TEST_RANDOM" in os.environ
    return settings(
        max_examples=int(os.environ.get("TEST_EXAMPLES", EXAMPLES[provider])),
        stateful_step_count=25,
        derandomize=not random,
        phases=[Phase.generate, Phase.shrink] if random else [Phase.generate],
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def test_the_store_does_what_the_model_does(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(target)
    try:

        class OnThisDatabase(Machine):
            def __init__(self) -> None:
                super().__init__()
                monkeypatch.setattr("asyncexp.rescue.is_gone", lambda pid: pid in self.dead)

        OnThisDatabase.world = world
        run_state_machine_as_test(OnThisDatabase, settings=chosen_settings(target.provider))
    finally:
        world.close()

"""One call of `execute`: claim, run, record, until there is nothing left or it is told to stop.

A run is driven by events: an answered claim, a function that ended, an end that was stored, a timer, a
signal. It is never cancelled from outside: cancelling `execute` is one more way to tell it to stop, so that
no row is left `running` that nobody runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from asyncexp.db.whole import over
from asyncexp.errors import DatabaseConnectionError, DatabaseQueryError, ExperimentLostError
from asyncexp.experiment import Experiment, ExperimentStatus, Failure, StoppedBy, Summary
from asyncexp.fields import clean
from asyncexp.pools.base import (
    Broken,
    Cancelled,
    Handle,
    Job,
    NotBegun,
    Pool,
    Raised,
    Result,
    Returned,
    Strange,
    lineage,
)
from asyncexp.reporting import AttemptReport
from asyncexp.rescue import Look
from asyncexp.store.claim import Wanted
from asyncexp.store.flush import DONE, End, Ended, Key
from asyncexp.store.study import Study
from asyncexp.store.workers import Request
from asyncexp.writer import Claimed, Writer

if TYPE_CHECKING:
    from asyncexp.emissions import Use
    from asyncexp.energy import Energy

ALIKE = 20
"""A run stops when its first so many rows all fail alike."""
RETRY_SLACK_SECONDS = 0.02
"""Added to a retry's delay, for databases whose clock counts milliseconds."""
SHOWN_ERRORS = 20
TELL_SECONDS = 0.05
"""Who is told samples of the progress hears of a change within so long."""
KEPT_FAILURES = 100
LOCKED_SECONDS = 0.02
"""Rows that others have locked are looked for again after so long at first."""
LOOK_SHARE = 10
"""Looking again whether others still run rows waits at least so many times what the last look took."""
LAST_FLUSH_SECONDS = 5.0
"""At least so long a run told to stop waits for a database that is away."""
FORGOTTEN = End(
    "error",
    error="The function ended without awaiting a call on its result processor: write `await` before it. "
    "Nothing of that call was written.",
)


@dataclass(frozen=True, slots=True)
class Options:
    """How a run runs; times in seconds."""

    n_jobs: int
    max_experiments: int
    random_order: bool
    retries: int
    retry_delay: float
    retry_on: frozenset[str] | None
    """Dotted names of classes."""
    max_errors: int | None
    timeout: float | None
    stall_timeout: float | None
    grace: float
    lease: float
    poll_interval: float
    stop_on_outage: bool
    until_finished: bool = False
    """Wait for rows that other workers run, and take over those of dead ones."""


class Host(Protocol):
    """What a run needs of the worker that it belongs to."""

    @property
    def study(self) -> Study: ...
    @property
    def writer(self) -> Writer: ...
    @property
    def logger(self) -> logging.Logger: ...
    @property
    def custom(self) -> Mapping[str, Any]: ...

    live: dict[Key, Live]
    """Every attempt that this worker runs, of all its runs."""
    early: dict[Key, Request]
    """What was asked of attempts that this worker has taken and not begun yet."""
    energy: Energy | None
    """Records what experiments use, if that is wanted."""

    def ended(self, outcome: str) -> None:
        """Counts an end for the worker's totals."""
        ...

    def look(self) -> asyncio.Future[Look]:
        """A look for dead workers' rows."""
        ...

    async def unfinished(self, wanted: Wanted, of: Sequence[int] | None) -> float | None:
        """Whether rows of this selection run in the name of these workers; if None, of any, and open ones count, too.

        The seconds that it took to see; None if there are none.
        """
        ...


@dataclass(eq=False, slots=True)
class Live:
    """One attempt under way."""

    run: Run
    experiment: Experiment
    key: Key
    report: AttemptReport | None = None
    handle: Handle | None = None
    over: bool = False
    last_sign: float = 0.0
    told_to_stop: bool = False
    ending: End | None = None
    """How it is to end, whatever the function makes of its cancellation."""
    forced: bool = False
    """The run is being stopped and has waited long enough."""
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    use: Use | None = None
    began: float | None = None
    """`time.monotonic()` when the function began."""

    @property
    def should_stop(self) -> bool:
        return self.told_to_stop or self.over or self.run.hurries


class Run:
    """One call of `execute` on a worker."""

    def __init__(
        self,
        host: Host,
        function: Callable[..., Any],
        pool: Pool,
        options: Options,
        wanted: Wanted,
        *,
        report: Callable[[Summary], None] | None = None,
    ) -> None:
        self.stopped_by: StoppedBy | None = None
        self.hurries = False
        """What runs should come to an end."""
        self.options = options
        self._host = host
        self._function = function
        self._pool = pool
        self._wanted = wanted
        self._ids = dict.fromkeys(wanted.ids) if wanted.ids is not None else None
        self._report = report
        self._sampled = bool(getattr(report, "sampled", False))
        self._telling = False
        """Whether the next sample is due already."""
        self._left: int | None = None
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._live: dict[Key, Live] = {}
        self._storing = 0
        self._started = 0
        self._counts = dict.fromkeys(("done", "error", "paused", "released", "lost", "retried"), 0)
        self._errors: list[str] = []
        self.failures: deque[Failure] = deque(maxlen=KEPT_FAILURES)
        """The latest."""
        self._first_errors: list[str | None] = []
        self._careful = 0
        """So many more attempts must end well before rows are taken ahead."""
        self._failure: BaseException | None = None
        self._claims: deque[tuple[asyncio.Future[Claimed], int]] = deque()
        """Claims under way, with how many rows each asks for."""
        self._looking: asyncio.Task[float | None] | None = None
        self._look_again_at = 0.0
        self._above = 0
        self._dry_until = 0.0
        self._stirred = False
        """The table changed while a claim was under way, which may not have seen that."""
        self._confirmed_empty = False
        self._locked = 0
        """How often in a row there were rows that could not be taken."""
        self._retries: dict[int, float] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._changed = asyncio.Event()
        self.gave_up = False
        """The database stayed away, and the run ended without it."""
        self.finished = asyncio.Event()
        self.last_id: int | None = None
        """The row started last."""

    # ------------------------------------------------------------------------------------ the course

    async def go(self) -> Summary:
        """Runs to the end.

        Raises:
            DatabaseError: the database refused something that is not the experiments' fault, or stayed away at the
                end with results not yet stored.
        """
        try:
            while not self._step():
                await self._wait()
        finally:
            self._clear_timers()
            self._stop_looking()
            await self._pool.close()
            self._tell_now()
            self.finished.set()
        if self._failure is not None:
            raise self._failure
        return self.summary()

    def summary(self) -> Summary:
        """How it stands now."""
        return Summary(
            **self._counts,
            running=min(len(self._live), self.options.n_jobs),
            left=self._left,
            seconds=time.monotonic() - self._began,
            stopped_by=self.stopped_by,
            errors=tuple(self._errors),
        )

    def left_is(self, open_rows: int, running: int, *, final: bool = False) -> None:
        """How many rows could be taken and how many of the selection run, as just counted."""
        mine = len(self._live)
        most = self.options.max_experiments
        left = open_rows + min(mine, running)
        self._left = left if final or most < 0 else min(left, most - self._started + mine)
        self._tell()

    async def _wait(self) -> None:
        try:
            await self._changed.wait()
        except asyncio.CancelledError:
            # The loop itself is being shut down: the rows go back first.
            self.stop_now("cancelled")
        self._changed.clear()

    def _step(self) -> bool:
        """Does what can be done now; whether the run is over."""
        while self._claims and self._claims[0][0].done():
            self._take_answer(*self._claims.popleft())
        if self._may_claim():
            self._ask()
        return self._is_over()

    def _is_over(self) -> bool:
        if self.gave_up:
            return True
        if self._live or self._storing or self._claims:
            return False
        if self.stopped_by is not None or self._failure is not None or self._allowance() <= 0:
            return True
        return self._confirmed_empty and not self._retries and self._nothing_is_left()

    def _nothing_is_left(self) -> bool:
        """Whether no more rows will come; asked last."""
        if self._loop.time() < self._look_again_at:
            return False
        if self._looking is None:
            self._looking = self._loop.create_task(self._last_look(), name="asyncexp last look")
            self._looking.add_done_callback(self._wake)
        if not self._looking.done():
            return False
        looked, self._looking = self._looking, None
        if looked.cancelled():  # the loop is being shut down, and the run with it
            return False
        if (failure := looked.exception()) is not None:
            self.fail(failure)
            return False
        if wait := looked.result():
            self._look_again_at = self._loop.time() + wait
            self._later(wait, self._wake)
            return False
        if wait is None and not self._look_again_at:
            return True
        # Rows came back, or may have: those waited for no longer run, and maybe somebody else took them back.
        self._look_again_at = self._dry_until = 0.0
        self._confirmed_empty = False
        return False

    def _stop_looking(self) -> None:
        """What was seen, or is looked for, is of the past."""
        self._look_again_at = 0.0
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def _last_look(self) -> float | None:
        """Seconds after which to look again, 0 if there are rows to claim now; None: there will be none."""
        wanted = replace(self._wanted, ids=None if self._ids is None else tuple(self._ids))
        if await self._host.writer.any_left(wanted):
            # Mostly another worker's claim is under way; somebody may hold them locked for longer, too.
            self._locked += 1
            longest = min(self.options.poll_interval, LOCKED_SECONDS * 2.0 ** min(self._locked, 20))
            await asyncio.sleep(longest * random.uniform(0.5, 1.0))
            return 0.0
        look = await self._host.look()
        if look.rescued:
            return 0.0
        finished = self.options.until_finished
        if not finished and look.again_in is None:
            return None
        if (took := await self._host.unfinished(wanted, None if finished else look.in_question)) is None:
            return None
        if finished:
            return max(LOOK_SHARE * took, self.options.poll_interval * random.uniform(0.8, 1.2))
        return look.again_in

    # ---------------------------------------------------------------------------------------- claims

    def _allowance(self) -> int:
        most = self.options.max_experiments
        return self._room() if most < 0 else most - self._started

    def _room(self) -> int:
        """How many attempts may be under way. Not one more than run, lately after failures: many may end the run."""
        return self.options.n_jobs + (0 if self._careful else self._pool.ahead)

    def _free(self) -> int:
        return min(self._room() - len(self._live), self._allowance()) - sum(asked for _, asked in self._claims)

    def _worth_asking(self) -> bool:
        """Whether rows are needed now, or enough of them soon."""
        free = self._free()
        return free > 0 and (free >= self._pool.ahead or not self._provided)

    @property
    def _provided(self) -> bool:
        """Whether every slot has something to do, so that ends and claims can wait for results to go with."""
        return self.stopped_by is None and len(self._live) >= self.options.n_jobs

    @property
    def _most_claims(self) -> int:
        """A second claim goes with the next flush while the first is on its way, unless it could want the same rows."""
        return 2 if self._ids is None and self._wanted.add is None else 1

    def _may_claim(self) -> bool:
        if self.stopped_by is not None or self._failure is not None:
            return False
        if len(self._claims) >= self._most_claims or not self._worth_asking():
            return False
        now = self._loop.time()
        self._drop_due_retries(now)
        if now >= self._dry_until:
            return True
        idle = not self._live and not self._storing
        return idle and not self._retries and not self._confirmed_empty

    def _drop_due_retries(self, now: float) -> None:
        due = [experiment_id for experiment_id, when in self._retries.items() if when <= now]
        for experiment_id in due:
            del self._retries[experiment_id]
            self._dry_until = 0.0

    def _ask(self) -> None:
        asked = self._free()
        wanted = replace(
            self._wanted,
            count=asked,
            ids=None if self._ids is None else tuple(self._ids),
            above=self._above,
            random_from=os.urandom(16) if self.options.random_order else None,
        )
        self._stirred = False
        claim = self._host.writer.claim(wanted, now=not self._provided)
        self._claims.append((claim, asked))
        claim.add_done_callback(self._wake)

    def _take_answer(self, claim: asyncio.Future[Claimed], asked: int) -> None:
        if claim.cancelled():
            return
        if (failure := claim.exception()) is not None:
            self.fail(failure)
            return
        rows = claim.result()
        if rows is None:
            return
        if self.stopped_by is not None:
            self._give_back(rows)
            return
        idle = not self._live and not self._storing
        for row in rows:
            self._start(row)
        if len(rows) < asked:
            self._run_dry(idle and not rows)
        else:
            self._dry_until = 0.0

    def _give_back(self, rows: Iterable[Experiment]) -> None:
        """Rows that came when no more were wanted."""
        for row in rows:
            self._storing += 1
            self._host.writer.end((int(row.id), row.id.attempt), End("released"), self._given_back)

    def _given_back(self, _: Ended | None, failure: Exception | None) -> None:
        self._storing -= 1
        self._wake()
        if failure is not None and not isinstance(failure, ExperimentLostError):
            self.fail(failure)

    def _run_dry(self, empty: bool) -> None:
        """Nothing more to take for now: the next look is a poll interval away, or when something happens."""
        self._above = 0
        if self._stirred:
            return
        self._confirmed_empty = empty and not self._retries
        wait = self.options.poll_interval * random.uniform(0.8, 1.2)
        self._dry_until = self._loop.time() + wait
        self._later(wait, self._wake)

    def woken(self) -> None:
        """The table changed: look again."""
        self._stirred = True
        if self._dry_until:
            self._dry_until = 0.0
            self._wake()

    # ------------------------------------------------------------------------------------- functions

    def _start(self, experiment: Experiment) -> None:
        key = (int(experiment.id), experiment.id.attempt)
        self._started += 1
        self.last_id = key[0]
        self._confirmed_empty = False
        self._locked = 0
        self._stop_looking()
        self._retries.pop(key[0], None)
        if self._wanted.add is not None or self._wanted.early:
            # That was the one row asked for; another try of it is taken as any other.
            self._wanted = replace(self._wanted, add=None, early=False)
            self._ids = {}
        if self._ids is not None and not self.options.until_finished:
            self._ids.pop(key[0], None)
        if not self.options.random_order:
            self._above = max(self._above, key[0])
        live = Live(self, experiment, key, last_sign=time.monotonic())
        live.report = AttemptReport(experiment.id, live, self._host.study, self._host.writer)
        self._live[key] = self._host.live[key] = live
        if self._host.energy is not None:
            live.use = self._host.energy.use(key)
        job = Job(self._function, experiment.id, experiment.keyfields, self._host.custom, live.report, live.use)
        live.handle = self._pool.start(job, partial(self._begun, live), partial(self._function_ended, live))
        if self._host.early and (request := self._host.early.pop(key, None)) is not None:
            self.asked(request, live)
        self._tell()

    def _begun(self, live: Live) -> None:
        """The function begins now: time counts from here."""
        live.last_sign = live.began = time.monotonic()
        if live.use is not None:
            live.use.begin()
        if (seconds := self.options.timeout) is not None:
            text = f"TimeoutError: the experiment ran longer than its timeout of {seconds:g} s"
            live.timers.append(self._loop.call_later(seconds, self._overdue, live, text))
        if (seconds := self.options.stall_timeout) is not None:
            live.timers.append(self._loop.call_later(seconds, self._look_for_stall, live, seconds))

    def _look_for_stall(self, live: Live, seconds: float) -> None:
        quiet = time.monotonic() - live.last_sign
        if quiet >= seconds:
            text = f"TimeoutError: no sign from the experiment for its stall_timeout of {seconds:g} s"
            self._overdue(live, text)
        else:
            live.timers.append(self._loop.call_later(seconds - quiet, self._look_for_stall, live, seconds))

    def stalled(self, seconds: float, what: str) -> End | None:
        """How attempts are to end if this loop has been blocked for so long by that, which cannot be interrupted."""
        limit = self.options.stall_timeout
        if limit is None or seconds < limit:
            return None
        text = f"TimeoutError: no sign from the experiment for its stall_timeout of {limit:g} s"
        return self._error(f"{text}: the event loop was blocked by {what}", lineage(TimeoutError))

    def ended_elsewhere(self, live: Live, end: End, ended: Ended) -> None:
        """The row was ended for us while this loop was blocked."""
        if live.over:
            return
        if live.report is not None:
            live.report.close()
        handle = self._drop(live)
        self._host.writer.forget(live.key)
        if handle is not None:
            handle.cancel()
            handle.abandon()
        self._ended(live, ended, end.error, end)
        self._wake()

    def _overdue(self, live: Live, text: str) -> None:
        self.end_early(live, self._error(text, lineage(TimeoutError)), wait_for_thread=False)

    def _error(self, text: str, kinds: Sequence[str]) -> End:
        """An end as `error`, or another try if there are any left for an exception with these classes."""
        tries = self.options.retries
        if self.options.retry_on is not None and not self.options.retry_on.intersection(kinds):
            tries = 0
        return End("error", error=clean(text), retries=tries, retry_delay_seconds=self.options.retry_delay)

    def end_early(self, live: Live, ending: End, *, wait_for_thread: bool) -> None:
        """Ends an attempt that still runs: a task by cancelling it, a thread by asking and then leaving it."""
        if live.over or live.ending is not None or live.handle is None:
            return
        live.ending = ending
        live.told_to_stop = True
        if live.handle.killable or wait_for_thread:
            live.handle.cancel()
            live.timers.append(self._loop.call_later(self.options.grace, self._abandon, live))
        else:
            self._abandon(live)

    def _abandon(self, live: Live) -> None:
        """Ends the row of a function that will not end; it goes on, and nothing it sends is taken."""
        if live.over or live.handle is None:
            return
        live.handle.abandon()
        what = "swallowed its cancellation" if live.handle.killable else "runs in a thread, which cannot be ended"
        self._host.logger.warning(
            "Experiment %s %s: its row ends here, the function lives on and nothing it sends is written.",
            live.key[0],
            what,
        )
        self._close(live, live.ending or End("released"), alike=None)

    def _function_ended(self, live: Live, result: Result) -> None:
        if live.over:
            return
        end = self._judge(live, result)
        self._careful = ALIKE if end.outcome == "error" else max(0, self._careful - 1)
        self._close(live, end, _likeness(result, end))

    def _judge(self, live: Live, result: Result) -> End:
        if live.ending is not None:
            return live.ending
        if live.forced and not isinstance(result, Returned | Strange):
            return End("released")
        match result:
            case Returned(status, forgotten):
                return FORGOTTEN if forgotten else self._returned(status)
            case Strange(shown, kind):
                allowed = "it may return None or an ExperimentStatus: DONE, ERROR, PAUSED or CREATED"
                return End("error", error=clean(f"The experiment function returned {shown} ({kind}); {allowed}."))
            case Raised(text, kinds):
                return self._error(text, kinds)
            case NotBegun():
                return End("released")
            case Broken(failure):
                self.fail(failure)
                return End("released")
            case Cancelled():
                text = "CancelledError: the function was cancelled, but not by asyncexp"
                return self._error(text, lineage(asyncio.CancelledError))

    def _returned(self, status: ExperimentStatus | None) -> End:
        match status:
            case ExperimentStatus.PAUSED:
                return End("paused")
            case ExperimentStatus.ERROR:
                return End("error")
            case ExperimentStatus.CREATED:
                return End("created", delay_seconds=None if self.stopped_by else self.options.lease)
        return DONE

    def _close(self, live: Live, end: End, alike: str | None) -> None:
        """The function is over for us: its end goes to the database, its slot is free."""
        if live.report is not None:
            live.report.close()
        self._drop(live)
        self._storing += 1
        # Woken before the writer, the run asks for the next row in time for the flush that stores this end.
        self._wake()
        self._host.writer.end(live.key, end, partial(self._stored, live, alike, end), now=not self._provided)

    def _drop(self, live: Live) -> Handle | None:
        """Forgets an attempt; what may still be running of it.

        Its report and handle refer to it: a cycle in each would keep the garbage collector busy, a third of all time.
        """
        handle, live.handle, live.report = live.handle, None, None
        live.over = True
        if live.use is not None:
            live.use.stop()
        for timer in live.timers:
            timer.cancel()
        self._live.pop(live.key, None)
        self._host.live.pop(live.key, None)
        return handle

    def lost(self, live: Live) -> None:
        """The row is no longer this worker's: its function is cancelled and nothing is written."""
        if live.over:
            return
        if (handle := self._drop(live)) is not None:
            # A call under way has just been answered: its caller is to see that answer before the cancellation.
            self._loop.call_soon(handle.cancel)
            handle.abandon()
        self._forget_use(live)
        self._count("lost")
        if self._ids is not None:  # whoever has it may put it back
            self._ids[live.key[0]] = None
        self._wake()

    # ------------------------------------------------------------------------------------- the ends

    def _stored(self, live: Live, alike: str | None, end: End, ended: Ended | None, failure: Exception | None) -> None:
        self._storing -= 1
        self._wake()
        if ended is not None:
            self._ended(live, ended, alike, end)
        elif isinstance(failure, ExperimentLostError):
            self._forget_use(live)
            self._count("lost")
        elif isinstance(failure, DatabaseQueryError) and end.error is not None:
            # The text itself was refused. The row must end all the same.
            self._storing += 1
            plain = End("error", error=f"The error text could not be stored: {type(failure).__name__}")
            self._host.writer.end(live.key, plain, partial(self._stored, live, alike, replace(plain, error=None)))
        elif failure is not None:
            self._forget_use(live)
            self.fail(failure)

    def _forget_use(self, live: Live) -> None:
        """What an attempt used that is no longer this worker's is not written, as all else of it."""
        if live.use is not None:
            live.use.end(kept=False)

    def _ended(self, live: Live, ended: Ended, alike: str | None, end: End) -> None:
        outcome = ended.outcome
        if live.use is not None:
            live.use.end(kept=True)
        if outcome == "retried":
            self._expect_again(live.key[0], ended.delay_seconds + RETRY_SLACK_SECONDS)
        if outcome == "error":
            self._note_error(live, end, alike)
        if outcome == "released":
            self._started -= 1
        self._count("released" if outcome == "created" else outcome)
        if outcome != "retried":
            self._look_for_likeness(alike if outcome == "error" else None)

    def _expect_again(self, experiment_id: int, seconds: float) -> None:
        self._retries[experiment_id] = self._loop.time() + seconds
        self._later(seconds, self._wake)
        self._above = min(self._above, experiment_id - 1)
        if self._ids is not None:
            self._ids[experiment_id] = None

    def _note_error(self, live: Live, end: End, place: str | None) -> None:
        lines = (end.error or "returned ERROR").strip().splitlines()
        line = lines[-1] if lines else ""
        if len(self._errors) < SHOWN_ERRORS:
            self._errors.append(line)
        self.failures.append(Failure(live.key[0], live.key[1], line, place))

    def _count(self, outcome: str) -> None:
        self._counts[outcome] += 1
        if outcome not in ("retried", "lost"):
            self._host.ended(outcome)
        if self._left is not None and outcome not in ("retried", "released"):
            self._left = max(0, self._left - 1)
        self._tell()

    def _tell(self) -> None:
        if self._report is None or self._telling:
            return
        if self._sampled and not self.finished.is_set():
            self._telling = True
            self._later(TELL_SECONDS, self._tell_now)
        else:
            self._tell_now()

    def _tell_now(self) -> None:
        self._telling = False
        if self._report is None:
            return
        try:
            self._report(self.summary())
        except Exception as failure:  # noqa: BLE001  (raised by `go` when every row is back)
            self._report = None
            self.fail(failure)

    def _look_for_likeness(self, alike: str | None) -> None:
        most = self.options.max_errors
        if most is None and len(self._first_errors) < ALIKE:
            self._first_errors.append(alike)
            if len(self._first_errors) == ALIKE and alike is not None and len(set(self._first_errors)) == 1:
                self._too_many_errors(f"the first {ALIKE} experiments all failed alike ({alike})")
        elif most is not None and 0 <= most <= self._counts["error"]:
            self._too_many_errors(f"{self._counts['error']} experiments failed (max_errors={most})")

    def _too_many_errors(self, why: str) -> None:
        if self.stopped_by is None:
            last = self._errors[-1] if self._errors else "no message"
            self._host.logger.error("Stopped: %s. Last error: %s", why, last)
            self.stop("max_errors", limit=False)

    def fail(self, failure: BaseException) -> None:
        """Something that no experiment can help: the run ends and raises."""
        if self._failure is None:
            self._failure = failure
            self.stop_now("stop")

    # -------------------------------------------------------------------------------------- stopping

    def stop(self, by: StoppedBy, *, limit: bool = True) -> None:
        """Claims no more and lets what runs finish: within `grace` seconds, or however long it takes."""
        if self.hurries or (self.stopped_by is not None and not limit):
            return
        self.stopped_by = by
        self._withdraw_claims()
        handles = [live.handle for live in self._live.values() if live.handle is not None]
        for handle in handles:
            handle.withdraw()
        if limit:
            self.hurries = True
            for handle in handles:
                handle.hurry()
            self._later(self.options.grace, self._force)
        self._tell()
        self._wake()

    def _withdraw_claims(self) -> None:
        for claim, _ in self._claims:
            self._host.writer.withdraw(claim)

    def stop_now(self, by: StoppedBy) -> None:
        """Cancels what runs and puts its rows back, without waiting."""
        self.stop(by)
        self._force()

    def signalled(self, name: StoppedBy) -> None:
        """SIGINT or SIGTERM: the first time gracefully, the second time now."""
        if not self.hurries:
            self._host.logger.warning(
                "%s: no more experiments are started; %d finish within %g s, or go back. Once more to stop now.",
                name,
                len(self._live),
                self.options.grace,
            )
            self.stop(name)
        else:
            self._host.logger.warning("%s: stopped now; what runs (%d) is ended and goes back.", name, len(self._live))
            self.stop_now(name)

    def _force(self) -> None:
        for live in list(self._live.values()):
            live.forced = True
            live.told_to_stop = True
            if live.handle is not None and live.handle.killable:
                live.handle.cancel()
                live.timers.append(self._loop.call_later(self.options.grace, self._abandon, live))
            else:
                self._abandon(live)
        self._later(max(self.options.grace, LAST_FLUSH_SECONDS) * 2, self._stop_waiting)
        self._wake()

    def abandon(self) -> None:
        """Its event loop was closed: ends what it left running, before somebody else is given the rows."""
        self._pool.abandon()

    def _stop_waiting(self) -> None:
        """The database stays away: what could not be stored is left for the lease to settle."""
        if self._storing:
            text = (
                f"{self._storing} ends could not be stored because the database is away; their rows stay `running` "
                "until their lease is over."
            )
            self._host.logger.error("%s", text)
            if self._failure is None:
                self._failure = DatabaseConnectionError(text)
        self._withdraw_claims()
        for claim, _ in self._claims:
            claim.cancel()  # rows that it takes yet go back
        self.gave_up = True
        self._wake()

    def asked(self, request: Request, live: Live) -> None:
        """Somebody asked through the table to cancel or release one experiment."""
        if request.kind == "cancel":
            ending = End("error", error=clean(f"cancelled by {request.by}"))
        else:
            ending = End("released", delay_seconds=None if self.stopped_by else self.options.lease)
        self._host.logger.info("Experiment %s: %s asked for by %s", live.key[0], request.kind, request.by)
        self.end_early(live, ending, wait_for_thread=True)

    # ---------------------------------------------------------------------------------------- timers

    def _wake(self, _: object = None) -> None:
        self._changed.set()

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        def due() -> None:
            self._timers.discard(timer)
            call()

        timer = self._loop.call_later(seconds, due)
        self._timers.add(timer)

    def _clear_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


def _likeness(result: Result, end: End) -> str | None:
    """What failures must share to be alike; None for one that the function meant."""
    if isinstance(result, Raised):
        return result.place
    if isinstance(result, Strange):
        return f"returned {result.kind}"
    return end.error


async def supervise(run: Run) -> Summary:
    """Runs it in a task of its own; a cancellation of the caller stops the run and is raised when it is over."""
    task = asyncio.create_task(run.go(), name="asyncexp run")
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        run.stop_now("cancelled")
        await over(task)
        task.exception()  # seen; the caller gets its cancellation
        raise
    return task.result()

"""Running functions in child processes: one a slot, reused; what kills a child costs one experiment."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cloudpickle

from asyncexp.config.models import usable_cores
from asyncexp.errors import InvalidConfigError, PyExperimenterError
from asyncexp.fields import clean
from asyncexp.pools.base import Broken, Cancelled, Done, Handle, Job, NotBegun, Raised, Result, lineage
from asyncexp.pools.channel import Channel, Echo
from asyncexp.pools.child import NO_LINE, Given, Setup
from asyncexp.pools.frames import packed
from asyncexp.pools.wire import pickled
from asyncexp.rescue import is_gone

CLOSE_SECONDS = 5.0
"""How long children may take to end by themselves, when the pool closes or they are replaced."""
DEAF_SECONDS = 0.2
"""A child that closed its line, and has not died by then, is killed."""
END_SECONDS = 10.0
"""How long the process that starts them may take to end."""
AHEAD_SECONDS = 0.02
"""Calls are taken ahead while they usually take less than this, so that each begins within a moment."""
STALE_SECONDS = 0.25
"""A call that was taken ahead and has not begun by then is given back, for others to take."""
LINE_BYTES = 65_536
"""What a child may have sent and its parent not read; then it waits."""
MOST_LOADING = 64
"""As many orders to start a child, with their descriptors, fit into a socket."""
TRIES = 3
"""How many children of one call may die before they could load the function."""
_START = (
    "import sys; sys.path[:] = filter(None, sys.path); import pickle, socket; "
    "link = socket.socket(fileno=int(sys.argv[1])); "
    "size = int.from_bytes(link.recv(8, socket.MSG_WAITALL) or link.close() or sys.exit(), 'big'); "
    "parent, sys.path[:], given = pickle.loads(link.recv(size, socket.MSG_WAITALL)); "
    "from asyncexp.pools import nursery; nursery.run(link, parent, pickle.loads(given))"
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pool's children are like."""

    setup: bytes
    """The first message to each."""
    env: Mapping[str, str | Sequence[str]]
    """Environment variables; of a list each slot has the one at its number."""
    slots: int
    max_calls: int | None
    loading: int
    """How many may load the function at the same time."""
    warn: Callable[[str], None]


class ProcessPool:
    """One child process a slot, started when first needed."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._slots = [_Slot(number) for number in range(plan.slots)]
        self._waiting: deque[_Call] = deque()
        self._nursery: _Nursery | None = None
        self._closing = False
        self._usual: float | None = None
        """Seconds that calls took lately."""
        self._warned: set[tuple[str, str]] = set()
        """(log table or "", column) of which a child has said something."""
        self._loop = asyncio.get_running_loop()

    @property
    def ahead(self) -> int:
        return len(self._slots) if self._usual is not None and self._usual < AHEAD_SECONDS else 0

    def start(self, job: Job, begun: Callable[[], None], done: Done) -> Handle:
        call = _Call(self, job, begun, done)
        self._waiting.append(call)
        self.deal()
        if call.slot is None and self._usual is not None:
            self._loop.call_later(STALE_SECONDS, self._is_stale, call)
        return call

    def _is_stale(self, call: _Call) -> None:
        if call not in self._waiting:
            return
        if any(slot.call is None for slot in self._slots):  # it waits for a child that is still to be started
            self._loop.call_later(STALE_SECONDS, self._is_stale, call)
            return
        self._usual = STALE_SECONDS
        call.withdraw()

    def warn_once(self, place: tuple[str, str], text: str) -> None:
        """Passes on what a child says of a column, unless another one has said it."""
        if place not in self._warned:
            self._warned.add(place)
            self.plan.warn(text)

    def took(self, seconds: float) -> None:
        """Notes how long a call took."""
        self._usual = seconds if self._usual is None else self._usual + (seconds - self._usual) / 8

    def deal(self) -> None:
        """Gives waiting calls to free slots."""
        while self._waiting and not self._closing and (slot := self._free()) is not None:
            call = self._waiting.popleft()
            try:
                child = slot.child = slot.child or self._new_child(slot)
            except OSError as failure:
                self._loop.call_soon(call.end, _no_child(str(failure)))
                continue
            call.slot, slot.call = slot, call
            child.begin(call)

    def _free(self) -> _Slot | None:
        idle = [slot for slot in self._slots if slot.call is None]
        for slot in idle:
            if slot.child is not None and slot.child.ready:
                return slot
        loading = sum(slot.child is not None and not slot.child.loaded for slot in self._slots)
        if loading >= self.plan.loading:
            return None
        return next((slot for slot in idle if slot.child is None), None)

    def _new_child(self, slot: _Slot) -> _Child:
        if self._nursery is None or not self._nursery.alive:
            self._nursery = _Nursery(self.plan)
        return _Child(self, slot, self._nursery)

    def take_back(self, call: _Call) -> bool:
        """Takes back a call that waits; whether it did."""
        if call not in self._waiting:
            return False
        self._waiting.remove(call)
        return True

    def died_young(self, call: _Call, why: str) -> None:
        """A child died before it had loaded the function: another one tries, a few times."""
        call.deaths += 1
        if call.deaths < TRIES and not self._closing:
            self._waiting.appendleft(call)
            return
        call.end(_no_child(why))

    async def close(self) -> None:
        """Lets the children end, kills those that do not, and ends the process that started them."""
        self._closing = True
        for slot in self._slots:
            if slot.child is not None:
                (slot.child.dismiss if slot.call is None else slot.child.kill)()
        if self._nursery is not None:
            await self._nursery.empty(CLOSE_SECONDS)
            await self._nursery.close()

    def abandon(self) -> None:
        self._closing = True
        self._waiting.clear()
        nursery, self._nursery = self._nursery, None
        for slot in self._slots:
            slot.child = slot.call = None
        if nursery is not None:
            nursery.abandon()


def _no_child(why: str) -> Broken:
    hint = "Look at the limits of this account and process (`ulimit -a`), and at n_jobs."
    return Broken(PyExperimenterError(f"No child process could be started: {why}. {hint}"))


def planned(
    function: Callable[..., Any],
    custom: Mapping[str, Any],
    fields: tuple[dict[str, Any], dict[str, Any], int],
    *,
    slots: int,
    env: Mapping[str, str | Sequence[str]],
    max_calls: int | None,
    warn: Callable[[str], None],
) -> Plan:
    """How to run this function in child processes.

    Args:
        fields: types of the resultfields, of the log tables' columns, and the bytes that the server takes in one value.

    Raises:
        InvalidConfigError: the function cannot be sent to another process.
    """
    function_bytes, sources = pickled(function)
    setup = packed(("order", Setup(function_bytes, cloudpickle.dumps(dict(custom)), sources, *fields)))
    loading = min(max(2, usable_cores()), MOST_LOADING)
    return Plan(setup, env, slots, max_calls, loading, warn)


# -------------------------------------------------------------------------------------------- calls


@dataclass(eq=False, slots=True)
class _Slot:
    number: int
    child: _Child | None = None
    call: _Call | None = None


class _Call:
    """One call; waits for a slot, then runs in a child."""

    killable = True

    def __init__(self, pool: ProcessPool, job: Job, begun: Callable[[], None], done: Done) -> None:
        self.job = job
        self._begun = begun
        self.slot: _Slot | None = None
        self.cancelled = False
        self.hurried = False
        self.deaths = 0
        """Children that died before they could begin it."""
        self._pool = pool
        self._over = False
        self._done: Done | None = done
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    def begin(self) -> None:
        """The function is called."""
        self._began = self._loop.time()
        if self.job.use is not None and self.slot is not None and self.slot.child is not None:
            self.job.use.runs_in(self.slot.child)
        self._begun()

    def end(self, result: Result) -> None:
        self._over = True
        if self.slot is not None:
            self._pool.took(self._loop.time() - self._began)
        self._free_slot()
        done, self._done = self._done, None
        if done is not None:
            done(result)

    def _free_slot(self) -> None:
        if self.slot is not None and self.slot.call is self:
            self.slot.call = None

    def cancel(self) -> None:
        if self.cancelled or self._over:
            return
        self.cancelled = True
        if self._pool.take_back(self):
            self._loop.call_soon(self.end, Cancelled())
        elif self.slot is not None and self.slot.child is not None:
            self.slot.child.kill()

    def withdraw(self) -> None:
        if self._pool.take_back(self):
            self._loop.call_soon(self.end, NotBegun())

    def hurry(self) -> None:
        self.hurried = True
        if self.slot is not None and self.slot.child is not None:
            self.slot.child.channel.send("stop")

    def abandon(self) -> None:
        """Its slot is free when its child has died; at once if that was killed and does not die."""
        self._done = None
        if self.cancelled and self.slot is not None and not self._over:
            self.slot.child = None
            self._free_slot()
            self._pool.deal()


# ------------------------------------------------------------------------------------------ children


class _Child:
    """The parent's side of one child process."""

    def __init__(self, pool: ProcessPool, slot: _Slot, nursery: _Nursery) -> None:
        self.loaded = False
        self.loading_cpu = 0.0
        """Seconds of CPU that it took to load the function."""
        self.pid: int | None = None
        self._pool = pool
        self._slot = slot
        self._nursery = nursery
        self._calls = 0
        self._dismissed = False
        self._killed = False
        self._unable = ""
        self._deaf = False
        self.unborn = ""
        """Why it could not be started."""
        self._limit: asyncio.TimerHandle | None = None
        """Until when it may take to end by itself."""
        mine, its, outs = _streams()
        self.channel = Channel(mine, self._got, self._line_ended)
        self._echoes = [Echo(out[0], name) for out, name in zip(outs, ("stdout", "stderr"), strict=True)]
        env = {name: _dealt(value, slot.number) for name, value in pool.plan.env.items()}
        given = (its.fileno(), *(out[1] for out in outs))
        nursery.fork(self, env, given)
        its.close()
        for _, writes in outs:
            os.close(writes)
        self.channel.send_packed(pool.plan.setup)

    @property
    def ready(self) -> bool:
        """Whether it can take a call at once."""
        return self.loaded and not self._dismissed and not self._killed

    def begin(self, call: _Call) -> None:
        self._calls += 1
        job = call.job
        label = f"[{int(job.experiment_id)}] " if self._pool.plan.slots > 1 else ""
        for echo in self._echoes:
            echo.label = label
            echo.last.clear()
        self.channel.send("order", (dict(job.keyfields), job.experiment_id))
        if call.hurried:
            self.channel.send("stop")
        if self.loaded:
            call.begin()

    def kill(self) -> None:
        """Kills its whole process group; its call ends when it is dead."""
        self._killed = True
        self._nursery.kill(self)

    def dismiss(self) -> None:
        """Lets it end by itself, for a while: a thread that the function left behind may keep it."""
        self._dismissed = True
        self.channel.send("order", None)
        self._limit = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._nursery.kill, self)

    # ------------------------------------------------------------------------------------- messages

    def _got(self, message: tuple[Any, ...]) -> None:
        kind, *what = message
        try:
            getattr(self, f"_on_{kind}")(*what)
        except Exception as failure:  # noqa: BLE001  (an event loop would log it, and the run would wait for ever)
            self.kill()
            if (call := self._slot.call) is not None:
                call.end(Broken(failure))

    def _on_loaded(self, cpu_seconds: float) -> None:
        self.loaded = True
        self.loading_cpu = cpu_seconds
        if self._slot.call is not None and self._slot.child is self:
            self._slot.call.begin()
        self._pool.deal()

    def _on_unable(self, text: str) -> None:
        self._unable = text

    def _on_results(self, number: int, fields: dict[str, Any], size: int) -> None:
        self._answer(number, lambda call: call.job.report.canonical_results(fields, size))

    def _on_flush(self, number: int) -> None:
        self._answer(number, lambda call: call.job.report.flush())

    def _on_logs(self, lines: Sequence[Any], size: int) -> None:
        if (call := self._slot.call) is not None:
            with suppress(PyExperimenterError):  # lost: its child is being killed
                room = call.job.report.canonical_logs(lines, size)
                if room is not None:
                    self.channel.pause()
                    asyncio.ensure_future(room).add_done_callback(lambda _: self.channel.resume())

    def _on_heartbeat(self, progress: float | None, message: str | None) -> None:
        if (call := self._slot.call) is not None:
            with suppress(PyExperimenterError):
                call.job.report.sign()
                call.job.report.heartbeat(progress, message)

    def _on_warn(self, place: tuple[str, str], text: str) -> None:
        self._pool.warn_once(place, text)

    def _on_end(self, result: Result, cpu_seconds: float) -> None:
        for echo in self._echoes:
            echo.drain()
        call = self._slot.call
        if self._has_had_its_day():
            self.dismiss()
            self._slot.child = None
        if call is not None:
            if call.job.use is not None:
                call.job.use.cpu = cpu_seconds
            call.end(result)
        self._pool.deal()

    def _has_had_its_day(self) -> bool:
        most = self._pool.plan.max_calls
        spoilt = any(echo.ended for echo in self._echoes)
        return spoilt or (most is not None and self._calls >= most)

    def _answer(self, number: int, ask: Callable[[_Call], Any]) -> None:
        call = self._slot.call
        if call is None:
            return
        try:
            call.job.report.alive()
            told = asyncio.ensure_future(ask(call))
        except PyExperimenterError as failure:
            self.channel.send("answer", number, (type(failure).__name__, str(failure)))
            return
        told.add_done_callback(partial(self._told, number))

    def _told(self, number: int, told: asyncio.Future[None]) -> None:
        if told.cancelled():
            return
        failure = told.exception()
        self.channel.send("answer", number, None if failure is None else (type(failure).__name__, str(failure)))

    def _line_ended(self) -> None:
        """It is dying, and the nursery will say how; or it closed what it had open, and can no longer be heard."""
        if not self._dismissed:
            self._limit = asyncio.get_running_loop().call_later(DEAF_SECONDS, self._kill_deaf)

    def _kill_deaf(self) -> None:
        self._deaf = self.pid is None or not is_gone(self.pid)  # on a busy machine the news of a death takes longer
        self._nursery.kill(self)

    # ----------------------------------------------------------------------------------------- death

    def died(self, status: int | None) -> None:
        """It is dead and buried; None: nobody knows how."""
        self.channel.drain()
        self.channel.close()
        if self._limit is not None:
            self._limit.cancel()
        for echo in self._echoes:
            echo.drain()
            echo.close()
        if self._slot.child is not self:
            return
        self._slot.child = None
        call = self._slot.call
        if call is not None:
            self._end(call, status)
        self._pool.deal()

    def abandon(self) -> None:
        """It is dead, and so is the event loop."""
        self.channel.close()
        for echo in self._echoes:
            echo.drain()
            echo.close()

    def _end(self, call: _Call, status: int | None) -> None:
        if call.cancelled or self._killed:
            call.end(Cancelled())
        elif self._unable:
            call.end(Broken(InvalidConfigError(_unable(self._unable))))
        elif not self.loaded:
            call.slot = self._slot.call = None
            self._pool.died_young(call, self.unborn or _manner(status))
        else:
            call.end(self._obituary(status))

    def _obituary(self, status: int | None) -> Raised:
        manner = _manner(NO_LINE if self._deaf else status)
        lines = [f"ChildProcessError: the child process died before the function returned: {manner}"]
        said = list(self._echoes[1].last)
        if said:
            lines = ["The last that it wrote to its standard error:", *said, "", *lines]
        return Raised(clean("\n".join(lines)), lineage(ChildProcessError), f"ChildProcessError {manner}")


def _streams() -> tuple[socket.socket, socket.socket, list[tuple[int, int]]]:
    """Both ends of a line, and of pipes for two streams; all or nothing."""
    with ExitStack() as undo:
        mine, its = map(undo.enter_context, socket.socketpair())
        its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINE_BYTES)
        outs = []
        for _ in range(2):
            outs.append(os.pipe())
            for end in outs[-1]:
                undo.callback(os.close, end)
        undo.pop_all()
    return mine, its, outs


def _dealt(value: str | Sequence[str], number: int) -> str:
    return value if isinstance(value, str) else value[number % len(value)]


def _unable(text: str) -> str:
    return f"A child process could not load experiment_function; no row was run. There it raised:\n{text}"


_HINTS = {
    signal.SIGKILL: "by somebody, or by the kernel for want of memory",
    signal.SIGSEGV: "a segmentation fault, an error in compiled code",
    signal.SIGABRT: "compiled code gave up",
}


def _manner(status: int | None) -> str:
    if status is None:
        return "together with the process that starts children"
    if status == NO_LINE:
        return "it had closed the connection to its parent (os.closerange, say), and was ended"
    if status >= 0:
        return f"exit code {status} (os._exit, or compiled code that ended the process)"
    try:
        known = signal.Signals(-status)
    except ValueError:
        return f"killed by signal {-status}"
    hint = f" ({_HINTS[known]})" if known in _HINTS else ""
    return f"killed by {known.name}{hint}"


# ------------------------------------------------------------------------------------------- nursery


@dataclass(eq=False)
class _Nursery:
    """The parent's side of the process that starts children; see `asyncexp.pools.nursery`."""

    plan: Plan
    alive: bool = True
    _children: dict[int, _Child] = field(default_factory=dict)
    _names: int = 0

    def __post_init__(self) -> None:
        mine, its = socket.socketpair()
        with its, ExitStack() as undo:
            undo.callback(mine.close)
            self._process = _started(its, self.plan.env)
            undo.pop_all()
        hello = pickle.dumps((os.getpid(), sys.path, pickle.dumps(_given())))
        mine.sendall(len(hello).to_bytes(8, "big") + hello)
        self._changed = asyncio.Event()
        self._channel = Channel(mine, self._got, self._ended)

    def fork(self, child: _Child, env: dict[str, str], descriptors: tuple[int, ...]) -> None:
        self._names += 1
        self._children[self._names] = child
        self._channel.send_packed(packed(("fork", self._names, env)), descriptors)

    def kill(self, child: _Child) -> None:
        for name, known in self._children.items():
            if known is child:
                self._channel.send("kill", name)

    def _got(self, message: tuple[Any, ...]) -> None:
        match message:
            case ("forked", name, pid):
                self._children[name].pid = pid
            case ("dead", name, status):
                self._bury(name, status)
            case ("failed", name, text):
                self.plan.warn(f"No child process could be started: {text}")
                self._children[name].unborn = text
                self._bury(name, None)

    def _bury(self, name: int, status: int | None) -> None:
        child = self._children.pop(name, None)
        if child is not None:
            child.died(status)
        self._changed.set()

    def _ended(self) -> None:
        """It died itself, and its children with it; theirs may be left."""
        self.alive = False
        self._kill_groups()
        manner = _manner(self._process.wait())
        for name, child in list(self._children.items()):
            child.unborn = f"the process that starts them died: {manner}"
            self._bury(name, None)
        self._changed.set()

    def _kill_groups(self) -> None:
        for child in self._children.values():
            if child.pid is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)

    async def empty(self, limit_seconds: float) -> None:
        """Returns when all children are dead, or have had their time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                while self._children and self.alive:
                    self._changed.clear()
                    await self._changed.wait()

    async def close(self) -> None:
        """Ends it, and with it what children are left."""
        if self.alive:
            self._channel.send("end")
            overdue = asyncio.get_running_loop().call_later(END_SECONDS, self._process.kill)
            while self.alive:
                self._changed.clear()
                await self._changed.wait()
            overdue.cancel()

    def abandon(self) -> None:
        """Ends it and all children, without the event loop; returns when they are dead."""
        if self.alive:
            self.alive = False
            self._channel.hang_up()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._kill_groups()
                self._process.wait()
        for child in self._children.values():
            child.abandon()
        self._children.clear()


def _started(link: socket.socket, env: Mapping[str, str | Sequence[str]]) -> subprocess.Popen[bytes]:
    uniform = {name: value for name, value in env.items() if isinstance(value, str)}
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    # Not one of the first three, which the process has for itself.
    descriptor = fcntl.fcntl(link, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        return subprocess.Popen(  # noqa: S603  (this interpreter, our own words)
            [sys.executable, *flags, "-c", _START, str(descriptor)],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, **uniform},
        )
    finally:
        os.close(descriptor)


def _given() -> Given:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    facts = {name: getattr(main, name) for name in ("__file__", "__package__", "__doc__") if hasattr(main, name)}
    return Given(list(sys.path), list(sys.argv), {**facts, "__spec__": getattr(spec, "name", None)})

"""What runs in a child process: the user's function, and a line to the parent that stores what it reports.

It has no driver, no configuration and no credentials: names and values are checked here, by the columns'
types, and go to the parent as plain values.
"""

from __future__ import annotations

import asyncio
import faulthandler
import importlib.machinery
import io
import itertools
import linecache
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

from asyncexp import errors
from asyncexp.errors import ExperimentLostError, PyExperimenterError
from asyncexp.experiment import ExperimentId
from asyncexp.fields import Fields, LogRows, clean, fraction
from asyncexp.pools.base import Cancelled, Result, is_async, own, raised, returned
from asyncexp.pools.frames import first, packed
from asyncexp.results import ResultProcessor, Send, SyncResultProcessor
from asyncexp.values import ColumnType, encoder
from asyncexp.waiting import LOOK_SECONDS, Once

CHUNK = 65536
NO_LINE = 123
"""Exit code of a child that cannot speak to its parent any more."""

Refusal = tuple[str, str] | None
"""Class of `asyncexp.errors` and message; None if all went well."""


@dataclass(frozen=True, slots=True)
class Given:
    """What all children of a pool have in common with their parent."""

    path: list[str]
    """`sys.path`."""
    argv: list[str]
    main: dict[str, Any]
    """`__name__` of its spec, `__file__`, `__package__` of the parent's `__main__`."""


@dataclass(frozen=True, slots=True)
class Birth:
    """What one child is born with."""

    descriptor: int
    """Its socket."""
    env: dict[str, str]


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a child: the function, and what it may report."""

    function: bytes
    """By cloudpickle."""
    custom: bytes
    sources: dict[str, list[str]]
    """Source lines of what the function was defined in, if that is no file."""
    results: dict[str, ColumnType]
    logs: dict[str, dict[str, ColumnType]]
    most: int
    """Bytes that the server takes in one value."""


def live(birth: Birth, given: Given) -> None:
    """A child's life: one call after the other, until the parent says that it is enough."""
    os.environ.update(birth.env)
    _dress_up(given)
    line = Line(socket.socket(fileno=birth.descriptor))
    _leave_stopping_to_the_parent(line)
    setup: Setup = line.wait()
    worker = _loaded(line, setup)
    if worker is None:
        return
    try:
        while (call := line.wait()) is not None:
            worker.run(*call)
    except OSError:  # the parent is gone, or the function closed the line
        os._exit(NO_LINE)
    worker.close()


def _dress_up(given: Given) -> None:
    """Makes `__main__`, arguments and output look like the user's own."""
    sys.path[:] = given.path
    sys.argv[:] = given.argv
    sys.modules["__main__"] = _main_module(given.main)
    sys.stdout = sys.stderr = None
    _open_output()
    faulthandler.enable(file=2)


_STOPPING: Mapping[signal.Signals, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}


def _leave_stopping_to_the_parent(line: Line) -> None:
    """Signals that reach every process of a job (SLURM and systemd send such) are a word of warning here.

    The parent has heard it, too, and gives experiments their time. What an experiment forks answers as usual.
    """

    def heard(*_: object) -> None:
        line.told_to_stop = True

    # A forked process forgets signals that come before it is whole: they have to wait.
    def before() -> None:
        held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)

    def after() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, held.mask)

    def born() -> None:
        for number, usual in _STOPPING.items():
            if signal.getsignal(number) is heard:
                signal.signal(number, usual)
        after()

    held = threading.local()
    for number in _STOPPING:
        signal.signal(number, heard)
    os.register_at_fork(before=before, after_in_parent=after, after_in_child=born)


def _open_output() -> None:
    """Whole lines to the parent; once more if an experiment has closed them."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if (stream := getattr(sys, name)) is None or getattr(stream, "closed", False):
            setattr(sys, name, _line_by_line(descriptor))


def _line_by_line(descriptor: int) -> TextIO:
    # The streams that the nursery has were made for what it itself writes to, a file perhaps.
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _main_module(facts: Mapping[str, Any]) -> types.ModuleType:
    main = types.ModuleType("__main__")
    main.__dict__.update(facts, __builtins__=__builtins__)
    # What `multiprocessing` needs of a spec, to start processes by spawn and forkserver.
    name = facts.get("__spec__")
    main.__spec__ = None if name is None else importlib.machinery.ModuleSpec(name, None)
    return main


def _loaded(line: Line, setup: Setup) -> Worker | None:
    for name, lines in setup.sources.items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
    try:
        unpickler = _Unpickler(io.BytesIO(setup.function))
        function = unpickler.load()
        custom = pickle.loads(setup.custom)  # noqa: S301  (from the parent)
        _show_in_main(unpickler.made)
    except BaseException as failure:  # noqa: BLE001  (also what an import of the user's raises)
        line.send(("unable", clean("".join(traceback.format_exception(failure)))))
        return None
    worker = Worker(line, function, custom, _fields(line, setup))
    line.send(("loaded", _cpu_seconds()))
    return worker


def _fields(line: Line, setup: Setup) -> Fields:
    def encode(table: str, name: str, kind: ColumnType) -> Callable[[object], Any]:
        return encoder(kind, warn=lambda text: line.send(("warn", (table, name), f"{name}: {text}")))

    return Fields(
        {name: encode("", name, kind) for name, kind in setup.results.items()},
        {
            table: {name: encode(table, name, kind) for name, kind in kinds.items()}
            for table, kinds in setup.logs.items()
        },
        lambda: setup.most,
    )


class _Unpickler(pickle.Unpickler):
    """Remembers the functions and classes that came by value: all of the user's script that the function needs."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.made: list[Any] = []

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return self._noting(found) if module.startswith("cloudpickle") and name.startswith("_make_") else found

    def _noting(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any) -> Any:
            made = make(*arguments)
            self.made.append(made)
            return made

        return noted


def _show_in_main(made: list[Any]) -> None:
    """Lets functions and classes of the user's script be found in `__main__`, where pickle looks for them."""
    main = sys.modules["__main__"].__dict__
    own = [each for each in made if isinstance(each, types.FunctionType | type) and each.__module__ == "__main__"]
    for each in own:
        for name, value in getattr(each, "__globals__", {}).items():
            main.setdefault(name, value)
    for each in own:
        if each.__qualname__.isidentifier():
            main.setdefault(each.__qualname__, each)


# ------------------------------------------------------------------------------------------ the line


class Line:
    """The stream to the parent, for any thread of the child; whoever waits for an answer reads for all.

    A signal's handler that raises may end any of its calls: nothing is torn apart by that, and no lock stays taken.
    Python looks for signals after a call and where a loop begins again, nowhere else. So what belongs together is
    one call, `extend` with `map` for instance, or statements without any; and what one leaves half-done, the next
    that comes finishes.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.pid = os.getpid()
        self.told_to_stop = False
        self.sending = threading.Lock()
        self._unsent = bytearray()
        self._sent: list[int] = []
        """Bytes of `_unsent` that are sent."""
        self._reading = threading.Lock()
        self._come: list[bytes] = []
        """Read, and not yet in `_held`."""
        self._held = bytearray()
        self._waiting: list[Once] = []
        """Of those who wait while another reads."""
        self._answers: dict[int, Refusal] = {}
        self._orders: list[Any] = []
        self._numbers = itertools.count()
        self._awaited: dict[int, asyncio.Future[None]] = {}

    def send(self, message: Any, allowed: Callable[[], None] | None = None) -> None:
        """Sends a message, unless `allowed` raises when its turn has come."""
        data = packed(message)
        with self.sending:
            if allowed is not None:
                allowed()
            self._unsent += data
            while self._unsent:
                if not self._sent:
                    self._sent.extend(map(self.sock.send, (self._unsent,)))
                del self._unsent[: self._sent[0]]
                del self._sent[0]

    async def ask_now(self, allowed: Callable[[], None], kind: str, *what: Any) -> None:
        """Sends and waits for the answer, without an event loop; raises what the parent says."""
        number = next(self._numbers)
        self.send((kind, number, *what), allowed)
        while number not in self._answers:
            self._read_or_wait(lambda: number in self._answers)
        if (refusal := self._answers.pop(number)) is not None:
            raise _error(refusal)

    def ask_later(self, allowed: Callable[[], None], kind: str, *what: Any) -> asyncio.Future[None]:
        """The same on an event loop that calls `look_again` when something has come."""
        number = next(self._numbers)
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._awaited[number] = told
        self.send((kind, number, *what), allowed)
        return told

    def wait(self) -> Any:
        """The next order of the parent's."""
        while not self._orders:
            self._read_or_wait(lambda: bool(self._orders))
        order = self._orders[0]
        del self._orders[0]
        return order

    def _read_or_wait(self, satisfied: Callable[[], bool]) -> None:
        def take() -> None:
            if not satisfied():
                self._take(0)

        once = Once()
        self._waiting.append(once)
        if not self._read(take) and not satisfied():
            once.wait_at_most(LOOK_SECONDS)

    def look(self) -> None:
        """Takes what has come, without waiting."""
        self._read(self._take_all)

    def look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        """The same; once more on the loop if it is interrupted, for what was read is not announced a second time."""
        try:
            self.look()
        except BaseException:
            loop.call_soon(self.look)
            raise

    def _take_all(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self._take(socket.MSG_DONTWAIT)

    def _read(self, take: Callable[[], object]) -> bool:
        """Reads, unless somebody else does: whether it did."""
        mine: list[bool] = []
        try:
            mine.extend(map(self._reading.acquire, (False,)))
            if mine[0]:
                take()
        finally:
            if mine and mine[0]:
                self._reading.release()
        if mine[0]:
            self._wake_others()
        return mine[0]

    def _wake_others(self) -> None:
        while self._waiting:
            with suppress(IndexError):  # another one wakes them, too
                self._waiting.pop().set()

    def _take(self, flags: int) -> None:
        """Takes what has come; waits if nothing has, unless the flags forbid it."""
        if not self._come and first(self._held) is None:
            self._come.extend(map(self.sock.recv, (CHUNK,), (flags,)))
        if self._come:
            if not self._come[0]:  # the parent closed the line: nothing that is done here matters to anybody
                os._exit(0)
            self._held += self._come[0]
            del self._come[0]
        while (found := first(self._held)) is not None:
            message, end = found
            match message:
                case ("answer", number, answer):
                    self._answered(number, answer)
                case ("stop",):
                    self.told_to_stop = True
                case ("order", order):
                    self.told_to_stop = False
                    self._orders += (order,)
            del self._held[:end]

    def _answered(self, number: int, refusal: Refusal) -> None:
        told = self._awaited.get(number)
        if told is None:
            self._answers[number] = refusal
            return
        if told.done():  # its caller was cancelled
            pass
        elif refusal is None:
            told.set_result(None)
        else:
            told.set_exception(_error(refusal))
        del self._awaited[number]


def _error(refusal: tuple[str, str]) -> Exception:
    name, text = refusal
    kind = getattr(errors, name, PyExperimenterError)
    made: Exception = kind(text)
    return made


# ----------------------------------------------------------------------------------------- reporting


class LineReport:
    """Where what an experiment reports goes from here; a `Report` for its result processor.

    Args:
        ask: sends something and waits for the parent's answer.
    """

    def __init__(
        self, experiment_id: ExperimentId, line: Line, fields: Fields, ask: Callable[..., Awaitable[None]]
    ) -> None:
        self._id = experiment_id
        self._line = line
        self._fields = fields
        self._ask = ask
        self._over = False

    @property
    def should_stop(self) -> bool:
        if not self._line.told_to_stop and not self._over and os.getpid() == self._line.pid:
            self._line.look()
        return self._line.told_to_stop

    def alive(self) -> None:
        if os.getpid() != self._line.pid:
            raise ExperimentLostError(
                "This result processor belongs to the process that the experiment runs in. In another process call "
                "`experimenter.attach(function, experiment_id)`: the function is given a result processor of its own."
            )
        if self._over:
            raise ExperimentLostError(f"Experiment {int(self._id)} has ended; nothing more of it is written.")

    def results(self, results: Mapping[str, Any]) -> Awaitable[None]:
        return self._ask(self.alive, "results", *self._fields.results(results))

    def logs(self, logs: Mapping[str, LogRows]) -> None:
        self._line.send(("logs", *self._fields.lines(logs)), self.alive)

    def heartbeat(self, progress: float | None, message: str | None) -> None:
        given = None if progress is None else fraction(progress)
        self._line.send(("heartbeat", given, None if message is None else str(message)), self.alive)

    def flush(self) -> Awaitable[None]:
        return self._ask(self.alive, "flush")

    def close(self) -> None:
        """Nothing more is sent: a thread that the function left behind must not write into the next experiment."""
        with self._line.sending:
            self._over = True


def _finish(send: Send) -> None:
    """Runs a coroutine that waits for nothing: `Line.ask` has waited already."""
    try:
        send().send(None)
    except StopIteration:
        return
    raise RuntimeError("a call of a plain function waited for an event loop")


# ------------------------------------------------------------------------------------------ the calls


class Worker:
    """Calls the function, once for each order; `async def` on one event loop that lives as long as the child."""

    def __init__(self, line: Line, function: Callable[..., Any], custom: dict[str, Any], fields: Fields) -> None:
        self._line = line
        self._function = function
        self._custom = custom
        self._fields = fields
        self._runner = asyncio.Runner() if is_async(function) else None

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()

    def run(self, keyfields: dict[str, Any], experiment_id: ExperimentId) -> None:
        """One call, and its end told."""
        _open_output()
        ask = self._line.ask_now if self._runner is None else self._line.ask_later
        report = LineReport(experiment_id, self._line, self._fields, ask)
        processor = ResultProcessor(experiment_id, report)
        used = _cpu_seconds()
        result = self._plainly(keyfields, processor) if self._runner is None else self._awaiting(keyfields, processor)
        if os.getpid() != self._line.pid:
            _leave(None)
        report.close()
        _flush()
        self._line.send(("end", result, _cpu_seconds() - used))

    def _plainly(self, keyfields: dict[str, Any], processor: ResultProcessor) -> Result:
        try:
            value = self._function(keyfields, SyncResultProcessor(processor, _finish), own(self._custom))
        except BaseException as failure:  # noqa: BLE001  (sys.exit must end the row, not the child)
            return self._failed(failure)
        return returned(value)

    def _failed(self, failure: BaseException) -> Result:
        if os.getpid() != self._line.pid:
            _leave(failure)
        return raised(failure)

    def _awaiting(self, keyfields: dict[str, Any], processor: ResultProcessor) -> Result:
        assert self._runner is not None
        try:
            value = self._runner.run(self._watched(keyfields, processor))
        except asyncio.CancelledError:
            return Cancelled()
        except BaseException as failure:  # noqa: BLE001
            return self._failed(failure)
        return returned(value, forgotten=processor.unawaited > 0)

    async def _watched(self, keyfields: dict[str, Any], processor: ResultProcessor) -> Any:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._line.sock, self._line.look_again, loop)
        try:
            return await self._function(keyfields, processor, own(self._custom))
        finally:
            loop.remove_reader(self._line.sock)


def _cpu_seconds() -> float:
    """CPU time of this process, and of those of its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _leave(failure: BaseException | None) -> NoReturn:
    """Ends a process that the function forked and that comes back from it: the experiment's end is not its to tell."""
    code = 0 if failure is None else 1
    if isinstance(failure, SystemExit) and (failure.code is None or isinstance(failure.code, int)):
        code = failure.code or 0
    elif failure is not None:
        traceback.print_exception(failure)
    _flush()
    os._exit(code & 255)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # the function closed or replaced it
            stream.flush()

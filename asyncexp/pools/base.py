"""What a pool is: it runs one call of the user's function and says how that ended."""

from __future__ import annotations

import copy
import functools
import inspect
import reprlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from asyncexp.errors import InvalidConfigError
from asyncexp.experiment import ExperimentStatus

if TYPE_CHECKING:
    from asyncexp.emissions import Use
    from asyncexp.experiment import ExperimentId
    from asyncexp.reporting import AttemptReport

RETURNABLE = (ExperimentStatus.DONE, ExperimentStatus.PAUSED, ExperimentStatus.ERROR, ExperimentStatus.CREATED)
_SHOWN = reprlib.Repr()
_SHOWN.maxother = _SHOWN.maxstring = 200
_OWN = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {_OWN})


@dataclass(frozen=True, slots=True)
class Job:
    """One call of the user's function."""

    function: Callable[..., Any]
    experiment_id: ExperimentId
    keyfields: Mapping[str, Any]
    custom: Mapping[str, Any]
    report: AttemptReport
    """Where what the function reports goes, on the event loop."""
    use: Use | None = None
    """Where what it uses of the machine is noted, if it is."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The function returned something that it may return; None stands for DONE."""

    status: ExperimentStatus | None
    forgotten: bool = False
    """A call on its result processor was never awaited."""

    def __reduce__(self) -> tuple[type[Returned], tuple[ExperimentStatus | None, bool]]:
        # One a call goes over a line. The way of dataclasses takes five times as long.
        return Returned, (self.status, self.forgotten)


@dataclass(frozen=True, slots=True)
class Strange:
    """The function returned something else."""

    shown: str
    kind: str


@dataclass(frozen=True, slots=True)
class Raised:
    """The function ended by an exception, or its process died."""

    text: str
    """The whole traceback."""
    lineage: tuple[str, ...]
    """Dotted names of the exception's class and its bases."""
    place: str
    """Type and last frame of the user's code: failures with the same place fail alike."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The function was cancelled and let it happen, or was killed."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The function could not be called at all, and no other one could be: the run is to raise this."""

    failure: Exception


@dataclass(frozen=True, slots=True)
class NotBegun:
    """The call was given back before it began."""


Result = Returned | Strange | Raised | Cancelled | Broken | NotBegun
Done = Callable[[Result], None]
"""Called once, on the event loop."""


class Handle(Protocol):
    """One call under way."""

    killable: bool
    """Whether `cancel` ends it; a thread cannot be ended."""

    def cancel(self) -> None:
        """Asks it to end; its `Done` is still called, when it has."""
        ...

    def withdraw(self) -> None:
        """Gives the call back, as `NotBegun`, unless it has begun."""
        ...

    def hurry(self) -> None:
        """The function should come to an end: `should_stop` has become true."""
        ...

    def abandon(self) -> None:
        """Nobody waits for it any more; whatever it holds is replaced."""
        ...


class Pool(Protocol):
    """Runs calls, any number at once."""

    @property
    def ahead(self) -> int:
        """How many calls it takes beyond those that run, to begin them without waiting for the database."""
        ...

    def start(self, job: Job, begun: Callable[[], None], done: Done) -> Handle:
        """Calls the function as soon as there is room; `begun` is called, once, when it begins."""
        ...

    async def close(self) -> None:
        """Ends what belongs to the pool; calls that cannot be ended are left alone."""
        ...

    def abandon(self) -> None:
        """The same at once, and for calls under way, when the event loop was closed; nobody hears of their ends."""
        ...


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives something to await: `async def`, partials and callable objects of such."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def check_function(what: str, function: object, *arguments: str) -> None:
    """Sees to it that a function can be called with these arguments.

    Raises:
        InvalidConfigError: it cannot; the message says what it takes, and what it is given.
    """
    if not callable(function):
        raise InvalidConfigError(f"{what} is {type(function).__name__}; it must be a function")
    try:
        takes = inspect.signature(function)
        takes.bind(*arguments)
    except TypeError:
        raise InvalidConfigError(f"{what} is called with ({', '.join(arguments)}), but takes {takes}") from None
    except ValueError:  # a built-in that does not tell its parameters
        return


def own(custom: Mapping[str, Any]) -> dict[str, Any]:
    """Custom fields that the function may change."""
    return copy.deepcopy(dict(custom)) if custom else {}


def returned(value: object, *, forgotten: bool = False) -> Returned | Strange:
    """What a function's value means."""
    # A status by its class: an array compares to neither true nor false.
    if value is None or (isinstance(value, ExperimentStatus) and value in RETURNABLE):
        return Returned(value, forgotten)
    return Strange(_SHOWN.repr(value), type(value).__name__)


def raised(failure: BaseException) -> Raised:
    """An exception as text, without the frame of ours that called the function."""
    trace = failure.__traceback__
    shown = trace.tb_next if trace is not None and trace.tb_next is not None else trace
    text = "".join(traceback.format_exception(type(failure), failure, shown))
    return Raised(text, lineage(type(failure)), f"{type(failure).__qualname__} at {_last_frame(trace)}")


def lineage(kind: type) -> tuple[str, ...]:
    """Dotted names of a class and its bases: what can be compared across processes."""
    return tuple(f"{each.__module__}.{each.__qualname__}" for each in kind.__mro__)


def _last_frame(trace: TracebackType | None) -> str:
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace)]
    own = [frame for frame in frames if not _is_library(frame[0])]
    name, line = (own or frames or [("?", 0)])[-1]
    return f"{name}:{line}"


def _is_library(name: str) -> bool:
    return name.startswith(_LIBRARIES) or (name.startswith("<frozen") and "importlib" in sys.modules)

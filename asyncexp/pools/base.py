"""What a pool is: it runs one call of the user's function and says how that ended."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

_OWN = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {_OWN})


@dataclass(frozen=True, slots=True)
class Returned:
    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The function ended by an exception."""

    text: str
    """The whole traceback."""
    type: type[BaseException]
    place: str
    """Type and last frame of the user's code: failures with the same place fail alike."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The function was cancelled and let it happen."""


Result = Returned | Raised | Cancelled
Done = Callable[[Result], None]
"""Called once, on the event loop."""


class Handle(Protocol):
    """One call under way."""

    killable: bool
    """Whether `cancel` ends it; a thread cannot be ended."""

    def cancel(self) -> None:
        """Asks it to end; its `Done` is still called, when it has."""
        ...

    def abandon(self) -> None:
        """Nobody waits for it any more; whatever it holds is replaced."""
        ...


class Pool(Protocol):
    """Runs calls, any number at once."""

    def start(self, function: Callable[..., Any], args: tuple[Any, ...], done: Done) -> Handle: ...

    async def close(self) -> None:
        """Ends what belongs to the pool; calls that cannot be ended are left alone."""
        ...


def raised(failure: BaseException) -> Raised:
    """An exception as text, without the frame of ours that called the function."""
    trace = failure.__traceback__
    shown = trace.tb_next if trace is not None and trace.tb_next is not None else trace
    text = "".join(traceback.format_exception(type(failure), failure, shown))
    return Raised(text, type(failure), f"{type(failure).__qualname__} at {_last_frame(trace)}")


def _last_frame(trace: TracebackType | None) -> str:
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace)]
    own = [frame for frame in frames if not _is_library(frame[0])]
    name, line = (own or frames or [("?", 0)])[-1]
    return f"{name}:{line}"


def _is_library(name: str) -> bool:
    return name.startswith(_LIBRARIES) or (name.startswith("<frozen") and "importlib" in sys.modules)

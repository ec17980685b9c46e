"""Ctrl-C at a chosen point of a call: each point where Python would call a signal's handler is a number."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

_CHECKING = {dis.opmap[name] for name in ("CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME") if name in dis.opmap}
"""After these, Python looks for signals (`CHECK_EVAL_BREAKER` in its source)."""


class _Interruption:
    """A trace function that raises KeyboardInterrupt once, at the n-th point."""

    def __init__(self, number: int) -> None:
        self.raised_at = ""
        self._left = number
        self._last: dict[FrameType, int] = {}
        self._codes: dict[Any, bytes] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> _Interruption:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self._step(frame)
        return self

    def _step(self, frame: FrameType) -> None:
        code = self._codes.setdefault(frame.f_code, frame.f_code.co_code)
        last, self._last[frame] = self._last.get(frame, -1), code[frame.f_lasti]
        if last not in _CHECKING:
            return
        self._left -= 1
        if self._left == 0:
            self.raised_at = f"{frame.f_code.co_qualname}, {frame.f_code.co_filename}:{frame.f_lineno}"
            raise KeyboardInterrupt


def interrupted(call: Callable[[], object], number: int) -> str:
    """Where the call was interrupted; empty if it has no such point.

    Raises:
        AssertionError: the interruption did not come back from the call.
    """
    interruption = _Interruption(number)
    sys.settrace(interruption)
    try:
        call()
    except KeyboardInterrupt:
        return interruption.raised_at
    finally:
        sys.settrace(None)
    assert not interruption.raised_at, f"swallowed: {interruption.raised_at}"
    return ""

"""Messages over a byte stream between a parent and its own children: a length, then a pickle."""

from __future__ import annotations

import pickle
import struct
from typing import Any

_HEAD = struct.Struct("!Q")


def packed(message: Any) -> bytes:
    """A message as bytes."""
    payload = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(len(payload)) + payload


class Frames:
    """Cuts the bytes of a stream into messages, however they arrive."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are complete with these bytes."""
        held = self._held
        held += data
        found: list[Any] = []
        start = 0
        while (each := first(held, start)) is not None:
            message, start = each
            found.append(message)
        if start:
            del held[:start]
        return found


def first(held: bytearray, start: int = 0) -> tuple[Any, int] | None:
    """The message that begins there, and where it ends; None if it is not complete."""
    if len(held) - start < _HEAD.size:
        return None
    (length,) = _HEAD.unpack_from(held, start)
    begin = start + _HEAD.size
    end = begin + length
    if len(held) < end:
        return None
    return pickle.loads(held[begin:end]), end  # noqa: S301  (our own child's, or parent's)

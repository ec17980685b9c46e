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
        while len(held) - start >= _HEAD.size:
            (length,) = _HEAD.unpack_from(held, start)
            end = start + _HEAD.size + length
            if len(held) < end:
                break
            found.append(pickle.loads(held[start + _HEAD.size : end]))  # noqa: S301  (our own child's, or parent's)
            start = end
        if start:
            del held[:start]
        return found

"""The parent's ends of its children's streams, on the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from asyncexp.pools.frames import Frames, packed

CHUNK = 65_536
LINE_BYTES = 65_536
"""A longer line is shown in pieces."""
LAST_LINES = 20


class Channel:
    """Messages to and from one process.

    Args:
        got: called with each message.
        ended: called once, when the other end is closed.
    """

    def __init__(self, sock: socket.socket, got: Callable[[Any], None], ended: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._got = got
        self._ended = ended
        self._frames = Frames()
        self._messages: deque[Any] = deque()
        """Read, not yet passed on."""
        self._unsent = bytearray()
        self._open = True
        self._paused = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    def send(self, *message: Any) -> None:
        self.send_packed(packed(message))

    def send_packed(self, data: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Sends a message that is packed already, with open descriptors for the other process."""
        if not self._open:
            return
        sent = 0
        if not self._unsent:
            with suppress(BlockingIOError, ConnectionError):  # a dead one is heard of by its end
                sent = socket.send_fds(self._sock, [data], descriptors) if descriptors else self._sock.send(data)
        if sent < len(data):
            if not self._unsent:
                self._loop.add_writer(self._sock, self._write)
            self._unsent += data[sent:]

    def _write(self) -> None:
        with suppress(BlockingIOError, ConnectionError):
            del self._unsent[: self._sock.send(self._unsent)]
        if not self._unsent:
            self._loop.remove_writer(self._sock)

    def _read(self) -> bool:
        """Takes what has come; whether there may be more."""
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if not data:
            self.close()
            self._ended()
            return False
        self._messages += self._frames.feed(data)
        self._pass_on()
        return self._open

    def _pass_on(self) -> None:
        while self._messages and not self._paused:
            self._got(self._messages.popleft())

    def drain(self) -> None:
        """Takes all that has come; for a process that is dead and sends no more."""
        while self._open and self._read():
            continue
        while self._messages:
            self._got(self._messages.popleft())

    def pause(self) -> None:
        """Passes nothing on and reads no more until `resume`, so that the other process has to wait when it sends."""
        if self._open and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        if self._open and self._paused:
            self._paused = False
            self._pass_on()
            if self._open and not self._paused:
                self._loop.add_reader(self._sock, self._read)

    def hang_up(self) -> None:
        """Closes it so that the other process sees its end, also if one that was forked here has this end, too."""
        if self._open:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._sock)
                self._loop.remove_writer(self._sock)
            self._sock.close()


class Echo:
    """Shows what a process prints, whole lines, on this process's own output.

    Args:
        name: `stdout` or `stderr`.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        os.set_blocking(descriptor, False)
        self.label = ""
        """Put before each line."""
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._descriptor = descriptor
        self._name = name
        self._held = b""
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read)

    @property
    def ended(self) -> bool:
        """Whether nobody holds the other end any more."""
        return not self._open

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        *lines, self._held = (self._held + data).split(b"\n")
        if len(self._held) > LINE_BYTES:
            lines.append(self._held)
            self._held = b""
        self._show(lines)
        return True

    def _show(self, lines: list[bytes]) -> None:
        # What a progress bar overwrote is left out, as on a terminal.
        texts = [line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace") for line in lines]
        self.last.extend(texts)
        stream: TextIO | None = getattr(sys, self._name)
        if stream is None or not texts:
            return
        try:
            stream.write(_speakable("".join(f"{self.label}{text}\n" for text in texts), stream))
            stream.flush()
        except (OSError, ValueError):  # it is closed, or whoever read it has gone
            return
        except Exception as failure:  # noqa: BLE001  (a stream of the user's; the children's lives go on)
            what = {
                "message": f"What an experiment printed could not be shown on sys.{self._name}",
                "exception": failure,
            }
            self._loop.call_exception_handler(what)

    def drain(self) -> None:
        """Shows all that has come, an unfinished line too."""
        while self._open and self._read():
            continue
        if self._held:
            held, self._held = self._held, b""
            self._show([held])

    def close(self) -> None:
        if self._open:
            self._open = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self.drain()


def _speakable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)

"""Starts `asyncexp` as people and scripts do: with pipes, or on a terminal whose screen can be read."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pyte

from asyncexp import Experimenter

COMMAND = (sys.executable, "-W", "error", "-m", "asyncexp")
PATIENCE_SECONDS = 60.0
_FOREIGN = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "PYTHONPATH", "CI")
"""What the tests' own environment must not decide."""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    root = str(Path(__file__).parents[2])
    return kept | {"TERM": "xterm-256color", "PYTHONPATH": root} | more


class Shell:
    """A folder in which commands are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Terminal] = []

    def run(
        self, *words: str, code: int | None = 0, stdin: str | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs `asyncexp` with pipes and checks its exit code (None: any will do), and that no traceback is shown."""
        done = self.tried(*words, stdin=stdin, **variables)
        told = f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, told
        assert "Traceback" not in done.stderr or "--debug" in words, told
        return done

    def tried(self, *words: str, stdin: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs `asyncexp` with pipes, however it ends."""
        return subprocess.run(
            [*COMMAND, *words],
            cwd=self.folder,
            env=environment(**variables),
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS * 2,
        )

    def json(self, *words: str, code: int | None = 0, **variables: str) -> Any:
        """The one JSON document that a command writes with `--json`."""
        return json.loads(self.run(*words, "--json", code=code, **variables).stdout)

    def experimenter(self, **more: Any) -> Experimenter:
        """One on the study of this folder, for what a test does beside the command."""
        credentials = self.folder / "config" / "database_credentials.yml"
        return Experimenter(
            self.folder / "config" / "experiment_configuration.yml",
            credentials if credentials.exists() else None,
            **{"use_codecarbon": False, "logger_name": "asyncexp-tests", "log_file": None, **more},
        )

    def write(self, name: str, text: str) -> Path:
        """A file in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def terminal(self, *words: str, columns: int = 80, rows: int = 24, **variables: str) -> Terminal:
        """Starts `asyncexp` on a terminal of its own."""
        self._started.append(Terminal([*COMMAND, *words], self.folder, columns, rows, environment(**variables)))
        return self._started[-1]

    def close(self) -> None:
        for terminal in self._started:
            terminal.close()


class Terminal:
    """A program on a terminal; its screen is kept as a person would see it."""

    def __init__(self, command: list[str], folder: Path, columns: int, rows: int, variables: Mapping[str, str]) -> None:
        self.raw = b""
        """All that the program wrote, escape sequences included."""
        self._screen = pyte.HistoryScreen(columns, rows, history=5_000)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = subprocess.Popen(
            command, cwd=folder, env=dict(variables), stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=_take_it
        )
        os.close(theirs)
        self._closed = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._closed:
            try:
                if not select.select([self._ours], [], [], 0.05)[0]:
                    continue
                data = os.read(self._ours, 65536)
            except OSError:
                return
            if not data:
                return
            with self._lock:
                self.raw += data
                self._stream.feed(data)

    def resize(self, columns: int, rows: int) -> None:
        """As by dragging the corner of its window; the program is told."""
        with self._lock:
            gone = max(0, self._screen.lines - rows)
            self._screen.resize(rows, columns)
            self._screen.cursor.y = max(0, self._screen.cursor.y - gone)  # which pyte forgets
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """As by closing its window."""
        self._closed = True
        self._reader.join()
        os.close(self._ours)
        self._ours = -1

    @property
    def lines(self) -> list[str]:
        """What is on the screen now, without blanks at the ends of lines and below the last of them."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display).rstrip().split("\n")

    def cells(self) -> list[list[Any]]:
        """What is on the screen as characters with their colours, line by line, down to the last that is not empty."""
        with self._lock:
            screen = self._screen
            rows = [[screen.buffer[y][x] for x in range(screen.columns)] for y in range(screen.lines)]
        while rows and not "".join(cell.data for cell in rows[-1]).strip():
            rows.pop()
        return rows

    @property
    def all_lines(self) -> list[str]:
        """Also what has scrolled off at the top."""
        with self._lock:
            width = self._screen.columns
            gone = ["".join(line[x].data for x in range(width)).rstrip() for line in self._screen.history.top]
        return gone + self.lines

    @property
    def text(self) -> str:
        return "\n".join(self.all_lines)

    def wait_for(self, words: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Until these words are on the screen."""
        until = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < until, f"{words!r} did not come within {seconds:g} s:\n{self.text}"
            if self.process.poll() is not None:
                self._reader.join(5)
                assert words in self.text, f"it ended with {self.process.returncode} without {words!r}:\n{self.text}"
            time.sleep(0.02)

    def type(self, keys: str) -> None:
        """Types; `"\\x03"` is Ctrl-C."""
        os.write(self._ours, keys.encode())

    def end(self, code: int | None = 0, seconds: float = PATIENCE_SECONDS) -> str:
        """Waits for the program's end and checks its exit code; all that is on the screen and above it."""
        self.process.wait(seconds)
        self._reader.join(5)
        assert code is None or self.process.returncode == code, f"{self.process.returncode}:\n{self.text}"
        return self.text

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            for each in psutil.Process(self.process.pid).children(recursive=True):
                each.kill()
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        if self._ours >= 0:
            os.close(self._ours)


def _take_it() -> None:
    """The terminal becomes the one that controls the program: Ctrl-C reaches it and its children.

    Signals mean what they do to a program that a shell starts on a terminal, whatever the tests themselves ignore.
    """
    for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

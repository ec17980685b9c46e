"""What becomes of what an attempt reports in this process: encoded for the driver, then sent to the writer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from asyncexp.errors import DatabaseQueryError, lost
from asyncexp.experiment import ExperimentId
from asyncexp.fields import Line, LogRows, clean, fraction
from asyncexp.store.flush import Key
from asyncexp.store.study import Study
from asyncexp.writer import Writer

HEARTBEAT_SECONDS = 1.0
"""At most one write of an experiment's heartbeat in this time."""


class Attempt(Protocol):
    """What must be known of the attempt that is reported for."""

    over: bool
    """The attempt has ended or was lost: nothing more is accepted."""
    last_sign: float
    """`time.monotonic()` of the function's last call."""

    @property
    def should_stop(self) -> bool: ...


class AttemptReport:
    """Reports for one attempt through the writer of this process; a `Report` for result processors."""

    progress: float | None = None
    message: str | None = None
    """What the function told last, for whoever looks on here."""

    def __init__(self, experiment_id: ExperimentId, attempt: Attempt, study: Study, writer: Writer) -> None:
        self._id = experiment_id
        self._key: Key = (int(experiment_id), experiment_id.attempt)
        self._attempt = attempt
        self._study = study
        self._writer = writer
        self._heartbeat: dict[str, Any] = {}
        self._heartbeat_due: float = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def should_stop(self) -> bool:
        return self._attempt.should_stop

    def sign(self) -> None:
        """Notes a sign of life; raises if the attempt is over."""
        self._attempt.last_sign = time.monotonic()
        if self._attempt.over:
            raise lost(self._id)

    def alive(self) -> None:
        self.sign()
        if (refused := self._writer.take_error(self._key)) is not None:
            raise DatabaseQueryError(f"The database refused what was sent earlier: {refused}") from refused

    def results(self, results: Mapping[str, Any]) -> Awaitable[None]:
        return self._send(*self._study.fields.results(results))

    def logs(self, logs: Mapping[str, LogRows]) -> Coroutine[Any, Any, None] | None:
        lines, size = self._study.fields.lines(logs, self._study.now())
        if self._writer.crowded:
            return self._writer.log(self._key, lines, size)
        self._writer.log_at_once(self._key, lines, size)
        return None

    def heartbeat(self, progress: float | None, message: str | None) -> None:
        if progress is not None and (given := fraction(progress)) is not None:
            self._heartbeat["_progress"] = self.progress = given
        if message is not None:
            self._heartbeat["_message"] = self.message = clean(str(message))
        self._heartbeat["_heartbeat"] = self._study.now()
        wait = self._heartbeat_due - time.monotonic()
        if wait <= 0:
            self._write_heartbeat()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait, self._write_heartbeat)

    async def flush(self) -> None:
        self._write_heartbeat()
        await self._writer.settled(self._key)
        self.alive()

    def close(self) -> None:
        """Sends a heartbeat that still waits; the attempt is about to end."""
        self._write_heartbeat()

    # ------------------------------------------------------------------- what a child process has checked

    def canonical_results(self, fields: Mapping[str, Any], size: int) -> Awaitable[None]:
        """As `results`, for values in their canonical form."""
        bound = self._study.bound
        return self._send({name: bound(value) for name, value in fields.items()}, size)

    def canonical_logs(self, lines: Sequence[Line], size: int) -> Coroutine[Any, Any, None] | None:
        """As `logs`, for values in their canonical form: taken at once. What to await before the next, if anything."""
        self.sign()
        bound, now = self._study.bound, self._study.now()
        stamped = [(table, (now, *(bound(value) for value in values))) for table, values in lines]
        self._writer.log_at_once(self._key, stamped, size)
        return self._writer.have_room() if self._writer.crowded else None

    # ------------------------------------------------------------------------------------------ sending

    def _send(self, fields: dict[str, Any], size: int) -> Awaitable[None]:
        if self._study.schema.result_timestamps:
            now = self._study.now()
            fields |= {f"{name}_timestamp": now for name in list(fields)}
        return self._writer.send(self._key, fields, size)

    def _write_heartbeat(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heartbeat and not self._attempt.over:
            self._heartbeat_due = time.monotonic() + HEARTBEAT_SECONDS
            self._writer.mention(self._key, self._heartbeat)
            self._heartbeat = {}

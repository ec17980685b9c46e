"""Rows that a command takes: of the table of experiments, of a log table, or of the energy, with their keyfields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from asyncexp.cli import words
from asyncexp.cli.codes import Refused
from asyncexp.cli.place import Place
from asyncexp.errors import MissingLogTableError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from asyncexp.schema import Column, Table
    from asyncexp.values import ColumnType

DURATION = "duration"
"""Not a column, and yet asked for as if it were: seconds from an experiment's start to its end."""
FEW = 500
"""Experiments that are named to the database one by one; of more, all lines are read and sorted out here."""


@dataclass(frozen=True)
class Source:
    """Where the rows are, and which are wanted."""

    place: Place
    log: str | None = None
    """The short name of a log table."""
    energy: bool = False
    where: tuple[str, ...] = ()
    """Of `--where`: of the experiment, and of the log table's own columns."""
    status: tuple[str, ...] = ()
    all_attempts: bool = False

    def __post_init__(self) -> None:
        if self.log is not None and self.energy:
            raise Refused("--log and --energy: one of them")

    @cached_property
    def table(self) -> Table:
        """The table whose rows are wanted.

        Raises:
            MissingLogTableError: there is no such log table.
        """
        schema = self.place.schema
        if self.energy:
            return schema.codecarbon
        if self.log is None:
            return schema.main
        if self.log not in schema.logs:
            raise MissingLogTableError(unknown("--log: no log table", self.log, schema.logs))
        return schema.logs[self.log]

    @property
    def joined(self) -> bool:
        """Whether each row belongs to an experiment, whose keyfields are put beside it."""
        return self.table is not self.place.schema.main

    @cached_property
    def types(self) -> dict[str, ColumnType]:
        """All columns there are, in order."""
        from asyncexp.schema import DOUBLE
        from asyncexp.store.read import shown_type

        own = {column.name: shown_type(column) for column in self.table.columns if column.type != "HASH"}
        if not self.joined:
            return own | {DURATION: DOUBLE} if self._computes_duration else own
        keys = {column.name: shown_type(column) for column in self._keys}
        first = {name: own.pop(name) for name in ("ID", "experiment_id")}
        return first | keys | own

    @property
    def _keys(self) -> list[Column]:
        """The keyfields that stand beside the rows; what the table itself has of that name comes first."""
        own = {column.name for column in self.table.columns}
        return [column for column in self.place.schema.keyfields if column.name not in own]

    @property
    def shown(self) -> list[str]:
        """The columns that are taken when none are named."""
        return [
            name
            for name in self.types
            if not name.startswith("_") and not (name == DURATION and self._computes_duration)
        ]

    @property
    def _computes_duration(self) -> bool:
        """Not of what belongs to experiments, nor where the user has a column of that name."""
        return not self.joined and DURATION not in {column.name for column in self.table.columns}

    def known(self, option: str, texts: Iterable[str] | None) -> list[str]:
        """Names of columns, as `a,b` or one by one.

        Raises:
            Refused: there is no such column.
        """
        found: list[str] = []
        for text in texts or ():
            parts = [text] if text in self.types else [part.strip() for part in text.split(",")]
            found += [self._known(option, part) for part in parts if part]
        return list(dict.fromkeys(found))

    def _known(self, option: str, name: str) -> str:
        if name in self.types:
            return name
        if elsewhere := self._elsewhere(name):
            raise Refused(f"{option}: no column {name!r}; {elsewhere}")
        raise Refused(unknown(f"{option}: no column", name, [each for each in self.types if not each.startswith("_")]))

    def _elsewhere(self, name: str) -> str:
        """Where a column is that is not here."""
        schema = self.place.schema
        for log, table in schema.logs.items():
            if table is not self.table and name in {column.name for column in table.columns}:
                return f"log table {log!r} has it: add --log {log}"
        if self.joined and name in {column.name for column in schema.main.columns}:
            return f"it is one of table {schema.name!r}: leave out --log and --energy"
        if not self.energy and name in {column.name for column in schema.codecarbon.columns}:
            return "it is one of the energy: add --energy"
        return ""

    # ---------------------------------------------------------------------------------------- reading

    async def read(self, columns: Iterable[str]) -> pd.DataFrame:
        """The rows with at least these columns, in the order of their IDs or, of a log table, as written."""
        condition, own = self._conditions()
        async with self.place.open() as experimenter:
            if not self.joined:
                return _with_duration(await experimenter.get_table(condition, columns=self._stored(columns)))
            keys = ["ID", "_attempt", *(column.name for column in self._keys)]
            main = await experimenter.get_table(condition, columns=keys)
            latest = main.pop("_attempt")
            if self.energy:
                found = await experimenter.get_codecarbon_table()
                if not self.all_attempts:
                    found = _of_latest(found, main["ID"], latest)
            else:
                assert self.log is not None
                if condition and len(main) <= FEW:
                    own = {"experiment_id": main["ID"].tolist()} | (own or {})
                found = await experimenter.get_logtable(self.log, own, all_attempts=self.all_attempts)
        how: Literal["inner", "left"] = "left" if condition is None else "inner"
        joined = found.merge(main.rename(columns={"ID": "experiment_id"}), on="experiment_id", how=how)
        return joined[list(self.types)]

    def _stored(self, columns: Iterable[str]) -> list[str]:
        """The columns to read; not only those wanted: of groups that are counted there may be none."""
        wanted = dict.fromkeys(["ID", *columns])
        if DURATION in wanted and self._computes_duration:
            del wanted[DURATION]
            wanted |= dict.fromkeys(["start_date", "end_date"])
        return list(wanted)

    def _conditions(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """On the experiments, and on the lines of a log table."""
        from asyncexp.store.read import log_columns

        own = {column.name: column for column in log_columns(self.table)} if self.log is not None else {}
        own.pop("ID", None)
        lines = [text for text in self.where if text.partition("=")[0].strip() in own]
        rest = [text for text in self.where if text not in lines]
        return self.place.where([*rest, *self._statuses()]), words.where(lines, list(own.values())) if lines else None

    def _statuses(self) -> list[str]:
        from asyncexp.store.study import STATUSES

        names = words.statuses(self.status)
        return [] if set(names) == set(STATUSES) else [f"status={name}" for name in names]


def _of_latest(energy: pd.DataFrame, ids: pd.Series[Any], attempts: pd.Series[Any]) -> pd.DataFrame:
    """Without the rows of attempts that were tried again, or begun anew, since."""
    latest = dict(zip(ids, attempts, strict=True))
    kept = [
        latest.get(id_) == attempt for id_, attempt in zip(energy["experiment_id"], energy["_attempt"], strict=True)
    ]
    return energy[kept]


def _with_duration(main: pd.DataFrame) -> pd.DataFrame:
    dates = [main[name] for name in ("start_date", "end_date") if name in main]
    if DURATION in main or len(dates) < 2 or any(each.dtype.kind != "M" for each in dates):
        return main
    return main.assign(**{DURATION: (dates[1] - dates[0]).dt.total_seconds()})

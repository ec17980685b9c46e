"""Which names of columns and tables are refused, and what is offered instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from asyncexp.config.document import Document, Loc, Problem
from asyncexp.config.models import Column, DatabaseConfig
from asyncexp.errors import InvalidColumnError, InvalidLogtableError

FIXED_COLUMNS = ("ID", "creation_date", "status", "start_date", "name", "machine", "end_date", "error")
FIXED_LOG_COLUMNS = ("ID", "experiment_id", "timestamp")
TABLE_SUFFIXES = ("_codecarbon", "_workers", "_attempts")
MAX_BYTES = 63
"""What PostgreSQL keeps of a name; it cuts longer ones without a word. MySQL's 64 characters are more."""

_ROOT: Loc = ("PY_EXPERIMENTER", "Database")
_TABLE: Loc = (*_ROOT, "table")


def check_names(document: Document, database: DatabaseConfig) -> Iterator[Problem]:
    """Every name that some database would refuse, or that would be in the way of another."""
    yield from _table_names(document, database)
    yield from _main_columns(document, database)
    yield from _log_names(document, database)


def _table_names(document: Document, database: DatabaseConfig) -> Iterator[Problem]:
    name, loc = database.table.name, (*_TABLE, "name")
    for reason, other in _impossible(name):
        yield document.problem(loc, f"the table's name {name!r} {reason}; {_offer(other)}")
    if name.casefold().startswith("sqlite_"):
        yield document.problem(loc, f"the table's name {name!r} begins as SQLite's own; {_offer(name[7:])}")
    longest = max((name + suffix for suffix in TABLE_SUFFIXES), key=_bytes)
    if _bytes(longest) > MAX_BYTES:
        text = f"{name!r} is too long: the table {longest!r} would have a name of over {MAX_BYTES} bytes"
        yield document.problem(loc, f"{text}; {_offer(_shortened(name, _bytes(longest) - _bytes(name)))}")


def _main_columns(document: Document, database: DatabaseConfig) -> Iterator[Problem]:
    table = database.table
    taken = {name.casefold(): f"the column {name!r} of every table" for name in FIXED_COLUMNS}
    for section, names in (
        ("keyfields", [keyfield.name for keyfield in table.keyfields]),
        ("resultfields", [field.name for field in table.resultfields]),
    ):
        for name in names:
            yield from _column(document, (*_TABLE, section, name), name, taken)
    if table.result_timestamps:
        yield from _timestamps(document, table.resultfields, taken)


def _timestamps(document: Document, fields: Iterable[Column], taken: dict[str, str]) -> Iterator[Problem]:
    for field in fields:
        name = f"{field.name}_timestamp"
        loc = (*_TABLE, "resultfields", field.name)
        yield from _column(document, loc, name, taken, of=field.name)


def _column(document: Document, loc: Loc, name: str, taken: dict[str, str], of: str | None = None) -> Iterator[Problem]:
    """`of` is the resultfield whose timestamp this is: it has to change, then."""
    problem = next(_wrong(name, taken), None)
    if problem:
        reason, other = problem
        mend = _offer(_free(other, taken)) if of is None else f"rename {of!r}"
        yield document.problem(
            loc, f"a column cannot be called {name!r}: {reason}; {mend}", InvalidColumnError, key=True
        )
    taken.setdefault(name.casefold(), f"{name!r}, and case does not count")


def _wrong(name: str, taken: dict[str, str]) -> Iterator[tuple[str, str]]:
    yield from (("the name " + reason, other) for reason, other in _impossible(name))
    if name.startswith("_"):
        yield "a leading underscore is for the bookkeeping", name.lstrip("_") or "field"
    if name.casefold() in taken:
        yield f"it would be equal to {taken[name.casefold()]}", name


def _log_names(document: Document, database: DatabaseConfig) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for log in database.logtables:
        loc = (*_ROOT, "logtables", log.name)
        yield from _log_name(document, loc, database.table.name, log.name, seen)
        taken = {name.casefold(): f"the column {name!r} of every log table" for name in FIXED_LOG_COLUMNS}
        for column in log.columns:
            yield from _column(document, (*loc, column.name), column.name, taken)


def _log_name(document: Document, loc: Loc, table: str, name: str, seen: dict[str, str]) -> Iterator[Problem]:
    def problem(text: str, other: str) -> Problem:
        return document.problem(loc, f"{text}; {_offer(other)}", InvalidLogtableError, key=True)

    for reason, other in _impossible(name):
        yield problem(f"the log table's name {name!r} {reason}", other)
    if name.casefold() in seen:
        yield problem(f"the log table {name!r} is {seen[name.casefold()]!r} again: case does not count", f"{name}_2")
    derived = f"{table}__{name}"
    if _bytes(derived) > MAX_BYTES > _bytes(table) + 2:
        text = f"the log table {derived!r} would have a name of over {MAX_BYTES} bytes"
        yield problem(text, _shortened(name, _bytes(table) + 2))
    seen.setdefault(name.casefold(), name)


# ------------------------------------------------------------------------------------- any name


def _impossible(name: str) -> Iterator[tuple[str, str]]:
    """Why no database, or not each of them, can have this name, and one that all can have."""
    clean = "".join(letter for letter in name if letter.isprintable() and ord(letter) <= 0xFFFF).strip()
    if not name.strip():
        yield "is empty", "field"
    elif clean != name:
        yield "holds control characters, blanks at its ends, or characters beyond U+FFFF", clean or "field"
    elif _bytes(name) > MAX_BYTES:
        yield f"is over {MAX_BYTES} bytes long", _shortened(name, 0)


def _bytes(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass"))


def _shortened(name: str, reserved: int) -> str:
    room = max(MAX_BYTES - reserved, 1)
    return name.encode("utf-8", "surrogatepass")[:room].decode("utf-8", "ignore").rstrip("_ ")


def _free(name: str, taken: dict[str, str]) -> str:
    """The name itself, or the first like it that nobody has."""
    candidates = [name, *(f"{name}_{n}" for n in range(2, 1000))]
    return next(other for other in candidates if other.casefold() not in taken and _bytes(other) <= MAX_BYTES)


def _offer(other: str) -> str:
    return f"{other!r} would do"

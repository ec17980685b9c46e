"""From a checked form to the configuration: values in their columns' form, names that every database takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asyncexp.config.document import Document, Loc, Problem, refuse
from asyncexp.config.form import ConfigurationForm, DatabaseForm, KeyfieldForm, TableForm
from asyncexp.config.models import Column, Configuration, DatabaseConfig, Keyfield, LogTable, TableConfig
from asyncexp.config.names import check_names
from asyncexp.config.spelling import misread, no_list
from asyncexp.config.validate import validate
from asyncexp.errors import InvalidConfigError, InvalidValuesInConfiguration
from asyncexp.grid import expand
from asyncexp.values import Canonical, ColumnType, encode, encoder, key_part

KEYFIELDS: Loc = ("PY_EXPERIMENTER", "Database", "table", "keyfields")
_PATHS = ("tls_ca", "tls_cert", "tls_key")


def build(document: Document, path: Path | None, credentials: Path | None) -> Configuration:
    """
    Raises:
        ConfigError: whatever is wrong, one line each, with its place.
    """
    form = validate(ConfigurationForm, document).root
    problems: list[Problem] = []
    database = _database(form.database, document, problems)
    problems.extend(_codecarbon(form.codecarbon, document))
    refuse([*problems, *check_names(document, database)])
    return Configuration(
        path=path,
        credentials=credentials,
        n_jobs=form.n_jobs,
        database=database,
        execution=form.execution,
        custom=form.custom,
        codecarbon=form.codecarbon,
    )


def _codecarbon(given: dict[Any, Any], document: Document) -> Iterator[Problem]:
    if given:
        from asyncexp import emissions  # when first used

        for key, text in emissions.problems(given):
            yield document.problem(("PY_EXPERIMENTER", "CodeCarbon", key), text)


def _database(form: DatabaseForm, document: Document, problems: list[Problem]) -> DatabaseConfig:
    given = {name: getattr(form, name) for name in form.model_fields_set - {"use_ssh", "table", "logtables"}}
    given |= {name: str(_absolute(given[name])) for name in _PATHS if given.get(name)}
    given.setdefault("use_ssh_tunnel", form.use_ssh)
    if form.provider == "sqlite":
        problems.extend(_memory(form, document))
    return DatabaseConfig(
        **given,
        folder=Path.cwd(),
        table=_table(form.table, document, problems),
        logtables=tuple(LogTable(name=name, columns=_columns(types)) for name, types in form.logtables.items()),
    )


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _memory(form: DatabaseForm, document: Document) -> Iterator[Problem]:
    if form.database.startswith(":memory:") or "\0" in form.database:
        text = f"database {form.database!r} is no file: a table must outlive the process; write a name"
        yield document.problem((*KEYFIELDS[:2], "database"), text)


def _table(form: TableForm, document: Document, problems: list[Problem]) -> TableConfig:
    keyfields = []
    for name, keyfield in form.keyfields.items():
        keyfields.append(_keyfield(name, keyfield, document, problems))
    return TableConfig(
        name=form.name,
        keyfields=tuple(keyfields),
        resultfields=_columns(form.resultfields),
        result_timestamps=form.result_timestamps,
    )


def _columns(types: dict[str, ColumnType]) -> tuple[Column, ...]:
    return tuple(Column(name=name, type=column_type) for name, column_type in types.items())


def _keyfield(name: str, form: KeyfieldForm, document: Document, problems: list[Problem]) -> Keyfield:
    loc = (*KEYFIELDS, name)
    has_default = "default" in form.model_fields_set
    return Keyfield(
        name=name,
        type=form.type,
        values=_values(form, document, loc, problems),
        default=_default(form, document, loc, problems) if has_default else None,
        has_default=has_default,
        index=form.index,
    )


def _default(form: KeyfieldForm, document: Document, loc: Loc, problems: list[Problem]) -> Any:
    try:
        _refuse_misread(form.type, form.default, document.written((*loc, "default")))
        canonical = encode(form.type, form.default, key=True)
    except ValueError as error:
        problems.append(document.problem((*loc, "default"), str(error), InvalidConfigError))
        return None
    return form.default if form.type.name == "JSON" else canonical


def _refuse_misread(column_type: ColumnType, value: Any, written: str | None) -> None:
    wrong = misread(column_type, value, written)
    if wrong:
        raise ValueError(wrong)


def _values(form: KeyfieldForm, document: Document, loc: Loc, problems: list[Problem]) -> tuple[Any, ...] | None:
    """The keyfield's values, each once; two are the same if their rows would have the same key."""
    if "values" not in form.model_fields_set:
        return None
    unique: dict[bytes, Any] = {}
    for value, canonical in _encoded(form, document, (*loc, "values"), problems):
        kept = value if form.type.name == "JSON" else canonical
        unique.setdefault(key_part("", form.type, canonical), kept)
    return tuple(unique.values())


def _encoded(
    form: KeyfieldForm, document: Document, loc: Loc, problems: list[Problem]
) -> Iterator[tuple[Any, Canonical]]:
    convert = encoder(form.type, key=True)
    is_list = isinstance(form.values, list)
    for index, value in enumerate(_written(form.values, document, loc, problems)):
        try:
            if is_list:
                _refuse_misread(form.type, value, document.written((*loc, index)))
            yield value, convert(value)
        except ValueError as error:
            problems.append(document.problem((*loc, index), str(error), InvalidValuesInConfiguration))
            if isinstance(form.values, dict):
                return  # the values of a range have one place


def _written(values: Any, document: Document, loc: Loc, problems: list[Problem]) -> Sequence[Any]:
    text = "values is empty; leave it out to fill the rows from code"
    if values not in (None, [], {}) and not isinstance(values, list | dict):
        text = no_list(values, document.written(loc))
    elif values not in (None, [], {}):
        try:
            return expand(_range_numbers(values))
        except InvalidValuesInConfiguration as error:
            text = str(error)
    problems.append(document.problem(loc, text, InvalidValuesInConfiguration))
    return ()


def _range_numbers(values: Any) -> Any:
    """A range's numbers may come as text, from an interpolation."""
    return {key: _number(item) for key, item in values.items()} if isinstance(values, dict) else values


def _number(item: Any) -> Any:
    for kind in (int, float) if isinstance(item, str) else ():
        try:
            return kind(item)
        except ValueError:
            continue
    return item

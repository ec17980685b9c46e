"""The older INI-style `.cfg` files, as the same plain values that the YAML files give."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator, Mapping
from typing import Any

from asyncexp.config.document import Document, Loc, Problem, did_you_mean
from asyncexp.config.yaml_file import scalar
from asyncexp.errors import ConfigError, InvalidColumnError, InvalidLogtableError, InvalidValuesInConfiguration
from asyncexp.grid import MAX_RANGE

_ROOT: Loc = ("PY_EXPERIMENTER",)
_DATABASE: Loc = (*_ROOT, "Database")
_TABLE: Loc = (*_DATABASE, "table")
_SETTINGS: dict[str, Loc] = {
    "n_jobs": (*_ROOT, "n_jobs"),
    "cpu.max": (*_ROOT, "n_jobs"),
    "table": (*_TABLE, "name"),
    "resultfields.timestamps": (*_TABLE, "result_timestamps"),
    "result_timestamps": (*_TABLE, "result_timestamps"),
    **{
        name: (*_DATABASE, name)
        for name in ("provider", "database", "use_ssh_tunnel", "use_ssh", "host", "port", "pgbouncer")
    },
    **{name: (*_DATABASE, name) for name in ("tls", "tls_ca", "tls_cert", "tls_key")},
}
_FIELDS = ("keyfields", "resultfields", "logtables")
_LOGIN: dict[str, Loc] = {
    "host": ("CREDENTIALS", "Connection", "Standard", "server"),
    "port": ("CREDENTIALS", "Connection", "Standard", "port"),
    "user": ("CREDENTIALS", "Database", "user"),
    "password": ("CREDENTIALS", "Database", "password"),
}
_HEADER = re.compile(r"\s*\[(?P<name>[^]]+)\]\s*\Z")
_ASSIGNMENT = re.compile(r"\s*[\w.]+\s*=")
_OPTION = re.compile(r"\s*(?P<key>[^\s=:#;][^=:]*?)\s*[=:][^\S\n]*")
_COMMA = re.compile(r",(?![^(]*\))")
_RANGE = re.compile(r"\s*([-+]?\d+)\s*:\s*([-+]?\d+)\s*(?::\s*([-+]?\d+)\s*)?")
_WHOLE = re.compile(r"\s*(?:int|integer|bigint)\b", re.IGNORECASE)


def is_ini(text: str) -> bool:
    """Whether the first line that says something is a section's header, or `key = value` that lacks one."""
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith(("#", ";")):
            return bool(_HEADER.match(line) or _ASSIGNMENT.match(line))
    return False


def parse_configuration(text: str, file: str) -> Document:
    """
    Raises:
        ConfigError: not INI, an unknown section or key, a field or range that cannot be understood.
    """
    return _Experiment(_Ini(text, file)).document()


def parse_credentials(text: str, file: str) -> Document:
    """
    Raises:
        InvalidConfigError: as `parse_configuration`; no value is in the message.
    """
    ini = _Ini(text, file, secret=True)
    ini.check_sections(["CREDENTIALS"])
    tree = _Tree(ini)
    for key, value in ini.options("CREDENTIALS").items():
        if key.casefold() not in _LOGIN:
            raise ini.error("CREDENTIALS", key, f"unknown key; {did_you_mean(key, list(_LOGIN))}")
        tree.put(_LOGIN[key.casefold()], value, ini.span("CREDENTIALS", key))
    tree.root.setdefault("CREDENTIALS", {})
    return tree.document()


Span = tuple[int, int]
"""Offsets in the text of a key and of its value."""


class _Ini:
    """Sections and options of a text, in any case, and the offset of each."""

    def __init__(self, text: str, file: str, *, secret: bool = False) -> None:
        self.text, self.file, self.secret = text, file, secret
        self._parser = configparser.ConfigParser(default_section="", delimiters=("=", ":"))
        self._parser.optionxform = str  # type: ignore[assignment, method-assign]
        self._read()
        self._names = {name.casefold(): name for name in self._parser.sections()}
        self._spans = dict(self._scan())

    def _read(self) -> None:
        problem = None
        try:
            self._parser.read_string(self.text)
        except configparser.Error as error:
            problem = self._problem(error)
        if problem:  # outside of `except`: the parser's own words quote the line
            raise problem.error()

    def _problem(self, error: configparser.Error) -> Problem:
        line = getattr(error, "lineno", None) or 1
        if isinstance(error, configparser.MissingSectionHeaderError):
            return self.problem_at_line(line, "there must be a [SECTION] before the first `key = value`")
        if isinstance(error, configparser.DuplicateOptionError):
            return self.problem_at_line(line, f"the key{self._called(repr(error.option))} stands here a second time")
        if isinstance(error, configparser.DuplicateSectionError):
            section = self._called(f"[{error.section}]")
            return self.problem_at_line(line, f"the section{section} stands here a second time")
        wrong = error.errors[0][0] if isinstance(error, configparser.ParsingError) else line
        return self.problem_at_line(wrong, "is neither `key = value` nor a [SECTION]")

    def _called(self, words: str) -> str:
        """A word of the file for a message; of a secret file, none."""
        return "" if self.secret else f" {words}"

    def problem_at_line(self, line: int, text: str) -> Problem:
        return Problem(f"{self.file}:{line}:1", text)

    def _scan(self) -> Iterator[tuple[tuple[str, str], Span]]:
        offset, section = 0, ""
        for line in self.text.splitlines(keepends=True):
            header, option = _HEADER.match(line), _OPTION.match(line)
            if header:
                section = header["name"]
                yield (section, ""), (offset + header.start("name") - 1,) * 2
            elif option and self._parser.has_option(section, option["key"]):
                yield (section, option["key"]), (offset + option.start("key"), offset + option.end())
            offset += len(line)

    def check_sections(self, known: list[str]) -> None:
        for folded, name in self._names.items():
            if folded.upper() not in known:
                text = f"unknown section{self._called(f'[{name}]')}; {did_you_mean(name, known)}"
                raise self.error(name, "", text)

    def options(self, section: str) -> dict[str, str]:
        """Keys as written, and values with `%(…)s` resolved."""
        name = self._names.get(section.casefold())
        if name is None:
            return {}
        found: dict[str, str] = {}
        for key in self._parser.options(name):
            if key.casefold() in map(str.casefold, found) and section not in ("CUSTOM", "CODECARBON"):
                text = f"the key{self._called(repr(key))} stands here a second time (case does not count)"
                raise self.error(section, key, text)
            found[key] = self._value(name, key)
        return found

    def _value(self, section: str, key: str) -> str:
        try:
            return self._parser.get(section, key)
        except configparser.InterpolationError:
            text = "holds a % that stands for nothing; a literal % is written %%"
        raise self.error(section, key, text)

    def span(self, section: str, key: str) -> Span:
        name = self._names.get(section.casefold(), section)
        return self._spans.get((name, key), (0, 0))

    def position(self, offset: int) -> tuple[int, int]:
        before = self.text[:offset]
        return before.count("\n") + 1, len(before) - before.rfind("\n")

    def place(self, offset: int) -> str:
        line, column = self.position(offset)
        return f"{self.file}:{line}:{column}"

    def error(self, section: str, key: str, text: str) -> ConfigError:
        return Problem(self.place(self.span(section, key)[0]), text).error()


class _Tree:
    """Plain values being put together, with their offsets."""

    def __init__(self, ini: _Ini) -> None:
        self._ini = ini
        self.root: dict[Any, Any] = {}
        self._spans: dict[Loc, Span] = {}

    def put(self, loc: Loc, value: Any, span: Span) -> None:
        node = self.root
        for step in loc[:-1]:
            node = node.setdefault(step, {})
        node[loc[-1]] = value
        self.mark(loc, span)

    def mark(self, loc: Loc, span: Span) -> None:
        self._spans[loc] = span
        for end in range(1, len(loc)):
            self._spans.setdefault(loc[:end], (span[0], span[0]))

    def document(self) -> Document:
        return Document(self._ini.file, self.root, self._locate, self._ini.secret)

    def _locate(self, loc: Loc, of_key: bool) -> tuple[int, int]:
        for end in range(len(loc), 0, -1):
            if loc[:end] in self._spans:
                return self._ini.position(self._spans[loc[:end]][0 if of_key else 1])
        return 1, 1


class _Experiment:
    """The sections of an experiment configuration, put where YAML has them."""

    def __init__(self, ini: _Ini) -> None:
        self._ini = ini
        self._tree = _Tree(ini)
        self._options: Mapping[str, str] = {}
        self._used: set[str] = set()

    def document(self) -> Document:
        self._ini.check_sections(["PY_EXPERIMENTER", "CUSTOM", "CODECARBON", "EXECUTION"])
        self._options = self._ini.options("PY_EXPERIMENTER")
        self._tree.mark(_TABLE, self._span(""))
        self._settings()
        self._keyfields()
        self._columns("resultfields", (*_TABLE, "resultfields"))
        self._logtables()
        self._refuse_unused()
        self._rest("CUSTOM", "Custom", parsed=False)
        self._rest("CODECARBON", "CodeCarbon", parsed=True)
        self._rest("EXECUTION", "Execution", parsed=True)
        return self._tree.document()

    def _key(self, name: str) -> str | None:
        """The key as it is written in the file, in whatever case."""
        return next((key for key in self._options if key.casefold() == name.casefold()), None)

    def _span(self, key: str) -> Span:
        return self._ini.span("PY_EXPERIMENTER", key)

    def _settings(self) -> None:
        for name, loc in _SETTINGS.items():
            key = self._key(name)
            if key is not None:
                self._used.add(key)
                self._tree.put(loc, self._options[key], self._span(key))

    def _items(self, key: str) -> Iterator[tuple[str, int]]:
        """The parts between commas (outside of brackets) with the offset of each."""
        offset = self._span(key)[1]
        for part in _COMMA.split(self._options[key]):
            item = part.strip()
            if item:
                offset = max(self._ini.text.find(item, offset), offset)
                yield item, offset
                offset += len(item)

    def _columns(self, name: str, loc: Loc, kind: type[ConfigError] = InvalidColumnError) -> None:
        """`a, b:INT` under the key `name`, as a mapping of names to types."""
        key = self._key(name)
        if key is None:
            return
        self._used.add(key)
        self._tree.put(loc, {}, self._span(key))
        seen: set[str] = set()
        for item, offset in self._items(key):
            field, type_name = _field(item)
            self._refuse_twice(field, seen, offset, kind)
            self._tree.put((*loc, field), type_name, (offset, offset))

    def _refuse_twice(self, field: str, seen: set[str], offset: int, kind: type[ConfigError]) -> None:
        if field in seen:
            raise Problem(self._ini.place(offset), f"{field!r} is named here a second time", kind).error()
        seen.add(field)

    def _keyfields(self) -> None:
        loc = (*_TABLE, "keyfields")
        self._columns("keyfields", loc)
        fields = self._tree.root.get(_ROOT[0], {}).get("Database", {}).get("table", {}).get("keyfields", {})
        for field, type_name in list(fields.items()):
            key = self._key(field)
            self._refuse_setting(key, loc, field)
            fields[field] = {"type": type_name}
            if key is not None:
                self._used.add(key)
                self._values((*loc, field, "values"), key, type_name)

    def _refuse_setting(self, key: str | None, loc: Loc, field: str) -> None:
        if key is not None and field.casefold() in (*_SETTINGS, *_FIELDS):
            text = f"a keyfield cannot be called {field!r} in a .cfg file, where this is a setting; use YAML"
            raise self._tree.document().problem((*loc, field), text, InvalidColumnError).error()

    def _values(self, loc: Loc, key: str, type_name: str) -> None:
        values: list[Any] = []
        self._tree.put(loc, values, self._span(key))
        for item, offset in self._items(key):
            span = _RANGE.fullmatch(item) if _WHOLE.match(type_name) else None
            new = self._range(span, offset) if span else [item]
            for index in range(len(values), len(values) + len(new)):
                self._tree.mark((*loc, index), (offset, offset))
            values.extend(new)

    def _range(self, form: re.Match[str], offset: int) -> range:
        """`start:end[:step]` of whole numbers. Unlike in YAML, `end` belongs to it: so these files always did."""
        start, end, step = int(form[1]), int(form[2]), int(form[3] or 1)
        if step == 0 or (end - start) * step < 0 or abs(end - start) // abs(step) > MAX_RANGE:
            text = f"{form[0].strip()} is not a range start:end:step (with `end` included) that makes sense"
            raise Problem(self._ini.place(offset), text, InvalidValuesInConfiguration).error()
        return range(start, end + (1 if step > 0 else -1), step)

    def _logtables(self) -> None:
        """`name:TYPE` is a table of one column of that name, `name:Key` one with the columns listed under `Key`."""
        key = self._key("logtables")
        if key is None:
            return
        self._used.add(key)
        seen: set[str] = set()
        for item, offset in self._items(key):
            name, definition = _field(item)
            self._refuse_twice(name, seen, offset, InvalidLogtableError)
            loc = (*_DATABASE, "logtables", name)
            if self._key(definition) is not None:
                self._columns(definition, loc, InvalidLogtableError)
                self._tree.mark(loc, (offset, offset))
            else:
                self._tree.put((*loc, name), definition, (offset, offset))

    def _refuse_unused(self) -> None:
        known = [*_SETTINGS, *_FIELDS]
        for key in self._options:
            if key not in self._used:
                text = f"unknown key {key!r}, and no keyfield of that name; {did_you_mean(key, known)}"
                raise self._ini.error("PY_EXPERIMENTER", key, text)

    def _rest(self, section: str, name: str, *, parsed: bool) -> None:
        for key, text in self._ini.options(section).items():
            value = self._parsed(section, key, text) if parsed else text
            self._tree.put((*_ROOT, name, key), value, self._ini.span(section, key))

    def _parsed(self, section: str, key: str, text: str) -> Any:
        try:
            return scalar(text)
        except ValueError as error:
            words = str(error)
        raise self._ini.error(section, key, words)


def _field(item: str) -> tuple[str, str]:
    """`name:TYPE`; without a type it is VARCHAR(255)."""
    name, _, type_name = item.partition(":")
    return name.strip(), type_name.strip() or "VARCHAR(255)"

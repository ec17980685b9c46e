"""One codec a column type: the user's value, its canonical form, and what the database gives back."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, ROUND_HALF_UP, Context, Decimal, InvalidOperation
from difflib import get_close_matches
from enum import Enum
from hashlib import blake2b
from math import inf, isfinite, nan
from numbers import Real
from pathlib import PurePath
from sys import maxsize
from types import NoneType
from typing import Any, Literal, NoReturn, Self, cast, get_args

TypeName = Literal[
    "VARCHAR",
    "INT",
    "BIGINT",
    "NUMERIC",
    "DOUBLE",
    "FLOAT",
    "BOOLEAN",
    "DATETIME",
    "TEXT",
    "LONGTEXT",
    "JSON",
]
_SAME = {"INTEGER": "INT", "DECIMAL": "NUMERIC", "REAL": "DOUBLE", "BOOL": "BOOLEAN", "TIMESTAMP": "DATETIME"}
_FORM = re.compile(r"\s*([a-z ]+?)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A column's type as the configuration writes it: `VARCHAR(50)`, `NUMERIC(6,3)`, `int`."""

    name: TypeName
    size: int | None = None
    """Characters of a VARCHAR, digits of a NUMERIC(p,s); None elsewhere."""
    scale: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a type in any case; `VARCHAR` alone is `VARCHAR(255)`.

        Raises:
            ValueError: no such type; the message names the nearest one.
        """
        known = get_args(TypeName)
        form = _FORM.fullmatch(text)
        name = form[1].upper() if form else text.strip().upper()
        name = _SAME.get(name, name)
        if not form or name not in known:
            near = get_close_matches(name, [*known, *_SAME], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known types: {', '.join(known)}"
            raise ValueError(f"unknown type {text!r}; {hint}")
        return cls(cast(TypeName, name), *_sizes(name, form[2], form[3]))

    def __str__(self) -> str:
        sizes = [str(n) for n in (self.size, self.scale) if n is not None]
        return f"{self.name}({','.join(sizes)})" if sizes else self.name


def _sizes(name: str, size: str | None, scale: str | None) -> tuple[int | None, int | None]:
    if name == "VARCHAR":
        return int(size or 255), None
    if name == "NUMERIC" and size:
        return int(size), int(scale or 0)
    return None, None


# ------------------------------------------------------------------------------------ user -> canonical

Canonical = int | float | Decimal | bool | str | datetime | None
Encoder = Callable[[object], Canonical]
_Lack = Callable[[object], Canonical]
"""What becomes of NaN and infinities: NULL and a warning, or a refusal."""
_Convert = Callable[[object, _Lack], Canonical]

_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?", re.IGNORECASE)
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[InvalidOperation])
_BOOLEANS: dict[object, bool] = {0: False, 1: True, "0": False, "1": True, "false": False, "true": True}
_BYTES = (bytes, bytearray, memoryview)
_FIRST_YEAR = 1000  # MySQL has no date before


class _Refused(ValueError):
    """A refusal with a reason of its own."""


class _NotFinite(ValueError):
    """The text spells NaN or an infinity."""


def encoder(type: ColumnType, *, key: bool = False, warn: Callable[[str], None] | None = None) -> Encoder:
    """A function that turns a user's value into the one form that every database stores alike.

    None is NULL. NaN and infinities, also inside JSON, become NULL; the first of them is told to `warn`. In a
    keyfield (`key`) they are refused. The value given is never changed.

    The function raises ValueError for what the column cannot hold: it says what came and what is wanted.
    """
    return _QUICK[type.name](type, _careful(type, _CONVERT[type.name](type), _lacking(key, warn)))


def encode(type: ColumnType, value: object, *, key: bool = False) -> Canonical:
    """One value in its canonical form; see `encoder`."""
    return encoder(type, key=key)(value)


def _careful(type: ColumnType, convert: _Convert, lack: _Lack) -> Encoder:
    def encode(value: object) -> Canonical:
        try:
            plain = _plain(value)
            if plain is None:
                return None
            return lack(value) if _is_not_finite(plain) else convert(plain, lack)
        except _NotFinite:
            return lack(value)
        except _Refused as refusal:
            reason = str(refusal)
        except (TypeError, ValueError, ArithmeticError, LookupError):
            reason = f"wanted is {_wanted(type)}"
        except RecursionError:
            reason = "it is nested too deeply, or contains itself"
        raise ValueError(f"{_short(value)} does not fit {type}: {reason}")

    return encode


def _lacking(key: bool, warn: Callable[[str], None] | None) -> _Lack:
    told = False

    def refuse(value: object) -> Canonical:
        raise _Refused(f"a keyfield cannot be {_short(value)}; write null (None) for a value that is not there")

    def lack(value: object) -> Canonical:
        nonlocal told
        if warn and not told:
            told = True
            warn(f"{_short(value)} is stored as NULL (said once)")
        return None

    return refuse if key else lack


def _is_not_finite(value: object) -> bool:
    if isinstance(value, float):
        return not isfinite(value)
    return isinstance(value, Decimal) and not value.is_finite()


def _short(value: object) -> str:
    """What the value is, in at most 80 characters and its type's name."""
    kind = type(value).__name__
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits ({kind})"
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 80
    text = shown.repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({kind})"


def _wanted(type: ColumnType) -> str:
    if type.name == "VARCHAR":
        return f"a text of at most {type.size} characters"
    if type.name == "NUMERIC" and type.size is not None:
        return f"a number of at most {type.size} digits, {type.scale or 0} of them behind the point"
    return _WANTED[type.name]


_WANTED: dict[str, str] = {
    "INT": f"a whole number from {-(2**31)} to {2**31 - 1}",
    "BIGINT": f"a whole number from {-(2**63)} to {2**63 - 1}",
    "NUMERIC": "a number within the range of 64-bit floats",
    "DOUBLE": "a number within the range of 64-bit floats",
    "FLOAT": "a number within the range of 64-bit floats",
    "BOOLEAN": "true or false, 1 or 0",
    "DATETIME": "a date from the year 1000 on: a datetime, a date, or ISO 8601 text",
    "TEXT": "a text, number, date or path, or a list or dict of them",
    "LONGTEXT": "a text, number, date or path, or a list or dict of them",
    "JSON": "texts, numbers, booleans, dates and paths, in lists and dicts",
}

# ------------------------------------------------------------------- numpy, pandas and enums as Python's own


_OWN = frozenset({NoneType, bool, int, float, str, Decimal, datetime, dict, list, tuple})


def _plain(value: object) -> object:
    """Enum members as their values, numpy's scalars as Python's, what pandas calls missing as NaN."""
    if value.__class__ in _OWN:
        return value
    while isinstance(value, Enum):
        value = value.value
    if _is_missing(value):
        return nan
    if getattr(value, "ndim", None) != 0 or not hasattr(value, "tolist"):
        return value
    found = _unboxed(value)
    return nan if found is None else found


def _is_missing(value: object) -> bool:
    kind = type(value)
    return kind.__name__ in ("NAType", "NaTType") and kind.__module__.startswith("pandas.")


def _unboxed(array: Any) -> object:
    """A scalar or an array of numpy's, or of a library alike, as Python's values and lists."""
    kind = getattr(getattr(array, "dtype", None), "kind", "")
    if type(array).__module__ == "numpy":
        if kind == "m":
            raise _Refused("a time span has no column type; write its seconds")
        if kind == "M":
            array = array.astype("datetime64[us]")  # finer ones would come out as integers
        elif kind == "f":
            array = array.astype(float)  # a longdouble would come out as itself
    return array.tolist()


# -------------------------------------------------------------------------------------------- numbers


def _integer(type: ColumnType) -> _Convert:
    low, high = _bounds(type)

    def convert(value: object, _: _Lack) -> int:
        number: Any = _spelt_whole(value) if isinstance(value, str) else value
        # The range comes first: int() of Decimal("1E+999999999") would not end.
        if low <= number <= high and int(number) == number:
            return int(number)
        raise ValueError

    return convert


def _quick_integer(type: ColumnType, careful: Encoder) -> Encoder:
    low, high = _bounds(type)

    def encode(value: object) -> Canonical:
        if value.__class__ is int and low <= value <= high:
            return value
        return careful(value)

    return encode


def _bounds(type: ColumnType) -> tuple[int, int]:
    bits = 31 if type.name == "INT" else 63
    return -(2**bits), 2**bits - 1


def _spelt_whole(text: str) -> int:
    if not _WHOLE.fullmatch(text.strip()):
        raise ValueError
    return int(text)


def _spelt(text: str) -> str:
    text = text.strip()
    if _NOT_FINITE.fullmatch(text):
        raise _NotFinite
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return text


def _double(value: object, _: _Lack) -> float:
    if not isinstance(value, (str, Real, Decimal)):
        raise TypeError
    number = float(_spelt(value) if isinstance(value, str) else value)
    if not isfinite(number):
        raise OverflowError
    return number + 0.0  # -0.0 becomes 0.0


def _quick_numeric(type: ColumnType, careful: Encoder) -> Encoder:
    convert = _numeric(type)

    def encode(value: object) -> Canonical:
        if value.__class__ is float and -inf < value < inf:
            try:
                return convert(value, careful)
            except InvalidOperation:
                return careful(value)  # which says why
        return careful(value)

    return encode


def _quick_double(_: ColumnType, careful: Encoder) -> Encoder:
    def encode(value: object) -> Canonical:
        if value.__class__ is float and -inf < value < inf:
            return value + 0.0
        return careful(value)

    return encode


def _numeric(type: ColumnType) -> _Convert:
    return _unlimited if type.size is None else _rounded(type.size, type.scale or 0)


def _unlimited(value: object, _: _Lack) -> Decimal:
    number = _decimal(value)
    as_read = float(number)
    if not isfinite(as_read) or (number and not as_read):
        raise OverflowError
    return Decimal(repr(as_read)) if as_read else Decimal(0)  # what is stored, so that the hash is of that


def _rounded(digits: int, scale: int) -> _Convert:
    unit = Decimal(1).scaleb(-scale, _EXACT)
    limit = Context(prec=digits, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[InvalidOperation])

    def convert(value: object, _: _Lack) -> Decimal:
        # ROUND_HALF_UP is half away from zero; quantize refuses what has more digits than `prec`.
        number = _decimal(value).quantize(unit, ROUND_HALF_UP, limit)
        return number or number.copy_abs()

    return convert


def _decimal(value: object) -> Decimal:
    if value.__class__ is float:
        return Decimal(repr(value))
    if isinstance(value, str):
        return Decimal(_spelt(value))
    if isinstance(value, (int, Decimal)):
        return Decimal(value)
    if isinstance(value, Real):
        return Decimal(repr(float(value)))
    raise TypeError


def _boolean(value: object, _: _Lack) -> bool:
    return _BOOLEANS[value.strip().lower() if isinstance(value, str) else value]


def _quick_boolean(_: ColumnType, careful: Encoder) -> Encoder:
    def encode(value: object) -> Canonical:
        return value if value is True or value is False else careful(value)

    return encode


# ----------------------------------------------------------------------------------------------- dates


def _datetime(value: object, _: _Lack) -> datetime:
    found = naive_utc(_moment(value))
    if found.year < _FIRST_YEAR:
        raise _Refused(f"MySQL has no date before the year {_FIRST_YEAR}, and all databases store alike")
    return found


def _moment(value: object) -> datetime:
    if isinstance(value, str):
        return datetime.fromisoformat(value.strip())
    if isinstance(value, datetime):
        # A new one: subclasses (pandas' Timestamp) bring nanoseconds and arithmetic of their own.
        clock = (value.hour, value.minute, value.second, value.microsecond)
        return datetime(value.year, value.month, value.day, *clock, tzinfo=value.tzinfo, fold=value.fold)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)  # noqa: DTZ001
    raise TypeError


def naive_utc(moment: datetime) -> datetime:
    """A datetime in UTC without saying so; a naive one is taken to be UTC already."""
    if moment.utcoffset() is not None:
        moment = moment.astimezone(UTC)
    return moment.replace(tzinfo=None, fold=0)


def _quick_datetime(_: ColumnType, careful: Encoder) -> Encoder:
    def encode(value: object) -> Canonical:
        if value.__class__ is datetime and value.tzinfo is None and value.year >= _FIRST_YEAR:
            return value
        return careful(value)

    return encode


# ----------------------------------------------------------------------------------------------- texts


def _text(type: ColumnType) -> _Convert:
    limit = type.size or maxsize

    def convert(value: object, lack: _Lack) -> str:
        text = _as_text(value, lack)
        if len(text) > limit:
            raise _Refused(f"wanted is {_wanted(type)}, this one has {len(text)}")
        return text

    return convert


def _quick_text(type: ColumnType, careful: Encoder) -> Encoder:
    limit = type.size or maxsize

    def encode(value: object) -> Canonical:
        if value.__class__ is str and value.isascii() and "\0" not in value and len(value) <= limit:
            return value
        return careful(value)

    return encode


def _as_text(value: object, lack: _Lack) -> str:
    if isinstance(value, (bool, Decimal, PurePath)):
        return _storable(str(value))
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value + 0.0)
    found = _json_value(value, lack)
    return found if isinstance(found, str) else _dump(found)


def _storable(text: str) -> str:
    """The text as a plain `str`, if every database takes it."""
    if "\0" in text:
        raise _Refused(
            "a text with a NUL character (\\0) cannot be stored in PostgreSQL, and all databases store alike"
        )
    try:
        text.encode()
    except UnicodeEncodeError as wrong:
        raise _Refused(
            f"the text has half a surrogate pair at position {wrong.start}, which is no character; "
            "decode the bytes that it came from with errors='replace'"
        ) from None
    return str.__str__(text)


# ------------------------------------------------------------------------------------------------ JSON

_dump = json.JSONEncoder(sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode


def _json(value: object, lack: _Lack) -> str:
    return _dump(_json_value(value, lack))


def _json_value(value: object, lack: _Lack) -> object:
    """A copy made of nothing but dict, list, str, int, float, bool and None."""
    kind = value.__class__
    if value is None or kind is int or kind is bool:
        return value
    plain = _plain(value)
    if _is_not_finite(plain):
        return lack(value)
    for kinds, convert in _JSON_FORMS:
        if isinstance(plain, kinds):
            return convert(plain, lack)
    if hasattr(plain, "tolist"):
        return _json_value(_unboxed(plain), lack)
    return _no_json(value, lack)


def _no_json(value: object, _: _Lack) -> NoReturn:
    raise _Refused(f"{_short(value)} has no form in JSON; {_advice(value)}")


def _advice(value: object) -> str:
    if isinstance(value, _BYTES):
        return "decode bytes to text first"
    if isinstance(value, (set, frozenset)):
        return "a set has no order, write sorted(...)"
    return f"wanted are {_WANTED['JSON']}"


def _json_dict(value: Mapping[object, object], lack: _Lack) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, item in value.items():
        name = _json_key(key)
        if name in found:
            raise _Refused(f"two of its keys are both {name!r} as text")
        found[name] = _json_value(item, lack)
    return found


def _json_key(key: object) -> str:
    """A key as text; numbers, booleans and None in JSON's own spelling."""
    plain = _plain(key)
    if isinstance(plain, str):
        return _storable(plain)
    if plain is None or isinstance(plain, (int, float)):
        return json.dumps(plain)
    if isinstance(plain, (PurePath, date, Decimal)):
        return _storable(str(plain))
    raise _Refused(f"the key {_short(key)} has no spelling in JSON")


def _json_list(value: Iterable[object], lack: _Lack) -> list[object]:
    return [_json_value(item, lack) for item in value]


_JSON_FORMS: tuple[tuple[type | tuple[type, ...], Callable[[Any, _Lack], object]], ...] = (
    (str, lambda value, _: _storable(value)),
    (bool, lambda value, _: value),
    (int, lambda value, _: int(value)),
    ((Real, Decimal), _double),
    (Mapping, _json_dict),
    (PurePath, lambda value, _: _storable(str(value))),
    ((date, time), lambda value, _: value.isoformat()),
    (_BYTES, _no_json),
    (Sequence, _json_list),
)


def _no_quick_way(_: ColumnType, careful: Encoder) -> Encoder:
    return careful


_QUICK: dict[str, Callable[[ColumnType, Encoder], Encoder]] = {
    "INT": _quick_integer,
    "BIGINT": _quick_integer,
    "NUMERIC": _quick_numeric,
    "DOUBLE": _quick_double,
    "FLOAT": _quick_double,
    "BOOLEAN": _quick_boolean,
    "DATETIME": _quick_datetime,
    "VARCHAR": _quick_text,
    "TEXT": _quick_text,
    "LONGTEXT": _quick_text,
    "JSON": _no_quick_way,
}
"""Type -> what lets the plain case pass at once and leaves the others to the careful encoder."""
_CONVERT: dict[str, Callable[[ColumnType], _Convert]] = {
    "INT": _integer,
    "BIGINT": _integer,
    "NUMERIC": _numeric,
    "DOUBLE": lambda _: _double,
    "FLOAT": lambda _: _double,
    "BOOLEAN": lambda _: _boolean,
    "DATETIME": lambda _: _datetime,
    "VARCHAR": _text,
    "TEXT": _text,
    "LONGTEXT": _text,
    "JSON": lambda _: _json,
}


# ------------------------------------------------------------------------------------ database -> user

Decoder = Callable[[Any], Any]


def decoder(type: ColumnType) -> Decoder:
    """A function that turns what any of the drivers returns into the user's value.

    INT and BIGINT int; NUMERIC, DOUBLE and FLOAT float; BOOLEAN bool; DATETIME naive UTC; JSON parsed;
    NULL None. What is not of the column's type (SQLite takes anything, and tables made elsewhere hold it)
    comes back as it is stored.
    """
    exact, convert = _DECODE[type.name]

    def decode(raw: Any) -> Any:
        if raw is None or raw.__class__ is exact:
            return raw
        try:
            return convert(raw)
        except (TypeError, ValueError, ArithmeticError):
            return raw

    return decode


def _read_integer(raw: Any) -> Any:
    return whole if (whole := int(raw)) == raw or isinstance(raw, str) else raw


def _read_boolean(raw: Any) -> Any:
    return bool(raw) if raw in (0, 1) else raw


def _read_datetime(raw: Any) -> datetime:
    moment = raw if isinstance(raw, datetime) else datetime.fromisoformat(raw)
    return moment if moment.tzinfo is None else naive_utc(moment)


def _read_text(raw: Any) -> Any:
    return raw.decode() if isinstance(raw, bytes) else raw


def _read_json(raw: Any) -> Any:
    return json.loads(raw) if isinstance(raw, (str, bytes)) else raw


_DECODE: dict[str, tuple[type | None, Decoder]] = {
    "INT": (int, _read_integer),
    "BIGINT": (int, _read_integer),
    "NUMERIC": (float, float),
    "DOUBLE": (float, float),
    "FLOAT": (float, float),
    "BOOLEAN": (bool, _read_boolean),
    "DATETIME": (None, _read_datetime),
    "VARCHAR": (str, _read_text),
    "TEXT": (str, _read_text),
    "LONGTEXT": (str, _read_text),
    "JSON": (None, _read_json),
}
"""Type -> what needs no conversion, and the conversion."""


# -------------------------------------------------------------------------------------------- key hash


def key_order(names: Iterable[str]) -> list[str]:
    """Keyfields in the order in which their parts are hashed: by lower-case name."""
    return sorted(names, key=str.lower)


def key_part(name: str, type: ColumnType, value: Canonical) -> bytes:
    """What a keyfield adds to the key hash: its name in lower case and its typed value.

    Each with its length before it, so that no two different sequences of parts read alike. Types
    that hold the same values (INT and BIGINT, VARCHAR and TEXT) give the same part.
    """
    label = name.lower().encode()
    content = b"-" if value is None else _spell(type, value)
    return b"%d:%b%d:%b" % (len(label), label, len(content), content)


def _spell(type: ColumnType, value: Canonical) -> bytes:
    if isinstance(value, str):
        return (b"j" if type.name == "JSON" else b"s") + value.encode()
    if isinstance(value, Decimal):
        return b"n%b" % str(value.normalize(_EXACT)).encode()
    if isinstance(value, datetime):
        return b"t%b" % value.isoformat(timespec="microseconds").encode()
    return b"%b%a" % (_LETTER[value.__class__], value)


_LETTER: dict[type, bytes] = {bool: b"b", int: b"i", float: b"f"}


def key_hash(parts: Iterable[bytes]) -> bytes:
    """16 bytes that name a row: BLAKE2b over the parts, which come in the order of `key_order`."""
    return blake2b(b"".join(parts), digest_size=16).digest()


def salted(hash: bytes, id: int) -> bytes:
    """Another hash for a row whose key a row with a lower ID holds already."""
    return blake2b(hash + b"#%d" % id, digest_size=16, person=b"duplicate").digest()

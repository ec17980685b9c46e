"""Values that users send and databases differ about; a module of its own, light enough for a child to import."""

from __future__ import annotations

import enum
import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd


class Colour(enum.Enum):
    RED = "red"
    DEEP = 7


LOCAL = timezone(timedelta(hours=5, minutes=30))
ODD: list[tuple[str, Any, Any]] = [
    ("short", "émigré 😀", "émigré 😀"),
    ("short", Colour.RED, "red"),
    ("whole", "12", 12),
    ("whole", 3.0, 3),
    ("whole", True, 1),
    ("whole", np.int8(-3), -3),
    ("whole", Colour.DEEP, 7),
    ("large", np.uint64(2**63 - 1), 2**63 - 1),
    ("large", Decimal(9007199254740993), 9007199254740993),
    ("exact", Decimal("1.00005"), 1.0001),
    ("exact", Decimal("-0.00001"), 0.0),
    ("exact", "2.5", 2.5),
    ("free", Decimal("1e-300"), 1e-300),
    ("free", 1.5, 1.5),
    ("double", 2**63, float(2**63)),
    ("double", -0.0, 0.0),
    ("double", 5e-324, 5e-324),
    ("double", 0.1 + 0.2, 0.1 + 0.2),
    ("double", np.float32(0.5), 0.5),
    ("double", Decimal("0.1"), 0.1),
    ("float", 1.7976931348623157e308, 1.7976931348623157e308),
    ("float", 16777217, 16777217.0),
    ("flag", np.True_, True),
    ("flag", "false", False),
    ("flag", 0, False),
    ("moment", datetime(2024, 5, 6, 7, 8, 9, 123456), datetime(2024, 5, 6, 7, 8, 9, 123456)),
    ("moment", datetime(2024, 5, 6, 7, 8, 9, tzinfo=LOCAL), datetime(2024, 5, 6, 1, 38, 9)),
    ("moment", datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1)),
    ("moment", "2024-05-06T07:08:09+02:00", datetime(2024, 5, 6, 5, 8, 9)),
    ("moment", date(1999, 12, 31), datetime(1999, 12, 31)),
    ("moment", np.datetime64("2024-05-06T07:08:09.5"), datetime(2024, 5, 6, 7, 8, 9, 500000)),
    ("moment", pd.Timestamp("2024-05-06", tz="UTC"), datetime(2024, 5, 6)),
    ("moment", pd.NaT, None),
    ("text", 2**63, "9223372036854775808"),
    ("text", 1.5, "1.5"),
    ("text", Path("/data/x y"), "/data/x y"),
    ("text", {"b": [1, 2.5, None], "a": "ü"}, '{"a":"\\u00fc","b":[1,2.5,null]}'),
    ("text", ["x", 1], '["x",1]'),
    ("text", "", ""),
    ("text", "trailing  ", "trailing  "),
    ("text", "'; DROP TABLE experiments; -- %s :x ?", "'; DROP TABLE experiments; -- %s :x ?"),
    ("text", "back\\slash\\", "back\\slash\\"),
    ("text", "line\r\n\ttab\x1a\x08", "line\r\n\ttab\x1a\x08"),
    ("text", np.str_("numpy"), "numpy"),
    ("data", {"z": 1, "a": [True, None, "x"]}, {"z": 1, "a": [True, None, "x"]}),
    ("data", [1, 2], [1, 2]),
    ("data", "a text", "a text"),
    ("data", 1.0, 1.0),
    ("data", 2**70, 2**70),
    ("data", np.arange(3), [0, 1, 2]),
    (
        "data",
        {"p": PurePosixPath("a/b"), "d": date(2024, 1, 2), "e": Colour.RED},
        {"p": "a/b", "d": "2024-01-02", "e": "red"},
    ),
    ("data", {1: "one", None: 0}, {"1": "one", "null": 0}),
    ("data", {"nan": math.nan, "list": [math.inf]}, {"nan": None, "list": [None]}),
]
"""(column, what is sent, what comes back)."""

REFUSED: list[tuple[str, Any]] = [
    ("short", "123456789"),
    ("short", b"bytes"),
    ("whole", 2**31),
    ("whole", 1.5),
    ("whole", "one"),
    ("large", 2**63),
    ("large", -(2**63) - 1),
    ("large", np.uint64(2**63)),
    ("exact", 10**8),
    ("exact", Decimal("99999999.99995")),
    ("free", Decimal("1e400")),
    ("double", 10**400),
    ("double", "1,5"),
    ("double", [1.0]),
    ("flag", 2),
    ("flag", "perhaps"),
    ("moment", datetime(999, 12, 31)),
    ("moment", "yesterday"),
    ("moment", 1_700_000_000),
    ("text", "a\0b"),
    ("text", "half \ud83d pair"),
    ("text", {"key\0": 1}),
    ("text", object()),
    ("long", {1, 2}),
    ("data", {"x": ["\udc00"]}),
    ("data", {"x": {1, 2}}),
    ("data", b"bytes"),
    ("data", lambda: None),
]
"""(column, what cannot be stored in it)."""

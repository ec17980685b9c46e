"""The older .cfg files."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncexp import config
from asyncexp.config.models import Configuration
from asyncexp.errors import (
    ConfigError,
    InvalidColumnError,
    InvalidConfigError,
    InvalidLogtableError,
    InvalidValuesInConfiguration,
)

WHOLE = """\
# a comment
[PY_EXPERIMENTER]
provider = sqlite
database = study
table = runs

keyfields = dataset, Seed:int, x: NUMERIC(6,3), free:double,
dataset = iris, wine,
    digits
seed = 2:6:2, 9
x = 1.5

n_jobs = 3
use_ssh_tunnel = false

resultfields = pipeline:LONGTEXT, f1:DECIMAL, note
resultfields.timestamps = True

logtables = best:INT, epochs:LogEpochs
LogEpochs = runtime:FLOAT, performance:FLOAT

[CUSTOM]
Path = sample_data
share = 50%%

[codecarbon]
offline_mode = False
measure_power_secs = 25

[EXECUTION]
retries = 2
worker_env = {A: [x, y]}
"""


def load(folder: Path, text: str) -> Configuration:
    (folder / "study.cfg").write_text(text)
    return config.load(folder / "study.cfg", environment={})


def test_every_key_arrives(tmp_path: Path) -> None:
    found = load(tmp_path, WHOLE)
    table = found.database.table
    assert (found.n_jobs, found.database.provider, found.database.database, table.name) == (
        3,
        "sqlite",
        "study",
        "runs",
    )
    assert found.database.use_ssh_tunnel is False
    assert [(k.name, str(k.type), k.values) for k in table.keyfields] == [
        ("dataset", "VARCHAR(255)", ("iris", "wine", "digits")),
        ("Seed", "INT", (2, 4, 6, 9)),
        ("x", "NUMERIC(6,3)", (1.5,)),
        ("free", "DOUBLE", None),
    ]
    assert [(c.name, str(c.type)) for c in table.resultfields] == [
        ("pipeline", "LONGTEXT"),
        ("f1", "NUMERIC"),
        ("note", "VARCHAR(255)"),
    ]
    assert table.result_timestamps
    assert [(log.name, [(c.name, str(c.type)) for c in log.columns]) for log in found.database.logtables] == [
        ("best", [("best", "INT")]),
        ("epochs", [("runtime", "FLOAT"), ("performance", "FLOAT")]),
    ]
    assert found.custom == {"Path": "sample_data", "share": "50%"}
    assert found.codecarbon == {"offline_mode": False, "measure_power_secs": 25}
    assert (found.execution.retries, found.execution.worker_env) == (2, {"A": ("x", "y")})


def test_a_file_is_told_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "study.yml").write_text(WHOLE)
    assert config.load(tmp_path / "study.yml", environment={}).n_jobs == 3
    yaml = "PY_EXPERIMENTER: {Database: {provider: sqlite, database: d, table: {name: t, keyfields: {a: int}}}}"
    assert load(tmp_path, yaml).database.table.name == "t"


def test_the_case_of_sections_and_keys_does_not_count(tmp_path: Path) -> None:
    text = WHOLE.replace("[PY_EXPERIMENTER]", "[py_experimenter]").replace("provider", "Provider")
    assert load(tmp_path, text) == load(tmp_path, WHOLE)


def test_an_indented_file(tmp_path: Path) -> None:
    text = "".join(f"    {line}\n" for line in WHOLE.replace(",\n    digits", ", digits").splitlines())
    assert load(tmp_path, text) == load(tmp_path, WHOLE)


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("1,2,3,2", (1, 2, 3)),
        ("1:3", (1, 2, 3)),
        ("0:10:5, 7", (0, 5, 10, 7)),
        ("3:1:-1", (3, 2, 1)),
        ("-2:0", (-2, -1, 0)),
    ],
)
def test_ranges_here_include_their_end(tmp_path: Path, written: str, values: tuple[int, ...]) -> None:
    found = load(tmp_path, WHOLE.replace("2:6:2, 9", written))
    assert found.database.table.keyfields[1].values == values


def test_a_colon_in_text_is_no_range(tmp_path: Path) -> None:
    found = load(tmp_path, WHOLE.replace("= iris, wine", "= 1:3, wine"))
    assert found.database.table.keyfields[0].values == ("1:3", "wine", "digits")


@pytest.mark.parametrize("name", ["use_ssh", "cpu.max", "result_timestamps"])
def test_other_spellings(tmp_path: Path, name: str) -> None:
    older = {"use_ssh": "use_ssh_tunnel", "cpu.max": "n_jobs", "result_timestamps": "resultfields.timestamps"}
    assert load(tmp_path, WHOLE.replace(f"{older[name]} =", f"{name} =")) == load(tmp_path, WHOLE)


C, V, N, L = InvalidConfigError, InvalidValuesInConfiguration, InvalidColumnError, InvalidLogtableError


@pytest.mark.parametrize(
    ("old", "new", "kind", "place", "said"),
    [
        (
            "provider",
            "provdier",
            C,
            "3:1",
            "unknown key 'provdier', and no keyfield of that name; did you mean 'provider'",
        ),
        ("provider = sqlite", "provider = sqlit", C, "3:12", "did you mean 'sqlite'?"),
        ("provider = sqlite\n", "", C, "2:1", "'provider' is missing"),
        ("[CUSTOM]", "[COSTUM]", C, "22:1", "unknown section [COSTUM]; did you mean 'CUSTOM'?"),
        ("[PY_EXPERIMENTER]\n", "", C, "2:1", "there must be a [SECTION]"),
        ("[CUSTOM]", "[PY_EXPERIMENTER]", C, "22:1", "a second time"),
        ("Seed:int", "Seed:itn", N, "7:22", "did you mean INT?"),
        ("free:double", "status:double", N, "7:49", "'status_2' would do"),
        ("Seed:int", "table:int", N, "7:22", "use YAML"),
        ("Seed:int", "dataset", N, "7:22", "a second time"),
        ("2:6:2, 9", "2:6:2, nine", V, "10:15", "'nine' (str) does not fit INT"),
        ("2:6:2, 9", "9, 6:2", V, "10:11", "6:2 is not a range"),
        ("2:6:2, 9", "2:6:0", V, "10:8", "is not a range"),
        ("2:6:2, 9", "1:999999999", V, "10:8", "is not a range"),
        ("2:6:2, 9", "", V, "10:8", "leave it out"),
        ("\n    digits", "\n    digits\nSEED = 1", C, "11:1", "'seed' stands here a second time"),
        ("x = 1.5", "x = 1.5\nx = 2", C, "12:1", "the key 'x' stands here a second time"),
        ("x = 1.5", "x 1.5", C, "11:1", "is neither `key = value` nor a [SECTION]"),
        ("n_jobs = 3", "n_jobs = few", C, "13:10", "must be a whole number, not 'few'"),
        ("performance:FLOAT", "performance:FLAOT", N, "20:28", "did you mean FLOAT?"),
        ("epochs:LogEpochs", "best:LogEpochs", L, "19:23", "a second time"),
        ("best:INT", "best:NIT", N, "19:13", "did you mean INT?"),
        ("performance:FLOAT", "timestamp:FLOAT", N, "20:28", "every log table"),
        ("50%%", "50%", C, "24:1", "a literal % is written %%"),
        ("retries = 2", "retires = 2", C, "31:1", "did you mean 'retries'?"),
        ("retries = 2", "retries = -2", C, "31:11", "must be at least 0"),
        ("{A: [x, y]}", "{A: [x", C, "32:1", "is not YAML"),
    ],
)
def test_one_thing_wrong(tmp_path: Path, old: str, new: str, kind: type[ConfigError], place: str, said: str) -> None:
    assert old in WHOLE
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, WHOLE.replace(old, new, 1))
    assert type(caught.value) is kind
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/study.cfg:{place}: ")

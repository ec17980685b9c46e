"""What a configuration means: YAML, overrides by environment and arguments, default places."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from asyncexp import config
from asyncexp.config.models import Configuration
from asyncexp.errors import InvalidConfigError, NoConfigFileError, PyExperimenterError

WHOLE = """\
PY_EXPERIMENTER:
  n_jobs: 4
  Database:
    provider: postgresql
    database: lab
    use_ssh_tunnel: false
    host: db.lab
    port: 5433
    tls: verify-full
    tls_ca: ca.pem
    pgbouncer: true
    table:
      name: svm
      keyfields:
        dataset: {type: VARCHAR(50), values: [iris, wine]}
        seed: {type: int, values: {start: 0, stop: 6, step: 2}, index: true}
        lr: {type: DOUBLE, values: [1e-3, 0.1], default: 0.1}
        note: text
      resultfields:
        accuracy: double
        when: DATETIME
      result_timestamps: true
    logtables:
      folds: {fold: INT, score: DOUBLE}
  Execution:
    timeout: 60
    retries: 2
    retry_on: [OSError, concurrent.futures.TimeoutError]
    worker_env: {CUDA_VISIBLE_DEVICES: [0, 1], OMP_NUM_THREADS: 1}
  Custom:
    Path: sample_data
    nested: {Deep: [1, 2]}
  CodeCarbon:
    offline_mode: true
    country_iso_code: DEU
"""
MINIMAL: dict[str, Any] = {
    "provider": "sqlite",
    "database": "study",
    "table": {"name": "runs", "keyfields": {"seed": {"type": "INT", "values": [1, 2]}}},
}

Load = Callable[..., Configuration]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)

    def load(text: str, **arguments: Any) -> Configuration:
        (tmp_path / "study.yml").write_text(text)
        return config.load("study.yml", **{"environment": {}, **arguments})

    return load


def written(**sections: Any) -> str:
    return yaml.safe_dump({"PY_EXPERIMENTER": {"Database": MINIMAL, **sections}}, sort_keys=False)


def test_every_key_arrives(load: Load, tmp_path: Path) -> None:
    found = load(WHOLE)
    database, table = found.database, found.database.table
    assert (found.path, found.n_jobs) == (tmp_path / "study.yml", 4)
    assert (database.provider, database.database, database.host, database.port) == (
        "postgresql",
        "lab",
        "db.lab",
        5433,
    )
    assert (database.tls, database.tls_ca, database.pgbouncer) == ("verify-full", str(tmp_path / "ca.pem"), True)
    assert database.use_ssh_tunnel is False
    assert [(k.name, str(k.type), k.values, k.index) for k in table.keyfields] == [
        ("dataset", "VARCHAR(50)", ("iris", "wine"), False),
        ("seed", "INT", (0, 2, 4), True),
        ("lr", "DOUBLE", (0.001, 0.1), False),
        ("note", "TEXT", None, False),
    ]
    assert [(k.name, k.default) for k in table.keyfields if k.has_default] == [("lr", 0.1)]
    assert [(c.name, str(c.type)) for c in table.resultfields] == [("accuracy", "DOUBLE"), ("when", "DATETIME")]
    assert table.result_timestamps
    assert [(log.name, [c.name for c in log.columns]) for log in database.logtables] == [("folds", ["fold", "score"])]
    assert found.execution.timeout == 60
    assert found.execution.retry_on == ("OSError", "concurrent.futures.TimeoutError")
    assert found.execution.worker_env == {"CUDA_VISIBLE_DEVICES": ("0", "1"), "OMP_NUM_THREADS": "1"}
    assert found.custom == {"Path": "sample_data", "nested": {"Deep": [1, 2]}}
    assert found.codecarbon == {"offline_mode": True, "country_iso_code": "DEU"}


def test_what_is_left_out_has_the_documented_default(load: Load) -> None:
    found = load(written())
    assert (found.n_jobs, found.custom, found.codecarbon, found.credentials) == (1, {}, {}, None)
    assert (found.database.use_ssh_tunnel, found.database.tls, found.database.logtables) == (None, "prefer", ())
    assert found.execution.model_dump() == {
        "pool": None,
        "timeout": None,
        "stall_timeout": None,
        "max_attempts": 3,
        "retries": 0,
        "retry_delay": 0,
        "retry_on": None,
        "max_errors": None,
        "grace": 20,
        "heartbeat_interval": 15,
        "lease": 60,
        "on_outage": "continue",
        "database_wait": 60,
        "poll_interval": 1,
        "max_tasks_per_child": None,
        "worker_env": {},
    }


def test_the_case_of_section_names_does_not_count(load: Load) -> None:
    text = WHOLE
    for name in ("PY_EXPERIMENTER", "Database", "Execution", "Custom", "CodeCarbon"):
        text = text.replace(f"{name}:", f"{name.swapcase()}:")
    text = text.replace("    table:", "    Table:").replace("logtables", "LogTables")
    assert load(text) == load(WHOLE)
    changed = load(text, table_name="other", environment={"ASYNCEXP_EXECUTION__RETRIES": "9"})
    assert (changed.database.table.name, changed.execution.retries) == ("other", 9)


def test_blank_sections_are_empty(load: Load) -> None:
    found = load(written(Custom=None, CodeCarbon=None, Execution=None))
    assert (found.custom, found.codecarbon, found.execution.retries) == ({}, {}, 0)


def test_the_older_spelling_of_use_ssh_tunnel(load: Load) -> None:
    older = yaml.safe_dump({"PY_EXPERIMENTER": {"Database": {**MINIMAL, "use_ssh": True}}})
    assert load(older).database.use_ssh_tunnel is True
    assert load(older, use_ssh_tunnel=False).database.use_ssh_tunnel is False


@pytest.mark.parametrize(
    ("column_type", "values", "kept"),
    [
        ("INT", [1, "1", 1.0, 2, 1], (1, 2)),
        ("VARCHAR(5)", ["a", "A", "a", 1, "1"], ("a", "A", "1")),
        ("DOUBLE", [0.0, -0.0, 1], (0.0, 1.0)),
        ("NUMERIC(4,1)", [1.04, 1, 2.5], (Decimal("1.0"), Decimal("2.5"))),
        ("BOOLEAN", [True, 1, False], (True, False)),
        ("INT", [None, 1, None], (None, 1)),
        ("DATETIME", ["2024-01-01", "2024-01-01T01:00:00+01:00"], (datetime(2024, 1, 1),)),
        ("JSON", [{"b": 1, "a": [2]}, {"a": [2], "b": 1}, {}], ({"b": 1, "a": [2]}, {})),
    ],
)
def test_values_are_unique_and_of_their_columns_type(
    load: Load, column_type: str, values: list[Any], kept: tuple[Any, ...]
) -> None:
    table = {"name": "runs", "keyfields": {"x": {"type": column_type, "values": values}}}
    found = load(written(Database={**MINIMAL, "table": table})).database.table.keyfields[0].values
    assert found == kept
    assert [type(value) for value in found or ()] == [type(value) for value in kept]


def test_unquoted_dates_and_exponents(load: Load) -> None:
    text = (
        written()
        .replace("type: INT", "type: DATETIME")
        .replace("- 1", "- 2024-02-29")
        .replace("- 2\n", "- 2024-03-01 12:30:00\n")
    )
    assert load(text).database.table.keyfields[0].values == (datetime(2024, 2, 29), datetime(2024, 3, 1, 12, 30))
    assert load(written() + "  Custom: {a: 1e-3, b: -2E5, c: 1.5, d: .5, e: 2024-01-01}").custom == {
        "a": 0.001,
        "b": -2e5,
        "c": 1.5,
        "d": 0.5,
        "e": "2024-01-01",
    }


def test_interpolation(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDS", "3")
    text = written(
        Custom={"stop": "${oc.env:SEEDS}", "name": "${PY_EXPERIMENTER.Database.table.name}_x", "raw": r"\${x}"}
    )
    text = text.replace("- 1", "- ${oc.decode:${oc.env:SEEDS}}")
    found = load(text)
    assert found.custom == {"stop": "3", "name": "runs_x", "raw": "${x}"}
    assert found.database.table.keyfields[0].values == (3, 2)


def test_a_range_by_interpolation(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEEDS", "3")
    keyfields = {"seed": {"type": "INT", "values": {"start": 0, "stop": "${oc.env:SEEDS}"}}}
    found = load(written(Database={**MINIMAL, "table": {"name": "runs", "keyfields": keyfields}}))
    assert found.database.table.keyfields[0].values == (0, 1, 2)


def test_anchors_and_merges(load: Load) -> None:
    text = written() + "  Custom:\n    base: &base {a: 1, b: 2}\n    other: {<<: *base, b: 3}\n"
    assert load(text).custom == {"base": {"a": 1, "b": 2}, "other": {"a": 1, "b": 3}}


texts = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
trees = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=5)


@given(st.dictionaries(texts, trees, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_custom_keeps_whatever_is_in_it(load: Load, custom: dict[str, Any]) -> None:
    text = json.dumps({"PY_EXPERIMENTER": {"Database": MINIMAL, "Custom": custom}}, ensure_ascii=False)
    assume("${" not in text and "???" not in text)
    assert load(text).custom == custom


# ------------------------------------------------------------------------------------ who wins


def test_the_environment_wins_over_the_file(load: Load) -> None:
    environment = {
        "ASYNCEXP_N_JOBS": "-1",
        "ASYNCEXP_EXECUTION__TIMEOUT": "null",
        "ASYNCEXP_EXECUTION__RETRIES": "",
        "ASYNCEXP_EXECUTION__POOL": "process",
        "ASYNCEXP_EXECUTION__RETRY_ON": "OSError, ValueError",
        "ASYNCEXP_EXECUTION__WORKER_ENV": "{A: [x, y]}",
        "OTHER": "x",
    }
    found = load(WHOLE, environment=environment)
    assert found.n_jobs == -1
    assert found.slots() == len(os.sched_getaffinity(0))
    assert found.slots(3) == 3
    execution = found.execution
    assert (execution.timeout, execution.retries, execution.pool) == (None, 2, "process")
    assert execution.retry_on == ("OSError", "ValueError")
    assert execution.worker_env == {"A": ("x", "y")}


def test_arguments_win_over_the_file(load: Load) -> None:
    found = load(WHOLE, database_name="d", table_name="t", use_ssh_tunnel=True).database
    assert (found.database, found.table.name, found.use_ssh_tunnel) == ("d", "t", True)


def test_arguments_may_give_what_the_file_lacks(load: Load) -> None:
    text = written(Database={name: item for name, item in MINIMAL.items() if name != "database"})
    assert load(text, database_name="given").database.database == "given"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"table_name": "x" * 60}, "argument table_name: 'xxx"),
        ({"table_name": ""}, "argument table_name: name must not be empty"),
        ({"database_name": ""}, "argument database_name: database must not be empty"),
        ({"environment": {"ASYNCEXP_N_JOBS": "few"}}, "environment variable ASYNCEXP_N_JOBS: n_jobs must be a whole"),
        ({"environment": {"ASYNCEXP_NJOBS": "1"}}, "did you mean 'ASYNCEXP_N_JOBS'?"),
        ({"environment": {"ASYNCEXP_DATABASE__USR": "me"}}, "did you mean 'ASYNCEXP_DATABASE__USER'?"),
        ({"environment": {"ASYNCEXP_EXECUTION__LEASE": "1"}}, "ASYNCEXP_EXECUTION__LEASE: lease (1 s) must be"),
        ({"environment": {"ASYNCEXP_EXECUTION__GRACE": "[1"}}, "ASYNCEXP_EXECUTION__GRACE: is not YAML"),
    ],
)
def test_errors_name_the_argument_or_variable(load: Load, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        load(WHOLE, **arguments)
    assert said in str(caught.value)


# ----------------------------------------------------------------------------------- the files


@pytest.mark.parametrize("suffix", ["yml", "yaml", "cfg"])
def test_default_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoConfigFileError) as caught:
        config.load(environment={})
    assert "config/experiment_configuration.yml" in str(caught.value)
    assert f"config/experiment_configuration.cfg in the working directory {tmp_path}. " in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    (tmp_path / "config").mkdir()
    (tmp_path / f"config/experiment_configuration.{suffix}").write_text(written())
    (tmp_path / f"config/database_credentials.{suffix}").write_text("not read yet")
    found = config.load(environment={})
    assert found.path == tmp_path / f"config/experiment_configuration.{suffix}"
    assert found.credentials == tmp_path / f"config/database_credentials.{suffix}"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoConfigFileError) as caught:
        config.load(tmp_path / "nope.yml", environment={})
    assert str(tmp_path / "nope.yml") in str(caught.value)


def test_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "study.yml").write_bytes(b"\xef\xbb\xbf" + WHOLE.replace("\n", "\r\n").encode())
    assert config.load(tmp_path / "study.yml", environment={}).n_jobs == 4


def test_it_pickles_and_keeps_its_paths(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(written())
    assert config.target(found, environment={}).database == str(tmp_path / "study.db")
    monkeypatch.chdir("/")
    again: Configuration = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert again == found
    assert config.target(again, environment={}).database == str(tmp_path / "study.db")


@pytest.mark.parametrize(
    ("name", "file"),
    [("a.db", "a.db"), ("sub/a", "sub/a.db"), ("/data/a", "/data/a.db"), ("~/a", str(Path.home() / "a.db"))],
)
def test_the_sqlite_file(load: Load, tmp_path: Path, name: str, file: str) -> None:
    found = load(written(), database_name=name)
    assert config.target(found, environment={}).database == str(tmp_path / file)


def test_it_is_frozen(load: Load) -> None:
    found = load(written())
    with pytest.raises(ValidationError):
        found.n_jobs = 3  # type: ignore[misc]


def test_omegaconf_is_imported_only_to_interpolate(tmp_path: Path) -> None:
    (tmp_path / "study.yml").write_text(written())
    script = (
        "import sys; from asyncexp import config; config.load('study.yml');"
        "print(sorted({'omegaconf', 'pandas', 'asyncpg'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_errors_are_this_packages_own(load: Load) -> None:
    with pytest.raises(PyExperimenterError):
        load("x: 1")

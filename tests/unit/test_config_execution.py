"""Keywords of `execute` over the environment over the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncexp import config
from asyncexp.config.models import EXECUTION_KEYS, Configuration, ExecutionConfig
from asyncexp.errors import InvalidConfigError

TEXT = """\
PY_EXPERIMENTER:
  Database: {provider: sqlite, database: d, table: {name: t, keyfields: {a: int}}}
  Execution: {retries: 2, timeout: 60, retry_on: OSError}
"""


class LabError(Exception):
    """An exception of a user."""


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    path: Path = tmp_path_factory.mktemp("execution") / "study.yml"
    path.write_text(TEXT)
    return config.load(path, environment={})


def test_who_wins(configuration: Configuration) -> None:
    environment = {"ASYNCEXP_EXECUTION__RETRIES": "5", "ASYNCEXP_EXECUTION__GRACE": "7"}
    found = config.execution(configuration, environment, retries=9, timeout=None)
    assert (found.retries, found.grace, found.timeout, found.lease) == (9, 7, None, 60)
    assert config.execution(configuration, environment).retries == 5
    assert config.execution(configuration, {}) == configuration.execution


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"retrys": 3}, "keyword retrys: is unknown; did you mean 'retries'?"),
        ({"zzz": 3}, "known are pool, timeout"),
        ({"retries": -1}, "keyword retries: retries must be at least 0, not -1"),
        ({"retries": None}, "keyword retries: retries must be a whole number, not left blank"),
        ({"timeout": True}, "must be a number, not true or false"),
        ({"timeout": "soon"}, "keyword timeout: timeout must be a number, not 'soon'"),
        ({"pool": "proces"}, "did you mean 'process'?"),
        ({"lease": 59}, "keyword lease: lease (59 s) must be at least four times"),
        ({"heartbeat_interval": 16}, "Execution: lease (60 s) must be at least four times heartbeat_interval (16 s)"),
        ({"retry_on": [3]}, "must be exception classes or their dotted names"),
        ({"retry_on": "no name"}, "not 'no name'"),
        ({"retry_on": int}, "must be exception classes"),
        ({"worker_env": {"A": []}}, "'A': the list is empty"),
        ({"worker_env": "A=1"}, "worker_env must be a mapping"),
        ({"max_tasks_per_child": 0}, "must be at least 1"),
    ],
)
def test_errors_name_the_keyword(configuration: Configuration, keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        config.execution(configuration, {}, **keywords)
    assert said in str(caught.value)


def test_every_key_is_a_variable_too(configuration: Configuration) -> None:
    given_values = {
        "pool": "task",
        "timeout": "1.5",
        "stall_timeout": "2",
        "max_attempts": "4",
        "retries": "1",
        "retry_delay": "0.5",
        "retry_on": "[OSError]",
        "max_errors": "-1",
        "grace": "0",
        "heartbeat_interval": "1",
        "lease": "4",
        "on_outage": "stop",
        "database_wait": "0",
        "poll_interval": "1e-1",
        "max_tasks_per_child": "1",
        "worker_env": "{A: [1, b], C: 2}",
    }
    assert list(given_values) == list(EXECUTION_KEYS)
    environment = {f"ASYNCEXP_EXECUTION__{key.upper()}": text for key, text in given_values.items()}
    found = config.execution(configuration, environment)
    assert found == ExecutionConfig(
        pool="task",
        timeout=1.5,
        stall_timeout=2,
        max_attempts=4,
        retries=1,
        retry_delay=0.5,
        retry_on=("OSError",),
        max_errors=-1,
        grace=0,
        heartbeat_interval=1,
        lease=4,
        on_outage="stop",
        database_wait=0,
        poll_interval=0.1,
        max_tasks_per_child=1,
        worker_env={"A": ("1", "b"), "C": "2"},
    )


def test_retry_types(configuration: Configuration) -> None:
    def types(retry_on: Any) -> tuple[type[BaseException], ...] | None:
        return config.retry_types(config.execution(configuration, {}, retry_on=retry_on))

    assert types(None) is None
    assert types("OSError, json.JSONDecodeError") == (OSError, __import__("json").JSONDecodeError)
    assert types(LabError) == (LabError,)
    assert types([f"{__name__}.LabError", KeyError]) == (LabError, KeyError)
    for name, said in (
        ("nope.Error", "cannot be imported"),
        ("Nope", "cannot be imported"),
        ("print", "is not an exc"),
    ):
        with pytest.raises(InvalidConfigError, match=said):
            types(name)


@given(
    st.dictionaries(
        st.sampled_from(EXECUTION_KEYS), st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    )
)
def test_any_value_is_taken_or_refused_by_name(configuration: Configuration, keywords: dict[str, Any]) -> None:
    said = None
    try:
        found = config.execution(configuration, {}, **keywords)
    except InvalidConfigError as error:
        said = str(error)
    if said is None:
        assert found.lease >= 4 * found.heartbeat_interval > 0
    else:
        assert any(key in said for key in keywords)

"""Keywords of `execute` over the environment over the configuration, validated together."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from asyncexp.config.document import Document, Loc, Problem, did_you_mean, refuse
from asyncexp.config.environment import check_environment, execution_settings
from asyncexp.config.models import EXECUTION_KEYS, Configuration, ExecutionConfig
from asyncexp.config.validate import translate
from asyncexp.errors import InvalidConfigError


def execution(configuration: Configuration, environment: Mapping[str, str], **keywords: Any) -> ExecutionConfig:
    """How one call of `execute` runs: its keywords, then ASYNCEXP_EXECUTION__*, then the configuration.

    Raises:
        InvalidConfigError: an unknown keyword or a value that does not fit; the message names the nearest.
    """
    check_environment(environment)
    unknown = [key for key in keywords if key not in EXECUTION_KEYS]
    refuse([Problem(f"keyword {key}", f"is unknown; {did_you_mean(key, EXECUTION_KEYS)}") for key in unknown])
    settings = execution_settings(environment)
    settings |= {key: (value, f"keyword {key}") for key, value in keywords.items()}
    return _validated(configuration.execution, settings) if settings else configuration.execution


def _validated(base: ExecutionConfig, settings: Mapping[str, tuple[Any, str]]) -> ExecutionConfig:
    given = {name: getattr(base, name) for name in base.model_fields_set}
    given |= {key: value for key, (value, _) in settings.items()}
    try:
        return ExecutionConfig.model_validate(given)
    except ValidationError as error:
        origins: dict[Loc, str] = {(): "Execution"}
        origins |= {(key,): origin for key, (_, origin) in settings.items()}
        document = Document("Execution", given, _nowhere, origins=origins)
        problems = list(translate(error, ExecutionConfig, document))
    refuse(problems)
    raise AssertionError("unreachable: a ValidationError has errors")


def _nowhere(_loc: Loc, _of_key: bool) -> tuple[int, int]:
    return 1, 1


def retry_types(execution: ExecutionConfig) -> tuple[type[BaseException], ...] | None:
    """The exception classes of `retry_on`, dotted names imported; None: every exception.

    Raises:
        InvalidConfigError: a name that cannot be imported, or is no exception class.
    """
    if execution.retry_on is None:
        return None
    return tuple(_exception(item) if isinstance(item, str) else item for item in execution.retry_on)


def _exception(name: str) -> type[BaseException]:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module) if module else builtins, attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidConfigError(f"retry_on: {name!r} cannot be imported: {error}") from error
    if isinstance(found, type) and issubclass(found, BaseException):
        return found
    raise InvalidConfigError(f"retry_on: {name!r} is not an exception class")

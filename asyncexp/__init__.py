"""asyncexp: the asyncio-native runner for large tables of experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncexp import errors
    from asyncexp.experiment import ExperimentStatus, Summary
    from asyncexp.experimenter import Experimenter
    from asyncexp.results import ResultProcessor, SyncResultProcessor

__all__ = ["ExperimentStatus", "Experimenter", "ResultProcessor", "Summary", "SyncResultProcessor", "errors"]

_HOMES = {
    "Experimenter": "asyncexp.experimenter",
    "ResultProcessor": "asyncexp.results",
    "SyncResultProcessor": "asyncexp.results",
    "ExperimentStatus": "asyncexp.experiment",
    "Summary": "asyncexp.experiment",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: `import asyncexp` alone costs next to nothing."""
    from importlib import import_module

    if name == "errors":
        return import_module("asyncexp.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'asyncexp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]

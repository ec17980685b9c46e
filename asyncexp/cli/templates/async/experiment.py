"""Asks a service of two models which numbers are prime: many calls at once, and again where one fails."""

from __future__ import annotations

import asyncio
import random
from time import perf_counter
from typing import Any

from asyncexp import ResultProcessor

SKILL = {"small": 0.75, "large": 0.95}


async def run_experiment(keyfields: dict[str, Any], results: ResultProcessor, custom: dict[str, Any]) -> None:
    """Asks one question of one model. An exception is no end: the configuration says how often to try again.

    Args:
        keyfields: the row's parameters, as the configuration names them.
        results: takes results and log lines.
        custom: the configuration's section `Custom`, the same for all rows.
    """
    began = perf_counter()
    answer = await _ask(custom["service"], keyfields["model"], keyfields["number"])
    correct = answer == is_prime(keyfields["number"])
    await results.process_results({"answer": answer, "correct": correct, "seconds": perf_counter() - began})


async def _ask(service: str, model: str, number: int) -> bool:
    """Stands for a call over the network: put yours here. It takes a while, and is refused now and then."""
    await asyncio.sleep(random.uniform(0.1, 0.5))
    if random.random() < 0.05:
        raise ConnectionError(f"{service} is busy")
    return is_prime(number) if random.random() < SKILL[model] else not is_prime(number)


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))

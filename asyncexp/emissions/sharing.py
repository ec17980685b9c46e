"""How what was spent between two readings is shared: arithmetic alone, on what clocks and trackers told.

`docs/energy.md` says by which rules.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from asyncexp.emissions.amounts import NOTHING, Rates, Spent
from asyncexp.emissions.clock import Reading
from asyncexp.emissions.use import Use

if TYPE_CHECKING:
    from asyncexp.emissions.account import Account

TICK_SECONDS = 0.01
"""What the machine's CPU time is told in."""


def share_out(
    before: Reading, now: Reading, uses: Sequence[Use], brief_seconds: float, spent: Mapping[Account, Spent]
) -> dict[Account, Rates]:
    """Shares out what was spent; what a second of those comes to of whom only that is known, for each worker's."""
    shares, each, part = shared(before, now, uses, brief_seconds)
    for use, share in zip(uses, shares, strict=True):
        if (found := spent.get(use.account)) is not None:
            use.was_measured = True
            if share:
                use.spent = use.spent.plus(*_of(found, share, part, use.account))
    return {
        account: NOTHING.plus(*_of(found, each, part, account)).rates(1.0, emissions=account.tracker.knows_emissions)
        for account, found in spent.items()
    }


def _of(found: Spent, share: float, part: float, account: Account) -> tuple[Spent, float, float]:
    return found, share * part, share if account.tracker.of_process_only else share * part


def lived_since(since: float, seconds: Iterable[float], began: Sequence[float]) -> float:
    if began and min(began) < since:
        return sum(max(0.0, lived - max(0.0, since - at)) for lived, at in zip(seconds, began, strict=True))
    return sum(seconds)


def shared(
    before: Reading, now: Reading, uses: Sequence[Use], others_alive: float = 0.0
) -> tuple[list[float], float, float]:
    """How what this process used between two readings is shared, and which part of the machine's use that was.

    By the CPU time that each used itself, as far as it can be told; what is left of the process's, tasks and the
    worker's own work, by how long each was alive.

    Args:
        others_alive: seconds that others were alive, of whom no more is known.

    Returns:
        The share of each, the share of a second of those others, and this process's part of the machine. All
        shares sum up to 1.0, or to 0.0 if nothing was used.
    """
    own = max(0.0, now.own - before.own)
    busy = max(0.0, now.busy - before.busy) + TICK_SECONDS
    direct = _direct(before, now, uses)
    alive = [_alive(use, before.at, now.at) for use in uses]
    rest, all_alive = max(0.0, own - sum(direct)), sum(alive) + others_alive
    each = rest / all_alive if all_alive else 0.0
    weights = [used + each * seconds for used, seconds in zip(direct, alive, strict=True)]
    whole = sum(weights) + each * others_alive
    if not whole:
        return [0.0] * len(uses), 0.0, 0.0
    return [weight / whole for weight in weights], each / whole, own / max(own, busy)


def _alive(use: Use, since: float, until: float) -> float:
    began = since if use.began is None or use.began < since else use.began
    over = until if use.over is None or use.over > until else use.over
    return over - began if over > began else 0.0


def _direct(before: Reading, now: Reading, uses: Sequence[Use]) -> list[float]:
    """Seconds of CPU that each is known to have used itself since they were last counted."""
    found = [0.0] * len(uses)
    by_child: dict[int, float] = {}
    in_children: list[tuple[int, Use, int]] = []
    for place, use in enumerate(uses):
        pid, clock = use.pid, use.clock
        if use.cpu is not None or clock is not None:
            found[place] = _counted(use, clock)
            if pid is not None:
                by_child[pid] = by_child.get(pid, 0.0) + found[place]
        elif pid is not None:
            in_children.append((place, use, pid))
    for place, use, pid in in_children:
        in_all = now.trees.get(pid, 0.0) - max(before.trees.get(pid, 0.0), use.child_had_used)
        found[place] = max(0.0, in_all - by_child.get(pid, 0.0))
        use.counted += found[place]
    return found


def _counted(use: Use, clock: tuple[int, float] | None) -> float:
    so_far = use.cpu
    if so_far is None and clock is not None:
        try:
            so_far = time.clock_gettime(clock[0]) - clock[1]
        except OSError:  # its thread has just ended
            so_far = use.cpu
    used = max(0.0, (so_far or 0.0) - use.counted)
    use.counted += used
    return used

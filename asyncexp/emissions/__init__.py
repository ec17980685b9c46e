"""Energy and emissions, as CodeCarbon tells them: one tracker a worker, its energy shared among what ran meanwhile.

One thread a process measures, every second while experiments run, and shares each second's energy by the CPU time that
each experiment took in it; `docs/energy.md` says how, and where the limits are. Imported when first used.

| module | what it knows |
|---|---|
| `account` | one worker's side: what it asks, what of its has ended, whether measuring goes on |
| `measuring` | the thread: when it measures, and to whom it delivers |
| `sharing` | who gets which part of what was spent |
| `use` | one attempt: begin, end, and what it used |
| `tracker` | codecarbon, the only module that does |
| `hearing` | what codecarbon logs |
| `clock` | CPU times |
| `settings` | the configuration's section, what is wrong with it, the countries |
| `amounts` | energies, emissions, and the rows that become of them |
"""

from __future__ import annotations

from asyncexp.emissions.account import Account, Deliver
from asyncexp.emissions.amounts import Columns
from asyncexp.emissions.clock import Clock, Reading
from asyncexp.emissions.measuring import Meter, meter
from asyncexp.emissions.settings import Settings, countries, problems
from asyncexp.emissions.sharing import shared
from asyncexp.emissions.tracker import Tracker
from asyncexp.emissions.use import Child, Use

__all__ = [
    "Account",
    "Child",
    "Clock",
    "Columns",
    "Deliver",
    "Meter",
    "Reading",
    "Settings",
    "Tracker",
    "Use",
    "countries",
    "meter",
    "problems",
    "shared",
]

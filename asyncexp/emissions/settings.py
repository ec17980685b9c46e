"""The configuration's section CodeCarbon: what it means, what is wrong with it, and which countries there are.

Nothing of codecarbon is imported for that.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

INTERVAL_SECONDS = 1.0


@dataclass(frozen=True)
class Settings:
    """The configuration's section, read."""

    given: Mapping[str, Any]

    @property
    def offline(self) -> bool:
        """Only `offline_mode: false`, written out, allows calls to the outside."""
        return self.given.get("offline_mode") is not False

    @property
    def saves_to_file(self) -> bool:
        return is_true(self.given.get("save_to_file")) or "csv" in methods(self.given)

    @property
    def interval(self) -> float:
        with suppress(TypeError, ValueError):
            return max(INTERVAL_SECONDS, float(self.given.get("measure_power_secs") or 0))
        return INTERVAL_SECONDS


def is_true(value: Any) -> bool:
    return value is True or str(value).casefold() == "true"


def methods(given: Mapping[str, Any]) -> list[str]:
    methods = given.get("output_methods") or ()
    names = methods.split(",") if isinstance(methods, str) else methods
    return [str(getattr(name, "value", name)).strip().casefold() for name in names]


def knows_intensity(given: Mapping[str, Any]) -> bool:
    """Whether the settings say how dirty the electricity is, without asking anybody."""
    cloud = given.get("cloud_provider") and given.get("cloud_region")
    return bool(given.get("country_iso_code") or cloud or given.get("force_carbon_intensity_g_co2e_kwh") is not None)


def problems(given: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the configuration's section: the key, and what to say."""
    offline, code = given.get("offline_mode"), given.get("country_iso_code")
    if offline is not None and not isinstance(offline, bool):
        yield "offline_mode", f"offline_mode must be true or false, not {offline!r}"
    if offline is True and not knows_intensity(given):
        yield (
            "offline_mode",
            "offline_mode: true needs country_iso_code, the three letters of the country (such as DEU), for the "
            "emissions of its electricity; without both, energy is recorded and emissions are not",
        )
    known = countries() if code is not None else {}
    if known and not (isinstance(code, str) and code in known):
        yield "country_iso_code", f"CodeCarbon knows no country {code!r}; {_nearest_country(str(code), known)}"


def _nearest_country(code: str, known: Mapping[str, str]) -> str:
    by_name = {name.casefold(): code for code, name in known.items()}
    begins = [found for name, found in by_name.items() if name.startswith(code.casefold())]
    if (upper := code.upper()) in known or upper in _OTHER_CODES:
        meant = _OTHER_CODES.get(upper, upper)
    elif len(begins) == 1:
        [meant] = begins
    elif names := difflib.get_close_matches(code.casefold(), by_name, n=1, cutoff=0.75):
        meant = by_name[names[0]]
    elif codes := difflib.get_close_matches(upper, known, n=20, cutoff=0.5):
        named = [known[each].casefold().startswith(code.casefold()) for each in codes]
        alike = zip(((upper[:2] == each[:2], upper[:1] == each[:1]) for each in codes), named, codes, strict=True)
        meant = max(alike, key=lambda each: each[:2])[2]
    else:
        return "it takes the three letters of ISO 3166, such as DEU, FRA or USA"
    return f"did you mean {meant!r} ({known[meant]})?"


_OTHER_CODES = {"UK": "GBR", "ENGLAND": "GBR"}


def countries() -> dict[str, str]:
    """Code -> name of every country of which codecarbon knows the electricity; empty without codecarbon.

    Read from its data, for its import takes long.
    """
    found = find_spec("codecarbon")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        file = Path(folder) / "data" / "private_infra" / "global_energy_mix.json"
        with suppress(OSError, ValueError, AttributeError, TypeError):
            mix: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8"))
            return {code: str(of.get("country_name", code)) for code, of in mix.items()}
    return {}

"""The one list of rules: every file in `effprof/advise/rules`, then third parties' entry points."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points

from effprof.advise import rules
from effprof.advise.rule import AREAS, RULES, Rule
from effprof.errors import EffprofError

ENTRY_POINT_GROUP = "effprof.rules"


@lru_cache(maxsize=1)
def all_rules() -> tuple[Rule, ...]:
    """Every rule, by area and name."""
    for module in pkgutil.iter_modules(rules.__path__):
        importlib.import_module(f"{rules.__name__}.{module.name}")
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        entry.load()
    return tuple(sorted(RULES.values(), key=lambda each: (AREAS.index(each.area), each.id)))


def find_rule(name: str) -> Rule:
    """The rule of this name.

    Raises:
        EffprofError: there is none.
    """
    for each in all_rules():
        if each.id == name:
            return each
    raise EffprofError(f"{name}: no such rule", "`effprof rules` lists them")

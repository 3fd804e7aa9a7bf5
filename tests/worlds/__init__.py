"""A family of simulated worlds: one generator with a few parameters, and a table of named settings.

`families.py` holds the parameters and the table, `generator.py` makes a world of them. The table is split into families
for tuning and locked families; `bench/worlds.md` has the rule of the split.
"""

from worlds.families import FAMILIES, LOCKED, TUNING, Family
from worlds.generator import FamilyWorld

__all__ = ["FAMILIES", "LOCKED", "TUNING", "Family", "FamilyWorld"]

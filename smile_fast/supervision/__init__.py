"""Declarations to supervision tables: the states, the policies and what a label value means under them."""

from smile_fast.supervision.states import Policy, State, visible_lut
from smile_fast.supervision.tables import build_tables

__all__ = [
    "Policy",
    "State",
    "build_tables",
    "visible_lut",
]

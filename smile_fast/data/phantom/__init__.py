"""Synthetic abdominal CT cohorts: procedural anatomy, or real label maps painted as CT."""

from smile_fast.data.phantom.cohort import PhantomOptions, make_case, write_cohort
from smile_fast.data.phantom.painting import ORGANS

__all__ = ["ORGANS", "PhantomOptions", "make_case", "write_cohort"]

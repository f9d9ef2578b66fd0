"""Cohorts: the raw dataset, who annotated what, and the fast store."""

"""Whole volumes: what is measured, the scans, the contest, and what is measured in processes of its own."""

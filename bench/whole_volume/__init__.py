"""Whole volumes: what is measured, the scans, the comparison, and what is measured in processes of its own."""

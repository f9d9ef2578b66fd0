"""Tests of the benchmark system itself."""

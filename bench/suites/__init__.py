"""What pytest-benchmark runs: see bench/README.md."""

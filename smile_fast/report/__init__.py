"""The report of one or several runs: one HTML page that needs nothing else."""

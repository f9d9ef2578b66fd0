"""The training loop, the relabelling rounds and the run folder."""

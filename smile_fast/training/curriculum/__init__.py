"""The brakes of a curriculum: what keeps a round of relabelling from believing too much."""

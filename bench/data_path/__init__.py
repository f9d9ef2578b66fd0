"""From files on disk to a training step: slices, batches, steps, preparation, and growth in the number of cases."""

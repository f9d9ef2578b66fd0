"""Whether two commits compute the same bits: losses, selections, label maps, trainings, exported files."""

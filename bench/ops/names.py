"""What calls and errors of several ops are named, in records and tables."""

from bench.comparison import OURS

IN_PLACE = f"{OURS} in place"
EAGER, COMPILE, ONE_GRAPH = "eager", "compile", "compile, one graph"
COPY, READ = "copy", "one read"
WRONG_VOXELS = "wrong voxels"
IMPLEMENTATION, BYTES = "implementation", "bytes"  # of facts; bytes: what has to be read and written at least

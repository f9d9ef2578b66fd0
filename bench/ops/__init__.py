"""One file an op: its workloads by name, its peers, and how they are brought together, on a CPU or a GPU."""

"""The CUDA C++ implementations: one file an op, each of which says what it refuses and turns tensors into pointers.

The native core knows no torch. Every function here makes its inputs contiguous, allocates results and workspace from
torch's allocator, and queues the work on the current stream of the tensors' device. Nothing here waits for the device.
"""

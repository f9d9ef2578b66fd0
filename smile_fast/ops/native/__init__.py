"""The C++ implementations: one file an op, each of which says what it refuses and turns tensors into pointers.

The native core knows no torch. Every function here makes its inputs contiguous, allocates the results, and hands
addresses and sizes over. The core releases the GIL while it works.
"""

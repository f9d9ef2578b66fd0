"""The C++ core: whether it is there, and how the ops launch its kernels. It knows no torch and releases the GIL."""

"""The CUDA C++ core: whether it is there, and how the ops queue its kernels. Nothing here waits for the device."""

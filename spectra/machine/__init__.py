"""The machine: devices, memory, cores, the C library, and what a user sees of long work."""

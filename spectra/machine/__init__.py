"""The machine: devices, memory, cores, the C library, and the progress of long work."""

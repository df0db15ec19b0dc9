"""The machine: devices, threads, memory, determinism, random streams."""

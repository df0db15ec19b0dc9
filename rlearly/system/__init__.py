"""The machine: devices, threads, determinism, random streams."""

"""Where the jobs of a sweep run: on this machine, on SLURM or on Ray."""

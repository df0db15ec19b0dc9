"""Runs that start from parts of another run, and runs that stop early."""

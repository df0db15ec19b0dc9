"""The Python API, which the commands are built on: train, load, play, sweep, report and export."""

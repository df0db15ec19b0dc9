"""The Python API, which the commands are built on: train, load, sweep, tune, report and export."""

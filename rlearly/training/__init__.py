"""Training runs: trainer, builder, update schedules, evaluation, checkpoints, files, display."""

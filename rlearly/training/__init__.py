"""The training run: steps become transitions, transitions become updates."""

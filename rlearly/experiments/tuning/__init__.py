"""Search for the settings of an agent that score highest on an env."""

"""Interventions on networks, one family a file."""

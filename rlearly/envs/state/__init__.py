"""Exact save and restore of environments in mid-episode."""

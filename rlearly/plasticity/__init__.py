"""Measuring how well networks can still learn, and intervening when they cannot."""

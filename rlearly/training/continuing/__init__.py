"""Runs that end early, that keep their best checkpoint, or that begin with parts of another."""

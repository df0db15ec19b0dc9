"""Types, observations and errors that every other package uses."""

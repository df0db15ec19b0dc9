"""Faster versions of what `nn` and `agents` state plainly. Can be skipped when reading."""

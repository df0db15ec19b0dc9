"""Where the official codes' own numbers are."""

import os
from pathlib import Path

import pytest

REFERENCE = Path(
    os.environ.get("RLEARLY_REFERENCE", Path(__file__).parents[2] / "shared" / "reference")
)

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir() and "RLEARLY_REQUIRE_REFERENCE" not in os.environ,
    reason=f"no reference vectors in {REFERENCE} (set RLEARLY_REFERENCE)",
)

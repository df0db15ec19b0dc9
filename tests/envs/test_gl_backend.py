"""Choosing an OpenGL backend."""

import pytest

from rlearly.core.errors import ConfigError
from rlearly.envs import gl_backend


def test_missing_gl_names_the_packages(monkeypatch):
    monkeypatch.setattr(gl_backend, "backend_error", lambda backend: f"no {backend}")
    monkeypatch.setattr(gl_backend, "choose_backend", lambda: None)
    with pytest.raises(ConfigError, match=r"egl: no egl; osmesa: no osmesa.*libegl1.*libosmesa6"):
        gl_backend.require_backend(gl_backend.WITHOUT_VIDEOS)

"""What a machine has to offer."""

from pathlib import Path
from types import SimpleNamespace

from rlearly.system import machine


def test_memory_is_the_least_that_any_control_group_leaves(tmp_path, monkeypatch):
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    (tmp_path / "memory.max").write_text("max", encoding="utf-8")
    (tmp_path / "memory.current").write_text("5", encoding="utf-8")
    assert machine.available_bytes(tmp_path) == 10**12, lines
    (tmp_path / "memory.max").write_text("9000", encoding="utf-8")
    (tmp_path / "memory.current").write_text("8000", encoding="utf-8")
    (tmp_path / "memory.stat").write_text(
        "anon 7000\ninactive_file 300\nactive_file 200\n", encoding="utf-8"
    )
    assert machine.available_bytes(tmp_path) == 1500

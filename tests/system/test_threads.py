"""The number of threads is a plain function of the request, the agent and the machine."""

import pytest
import torch

from rlearly.agents import AGENTS, agent_spec
from rlearly.system import machine


@pytest.fixture(autouse=True)
def seven_cores(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(machine, "usable_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_threads_are_those_asked_for_then_the_schedulers_then_all(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (machine.set_threads(2), machine.set_threads(None)) == (2, 3)
    for nothing in ("", "0", "4,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert machine.set_threads(None) == 7


def test_default_is_what_helps_the_agent_and_the_machine_has(monkeypatch):
    assert [machine.set_threads(None, most) for most in (None, 1, 2, 7, 8)] == [7, 1, 2, 7, 7]
    defaults = {name: machine.set_threads(None, agent_spec(name).max_threads) for name in AGENTS}
    assert defaults == {"drm": 7, "drq_eps": 7, "drqv2": 7, "td3": 2, "sac": 2, "ppo": 1}


def test_what_is_asked_for_may_exceed_what_helps_the_agent(monkeypatch):
    assert machine.set_threads(6, 2) == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert machine.set_threads(None, 2) == 5 and machine.set_threads(6, 2) == 6


def test_resumed_run_keeps_its_threads_where_the_machine_has_them():
    assert [machine.fitting_threads(threads) for threads in (None, 2, 7, 8)] == [None, 2, 7, None]

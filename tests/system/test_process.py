"""What is changed for the whole process is put back: settings, signal handlers, variables."""

import contextlib
import logging
import os
import random
import signal
import threading
import warnings

import psutil
import pytest
import torch

from rlearly.core.errors import ConfigError
from rlearly.system import machine
from rlearly.system.process import Restored, restored_process
from rlearly.training.stop_requests import StopRequests

CPU = torch.device("cpu")


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(60)
    return found[0]


def test_last_one_out_puts_back_what_the_first_one_found():
    value = [0]

    def read():
        found = value[0]
        return lambda: value.__setitem__(0, found)

    shared = Restored(read)
    for first_out in (0, 1):
        shared.__enter__()
        value[0] = 1
        in_thread(shared.__enter__)
        value[0] = 2
        shared.__exit__() if first_out else in_thread(shared.__exit__)
        assert value == [2], "another is inside"
        shared.__exit__()
        assert value == [0]


def test_process_is_put_back(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    generators = random.getstate(), torch.get_rng_state()
    handlers, level, filters = list(logging.root.handlers), logging.root.level, warnings.filters[:]
    with restored_process:
        os.environ |= {"MUJOCO_GL": "egl", "CUBLAS_WORKSPACE_CONFIG": "x", "MY_ENV_SET": "1"}
        logging.root.addHandler(logging.NullHandler())
        logging.root.setLevel(5)
        warnings.simplefilter("error")
        random.random(), torch.rand(1)
    assert os.environ["MUJOCO_GL"] == "glfw" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert os.environ.pop("MY_ENV_SET") == "1", "an env's own module sets it once"
    assert (logging.root.handlers, logging.root.level) == (handlers, level)
    assert warnings.filters == filters
    assert random.getstate() == generators[0] and torch.equal(torch.get_rng_state(), generators[1])


def settings():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flags = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    algorithms = torch.are_deterministic_algorithms_enabled()
    return torch.get_num_threads(), *flags, algorithms, torch.initial_seed()


def test_torch_computes_as_before_after_a_run(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    found = settings()
    for error in (None, KeyboardInterrupt):
        with contextlib.suppress(KeyboardInterrupt), machine.computing(3, CPU, tf32=True):
            inside = settings()
            if error:
                raise error
        assert inside[:5] == (3, True, False, True, True)
        assert settings() == found


def test_run_that_computes_in_another_way_is_refused_beside_one():
    with machine.computing(1, CPU):
        with machine.computing(1, CPU):
            pass
        assert torch.backends.cudnn.deterministic, "the other one goes on"
        with pytest.raises(
            ConfigError, match=r"threads: expected 1, as in another run .* received 2"
        ):
            machine.computing(2, CPU).__enter__()
        with pytest.raises(ConfigError, match=r"precision: expected not tf32, .* received tf32"):
            machine.computing(1, CPU, tf32=True).__enter__()
    with machine.computing(2, CPU):
        pass


@pytest.mark.skipif(machine._glibc() is None, reason="the allocator is another one")
def test_memory_that_a_run_kept_is_returned_after_it():
    resident = psutil.Process().memory_info

    def use():
        held = [torch.ones(2**18) for _ in range(200)]  # 200 MB
        del held
        return resident().rss

    with machine.computing(1, CPU):
        kept = use()
    assert kept - resident().rss > 100e6


# --- signals ---

NUMBERS = [getattr(signal, f"SIG{name}") for name in ("INT", "TERM", "HUP", "USR1", "USR2")]


def handlers():
    return [signal.getsignal(number) for number in NUMBERS]


def press(number=signal.SIGINT):
    os.kill(os.getpid(), number)


def test_signals_ask_a_run_to_save_and_are_handled_as_before_afterwards():
    before = handlers()
    for number in NUMBERS:
        with StopRequests() as stop:
            stop.saves = True
            assert stop.possible and not stop()
            press(number)
            assert stop() and stop.received == number.name
        assert handlers() == before


def test_interrupt_is_one_until_there_is_something_to_save_and_when_it_is_repeated():
    with StopRequests() as stop:
        with pytest.raises(KeyboardInterrupt):
            press()
        assert not stop()
        press(signal.SIGTERM)
        assert stop(), "a scheduler's signal waits until the run can be saved"
    with StopRequests() as stop:
        stop.saves = True
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_request_survives_the_end_of_who_reads_the_output(monkeypatch):
    def gone(*args):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", gone)
    with StopRequests() as stop:
        press(signal.SIGTERM)
        assert stop()


def test_hangup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequests() as stop:
            press(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_get_no_handlers():
    before = handlers()

    def enter():
        with StopRequests() as stop:
            return stop.possible, handlers() == before

    assert in_thread(enter) == (False, True)

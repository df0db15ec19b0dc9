"""`main` of the commands as scripts and notebooks call it: in this process, again, in threads."""

import io
import logging
import os
import random
import signal
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_envs
import torch
from conftest import TINY, TINY_STATE
from saved import agent_state, equal, rows

from rlearly import evaluate, report, sweep, teacher, train, tune
from rlearly.training import display, run_directory
from rlearly.training.display import Display
from rlearly.training.trainer import Trainer

RUN = [*TINY_STATE["td3"], "seed_frames=60", "agent.learning_starts_steps=60", "threads=1"]
RUN += ["train_frames=120", "checkpoint_every_frames=60", "log_every_frames=20"]
PIXELS = [*TINY, "agent=drm", "seed_frames=30", "train_frames=50", "threads=1", "num_envs=2"]
PIXELS += ["replay.prefetch=2", "eval_every_frames=25", "eval_episodes=1", "wandb.mode=disabled"]


def footprint():
    """All that a command could leave behind in the process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "signals": [signal.getsignal(n) for n in sorted(signal.valid_signals())],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "environment": dict(os.environ),
        "paths": (list(sys.path), os.getcwd()),  # noqa: PTH109
        "logging": (list(logging.root.handlers), logging.root.level),
        "warnings": list(warnings.filters),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "torch": (
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32),
        ),
        "generators": (
            random.getstate(),
            str(np.random.get_state()),  # noqa: NPY002
            torch.get_rng_state().tolist(),
        ),
    }


@pytest.fixture(autouse=True)
def one_thread_of_torch(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


@pytest.fixture
def run(tmp_path):
    """A finished run."""
    assert train.main([*RUN, f"run_dir={tmp_path / 'run'}"]) == 0
    return tmp_path / "run"


def failing(at_step, fault="raise"):
    return ["env=tiny_envs:Faulty-v0", f"env.kwargs={{fault: {fault}, at_step: {at_step}}}"]


def test_commands_leave_the_process_as_they_found_it(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = [
        (train.main, [*RUN, "run_dir=again"], 0),
        (train.main, [*PIXELS, "run_dir=pixels"], 0),
        (train.main, ["resume=again", "train_frames=140"], 0),
        (train.main, ["env=Nope"], 2),
        (train.main, [*RUN, "run_dir=/dev/null/x"], 2),
        (train.main, [*RUN, *failing(70), "run_dir=failed"], 1),
        (train.main, ["--help"], 0),
        (evaluate.main, ["run=again", "episodes=1", "video_size=0"], 0),
        (evaluate.main, ["run=nowhere"], 2),
        (teacher.main, ["run=again", "episodes=1"], 0),
        (teacher.main, ["run=again", "episodes=1"], 2),
        (report.main, ["run=again"], 0),
        (sweep.main, [*RUN, "seeds=2", "dry_run=true"], 0),
        (sweep.main, ["status=nowhere"], 2),
        (tune.main, [*RUN, "eval_every_frames=50", "trials=1", "dry_run=true"], 0),
        (tune.main, ["status=nowhere"], 2),
    ]
    before = footprint()
    for main, arguments, status in calls:
        assert main(arguments) == status, arguments
        after = footprint()
        changed = {name: after[name] for name in before if after[name] != before[name]}
        assert not changed, arguments
    assert equal(agent_state(run), agent_state(tmp_path / "pixels")) is False


def test_video_that_cannot_be_written_is_one_sentence(run, capsys):
    assert evaluate.main([f"run={run}", "episodes=1", "video=/proc/x.mp4"]) == 2
    said = capsys.readouterr().err
    assert "video: /proc/x.mp4 cannot be written (No such file or directory)" in said
    assert "video_size=0" in said


def test_run_equals_the_same_one_before_it_in_a_thread_and_in_a_process_of_its_own(
    run, tmp_path, zygote, capfd
):
    def start(seed):
        return train.main([*RUN, f"seed={seed}", f"run_dir={tmp_path / f'thread{seed}'}"])

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(start, (0, 1))) == [0, 0]
    assert capfd.readouterr().out.count("not in the main thread") == 2
    assert zygote.run(*RUN, f"run_dir={tmp_path / 'process'}", log=tmp_path / "log")[0] == 0
    for other in ("thread0", "process"):
        assert rows(run) == rows(tmp_path / other)
        assert equal(agent_state(run), agent_state(tmp_path / other))
    assert rows(run) != rows(tmp_path / "thread1")


def test_run_beside_one_that_computes_in_another_way_is_refused(tmp_path, monkeypatch, capsys):
    statuses = []
    go_on = Trainer.run

    def meanwhile(trainer):
        monkeypatch.setattr(Trainer, "run", go_on)
        words = [*RUN, "threads=2", f"run_dir={tmp_path / 'other'}"]
        thread = threading.Thread(target=lambda: statuses.append(train.main(words)))
        thread.start()
        thread.join()
        return go_on(trainer)

    monkeypatch.setattr(Trainer, "run", meanwhile)
    assert train.main([*RUN, f"run_dir={tmp_path / 'run'}"]) == 0
    assert statuses == [2] and not (tmp_path / "other").exists()
    assert "threads: expected 1, as in another run in this process" in capsys.readouterr().err


# --- Ctrl-C ---


def press(times=1):
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C raises, also if the tests run in a shell's background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def closed(monkeypatch):
    """The envs that were closed."""
    found = []
    monkeypatch.setattr(tiny_envs.StateReach, "close", lambda env: found.append(env), raising=False)
    return found


def pressing(monkeypatch, method, at_call, times=1):
    """Press Ctrl-C in a call of a method of the env."""
    calls, original = [], getattr(tiny_envs.StateReach, method)

    def call(env, *args, **kwargs):
        calls.append(env)
        if len(calls) == at_call:
            press(times)
        return original(env, *args, **kwargs)

    monkeypatch.setattr(tiny_envs.StateReach, method, call)


@pytest.mark.parametrize("env", [1, 2], ids=["training env", "evaluation env"])
def test_interrupt_before_the_first_step_leaves_nothing(env, tmp_path, monkeypatch, closed):
    pressing(monkeypatch, "__init__", env)
    before = footprint()
    with pytest.raises(KeyboardInterrupt):
        train.main([*RUN, "eval_every_frames=50", f"run_dir={tmp_path / 'run'}"])
    assert footprint() == before
    assert not (tmp_path / "run").exists()
    assert len({*map(id, closed)}) == env - 1, "what was made is closed"


def test_interrupt_of_a_start_names_no_run_to_continue(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_directory, "record_start", lambda *_: press())
    with pytest.raises(KeyboardInterrupt):
        train.main([*RUN, f"run_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()
    assert "resume=" not in capsys.readouterr().out


def test_interrupt_saves_and_a_second_one_ends_a_run_that_resumes(
    run, tmp_path, monkeypatch, closed, capsys
):
    for times, folder in ((1, tmp_path / "saved"), (2, tmp_path / "ended")):
        with monkeypatch.context() as patched:
            pressing(patched, "step", 90, times)
            if times == 1:
                assert train.main([*RUN, f"run_dir={folder}"]) == 75
            else:
                with pytest.raises(KeyboardInterrupt):
                    train.main([*RUN, f"run_dir={folder}"])
                assert "ended without saving; continue from the last" in capsys.readouterr().out
        assert closed
        closed.clear()
        assert train.main([f"resume={folder}"]) == 0
        closed.clear()
        assert rows(run) == rows(folder) and equal(agent_state(run), agent_state(folder))


def test_interrupted_evaluation_and_recording_leave_no_file(run, tmp_path, monkeypatch, closed):
    before = sorted(path for path in tmp_path.rglob("*"))
    calls = [(evaluate.main, "video_size=0"), (teacher.main, f"out={tmp_path / 't.h5'}")]
    for main, word in calls:
        closed.clear()
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            pressing(patched, "step", 5)
            main([f"run={run}", word])
        assert closed
    assert sorted(path for path in tmp_path.rglob("*")) == before


class Gone(io.StringIO):
    """The output of a command whose reader has ended."""

    def write(self, text):
        raise BrokenPipeError


def test_run_saves_when_the_reader_of_its_output_ends(run, tmp_path, monkeypatch):
    enter = Display.__enter__

    def end(shown):
        shown.console.file = Gone()
        return enter(shown)

    with monkeypatch.context() as patched:
        patched.setattr(display, "LINE_SECONDS", (0.0,))
        patched.setattr(Display, "__enter__", end)
        assert train.main([*RUN, f"run_dir={tmp_path / 'piped'}"]) == 75
    assert train.main([f"resume={tmp_path / 'piped'}"]) == 0
    assert rows(run) == rows(tmp_path / "piped")

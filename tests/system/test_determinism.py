"""Repeating to the bit: what is recorded, what is compared, what the doctor finds."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import TINY_STATE
from tiny_envs import StateReach

from rlearly import doctor
from rlearly.api import session
from rlearly.core.tree_diff import first_difference
from rlearly.nn.optim import Adam
from rlearly.replay.buffer import ReplayBuffer
from rlearly.system import determinism, machine

CPU = torch.device("cpu")


def test_facts_are_those_of_this_process_and_survive_a_file(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.delenv("MKL_CBWR", raising=False)
    told = determinism.facts(CPU)
    assert told["device"] == "cpu" and told["threads"] == torch.get_num_threads()
    assert told["interop_threads"] == torch.get_num_interop_threads()
    assert told["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert told["torch"] == torch.__version__ and told["numpy"] == np.__version__
    assert told["float32_matmul_precision"] == "highest"
    assert told["deterministic_algorithms"] is False
    assert "None" not in told["numpy_blas"] and told["numpy_simd"]
    assert (told["OMP_NUM_THREADS"], told["MKL_CBWR"]) == ("3", None)
    assert told["rendering"] == "egl" and "cudnn" not in told
    assert determinism.changes(json.loads(json.dumps(told)), determinism.facts(CPU)) == []
    monkeypatch.delenv("MUJOCO_GL")
    assert "rendering" not in determinism.facts(CPU), "nobody has chosen one"


def test_gpu_adds_its_own_facts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    told = determinism.facts(torch.device("cuda"))
    assert (told["device"], told["gpu"], told["cudnn_deterministic"]) == ("cuda", "H100", True)
    assert told["cudnn_benchmark"] is False and told["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert {"cuda", "cudnn", "cudnn_tf32", "matmul_tf32"} <= set(told)
    assert json.dumps(told)


def test_changes_name_each_fact_that_both_know(monkeypatch):
    before = determinism.facts(CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    monkeypatch.setattr(torch, "__version__", "9.0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    assert determinism.changes(before, determinism.facts(torch.device("cuda"))) == [
        "device cpu -> cuda",
        f"threads {before['threads']} -> 16",
        f"cpu_capability {before['cpu_capability']} -> AVX9",
        f"torch {before['torch']} -> 9.0",
        "MKL_CBWR unset -> AVX2",
    ]
    assert determinism.changes({}, before) == [], "a run of before this was recorded"


def tree():
    return {
        "weights": {0: torch.arange(6, dtype=torch.float32).view(2, 3), "scale": torch.tensor(2.0)},
        "half": torch.ones(2, dtype=torch.bfloat16),
        "frames": np.zeros((4, 2), np.uint8),
        "streams": [np.array([1.0, np.nan]), (3, "PCG64", None)],
        "nan": float("nan"),
        "empty": np.zeros((0, 3)),
    }


def test_equal_trees_have_no_difference_whatever_their_order(tmp_path):
    turned = dict(reversed(tree().items()))
    np.save(tmp_path / "frames.npy", turned["frames"])
    turned["frames"] = np.load(tmp_path / "frames.npy", mmap_mode="r")
    turned["weights"][0] = turned["weights"][0].t().contiguous().t()
    assert first_difference(tree(), turned) is None


def change(path, value):
    def apply(root):
        for key in path[:-1]:
            root = root[key]
        root[path[-1]] = value

    return apply


DIFFERENCES = [
    (("weights", 0), torch.tensor([[0.0, 1, 2], [3, 4.5, 5]]), "weights/0[4]: 4.0 and 4.5 (1 of 6"),
    (("weights", 0), torch.arange(6.0), "weights/0: torch.float32 [2, 3] and torch.float32 [6]"),
    (("weights", "scale"), torch.tensor(2.5), "weights/scale[0]: 2.0 and 2.5 (1 of 1 "),
    (("half",), torch.tensor([1, 2], dtype=torch.bfloat16), "half[1]: 1.0 and 2.0"),
    (("frames",), np.zeros((4, 2), np.int8), "frames: uint8 [4, 2] and int8 [4, 2]"),
    (("frames",), [0] * 8, "frames: uint8 [4, 2] and [0, 0"),
    (("streams", 0), np.array([1.0, 2.0]), "streams[0][1]: nan and 2.0"),
    (("streams", 1), (3, "PCG64", 0), "streams[1][2]: None and 0"),
    (("streams", 1), (3, "PCG64"), "streams[1]: 3 and 2 entries"),
    (("streams", 1), [3, "PCG64", None], "streams[1]: (3, 'PCG64', None) and [3, 'PCG64', None]"),
    (("nan",), 0.0, "nan: nan and 0.0"),
    (("more",), 1, "more: only in the second"),
]


@pytest.mark.parametrize(("path", "value", "said"), DIFFERENCES)
def test_difference_names_its_path_and_both_values(path, value, said):
    other = tree()
    change(path, value)(other)
    found = first_difference(tree(), other)
    assert found and found.startswith(said)


def test_equal_values_of_other_bits_or_types_differ():
    for one, two in ((0.0, -0.0), (1, True), (1, 1.0), (np.float32(0), np.float32(-0.0))):
        assert first_difference({"x": one}, {"x": two}) is not None
    assert first_difference(torch.tensor([0.0]), torch.tensor([-0.0])) == (
        "[0]: 0.0 and -0.0 (1 of 1 numbers differ)"
    )


@pytest.fixture
def small(monkeypatch):
    """Make the doctor's runs small, and run them in this process."""
    overrides = "agent.hidden_dim=8 agent.learning_starts_steps=60 eval_every_frames=100"
    base = [w for w in TINY_STATE["td3"] if "every_frames" not in w and "agent=" not in w]
    monkeypatch.setattr(
        doctor, "REPEATED", {"td3": " ".join([*base, overrides, "eval_episodes=1"])}
    )
    monkeypatch.setattr(doctor, "_train", lambda *overrides: session.train(list(overrides)).status)


def test_doctor_finds_runs_that_repeat_and_resume_equal(small, monkeypatch):
    ends = []
    end = doctor._result
    monkeypatch.setattr(doctor, "_result", lambda run: ends.append(end(run)) or ends[-1])
    monkeypatch.setattr(doctor.gl_backend, "choose_backend", lambda: None)
    assert doctor.determinism() == (
        "3 runs of td3 are equal bit for bit on cpu with 1 thread: weights, moments, replay, "
        "random streams, rows; pixels were not checked, as nothing can be drawn here"
    )
    one = ends[0]
    assert one["trainer"]["updates"] == 100 and len(one["rows"]) > 8
    assert {"agent", "replay", "env", "means"} <= set(one)
    assert one["agent"]["modules"]["optimizers"]["critic"]["state"]
    assert one["agent"]["modules"]["generators"]


def test_env_on_the_global_generator_does_not_repeat(small, monkeypatch):
    state = StateReach._state
    monkeypatch.setattr(StateReach, "_state", lambda env: state(env) * float(torch.rand(())))
    with pytest.raises(doctor.Problem) as problem:
        doctor.determinism()
    said = str(problem.value)
    assert said.startswith("td3 on cpu with 1 thread does not repeat, first at rows[")
    assert "draw from a global generator" in said and "threads=1" not in said


def test_agent_that_reads_the_clock_does_not_repeat_and_fewer_threads_are_named(small, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    step = Adam.step

    def hurried(optimizer, *args):
        optimizer.param_groups[0]["lr"] = 1e-4 * (1 + time.monotonic() % 1)
        return step(optimizer, *args)

    monkeypatch.setattr(Adam, "step", hurried)
    with pytest.raises(doctor.Problem, match=r"does not repeat.*: try threads=1 in your runs"):
        doctor.determinism()


def forget_moments(monkeypatch):
    monkeypatch.setattr(Adam, "load_state_dict", lambda optimizer, state: None)


def forget_stream(monkeypatch):
    load = ReplayBuffer.load_state_dict

    def restart(buffer, state):
        load(buffer, state)
        buffer.generator.bit_generator.state = np.random.PCG64(0).state

    monkeypatch.setattr(ReplayBuffer, "load_state_dict", restart)


@pytest.mark.parametrize("forget", [forget_moments, forget_stream])
def test_what_is_not_restored_is_found_on_resuming(small, monkeypatch, forget):
    forget(monkeypatch)
    with pytest.raises(doctor.Problem, match=r"differs when stopped and resumed, first at \w+"):
        doctor.determinism()


def test_run_that_does_not_start_is_a_problem_in_its_own_words():
    with pytest.raises(doctor.Problem, match=r"agent=tt3 does not train: .*did you mean td3"):
        doctor._train("agent=tt3", "env=Pendulum-v1")


def test_determinism_is_checked_by_name_only(capsys):
    assert "determinism" not in doctor.CHECKS
    assert doctor.main(["--help"]) == 0
    assert "Run only if named, as it takes up to a minute: determinism" in capsys.readouterr().out


@pytest.mark.slow
def test_doctor_checks_states_and_pixels_in_processes_of_their_own():
    command = [sys.executable, "-W", "ignore", "-m", "rlearly.doctor", "determinism"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 runs of td3 and 3 runs of drm are equal bit for bit" in done.stdout


def test_deterministic_kernels_are_asked_for_on_a_gpu_only():
    before = torch.are_deterministic_algorithms_enabled()
    try:
        machine.use_deterministic_kernels(CPU)
        assert not torch.are_deterministic_algorithms_enabled()
        machine.use_deterministic_kernels(torch.device("cuda"))
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = True

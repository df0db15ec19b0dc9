"""What repeating a run to the bit rests on, and whether it does."""

import json

import numpy as np
import torch

from rlearly import determinism

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

"""All that a repetition of a run to the bit depends on, besides code, config and seed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rlearly.system import machine

ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS",
    "NPY_DISABLE_CPU_FEATURES", "OMP_DYNAMIC", "OMP_NUM_THREADS", "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS",
)  # fmt: skip
"""Variables that select the kernels and threads of torch's and numpy's libraries."""

GPU_ENVIRONMENT = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")


def facts(device: torch.device) -> dict[str, Any]:
    """The current values, as plain data, that decide a run's rounding and order of sums.

    Call it after threads are set and the renderer is chosen; without one, "rendering" is omitted.
    """
    numpy: Any = np.show_config(mode="dicts")
    blas = numpy.get("Build Dependencies", {}).get("blas", {})
    simd = numpy.get("SIMD Extensions", {})
    found = {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "processor": machine.processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "mkl": torch.backends.mkl.is_available(),
        "mkldnn": torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "numpy": np.__version__,
        "numpy_blas": f"{blas.get('name')} {blas.get('version')}",
        "numpy_simd": " ".join([*simd.get("baseline", []), *simd.get("found", [])]),
    }
    if "MUJOCO_GL" in os.environ:
        found["rendering"] = os.environ["MUJOCO_GL"]
    names = ENVIRONMENT
    if device.type == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        }
        names += GPU_ENVIRONMENT
    return found | {name: os.environ.get(name) for name in names}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each value that is in both and differs, as `threads 1 -> 2`."""

    def text(value: Any) -> str:
        return "unset" if value is None else str(value)

    return [
        f"{name} {text(before[name])} -> {text(value)}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]

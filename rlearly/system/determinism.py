"""What a run rests on when it is to repeat to the bit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from rlearly.system import machine

ENVIRONMENT = (
    "ATEN_CPU_CAPABILITY",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NPY_DISABLE_CPU_FEATURES",
    "OMP_DYNAMIC",
    "OMP_NUM_THREADS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
)
"""Variables by which torch's and numpy's libraries choose their kernels and threads."""

GPU_ENVIRONMENT = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE")


def facts(device: torch.device) -> dict[str, Any]:
    """Plain values that decide a run's rounding and order of sums, as they are now.

    Where they are equal, code, config and seed decide the rest. Call it once threads are settled
    and the renderer is chosen; a renderer that nobody has chosen yet is left out.
    """
    numpy: Any = np.show_config(mode="dicts")
    blas = numpy.get("Build Dependencies", {}).get("blas", {})
    simd = numpy.get("SIMD Extensions", {})
    told = {
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
        told["rendering"] = os.environ["MUJOCO_GL"]
    names = ENVIRONMENT
    if device.type == "cuda":
        told |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        }
        names += GPU_ENVIRONMENT
    return told | {name: os.environ.get(name) for name in names}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each fact that both know and that differs, as `threads 1 -> 2`."""
    return [
        f"{name} {_shown(before[name])} -> {_shown(value)}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)

"""Write a trained policy as one file that runs without rlearly: ONNX or TorchScript."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

import rlearly
from rlearly.agents import AGENTS, agent_spec
from rlearly.agents.guarded import unguarded
from rlearly.api.exported_module import FRAMES, MASK, ExportedModule, Input
from rlearly.config.schema import RunConfig
from rlearly.core.errors import ConfigError
from rlearly.envs.raw_view import RawEnv, RawView
from rlearly.system.atomic import replacing, write
from rlearly.system.process import restored_process
from rlearly.training import checkpoint

FORMATS = {".onnx": "onnx", ".pt": "torchscript"}
TOLERANCE = 1e-5
"""Largest difference of an action from the policy's, as a share of the action's range."""
MOST_STEPS = 300
"""Largest number of steps of an episode that is played to check a file."""
SAME_CHOICES = 0.99
"""Smallest share of equal discrete actions; rounding may decide between two as good ones."""
OPSET = 18

Session = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Exported:
    """A policy in a file, and its manifest, which is also in the file itself."""

    path: Path
    manifest: dict[str, Any]

    @property
    def manifest_path(self) -> Path:
        return self.path.with_suffix(".json")


class TrainedRun(Protocol):
    """What an export needs from a `rlearly.Run`."""

    path: Path
    checkpoint: int | str | None

    @property
    def config(self) -> RunConfig: ...
    @property
    def frames(self) -> int: ...
    @property
    def policy(self) -> Any: ...
    def make_env(self) -> RawEnv: ...
    def trained_agent(
        self, *, kernels: bool = True, **changes: Any
    ) -> tuple[Any, RawView, int]: ...


def write_policy(
    run: TrainedRun,
    path: str | Path | None = None,
    *,
    format: str | None = None,
    episodes: int = 2,
    seed: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Write the policy of a run into one file, and check it; see `rlearly.export`."""
    target, kind = _target(run, path, format)
    if target.exists() and not overwrite:
        raise ConfigError(f"out: {target} exists; name another file, or add overwrite=true.")
    if not target.parent.is_dir():
        raise ConfigError(f"out: there is no folder {target.parent}; make it, or name another.")
    if kind == "onnx":
        _need_onnx()
    with restored_process:
        module = _module(run)
        recorded = _recorded(run, module, episodes, seed)
        data = _as_onnx(module, recorded) if kind == "onnx" else _as_torchscript(module, recorded)
        opened = _onnx_session if kind == "onnx" else _torchscript_session
        manifest = _manifest(run, module, kind) | _compared(opened(data), module, recorded)
        data = _with_manifest(data, manifest, kind)
    try:
        with replacing(target) as partial:
            partial.write_bytes(data)
        exported = Exported(target, manifest)
        write(exported.manifest_path, json.dumps(manifest, indent=1))
    except OSError as error:
        raise ConfigError(
            f"out: {target} cannot be written ({error.strerror}); name another file."
        ) from None
    return exported


def _target(run: TrainedRun, path: str | Path | None, format: str | None) -> tuple[Path, str]:
    """(path, format) of the file."""
    suffixes = {kind: suffix for suffix, kind in FORMATS.items()}
    if format is not None and format not in suffixes:
        raise ConfigError(f"format: expected onnx or torchscript, received {format!r}.")
    if path is None:
        kind = format or "onnx"
        return run.path / f"policy{suffixes[kind]}", kind
    target = Path(path)
    kind = format or FORMATS.get(target.suffix, "")
    if FORMATS.get(target.suffix) != kind:
        raise ConfigError(
            f"out: expected a path that ends in {suffixes.get(kind, '.onnx or .pt')}, received "
            f"{target}."
        )
    return target, kind


def _need_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            __import__(name)
        except ImportError:
            raise ConfigError(
                f"format=onnx: the package {name} is not installed: pip install 'rlearly[export]'; "
                "format=torchscript needs no package."
            ) from None


def _module(run: TrainedRun) -> ExportedModule:
    """The policy with preprocessing and action scaling, in float32 and without CPU kernels."""
    name = run.config.agent_name
    make = agent_spec(name).policy_module
    if make is None:
        able = [f"agent={other}" for other in AGENTS if agent_spec(other).policy_module]
        raise ConfigError(
            f"export: agent={name} has no policy_module in its AgentSpec, a function that returns "
            f"its policy as one nn.Module; agents that have one: {', '.join(able)}."
        )
    agent, view, _ = run.trained_agent(kernels=False, precision="fp32")
    normalized: Any = agent
    if run.config.env.normalize:
        from rlearly.nn.policy_module import NormalizedStates, PolicyModule

        policy = make(unguarded(normalized.agent))
        statistics = normalized.normalizer.obs
        if statistics is not None:
            scaled = NormalizedStates(statistics, view.mask_size)
            networks = {"normalize": scaled, "policy": policy}
            policy = PolicyModule(
                networks, lambda nets, obs: nets["policy"](nets["normalize"](obs))
            )
    else:
        policy = make(unguarded(agent))
    module = ExportedModule(view, policy)
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


# --- episodes to check with ---


@dataclass(frozen=True)
class Recorded:
    """Inputs [T, ...] of steps of episodes, in the module's order, and the policy's actions.

    precision: in which the policy computed.
    """

    inputs: list[np.ndarray]
    actions: np.ndarray
    precision: str


def _recorded(run: TrainedRun, module: ExportedModule, episodes: int, seed: int) -> Recorded:
    """Play the env with the policy, and record what an exported file would be given."""
    policy, rows, actions = run.policy, [], []
    env = run.make_env()
    try:
        for episode in range(episodes):
            obs, info = env.reset(seed=seed + episode)
            policy.reset()
            frames: deque[Any] = deque(maxlen=module.view.stack)
            for _ in range(MOST_STEPS):
                mask = info.get("action_mask") if module.view.mask_size else None
                rows.append([_part(each, obs, mask, frames) for each in module.inputs])
                action = policy(obs, action_mask=mask)
                actions.append(action)
                obs, _, terminated, truncated, info = env.step(action)
                if terminated or truncated:
                    break
    finally:
        env.close()
    stacked = [np.stack(column) for column in zip(*rows, strict=True)]
    return Recorded(stacked, np.stack(actions), run.config.precision)


def _part(each: Input, obs: Any, mask: Any, frames: deque[Any]) -> np.ndarray:
    """One input for the newest observation; adds its image to `frames`."""
    if each.name == MASK and not each.path:
        return np.asarray(mask, each.dtype)
    part = obs
    for step in each.path:
        part = part[step]
    part = np.array(part, each.dtype).reshape(each.shape)
    if not each.stacked:
        return part
    frames.extend([part] * (1 if frames else (frames.maxlen or 1)))
    return np.stack(frames)


# --- formats ---


def _tensors(recorded: Recorded, rows: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(column[:rows].copy()) for column in recorded.inputs)


def _as_torchscript(module: ExportedModule, recorded: Recorded) -> bytes:
    packed = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export is to replace tracing
        traced = torch.jit.trace(module, _tensors(recorded, 2), check_trace=False)
        torch.jit.save(traced, packed)
    return packed.getvalue()


def _torchscript_session(data: bytes) -> Session:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(io.BytesIO(data))
    return lambda inputs: loaded(*map(torch.from_numpy, inputs)).numpy()


def _as_onnx(module: ExportedModule, recorded: Recorded) -> bytes:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings(), _quiet(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.export.export(
            module,
            _tensors(recorded, 2),
            dynamic_shapes=(tuple({0: batch} for _ in module.inputs),),
            strict=False,
        )
        program: Any = torch.onnx.export(
            traced,
            input_names=[each.name for each in module.inputs],
            output_names=["action"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    return program.model_proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress messages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _onnx_session(data: bytes) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda inputs: np.asarray(session.run(None, dict(zip(names, inputs, strict=True)))[0])


def _with_manifest(data: bytes, manifest: dict[str, Any], kind: str) -> bytes:
    """The file with its manifest inside: ONNX's metadata "rlearly", or TorchScript's extra file
    "manifest.json"."""
    text = json.dumps(manifest)
    if kind == "onnx":
        import onnx

        model = onnx.load_from_string(data)
        entry = model.metadata_props.add()
        entry.key, entry.value = "rlearly", text
        return model.SerializeToString()
    packed = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(
            torch.jit.load(io.BytesIO(data)), packed, _extra_files={"manifest.json": text}
        )
    return packed.getvalue()


# --- the check and the manifest ---


def _compared(session: Session, module: ExportedModule, recorded: Recorded) -> dict[str, Any]:
    """Compare a file's actions, one at a time and all at once, with the policy's.

    Raises:
        ConfigError: they differ by more than `TOLERANCE`.
    """
    one_by_one = np.concatenate(
        [
            session([column[row : row + 1] for column in recorded.inputs])
            for row in range(len(recorded.actions))
        ]
    )
    together = session(recorded.inputs)
    expected = recorded.actions
    if recorded.precision == "bf16":  # the file computes in float32
        with torch.no_grad():
            expected = module(*map(torch.from_numpy, recorded.inputs)).numpy()
    if expected.dtype.kind in "iu":
        same = min(float(np.mean(one_by_one == expected)), float(np.mean(together == expected)))
        if same < SAME_CHOICES:
            raise ConfigError(
                f"export: only {same:.1%} of the file's actions equal the policy's in "
                f"{len(expected)} steps; nothing was written. {_REPORT}"
            )
        found: dict[str, Any] = {"same_actions": same}
    else:
        space: Any = module.view.action
        bounded = np.isfinite(space.low) & np.isfinite(space.high)
        width = np.where(bounded, np.float64(space.high) - np.float64(space.low), 2.0)
        with np.errstate(invalid="ignore"):
            away = max(
                float(np.max(np.abs(actions.astype(np.float64) - expected) / width))
                for actions in (one_by_one, together)
            )
        if not away <= TOLERANCE:
            raise ConfigError(
                f"export: the file's actions differ from the policy's by {away:.2g} of their "
                f"range in {len(expected)} steps, more than {TOLERANCE:g}; nothing was written. "
                f"{_REPORT}"
            )
        found = {"largest_difference": away}
    return {"checked": {"steps": len(expected), **found}}


_REPORT = "Please report it with the run's config.yaml."


def _manifest(run: TrainedRun, module: ExportedModule, kind: str) -> dict[str, Any]:
    """What a program needs to know to use the file."""
    config, view = run.config, module.view
    frames = run.frames
    action: Any = view.action
    manifest = {
        "format": kind,
        "inputs": [
            {
                "name": each.name,
                "dtype": str(each.dtype),
                "shape": ["batch", *([view.stack] if each.stacked else []), *each.shape],
                "path": list(each.path),
            }
            for each in module.inputs
        ],
        "output": {
            "name": "action",
            "dtype": str(action.dtype),
            "shape": ["batch", *action.shape],
        },
        "action_repeat": config.env.action_repeat,
        "agent": config.agent_name,
        "env": config.env.name,
        "run": str(run.path.resolve()),
        "frames": frames,
        "checkpoint_sha256": checkpoint.digest(run.path / "checkpoints", frames)
        if run.checkpoint != "best"
        else None,
        "computes_in": "float32",
        "trained_in": config.precision,
        "versions": {"rlearly": rlearly.__version__, "torch": torch.__version__},
    }
    if view.size:
        manifest["note"] = (
            f"{FRAMES!r} are the newest {view.stack} images of the episode, oldest first; at its "
            "beginning the first one is repeated."
        )
    return manifest

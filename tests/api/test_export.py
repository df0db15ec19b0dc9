"""Exported policies: ONNX and TorchScript files that play as the policy does."""

import json
import subprocess
import sys
from collections import deque

import gymnasium
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_envs
import torch
from conftest import TINY, TINY_STATE
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from PIL import Image

import rlearly
from rlearly import export as command
from rlearly.api.exported_module import Frames, area_weights, flat_tensor, inputs_of
from rlearly.core.errors import ConfigError
from rlearly.envs.observations import ImageObservation, image_format
from rlearly.envs.raw_view import RawView
from rlearly.envs.wrappers import flat, resized

SHORT = {"train_frames": 260, "eval_every_frames": 0, "progress": False}


class Mixed(tiny_envs.StateReach):
    """StateReach observed in parts of several kinds, with actions of another range and shape."""

    observation_space = Dict(
        goal=Box(-1, 1, (1,), np.float64),
        inner=Dict(side=Discrete(2, start=5), bits=MultiBinary(2)),
        point=Box(-1, 1, (1, 1), np.float32),
        steps=MultiDiscrete([11, 3]),
    )
    action_space = Box(-3, 5, (1, 1), np.float64)

    def _state(self):
        side = int(self.point > 0)
        return {
            "goal": np.array([self.goal]),
            "inner": {"side": 5 + side, "bits": np.array([side, 1 - side], np.int8)},
            "point": np.array([[self.point]], np.float32),
            "steps": np.array([self.steps, side]),
        }

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step((np.ravel(action) - 1) / 4)


class LevelsReach(tiny_envs.StateReach):
    """StateReach with five integer actions in a Box."""

    action_space = Box(-2, 2, (1,), np.int32)

    def step(self, action):
        assert self.action_space.contains(action)
        return super().step(np.asarray(action, np.float32) / 2)


class GreyWide(tiny_envs.PixelReach):
    """PixelReach in wide grey images [P, H, W] of floats in [0, 1]."""

    observation_space = Box(0, 1, (2, 24, 40), np.float32)

    def _image(self):
        image = super()._image()[..., :2].astype(np.float32) / 255
        return np.repeat(image, 2, axis=1)[:, 4:44].transpose(2, 0, 1).copy()


ENVS = {
    "td3": tiny_envs.StateReach,
    "sac": Mixed,
    "ppo": tiny_envs.MaskedReach,
    "drq_eps": tiny_envs.StepPixelReach,
    "drqv2": GreyWide,
    "drm": tiny_envs.PixelReach,
}


def settings(agent, folder):
    words = TINY_STATE.get(agent, [*TINY, f"agent={agent}"])
    keep = [w for w in words if not w.startswith(("env=", "train_frames=", "eval_every"))]
    if agent == "drq_eps":
        keep += ["env.image_size=24", "agent.shift_pixels=1", "agent.encoder_channels=4"]
    return [*keep, "threads=1", "video_size=0", f"run_dir={folder}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """agent -> its run, trained once."""
    runs = {}

    def train(agent, env=None, *more):
        key = (agent, env, *more)
        if key not in runs:
            folder = tmp_path_factory.mktemp(agent) / "run"
            runs[key] = rlearly.train(
                *settings(agent, folder), *more, env=env or ENVS[agent], **SHORT
            )
        return runs[key]

    return train


def session(path):
    """The file as a function of lists of inputs, by a runtime of its own."""
    if path.suffix == ".onnx":
        opened = onnxruntime.InferenceSession(path.read_bytes())
        names = [each.name for each in opened.get_inputs()]
        return lambda inputs: opened.run(None, dict(zip(names, inputs, strict=True)))[0]
    loaded = torch.jit.load(path)
    return lambda inputs: loaded(*map(torch.from_numpy, inputs)).numpy()


@pytest.mark.parametrize("suffix", [".onnx", ".pt"])
@pytest.mark.parametrize("agent", ENVS)
def test_exported_file_plays_as_the_policy_does(agent, suffix, trained, tmp_path):
    run = trained(agent)
    written = run.export(tmp_path / f"policy{suffix}")
    file, env, policy = session(written.path), ENVS[agent](), rlearly.load(run.path).policy
    manifest = json.loads(written.manifest_path.read_text(encoding="utf-8"))
    columns, expected = [], []
    for seed in (7, 8, 9):  # others than those that the file was checked with
        obs, info = env.reset(seed=seed)
        policy.reset()
        frames, over = deque(maxlen=policy.view.stack), False
        while not over:
            row = []
            for each in manifest["inputs"]:
                part = obs
                for key in each["path"]:
                    part = part[key]
                part = info["action_mask"] if each["name"] == "action_mask" else part
                part = np.asarray(part, each["dtype"])
                if each["name"] == "frames":
                    frames.extend([part] * (1 if frames else frames.maxlen))
                    part = np.stack(frames)
                row.append(part)
            action = policy(obs, action_mask=info.get("action_mask"))
            own = file([part[None] for part in row])
            assert own.dtype == manifest["output"]["dtype"]
            assert list(own.shape) == [1, *manifest["output"]["shape"][1:]]
            np.testing.assert_allclose(own[0], action, atol=1e-5)
            columns.append(row)
            expected.append(action)
            obs, _, terminated, truncated, info = env.step(action)
            over = terminated or truncated
    together = file([np.stack(parts) for parts in zip(*columns, strict=True)])
    np.testing.assert_allclose(together, np.stack(expected), atol=1e-5)


@pytest.mark.parametrize(
    "agent, env, more",
    [
        ("td3", None, ["env.normalize=obs"]),
        ("td3", LevelsReach, []),
        ("ppo", tiny_envs.StateReach, []),
        ("ppo", tiny_envs.StepReach, ["agent.normalize=true"]),
        ("drq_eps", tiny_envs.MaskedReach, []),
        ("sac", None, ["precision=bf16"]),
        ("td3", None, ["intervention=[layer_norm,spectral_norm]"]),
        ("sac", None, ["intervention=[crelu,injection]", "injection.at_step=150"]),
        ("drqv2", None, ["intervention=[crelu,injection]", "injection.at_step=150"]),
    ],
    ids=str,
)
def test_every_kind_of_policy_is_exported_within_the_tolerance(agent, env, more, trained, tmp_path):
    run = trained(agent, env, *more)
    for name in ("policy.onnx", "policy.pt"):
        checked = run.export(tmp_path / name).manifest["checked"]
        assert checked.get("largest_difference", 0.0) <= 1e-5
        assert checked.get("same_actions", 1.0) == 1.0 and checked["steps"] > 10


def test_a_file_with_other_weights_is_not_written(trained, tmp_path, monkeypatch):
    from rlearly.api import export

    run = trained("td3")
    honest = export._as_torchscript

    def dishonest(module, recorded):
        with torch.no_grad():
            next(module.parameters())[0, 0] += 0.1
        return honest(module, recorded)

    monkeypatch.setattr(export, "_as_torchscript", dishonest)
    with pytest.raises(ConfigError, match=r"differ from the policy's by .*nothing was written"):
        run.export(tmp_path / "policy.pt")
    assert not list(tmp_path.iterdir())


def test_manifest_is_in_the_file_itself(trained, tmp_path):
    run = trained("drm")
    written = run.export(tmp_path / "policy.onnx")
    props = {p.key: p.value for p in onnx.load(written.path).metadata_props}
    assert json.loads(props["rlearly"]) == written.manifest
    extra = {"manifest.json": ""}
    torch.jit.load(run.export(tmp_path / "policy.pt").path, _extra_files=extra)
    assert json.loads(extra["manifest.json"])["agent"] == "drm"
    assert written.manifest["inputs"][0]["shape"] == ["batch", 3, 24, 24, 3]
    assert written.manifest["frames"] == 260 and "oldest first" in written.manifest["note"]


@pytest.mark.parametrize("inputs", [(210, 160), (96, 96), (100, 90), (17, 33), (64, 24)])
@pytest.mark.parametrize("size", [24, 84])
def test_images_are_scaled_as_pillow_scales_them(inputs, size):
    image = np.random.default_rng(0).integers(0, 256, (*inputs, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
    space = Box(0, 255, image.shape, np.uint8)
    view = RawView(space, Discrete(2), lambda a: a, _image_of(space), size, 1)
    found = Frames(view)(torch.from_numpy(image)[None, None])[0]
    np.testing.assert_array_equal(found.permute(1, 2, 0), expected)
    assert area_weights(*[size, size]).diagonal().sum() == size * 2**22


def _image_of(space):
    return ImageObservation(space, image_format(space))


@pytest.mark.parametrize(
    "shape, dtype, high",
    [((20, 30), np.uint8, 255), ((3, 20, 30), np.float32, 1), ((20, 30, 4), np.uint8, 255)],
)
def test_frames_are_those_of_training(shape, dtype, high):
    generator = np.random.default_rng(1)
    space = Box(0, high, shape, dtype)
    image = (generator.random((3, *shape)) * high).astype(dtype)
    view = RawView(space, Discrete(2), lambda a: a, _image_of(space), 24, 3)
    own = [resized(view.image.frame(one), 24).transpose(2, 0, 1) for one in image]
    found = Frames(view)(torch.from_numpy(image)[None])[0]
    np.testing.assert_array_equal(found, np.concatenate(own))


def test_flat_observations_are_those_of_training():
    space = Mixed.observation_space
    space.seed(0)
    view = RawView(space, Discrete(2), lambda a: a)
    samples = [space.sample() for _ in range(5)]
    columns = []
    for each in inputs_of(view):
        parts = samples
        for key in each.path:
            parts = [part[key] for part in parts]
        columns.append(torch.from_numpy(np.stack([np.asarray(p, each.dtype) for p in parts])))
    expected = np.stack([flat(space, one) for one in samples])
    np.testing.assert_array_equal(flat_tensor(space, columns), expected)


def test_the_command_says_what_it_wrote_and_how_to_use_it(trained, tmp_path, capsys):
    out = tmp_path / "p.onnx"
    assert command.main([f"run={trained('drm').path}", f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert f"{out}: its actions differ from the policy's by at most" in said
    assert "input frames: uint8 [batch, 3, 24, 24, 3]" in said and "oldest first" in said
    assert command.main(["run=nothing"]) == 2
    assert "nothing does not exist" in capsys.readouterr().err


def test_bad_requests_are_refused_in_one_sentence(trained, tmp_path, monkeypatch):
    run = trained("td3")
    with pytest.raises(ConfigError, match=r"expected a path that ends in \.onnx or \.pt"):
        run.export(tmp_path / "policy.xyz")
    with pytest.raises(ConfigError, match="expected onnx or torchscript, received 'tflite'"):
        run.export(tmp_path / "policy.onnx", format="tflite")
    with pytest.raises(ConfigError, match=r"ends in \.pt, received"):
        run.export(tmp_path / "policy.onnx", format="torchscript")
    with pytest.raises(ConfigError, match="there is no folder"):
        run.export(tmp_path / "nothing" / "policy.onnx")
    (tmp_path / "policy.pt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"exists; name another file, or add overwrite=true"):
        run.export(tmp_path / "policy.pt")
    assert (tmp_path / "policy.pt").read_text(encoding="utf-8") == "mine"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime is not installed: pip install 'rlearly\["):
        run.export(tmp_path / "policy.onnx")


def test_an_exported_file_needs_no_rlearly(trained, tmp_path):
    written = trained("td3").export(tmp_path / "policy.onnx")
    script = (
        "import sys; sys.modules['torch'] = sys.modules['rlearly'] = None\n"
        "import numpy as np, onnxruntime\n"
        f"file = onnxruntime.InferenceSession({str(written.path)!r})\n"
        "print(file.run(None, {'observation': np.zeros((1, 2), np.float32)})[0].shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert done.stdout == "(1, 1)\n", done.stderr


def test_raw_env_repeats_actions_as_training_did(tmp_path):
    words = [*settings("td3", tmp_path / "run"), "env.action_repeat=2"]
    words = [w for w in words if w != "env.action_repeat=1"]
    run = rlearly.train(*words, env=tiny_envs.StateReach, **SHORT)
    env = run.make_env()
    assert isinstance(env, gymnasium.Env)
    env.reset(seed=0)
    over, steps = False, 0
    while not over:
        _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        over, steps = terminated or truncated, steps + 1
    assert steps == 5


def test_a_network_of_the_users_own_is_exported(trained, tmp_path):
    run = trained("sac", tiny_envs.StateReach, "agent.network=plugin_networks:residual")
    for name in ("policy.onnx", "policy.pt"):
        assert run.export(tmp_path / name).manifest["checked"]["largest_difference"] <= 1e-5


def test_an_agent_of_the_users_own_is_exported_if_it_says_how(tmp_path, monkeypatch):
    source = (
        "from dataclasses import replace\n"
        "from rlearly.agents import agent_spec\n"
        "with_module = agent_spec('td3')\n"
        "without = replace(with_module, policy_module=None)\n"
    )
    (tmp_path / "exported_agents.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    words = [w for w in settings("td3", tmp_path / "x") if not w.startswith(("agent=", "run_dir"))]
    short = {"env": "tiny_envs:StateReach-v0", **SHORT}
    for name in ("with_module", "without"):
        agent = f"agent=exported_agents:{name}"
        run = rlearly.train(*words, agent, run_dir=tmp_path / name, **short)
        if name == "with_module":
            assert run.export(tmp_path / "p.onnx").manifest["checked"]["largest_difference"] <= 1e-5
        else:
            with pytest.raises(ConfigError, match="agent=exported_agents:without has no policy_m"):
                run.export(tmp_path / "q.onnx")

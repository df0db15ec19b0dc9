"""Models of Stable-Baselines3 and sb3-contrib play and value as they do in these libraries."""

import json
import pickle
import sys
import types
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import nn

from rlearly import record, teacher
from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.envs.snapshots.pretrained import from_hub, read_model

sb3 = pytest.importorskip("stable_baselines3")
contrib = pytest.importorskip("sb3_contrib")
DummyVecEnv = sb3.common.vec_env.DummyVecEnv
VecNormalize = sb3.common.vec_env.VecNormalize

ON_POLICY = {"n_steps": 8, "batch_size": 8}
OFF_POLICY = {"buffer_size": 9}


class Trunk(sb3.common.torch_layers.BaseFeaturesExtractor):
    """As wide as the observation, so that its weights could be mistaken for a network without."""

    def __init__(self, space, width=3):
        super().__init__(space, width)
        self.layer = nn.Linear(3, width)

    def forward(self, x):
        return torch.tanh(self.layer(x))


class Rooms(gymnasium.Env):
    """An image (channels last) and a vector; three moves, of which some are masked."""

    observation_space = Dict(
        {"image": Box(0, 255, (36, 40, 3), np.uint8), "vector": Box(-1, 1, (2,))}
    )
    action_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(action), False, self.steps == 8, {}

    def action_masks(self):
        return np.arange(3) == (self.steps + 1) % 3


class Walk(gymnasium.Env):
    """A point with float64 observations, as MuJoCo's envs have."""

    observation_space = Box(-50, 50, (2,), np.float64)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(5, 3, size=2)
        return self.x.copy(), {}

    def step(self, action):
        self.x = np.clip(self.x + 0.3 * np.asarray(action, float), -50, 50)
        return self.x.copy(), float(-abs(self.x[0])), False, False, {}


gymnasium.register("Walk-v0", Walk, max_episode_steps=10)


def loud(model):
    """The model with weights that drive its outputs to their bounds."""
    with torch.no_grad():
        for parameter in model.policy.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


def on_pendulum(algorithm, policy="MlpPolicy", **kwargs):
    torch.manual_seed(0)
    return algorithm(policy, "Pendulum-v1", **kwargs)


MODELS = {
    "PPO": lambda: on_pendulum(sb3.PPO, **ON_POLICY),
    "PPO with gSDE and a squashed output": lambda: on_pendulum(
        sb3.PPO, use_sde=True, policy_kwargs={"squash_output": True}, **ON_POLICY
    ),
    "PPO with a features extractor": lambda: on_pendulum(
        sb3.PPO, policy_kwargs={"features_extractor_class": Trunk}, **ON_POLICY
    ),
    "PPO with other widths": lambda: on_pendulum(
        sb3.PPO,
        policy_kwargs={
            "features_extractor_class": Trunk,
            "features_extractor_kwargs": {"width": 32},
            "net_arch": {"pi": [8, 9, 10], "vf": [7]},
        },
        **ON_POLICY,
    ),
    "PPO with ReLU6": lambda: on_pendulum(
        sb3.PPO, policy_kwargs={"activation_fn": nn.ReLU6}, **ON_POLICY
    ),
    "PPO with Tanhshrink": lambda: on_pendulum(
        sb3.PPO, policy_kwargs={"activation_fn": nn.Tanhshrink}, **ON_POLICY
    ),
    "A2C": lambda: on_pendulum(sb3.A2C),
    "TRPO": lambda: on_pendulum(contrib.TRPO, **ON_POLICY),
    "TD3": lambda: on_pendulum(sb3.TD3, **OFF_POLICY),
    "DDPG": lambda: on_pendulum(sb3.DDPG, **OFF_POLICY),
    "SAC with gSDE": lambda: on_pendulum(sb3.SAC, use_sde=True, **OFF_POLICY),
    "SAC with a features extractor": lambda: on_pendulum(
        sb3.SAC, policy_kwargs={"features_extractor_class": Trunk}, **OFF_POLICY
    ),
    "TQC": lambda: on_pendulum(contrib.TQC, top_quantiles_to_drop_per_net=5, **OFF_POLICY),
    "CrossQ": lambda: on_pendulum(contrib.CrossQ, **OFF_POLICY),
    "ARS": lambda: on_pendulum(contrib.ARS, "LinearPolicy", zero_policy=False),
}


def expected_value(model, obs):
    """The value by the networks' layers, without the functions that the package calls."""
    policy = model.policy
    seen = torch.as_tensor(obs)[None]
    if isinstance(model, contrib.ARS):
        return np.nan
    if isinstance(model, sb3.PPO | sb3.A2C | contrib.TRPO):
        features = policy.vf_features_extractor(seen)
        return policy.value_net(policy.mlp_extractor.value_net(features)).item()
    action = policy.scale_action(model.predict(obs, deterministic=True)[0])
    joined = torch.cat([policy.critic.features_extractor(seen), torch.as_tensor(action)[None]], 1)
    if isinstance(model, contrib.TQC):  # two critics of 25 quantiles, of which 10 are dropped
        quantiles = [policy.critic.qf0(joined), policy.critic.qf1(joined)]
        return np.sort(torch.cat(quantiles, 1).detach().numpy()[0])[:40].mean()
    return policy.critic.qf0(joined).item()


@pytest.mark.parametrize("name", MODELS)
def test_model_plays_and_values_as_in_its_library(name, tmp_path):
    env = gymnasium.make("Pendulum-v1")
    model = loud(MODELS[name]())
    model.save(tmp_path / "model")
    read = read_model(tmp_path / "model.zip", env, trust=True)
    assert read.algorithm == name.split()[0]
    many = [env.reset(seed=seed)[0] for seed in range(30)]
    actions = [read.act(obs) for obs in many]
    assert np.array_equal(actions, [model.predict(obs, deterministic=True)[0] for obs in many])
    assert np.ptp(actions) > 0.1
    values = [read.value(obs) for obs in many]
    expected = [expected_value(model, obs) for obs in many]
    assert np.allclose(values, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert read.has_critic == (name != "ARS")


@pytest.mark.parametrize("name", ["DQN", "QRDQN"])
def test_greedy_model_takes_numbers_as_actions_and_its_best_value(name, tmp_path):
    env = gymnasium.make("CartPole-v1")
    kind = {"DQN": sb3.DQN, "QRDQN": contrib.QRDQN}[name]
    model = loud(kind("MlpPolicy", env, seed=0, **OFF_POLICY))
    model.save(tmp_path / "model")
    read = read_model(tmp_path / "model.zip", env, trust=True)
    assert read.algorithm == name
    many = [env.reset(seed=seed)[0] for seed in range(30)]
    assert [read.act(obs) for obs in many] == [
        model.predict(o, deterministic=True)[0] for o in many
    ]
    assert isinstance(read.act(many[0]), np.int64)
    net = model.q_net.q_net if name == "DQN" else model.quantile_net.quantile_net
    outputs = net(torch.as_tensor(np.stack(many))).detach().numpy().reshape(30, -1, 2)
    assert np.allclose([read.value(obs) for obs in many], outputs.mean(1).max(1), rtol=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_images_in_a_dict_are_seen_as_in_training_and_masks_obeyed(masked, tmp_path):
    env = gymnasium.wrappers.TimeLimit(Rooms(), 8)
    kind = contrib.MaskablePPO if masked else sb3.PPO
    model = kind("MultiInputPolicy", env, seed=0, **ON_POLICY)
    assert model.observation_space["image"].shape == (3, 36, 40)
    model.save(tmp_path / "model")
    read = read_model(tmp_path / "model.zip", env, trust=True)
    assert read.algorithm == ("MaskablePPO" if masked else "PPO")
    obs, _ = env.reset(seed=0)
    for _ in range(4):
        seen = {"image": obs["image"].transpose(2, 0, 1), "vector": obs["vector"]}
        masks = {"action_masks": env.unwrapped.action_masks()} if masked else {}
        action = read.act(obs)
        assert action == model.predict(seen, deterministic=True, **masks)[0]
        assert not masked or env.unwrapped.action_masks()[action]
        batch = {key: torch.as_tensor(part)[None] for key, part in seen.items()}
        assert read.value(obs) == pytest.approx(model.policy.predict_values(batch).item())
        obs, *_ = env.step(action)


def recurrent_model(path):
    model = on_pendulum(
        contrib.RecurrentPPO, "MlpLstmPolicy", policy_kwargs={"lstm_hidden_size": 16}, **ON_POLICY
    )
    loud(model).save(path)
    return model


def with_memory(model, episode):
    """(actions, values) along an episode's observations, by the library's own loop."""
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    state, actions, values = None, [], []
    zeros = torch.zeros(1, 1, 16)
    memory = RNNStates((zeros, zeros), (zeros, zeros))
    for step, obs in enumerate(episode):
        action, state = model.predict(
            obs, state=state, episode_start=np.array([step == 0]), deterministic=True
        )
        with torch.no_grad():
            _, value, _, memory = model.policy(
                torch.as_tensor(obs)[None], memory, torch.zeros(1), deterministic=True
            )
        actions.append(action)
        values.append(value.item())
    return np.stack(actions), np.array(values)


def test_recurrent_model_keeps_its_memory_over_an_episode_and_no_longer(tmp_path):
    env = gymnasium.make("Pendulum-v1", max_episode_steps=12)
    model = recurrent_model(tmp_path / "model.zip")
    read = read_model(tmp_path / "model.zip", env, trust=True)
    assert read.algorithm == "RecurrentPPO"
    for seed in range(2):
        obs, _ = env.reset(seed=seed)
        episode, actions, values = [], [], []
        for _ in range(12):
            before = read.value(obs)
            actions.append(read.act(obs))
            values.append(read.value(obs))
            assert values[-1] == before and np.array_equal(read.act(obs), actions[-1])
            episode.append(obs)
            obs, *_ = env.step(actions[-1])
        expected_actions, expected_values = with_memory(model, episode)
        assert np.array_equal(actions, expected_actions)
        assert np.allclose(values, expected_values, atol=1e-6)
        forgetful = [model.predict(obs, deterministic=True)[0] for obs in episode]
        assert not np.allclose(actions, forgetful, atol=1e-2)


def test_recorded_values_of_a_recurrent_model_follow_its_memory(tmp_path):
    env = gymnasium.make("Pendulum-v1", max_episode_steps=9)
    model = recurrent_model(tmp_path / "model.zip")
    read = read_model(tmp_path / "model.zip", env, trust=True)
    recorded = record(env, read.act, value=read.value, episodes=2, every_steps=1)
    for episode in range(2):
        rows = recorded.episodes == episode
        seen = recorded.observations[rows].astype(np.float32)
        assert np.allclose(recorded.values[rows], with_memory(model, seen)[1], atol=1e-5)
    with pytest.raises(ConfigError, match=r"RecurrentPPO has a memory.* an env with a wrapper"):
        read_model(tmp_path / "model.zip", env.unwrapped, trust=True)


# --- VecNormalize ---


def learn_normalised(algorithm, norm_reward=True):
    """(a model that has learnt under VecNormalize, its statistics)."""
    normalizer = VecNormalize(
        DummyVecEnv([lambda: gymnasium.make("Walk-v0")]), norm_reward=norm_reward
    )
    model = algorithm(normalizer).learn(40)
    normalizer.training = False
    return loud(model), normalizer


def ppo(env):
    return sb3.PPO("MlpPolicy", env, seed=0, n_steps=20, batch_size=20, n_epochs=1)


@pytest.fixture(scope="module")
def learnt():
    return learn_normalised(ppo)


@pytest.fixture
def walk():
    return gymnasium.make("Walk-v0")


def save(folder, learnt, file="a.zip", statistics="vecnormalize.pkl"):
    (folder / statistics).parent.mkdir(parents=True, exist_ok=True)
    learnt[0].save(folder / file)
    learnt[1].save(folder / statistics)


LAYOUTS = {
    "beside it": ("walk.zip", "vec_normalize.pkl"),
    "as the Zoo's final model": ("Walk-v0.zip", "Walk-v0/vecnormalize.pkl"),
    "as the Zoo's best model": ("best_model.zip", "Walk-v0/vecnormalize.pkl"),
    "as the Zoo's best model of another version": ("best_model.zip", "Old-v7/vecnormalize.pkl"),
    "as a checkpoint": ("a_40_steps.zip", "a_vecnormalize_40_steps.pkl"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_beside_the_model_normalise_observations_and_scale_values(
    layout, learnt, walk, tmp_path
):
    folder = tmp_path / "Old-v7_1"
    folder.mkdir()
    model, normalizer = learnt
    file, statistics = LAYOUTS[layout]
    save(folder, learnt, file, statistics)
    read = read_model(folder / file, walk, trust=True)
    assert f"Observations are normalised by {folder / statistics}." in read.notes
    scale = np.sqrt(normalizer.ret_rms.var + normalizer.epsilon)
    assert scale > 1.5 and f"multiplied by {scale:.4g}" in " ".join(read.notes)
    mean, var = normalizer.obs_rms.mean, normalizer.obs_rms.var
    many = [walk.reset(seed=seed)[0] for seed in range(30)]
    for obs in many:
        seen = np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10).astype(np.float32)
        assert np.array_equal(read.act(obs), model.predict(seen, deterministic=True)[0])
        value = model.policy.predict_values(torch.as_tensor(seen)[None]).item()
        assert read.value(obs) == pytest.approx(scale * value, rel=1e-5)
    assert np.array_equal(normalizer.obs_rms.mean, mean)
    raw = read_model(folder / file, walk, trust=True, normalize="none")
    assert not np.allclose([raw.act(o) for o in many], [read.act(o) for o in many], atol=0.1)
    assert "Observations are not normalised" in " ".join(raw.notes)


def test_values_keep_their_scale_where_only_observations_were_normalised(walk, tmp_path):
    model, normalizer = learn_normalised(ppo, norm_reward=False)
    save(tmp_path, (model, normalizer))
    read = read_model(tmp_path / "a.zip", walk, trust=True)
    obs, _ = walk.reset(seed=0)
    seen = torch.as_tensor(normalizer.normalize_obs(obs))[None]
    assert read.value(obs) == pytest.approx(model.policy.predict_values(seen).item(), rel=1e-5)
    assert "does not say whether rewards were normalised" in " ".join(read.notes)
    normalizer.training = True
    save(tmp_path, (model, normalizer))
    assert len(read_model(tmp_path / "a.zip", walk, trust=True).notes) == 1


@pytest.mark.parametrize("algorithm", ["PPO", "SAC", "ARS"])
def test_model_of_normalised_observations_is_refused_without_statistics(algorithm, walk, tmp_path):
    kinds = {
        "PPO": ppo,
        "SAC": lambda env: sb3.SAC("MlpPolicy", env, learning_starts=100, **OFF_POLICY),
        "ARS": lambda env: contrib.ARS("LinearPolicy", env, n_delta=1),
    }
    learn_normalised(kinds[algorithm])[0].save(tmp_path / "a.zip")
    with pytest.raises(ConfigError, match=r"was trained under VecNormalize.*normalize=FILE"):
        read_model(tmp_path / "a.zip", walk, trust=True)
    read_model(tmp_path / "a.zip", walk, trust=True, normalize="none")


def test_statistics_that_are_ambiguous_or_do_not_fit_are_refused(learnt, walk, tmp_path):
    def read(**kwargs):
        return read_model(tmp_path / "a.zip", walk, trust=True, **kwargs)

    save(tmp_path, learnt)
    learnt[1].save(tmp_path / "vec_normalize.pkl")
    with pytest.raises(ConfigError, match=r"found .*vecnormalize.pkl and .*vec_normalize.pkl"):
        read()
    read(normalize=tmp_path / "vec_normalize.pkl")
    with pytest.raises(ConfigError, match="normalize: there is no file"):
        read(normalize=tmp_path / "missing.pkl")
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"mean": 0}))
    with pytest.raises(ConfigError, match="to hold a VecNormalize, received dict"):
        read(normalize=tmp_path / "other.pkl")
    VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")])).save(tmp_path / "p.pkl")
    with pytest.raises(ConfigError, match=r"the statistics have the shape \(3,\)"):
        read(normalize=tmp_path / "p.pkl")


@pytest.mark.parametrize("algorithm", ["PPO", "TD3"])
def test_statistics_beside_a_model_that_was_trained_without_are_not_used(
    algorithm, learnt, walk, tmp_path
):
    save(tmp_path, learnt)
    make = {"PPO": ppo, "TD3": lambda env: sb3.TD3("MlpPolicy", env, **OFF_POLICY)}[algorithm]
    model = make(walk).learn(16)
    model.save(tmp_path / "b.zip")
    read = read_model(tmp_path / "b.zip", walk, trust=True)
    obs, _ = walk.reset(seed=0)
    assert np.array_equal(read.act(obs), model.predict(obs, deterministic=True)[0])
    assert "is not used: the model was trained without" in " ".join(read.notes)


# --- trust, and files that do not load ---


class Hostile:
    def __reduce__(self):
        return (print, ("this must never run",))


def change_settings(path, change):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    settings = json.loads(parts["data"])
    change(settings)
    parts["data"] = json.dumps(settings).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def test_file_runs_no_code_without_trust(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = sb3.A2C("MlpPolicy", "Pendulum-v1")
    model.hostile = Hostile()
    model.policy_kwargs = {"hostile": Hostile()}
    model.save("a.zip")
    assert teacher.main(["model=a.zip", "env=Pendulum-v1"]) == 2
    output = capsys.readouterr()
    assert "this must never run" not in output.out
    assert "a.zip is a file of Stable-Baselines3" in output.err and "trust=true" in output.err
    with pytest.raises(ConfigError, match="trust=True"):
        read_model(tmp_path / "a.zip", gymnasium.make("Pendulum-v1"), normalize="a.pkl")


def test_settings_that_playing_does_not_need_are_never_unpickled(tmp_path, capsys):
    model = sb3.A2C("MlpPolicy", "Pendulum-v1")
    model.save(tmp_path / "a.zip")
    stored = "gASVLwAAAAAAAACMCGJ1aWx0aW5zlIwFcHJpbnSUk5Q="  # a cut-off pickle

    def spoil(settings):
        settings["lr_schedule"][":serialized:"] = stored
        settings["rollout_buffer_class"][":serialized:"] = stored
        settings["extra"] = {":serialized:": stored}

    change_settings(tmp_path / "a.zip", spoil)
    env = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    read = read_model(tmp_path / "a.zip", env, trust=True)
    assert np.array_equal(read.act(obs), model.predict(obs, deterministic=True)[0])

    def spoil_policy(settings):
        settings["policy_class"][":serialized:"] = stored

    change_settings(tmp_path / "a.zip", spoil_policy)
    with pytest.raises(ConfigError, match=r"a\.zip: its policy_class does not load here"):
        read_model(tmp_path / "a.zip", env, trust=True)


def test_model_saved_with_the_old_gym_plays(tmp_path, monkeypatch):
    """Files from before 2023, most of the hub's, hold spaces of the package gym."""
    env = gymnasium.make("CartPole-v1")
    model = sb3.DQN("MlpPolicy", env, seed=0, **OFF_POLICY)
    old = {}
    for module, name in (("box", "Box"), ("discrete", "Discrete")):
        kind = getattr(gymnasium.spaces, name)
        old[name] = type(name, (kind,), {"__module__": f"gym.spaces.{module}"})
        fake = types.ModuleType(f"gym.spaces.{module}")
        setattr(fake, name, old[name])
        monkeypatch.setitem(sys.modules, f"gym.spaces.{module}", fake)
    for name in ("gym", "gym.spaces"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["gym"].__version__ = "0.21.0"
    space = env.observation_space
    high = np.where(np.isinf(space.high), np.finfo(np.float32).max, space.high)
    model.observation_space = old["Box"](-high, high)  # gym's CartPole had finite bounds
    model.action_space = old["Discrete"](2)
    model.save(tmp_path / "a.zip")
    monkeypatch.undo()
    obs, _ = env.reset(seed=0)
    read = read_model(tmp_path / "a.zip", env, trust=True)
    assert read.act(obs) == model.predict(obs, deterministic=True)[0]


def test_model_with_a_hindsight_buffer_plays_without_its_env(tmp_path):
    class Goal(Walk):
        observation_space = Dict(
            {key: Box(-9, 9, (2,)) for key in ("observation", "achieved_goal", "desired_goal")}
        )

        def compute_reward(self, achieved, desired, info):
            return np.zeros(len(achieved))

    env = gymnasium.wrappers.TimeLimit(Goal(), 9)
    model = sb3.TD3(
        "MultiInputPolicy", env, replay_buffer_class=sb3.HerReplayBuffer, buffer_size=99, seed=0
    )
    model.save(tmp_path / "a.zip")
    read = read_model(tmp_path / "a.zip", env, trust=True)
    obs = env.observation_space.sample()
    assert np.array_equal(read.act(obs), model.predict(obs, deterministic=True)[0])


def test_model_of_another_env_is_refused_with_both_spaces(tmp_path):
    sb3.A2C("MlpPolicy", gymnasium.make("Walk-v0")).save(tmp_path / "a.zip")

    class Shifted(Walk):
        observation_space = Box(0, 1, (2,), np.float64)

    class Stronger(Walk):
        action_space = Box(-2, 2, (1,), np.float32)

    for env, match in (
        (gymnasium.make("Pendulum-v1"), r"Box\(-50.*\(2,\), float64\).*Pendulum-v1 has Box\(\["),
        (Shifted(), r"Box\(-50.*Box\(0.0, 1.0, \(2,\)"),
        (Stronger(), r"Box\(-1.0, 1.0, \(1,\).*Box\(-2.0, 2.0, \(1,\)"),
    ):
        with pytest.raises(ConfigError, match=match):
            read_model(tmp_path / "a.zip", env, trust=True)


def test_algorithm_is_named_where_the_file_does_not_tell_it(tmp_path):
    path, env = tmp_path / "a.zip", gymnasium.make("Pendulum-v1")
    model = sb3.A2C("MlpPolicy", env)
    model.save(path, exclude=["gae_lambda"])
    with pytest.raises(ConfigError, match=r"add algo=NAME, one of A2C, ARS, CrossQ.*TRPO"):
        read_model(path, env, trust=True)
    with pytest.raises(ConfigError, match=r"algo: expected one of A2C.* received a2d"):
        read_model(path, env, trust=True, algo="a2d")
    with pytest.raises(ConfigError, match="does not load as a model of SAC"):
        read_model(path, env, trust=True, algo="sac")
    model.save(path)
    read = read_model(path, env, trust=True, algo="a2c")
    obs, _ = env.reset(seed=0)
    assert np.array_equal(read.act(obs), model.predict(obs, deterministic=True)[0])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", b"")
    with pytest.raises(ConfigError, match="no complete file of Stable-Baselines3"):
        read_model(path, env, trust=True)


# --- the command ---


def test_command_records_a_normalised_model_from_the_hub(learnt, tmp_path, monkeypatch, capsys):
    """A repository as the Zoo uploads it: the statistics, and a zip of learning curves."""
    commit = "a" * 40
    cache = tmp_path / "cache" / "models--sb3--ppo-Walk-v0"
    folder = cache / "snapshots" / commit
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit, encoding="utf-8")
    model, normalizer = learnt
    save(folder, learnt, "ppo-Walk-v0.zip", "vec_normalize.pkl")
    with zipfile.ZipFile(folder / "train_eval_metrics.zip", "w") as archive:
        archive.writestr("evaluations.npz", b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for file in (None, "ppo-Walk-v0.zip"):
        assert from_hub("sb3/ppo-Walk-v0", file) == folder / "ppo-Walk-v0.zip"
    with pytest.raises(ConfigError, match=r"it holds no file other.zip"):
        from_hub("sb3/ppo-Walk-v0", "other.zip")
    command = ["hub=sb3/ppo-Walk-v0", "env=Walk-v0", "episodes=1", "every_steps=5", "out=t.h5"]
    assert teacher.main(command) == 2
    assert "trust=true" in capsys.readouterr().err
    assert teacher.main([*command, "trust=true"]) == 0
    said = capsys.readouterr().out
    assert "PPO (Stable-Baselines3) on Walk-v0" in said
    assert f"Observations are normalised by {folder / 'vec_normalize.pkl'}." in said
    snapshots = Snapshots.load("t.h5")
    seen = torch.as_tensor(normalizer.normalize_obs(snapshots.observations))
    values = model.policy.predict_values(seen).detach().numpy()[:, 0]
    scaled = values * np.sqrt(normalizer.ret_rms.var + normalizer.epsilon)
    assert np.allclose(snapshots.values, scaled, rtol=1e-4)
    assert snapshots.provenance["teacher"] == "Stable-Baselines3 PPO"


def test_statistics_are_fetched_from_the_hub_with_the_model(tmp_path, monkeypatch):
    kept = {"ppo.zip", "vec_normalize.pkl", "Walk-v0/vecnormalize.pkl"}

    def download(repository, allow_patterns):
        remote = [*kept, "replay.mp4", "results.json"]
        fetched = filter_repo_objects(remote, allow_patterns=allow_patterns)
        for name in fetched:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    filter_repo_objects = pytest.importorskip("huggingface_hub.utils").filter_repo_objects
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert from_hub("sb3/ppo-Walk-v0", "ppo.zip") == tmp_path / "ppo.zip"
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == kept


def test_command_records_unknown_values_of_a_model_without_critic(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    contrib.ARS("LinearPolicy", gymnasium.make("Walk-v0"), zero_policy=False).save("a.zip")
    assert teacher.main(["model=a.zip", "env=Walk-v0", "trust=true", "episodes=1"]) == 0
    said = capsys.readouterr().out
    assert "ARS learns no critic: the values are NaN (unknown)." in said
    assert "values unknown" in said
    assert np.isnan(Snapshots.load("teacher.h5").values).all()

"""Teachers: our runs, CleanRL's files, the hub's cache. (test_sb3_models.py has the others.)"""

import os
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from rlearly import teacher
from rlearly.core.errors import ConfigError
from rlearly.envs.snapshots import recording
from rlearly.envs.snapshots.dataset import Snapshots
from rlearly.envs.snapshots.pretrained import from_hub, read_model
from rlearly.train import main as train


def observations(env, count=5):
    env.observation_space.seed(0)
    obs, _ = env.reset(seed=0)
    return [obs + 0.1 * i for i in range(count)]


@pytest.fixture
def pusher():
    """An env whose action bounds are neither symmetric about 0 nor [-1, 1]: Pusher has [-2, 2]."""
    env = gymnasium.make("Pusher-v5")
    yield env
    env.close()


def cleanrl_actor(place, width=16):
    """CleanRL's TD3 actor and critic, as their names and buffers are saved."""
    obs, actions = place.observation_space.shape[0], place.action_space.shape[0]

    class Actor(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(obs, width), nn.Linear(width, width)
            self.fc_mu = nn.Linear(width, actions)
            self.register_buffer("action_scale", torch.full((actions,), 2.0))
            self.register_buffer("action_bias", torch.zeros(actions))

        def forward(self, x):
            x = torch.relu(self.fc2(torch.relu(self.fc1(x))))
            return torch.tanh(self.fc_mu(x)) * self.action_scale + self.action_bias

    class Q(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(obs + actions, width)
            self.fc2, self.fc3 = nn.Linear(width, width), nn.Linear(width, 1)

        def forward(self, x, a):
            x = torch.relu(self.fc2(torch.relu(self.fc1(torch.cat([x, a], 1)))))
            return self.fc3(x)

    return Actor(), Q(), Q()


def test_cleanrl_td3_file_plays_and_values_as_it_does_there(pusher, tmp_path):
    parts = cleanrl_actor(pusher)
    path = tmp_path / "td3.cleanrl_model"
    torch.save(tuple(part.state_dict() for part in parts), path)
    model = read_model(path, pusher)
    assert (model.library, model.algorithm) == ("CleanRL", "TD3")
    for obs in observations(pusher):
        tensor = torch.as_tensor(obs, dtype=torch.float32)[None]
        action = parts[0](tensor)
        assert np.allclose(model.act(obs), action.detach().numpy()[0], atol=1e-6)
        assert model.value(obs) == pytest.approx(parts[1](tensor, action).item(), abs=1e-5)


def test_cleanrl_ppo_file_plays_within_bounds(pusher, tmp_path):
    def net(outputs):
        obs = pusher.observation_space.shape[0]
        return nn.Sequential(
            nn.Linear(obs, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, outputs)
        )

    actor, critic = net(7), net(1)
    with torch.no_grad():
        actor[4].bias.fill_(5.0)
    weights = {f"actor_mean.{k}": v for k, v in actor.state_dict().items()}
    weights |= {f"critic.{k}": v for k, v in critic.state_dict().items()}
    weights["actor_logstd"] = torch.zeros(1, 7)
    torch.save(weights, tmp_path / "ppo.cleanrl_model")
    model = read_model(tmp_path / "ppo.cleanrl_model", pusher)
    obs = observations(pusher)[0]
    tensor = torch.as_tensor(obs, dtype=torch.float32)[None]
    assert np.array_equal(model.act(obs), np.full(7, 2.0, np.float32))
    assert model.value(obs) == pytest.approx(critic(tensor).item(), abs=1e-6)


def cleanrl_ppo_weights(env):
    """Weights as CleanRL's PPO script names them: layers 0, 2 and 4, with Tanh between."""
    sizes = [env.observation_space.shape[0], 8, 8]
    weights = {"actor_logstd": torch.zeros(1, 7)}
    for name, outputs in (("actor_mean", 7), ("critic", 1)):
        for i, (width, out) in enumerate(zip(sizes, [8, 8, outputs], strict=True)):
            weights[f"{name}.{2 * i}.weight"] = torch.ones(out, width)
            weights[f"{name}.{2 * i}.bias"] = torch.zeros(out)
    return weights


def test_cleanrl_weights_that_no_network_uses_are_refused_by_name(pusher, tmp_path):
    path = tmp_path / "a.cleanrl_model"

    def read(weights):
        torch.save(weights, path)
        return read_model(path, pusher)

    ppo = cleanrl_ppo_weights(pusher)
    assert read(ppo).algorithm == "PPO"
    norm = {"actor_mean.1.weight": torch.ones(8), "actor_mean.1.bias": torch.ones(8)}
    with pytest.raises(ConfigError, match=r"it holds actor_mean\.1\.bias, actor_mean\.1\.weight"):
        read(ppo | norm)
    without_tanh = {key.replace("critic.2", "critic.1"): part for key, part in ppo.items()}
    with pytest.raises(ConfigError, match=r"it holds critic\.1\.bias"):
        read(without_tanh)
    with pytest.raises(ConfigError, match=r"it lacks 'critic\.4\.bias'"):
        read({key: part for key, part in ppo.items() if key != "critic.4.bias"})
    actor, *critics = (part.state_dict() for part in cleanrl_actor(pusher))
    assert read((actor, *critics)).algorithm == "TD3"
    assert read((actor, critics[0])).algorithm == "DDPG"
    with pytest.raises(ConfigError, match=r"it holds actor\.ln\.weight, which the TD3 network"):
        read((actor | {"ln.weight": torch.ones(16)}, *critics))
    with pytest.raises(ConfigError, match="weights of an actor and one or two critics"):
        read((actor, *critics, critics[0]))
    two_outputs = {"fc3.weight": torch.ones(2, 16), "fc3.bias": torch.ones(2)}
    with pytest.raises(ConfigError, match="its critic does not return one number"):
        read((actor, critics[0] | two_outputs))


def test_cleanrl_model_of_other_action_bounds_is_refused(pusher, tmp_path):
    actor, *critics = (part.state_dict() for part in cleanrl_actor(pusher))
    actor["action_scale"] = torch.full((7,), 0.4)
    torch.save((actor, *critics), tmp_path / "td3.cleanrl_model")
    with pytest.raises(ConfigError, match=r"action_scale is \[0\.4.* Pusher-v5 have \[2\.0"):
        read_model(tmp_path / "td3.cleanrl_model", pusher)
    with pytest.raises(ConfigError, match=r"algo: is for the \.zip files of Stable-Baselines3"):
        read_model(tmp_path / "td3.cleanrl_model", pusher, algo="td3")


class Hostile:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_models_are_never_unpickled(pusher, tmp_path, capsys):
    path = tmp_path / "bad.cleanrl_model"
    torch.save({"actor": Hostile()}, path)
    with pytest.raises(ConfigError, match="does not load as a model"):
        read_model(path, pusher)
    assert "never run" not in capsys.readouterr().out


def test_what_is_no_model_or_another_envs_is_refused(pusher, tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        read_model(tmp_path / "none.zip", pusher)
    (tmp_path / "text.zip").write_text("hello", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected Stable-Baselines3's \.zip or CleanRL's"):
        read_model(tmp_path / "text.zip", pusher)
    path = tmp_path / "td3.cleanrl_model"
    torch.save(tuple(part.state_dict() for part in cleanrl_actor(pusher)), path)
    with pytest.raises(ConfigError, match="it was trained on another env"):
        read_model(path, gymnasium.make("Hopper-v5"))


def test_hub_model_is_found_in_the_local_cache_without_network(pusher, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    commit = "a" * 40
    folder = tmp_path / "models--somebody--td3-Pusher-v5"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")
    (folder / "snapshots" / commit).mkdir(parents=True)
    parts = cleanrl_actor(pusher)
    torch.save(
        tuple(p.state_dict() for p in parts), folder / "snapshots" / commit / "td3.cleanrl_model"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for file in ("td3.cleanrl_model", None):
        found = from_hub("somebody/td3-Pusher-v5", file)
        assert read_model(found, pusher).algorithm == "TD3"
    with pytest.raises(ConfigError, match="the model cannot be fetched"):
        from_hub("somebody/else", "x.zip")


def test_run_becomes_a_teacher_and_its_snapshots_start_a_student(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["agent=td3", "env=Hopper-v5", "threads=1", "agent.hidden_dim=16"]
    words += ["agent.learning_starts_steps=50", "eval_every_frames=0"]
    assert train([*words, "train_frames=120", "run_dir=teacher"]) == 0
    assert teacher.main(["run=teacher", "out=t.h5", "episodes=3", "every_steps=5"]) == 0
    said = capsys.readouterr().out
    snapshots = Snapshots.load("t.h5")
    assert f"{len(snapshots)} snapshots of Hopper-v5" in said
    assert (snapshots.steps % 5 == 0).all() and set(snapshots.episodes) == {0, 1, 2}
    assert snapshots.provenance["teacher"] == "td3" and snapshots.provenance["frames"] == 120
    student = ["snapshot=t.h5", "snapshot_phase.clusters=2", "snapshot_phase.until_steps=60"]
    assert train([*words, *student, "train_frames=100", "run_dir=student"]) == 0
    capsys.readouterr()
    assert train(["agent=td3", "env=Walker2d-v5", "snapshot=t.h5", "run_dir=no"]) == 2
    assert "snapshots are of Hopper-v5" in capsys.readouterr().err
    assert train([*words, "snapshot=missing.h5", "run_dir=no"]) == 2
    assert f"there is no file {tmp_path / 'missing.h5'}" in capsys.readouterr().err
    assert teacher.main(["run=teacher", "out=nowhere/t.h5"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
    assert teacher.main(["run=teacher", "out=teacher"]) == 2
    assert "out: teacher is a folder" in capsys.readouterr().err
    before = (tmp_path / "t.h5").read_bytes()
    assert teacher.main(["run=teacher", "out=t.h5", "episodes=1"]) == 2
    assert "t.h5 exists; name another file, or add overwrite=true" in capsys.readouterr().err
    assert (tmp_path / "t.h5").read_bytes() == before
    assert teacher.main(["run=teacher", "out=t.h5", "episodes=1", "overwrite=true"]) == 0
    assert set(Snapshots.load("t.h5").episodes) == {0}
    capsys.readouterr()
    assert teacher.main(["out=new.h5"]) == 2
    assert "Expected exactly one of run=, model= and hub=" in capsys.readouterr().err
    assert teacher.main(["model=x.zip"]) == 2
    assert "expected the id of the env" in capsys.readouterr().err


def test_two_teachers_of_one_name_at_once_both_keep_their_snapshots(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["agent=td3", "env=Hopper-v5", "threads=1", "agent.hidden_dim=16"]
    words += ["agent.learning_starts_steps=50", "eval_every_frames=0"]
    assert train([*words, "train_frames=60", "run_dir=run"]) == 0
    play = recording.record

    def while_another_records(*args, **kwargs):
        monkeypatch.setattr(recording, "record", play)
        assert teacher.main(["run=run", "out=t.h5", "episodes=1", "seed=1"]) == 0
        return play(*args, **kwargs)

    monkeypatch.setattr(recording, "record", while_another_records)
    assert teacher.main(["run=run", "out=t.h5", "episodes=2"]) == 2
    said = capsys.readouterr().err
    assert "another process has just written t.h5; these snapshots are in t-2.h5" in said
    assert set(Snapshots.load("t.h5").episodes) == {0}
    assert set(Snapshots.load("t-2.h5").episodes) == {0, 1}


def test_value_is_the_runs_own_critic(tmp_path, monkeypatch):
    from rlearly.config import resolve
    from rlearly.envs import env_spec
    from rlearly.training import builder, checkpoint

    monkeypatch.chdir(tmp_path)
    words = ["agent=td3", "env=Hopper-v5", "threads=1", "agent.hidden_dim=16"]
    words += ["agent.learning_starts_steps=50", "eval_every_frames=0", "train_frames=80"]
    assert train([*words, "run_dir=run"]) == 0
    assert teacher.main(["run=run", "out=t.h5", "episodes=2", "best_episodes=1"]) == 0
    snapshots = Snapshots.load("t.h5")
    config = resolve.load(tmp_path / "run")
    env = builder.make_env(config)
    agent = builder.make_agent(config, env_spec(env, config.env), torch.device("cpu"))
    agent.load_state_dict(checkpoint.load_newest(tmp_path / "run" / "checkpoints")[1]["agent"])
    expected = agent.value(snapshots.observations.astype(np.float32))
    assert np.allclose(snapshots.values, expected, atol=1e-6)
    assert len(set(snapshots.episodes)) == 1


def test_folder_that_cannot_be_written_is_refused_before_anything_is_played(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert teacher.main([f"run={tmp_path / 'none'}", f"out={tmp_path / 't.h5'}"]) == 2
    assert f"the folder {tmp_path} is not writable" in capsys.readouterr().err

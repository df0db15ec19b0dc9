"""The benchmarks report a typo in one sentence, and each runs a small round."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_STATE

from rlearly.agents import agent_spec
from rlearly.core.types import EnvSpec
from rlearly.system.seeding import Seeds

HOME = Path(__file__).parents[2]


@pytest.fixture
def scripts(monkeypatch):
    """The scripts' folder is where they find each other, as when one of them is run."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))


def benchmark(name, *words, status=0):
    """What a script printed, and its complaints."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *words],
        capture_output=True,
        encoding="utf-8",
        cwd=HOME,
        env={**os.environ, "PYTHONPATH": str(HOME)},
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def kept(path):
    """Case -> side -> ratio, of the numbers that a script kept."""
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["about"]["commit_time"] >= 0 and all(row["rate"] > 0 for row in found["rows"])
    cases = {}
    for row in found["rows"]:
        cases.setdefault(row["case"], {})[row["side"]] = row["ratio"]
    return cases


SCRIPTS = ("act", "all", "checkpoint", "history", "hotspots", "loop", "memory", "startup")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_typo_is_answered_in_one_sentence(name):
    printed, complaint = benchmark(name, "typo=1", status=2)
    assert printed == ""
    assert complaint.startswith(f"benchmarks/{name}.py: There is no key 'typo'")
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("name", [*SCRIPTS, "env", "plasticity", "replay", "update"])
def test_help_says_what_a_script_is_for_and_what_it_takes(name):
    printed, complaint = benchmark(name, "--help")
    assert (
        complaint == "" and f"benchmarks/{name}.py" in printed.partition("Keys (type, default)")[0]
    )
    assert len(printed.partition("Keys (type, default)")[2].splitlines()) > 2


@pytest.mark.parametrize(
    ("name", "word", "names"),
    [
        ("act", "agents=[td4]", "td3"),
        ("loop", "agents=[td4]", "td3"),
        ("loop", "overrides=['replay.capacityy=9']", "replay.capacity"),
        ("memory", "env=dog_rum", "dog_run"),
        ("all", "only=[lop]", "loop"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(name, word, names):
    _, complaint = benchmark(name, word, status=2)
    assert complaint.count("\n") == 1 and names in complaint


@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_both_sides_act_once_from_one_observation(scripts, agent):
    act = importlib.import_module("act")
    for side in ("plain", "rlearly"):
        action = act.prepare(side, agent, 1)()
        assert action.shape == (1, 6) and (abs(action) <= 1).all()


@pytest.mark.parametrize("case", ["drq_eps", "drq_eps_state"])
def test_every_side_acts_and_updates_on_discrete_actions(scripts, case):
    act, update = importlib.import_module("act"), importlib.import_module("update")
    for side in ("plain", "Stable-Baselines3", "rlearly"):
        action = act.prepare(side, case, 1)()
        action = action[0] if side == "Stable-Baselines3" else action
        assert action.size == 1 and 0 <= action.item() < (6 if case == "drq_eps" else 2)
        update.prepare(side if side != "rlearly" else "rlearly fp32", case, 1)()


@pytest.mark.parametrize("case", ["drq_eps", "drq_eps_state"])
def test_all_sides_compute_the_same_advantages_from_the_same_weights(scripts, case):
    discrete = importlib.import_module("discrete")
    config, (observation, action) = discrete.agent_config(case), discrete.SPACES[case]
    agent = agent_spec("drq_eps").make(
        config, EnvSpec(observation, action, 1), seeds=Seeds(0), device=torch.device("cpu")
    )
    plain = discrete.plain_learner(case).online
    dqn = discrete.dqn(discrete.SpacesOnly(case), config).q_net
    own = [p for name in ("encoder", "critic") for p in agent.networks[name].parameters()]
    with torch.no_grad():
        if case == "drq_eps":  # ours orders features by pixel, torch by channel
            own[6] = own[6].view(512, 11, 11, 64).permute(0, 3, 1, 2).flatten(1)
        *hidden, weight, bias = own
        value, advantages = [weight[:1], bias[:1]], [weight[1:], bias[1:]]
        for network, weights in ((plain, hidden + value + advantages), (dqn, hidden + advantages)):
            for theirs, ours in zip(network.parameters(), weights, strict=True):
                theirs.copy_(ours)
        obs = np.stack([observation.sample() for _ in range(3)])
        q, pixels = agent._q(obs), torch.from_numpy(obs)
        np.testing.assert_allclose(
            plain(pixels / (255.0 if case == "drq_eps" else 1.0)), q, rtol=1e-4, atol=1e-5
        )
        theirs = dqn(pixels)
        centred = theirs - theirs.mean(1, keepdim=True)
        np.testing.assert_allclose(centred, q - q.mean(1, keepdims=True), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_acting_is_measured_beside_both_baselines(tmp_path):
    words = ("agents=[td3]", "rounds=1", "times=2", f"json={tmp_path / 'act.json'}")
    printed, _ = benchmark("act", *words)
    assert "| td3 | 1 | rlearly |" in printed
    ratios = kept(tmp_path / "act.json")["td3"]
    assert set(ratios) == {"plain", "Stable-Baselines3", "rlearly"}
    assert ratios["rlearly"] is None and ratios["plain"] > 0


def test_slices_of_a_loop_are_one_run(scripts, tmp_path):
    loops = importlib.import_module("loop")
    words = [*TINY_STATE["td3"], "agent.learning_starts_steps=10"]
    loop, advance = loops.build("td3", "tiny_envs:StateReach-v0", words, 1, tmp_path)
    for steps in (25, 3, 2):
        advance(steps)
    loop.close()
    assert (loop.steps, loop.updates, len(loop.memory)) == (30, 20, 30)


def test_a_history_is_drawn_in_the_order_of_commits(scripts, tmp_path):
    history = importlib.import_module("history")
    row = {"case": "td3", "side": "plain", "threads": 1, "rate": 1.0, "unit": "u", "ratio": 2.0}
    for commit, when in (("aaa", 30), ("bbb", 10), ("ccc", 20)):
        about = {"commit": commit, "commit_time": when, "changed_since": False}
        own = {"about": about, "rows": [row, {**row, "side": "rlearly", "ratio": None}]}
        (tmp_path / f"act-{commit}.json").write_text(json.dumps(own), encoding="utf-8")
    commits, panels = history.read(tmp_path)
    assert commits == ["bbb", "ccc", "aaa"]
    assert {p: list(lines) for p, lines in panels.items()} == {"act: td3": ["plain"]}
    assert history.main([f"folder={tmp_path}"]) == 0
    assert (tmp_path / "history.png").stat().st_size > 1000


def test_no_benchmark_hides_a_module_of_pythons_own():
    """They lie on the path of whatever they import: a `profile.py` would be cProfile's."""
    names = {path.stem for path in (HOME / "benchmarks").glob("*.py")}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["td3", "sac", "ppo", "drm", "drq_eps", "drq_eps_state"])
def test_a_whole_loop_is_measured_beside_its_baselines(agent, tmp_path):
    file = tmp_path / "loop.json"
    words = (f"agents=[{agent}]", "visual_env=cheetah_run", "rounds=1", "slices=1")
    benchmark("loop", *words, "overrides=['log_every_frames=4']", f"json={file}")
    (ratios,) = kept(file).values()
    other = "plain, memory kept" if agent == "drm" else "Stable-Baselines3"
    assert set(ratios) == {"plain", other, "rlearly"}


@pytest.mark.slow
def test_stored_images_take_a_third_of_what_stacks_take(tmp_path):
    file = tmp_path / "memory.json"
    words = ("env=cheetah_run", "transitions=1000", "episode_steps=20", f"json={file}")
    benchmark("memory", *words)
    assert 2.5 < kept(file)["cheetah_run"]["plain"] < 3.5


@pytest.mark.slow
def test_starting_up_is_measured_in_fresh_processes(tmp_path):
    benchmark("startup", "rounds=1", f"json={tmp_path / 'startup.json'}")
    assert set(kept(tmp_path / "startup.json")) >= {"--help"}


@pytest.mark.slow
def test_every_benchmark_of_a_commit_leaves_its_numbers_and_a_picture(tmp_path):
    benchmark("all", "only=[startup]", f"folder={tmp_path}")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"}


@pytest.mark.slow
def test_where_the_time_goes_adds_up_to_all_of_it():
    printed, _ = benchmark("hotspots", "agent=td3", "env=HalfCheetah-v5", "rounds=1", "quick=true")
    shares = [line.split("|")[3] for line in printed.splitlines() if line.startswith("| update")]
    assert abs(sum(float(share.strip(" %")) for share in shares) - 100) < 2

"""A run that is killed at any moment and resumed is the same run, to the bit.

`pytest -m kills` draws hundreds of moments over every agent, ratio, start and kind of observation;
the default suite takes a small sample.
"""

import itertools
import os
import signal
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import tiny_envs  # noqa: F401
from conftest import TINY, TINY_STATE
from saved import plain, rows

from rlearly import train
from rlearly.envs.snapshots.recording import record
from rlearly.training import checkpoint

PIXELS_ONLY = ("env.image_size", "agent.encoder_channels", "agent.shift_pixels", "env=")
OFTEN = [
    "train_frames=260",
    "log_every_frames=20",
    "eval_every_frames=70",
    "eval_episodes=1",
    "checkpoint_every_frames=30",
    "plasticity.every_steps=25",
    "threads=1",
]
VISUAL = [*TINY, "agent.batch_size=8", "agent.hidden_dim=16", "replay.capacity=150"]
RATIO = {
    "fixed": ["replay_ratio=1"],
    "adaptive": [
        "replay_ratio=adaptive",
        "adaptive_ratio.check_every_episodes=9",
        "adaptive_ratio.threshold=1",
    ],
}
AGENTS = {
    **{f"{agent} {obs}": list(RATIO) for agent in ("drqv2", "drm") for obs in ("state", "pixels")},
    **{f"{agent} state": list(RATIO) for agent in ("td3", "sac", "drq_eps")},
    "ppo state": ["none"],
    "ppo steps": ["none"],
}
MATRIX = [
    f"{agent} {ratio} {start}"
    for agent, ratios in AGENTS.items()
    for ratio, start in itertools.product(ratios, ("plain", "snapshot"))
]

TEACHER = Path(train.__file__).parent / "experiments/results/s3rl_cpu/teachers/Hopper-v5.h5"
REAL = {
    "td3 on Hopper-v5 from snapshots": [
        "agent=td3",
        "env=Hopper-v5",
        "agent.hidden_dim=16",
        "agent.batch_size=16",
        "agent.learning_starts_steps=100",
        f"snapshot={TEACHER}",
        "snapshot_phase.until_steps=150",
        "snapshot_phase.truncate_steps=15",
        "replay.capacity=200",
        "video_size=0",
        *OFTEN,
    ],
    "drm on cartpole_balance from pixels": [
        "agent=drm",
        "env=cartpole_balance",
        "preset=cpu",
        *(w for w in VISUAL if not w.startswith("env")),
        "env.image_size=24",
        "env.action_repeat=4",
        *OFTEN,
        "train_frames=1000",
        "log_every_frames=80",
        "eval_every_frames=0",
        "checkpoint_every_frames=120",
    ],
}
"""Simulators, which are restored in mid-episode."""


def words_of(case, snapshots):
    if case in REAL:
        return once(REAL[case])
    agent, obs, ratio, start = case.split()
    overrides = [f"agent={agent}", "seed=3"]
    if agent in TINY_STATE:
        overrides += TINY_STATE[agent]
        overrides += ["num_envs=2"] if agent == "ppo" else ["replay.capacity=150"]
        overrides += ["agent.rollout_steps=32"] if agent == "ppo" else ["agent.batch_size=16"]
        overrides += ["env=tiny_envs:StepReach-v0"] if obs == "steps" else []
    else:
        overrides += [w for w in VISUAL if obs == "pixels" or not w.startswith(PIXELS_ONLY)]
        overrides += ["env=tiny_envs:StateReach-v0", "obs=state"] if obs == "state" else []
        overrides += ["agent.perturb_every_steps=50"] if agent == "drm" else []
    overrides += [*RATIO.get(ratio, []), *OFTEN]
    if start == "snapshot":
        taught = "steps" if agent == "drq_eps" else obs
        overrides += [f"snapshot={snapshots[taught]}", "snapshot_phase.until_steps=150"]
        overrides += ["snapshot_phase.clusters=2", "snapshot_phase.truncate_steps=4"]
    return once(overrides)


def once(overrides):
    """The last override of each key."""
    return list({word.partition("=")[0]: word for word in overrides}.values())


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshots")
    files = {}
    for obs, env_id in (
        ("state", "StateReach-v0"),
        ("pixels", "PixelReach-v0"),
        ("steps", "StepReach-v0"),
    ):
        discrete = obs == "steps"
        env = gymnasium.make(f"tiny_envs:{env_id}")
        random = np.random.default_rng(0)
        taught = record(
            env,
            policy=lambda obs, random=random, discrete=discrete: (
                random.integers(3) if discrete else random.uniform(-0.2, 0.2, 1).astype(np.float32)
            ),
            value=lambda obs, random=random: random.random(),
            episodes=4,
            every_steps=2,
        )
        files[obs] = folder / f"{obs}.h5"
        taught.save(files[obs])
    return files


class Kills:
    """Runs one case straight through, then repeatedly with kills."""

    def __init__(self, zygote, folder, overrides, random):
        self.zygote, self.folder, self.overrides, self.random = zygote, folder, overrides, random
        self.kills, self.resumes, self.runs = 0, 0, 0
        began = time.monotonic()
        assert self._end(self._start(folder / "straight")) == 0, self._log()
        self.seconds = time.monotonic() - began

    def until(self, kills):
        """Kill this many times, and compare every run that reaches its end."""
        while self.kills < kills:
            self.runs += 1
            out = self.folder / f"run{self.runs}"
            while not self._try(out, dying=self.kills < kills):
                pass
            assert_same(self.folder / "straight", out)

    def _try(self, out, dying):
        """Run one process; returns whether it reached the end."""
        by_call = bool(self.random.random() < 0.5)
        calls = int(self.random.integers(1, 400)) if dying and by_call else None
        pid = self._start(out, calls)
        if dying and not by_call:
            time.sleep(float(self.random.uniform(0.0, 0.7 * self.seconds)))
            os.kill(pid, signal.SIGKILL)
        status = self._end(pid)
        assert status in (0, -signal.SIGKILL), self._log()
        self.kills += status != 0
        return status == 0

    def _start(self, out, die_at=None):
        begun = (out / "config.yaml").exists()
        self.resumes += begun
        overrides = [f"resume={out}"] if begun else [*self.overrides, f"run_dir={out}"]
        return self.zygote.start(overrides, self.folder / "log", die_at)

    def _end(self, pid):
        return self.zygote.wait(pid)

    def _log(self):
        return (self.folder / "log").read_text(encoding="utf-8")[-2000:]


def assert_same(straight, killed):
    """Weights, moments, replay, random streams, env, counters, and rows without timings."""
    one, two = (checkpoint.load_newest(run / "checkpoints") for run in (straight, killed))
    assert one[0] == two[0]
    assert plain(one[1]) == plain(two[1])
    assert rows(straight) == rows(killed)
    assert not list((killed / "checkpoints").rglob(".*")), "the last save has cleaned up"


@pytest.mark.parametrize("case", ["drm pixels adaptive snapshot", "ppo state none plain"])
def test_killed_and_resumed_run_is_the_same_run(zygote, snapshots, tmp_path, case):
    kills = Kills(zygote, tmp_path, words_of(case, snapshots), np.random.default_rng(0))
    kills.until(4)
    assert kills.resumes >= 1


GOING_ON = [
    *(word for word in TINY_STATE["td3"] if not word.startswith("env=")),
    "env=tiny_envs:WideReach-v0",
    "agent.batch_size=16",
    "callback=tiny_callbacks:Widen",
    "keep_best=true",
    "start_from.parts=[networks,optimizers,replay]",
    "intervention=l2_init",
    "seed=3",
    *OFTEN,
    "eval_every_frames=25",
    "stop_when=reached(curriculum/width>=0.2,evaluations=2)",
]
"""A run that begins from another one, keeps its best, has a curriculum, and ends early."""


def test_killed_run_that_begins_from_another_one_is_the_same_run(zygote, tmp_path):
    ancestor, log = tmp_path / "ancestor", tmp_path / "log"
    taught = [w for w in GOING_ON if not w.startswith(("callback", "stop_when", "start_from"))]
    assert zygote.run(*once(taught), "seed=4", f"run_dir={ancestor}", log=log)[0] == 0
    words = once([*GOING_ON, f"start_from={ancestor}"])
    kills = Kills(zygote, tmp_path, words, np.random.default_rng(1))
    kills.until(4)
    assert kills.resumes >= 1
    straight = tmp_path / "straight"
    frames, state = checkpoint.load_newest(straight / "checkpoints")
    assert frames < 260 and state["stop"]["reason"].startswith("stop_when: curriculum/width")
    best = [
        checkpoint.load_at(run / "checkpoints", "best")
        for run in (straight, *sorted(tmp_path.glob("run?")))
    ]
    assert len(best) == 1 + kills.runs and len({at for at, _ in best}) == 1
    assert all(plain(state) == plain(best[0][1]) for _, state in best)


@pytest.mark.kills
@pytest.mark.parametrize("case", [*MATRIX, *REAL])
def test_kill_matrix(zygote, snapshots, tmp_path, case, kill_summary):
    random = np.random.default_rng([int(os.environ.get("RLEARLY_KILL_SEED", "0")), *case.encode()])
    kills = Kills(zygote, tmp_path, words_of(case, snapshots), random)
    kills.until(8)
    kill_summary.append((case, kills.kills, kills.resumes, kills.runs))


@pytest.fixture(scope="module")
def kill_summary(request):
    cases = []
    yield cases
    kills, resumes, runs = (sum(case[at] for case in cases) for at in (1, 2, 3))
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{len(cases)} cases: {kills} kills, {resumes} resumes, {runs} runs equal")

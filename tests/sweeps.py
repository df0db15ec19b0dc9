"""Write the files of a sweep without training, with made-up results."""

import json
import time

import numpy as np

from rlearly.experiments.job import Record
from rlearly.experiments.plan import Plan, Run

FAU = "plasticity/fau_critic"


def write_run(
    folder, env, returns, every_frames=1000, done=True, family="gymnasium", success_rates=()
):
    """A run's directory with an evaluation for each return, and the first ones' success rates."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"env: {{name: {json.dumps(env)}, family: {family}}}\n", encoding="utf-8"
    )
    rows = []
    for at, value in enumerate(returns, start=1):
        frames = at * every_frames
        rows.append({"frames": frames, "steps": frames, "eval/episode_return": float(value)})
        if at <= len(success_rates):
            rows[-1]["eval/success_rate"] = success_rates[at - 1]
        rows.append({"frames": frames, "steps": frames, FAU: 0.5 + 0.01 * at})
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    if done:
        (folder / "done.json").write_text("{}", encoding="utf-8")


def record(sweep, run, state, seconds):
    Record(state, "local", "elsewhere", 1, 1, time.time(), seconds).save(sweep, run.name)


def make_sweep(sweep, arms, envs, seeds, points=20, **plan):
    """A finished sweep: arm i ends the higher the greater i is, up to 1000 on `dog_*`."""
    runs = [Run(arm, env, seed, []) for seed in range(seeds) for arm in arms for env in envs]
    Plan("Many arms", runs, [FAU], **plan).save(sweep)
    random = np.random.default_rng(0)
    for run in runs:
        level = (0.2 + 0.7 * arms.index(run.arm) / max(1, len(arms) - 1)) * 1000
        curve = level * (1 - np.exp(-np.linspace(0, 5, points))) + random.normal(0, 25, points)
        curve = np.clip(curve * random.normal(1, 0.06), 0, 1000)
        control = run.env.startswith("dog_")
        shown = curve if control else 3 * curve - 1500
        write_run(sweep / run.name, run.env, shown, family="dm_control" if control else "gymnasium")
        record(sweep, run, "done", 600 + 100 * random.random())
    return sweep

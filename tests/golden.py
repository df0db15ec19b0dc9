"""Record what a version of rlearly computes, and compare it with a record or another version.

    python tests/golden.py                           compare with tests/golden.json
    python tests/golden.py --source OTHER_CHECKOUT   run the code of another checkout instead
    python tests/golden.py --write FILE              keep the record
    python tests/golden.py --small                   one short run of each agent

Every case is a training command in a fresh process with one thread. Of each run's last checkpoint
and metrics the record holds SHA-256 sums, and sums of the numbers for comparing across machines:
weights, optimizer moments, replay contents and metric rows. They are read from the files
themselves, without importing rlearly, and depend on no name inside it: tensors are hashed by dtype,
shape and bytes, and sorted. The same hashes are only to be expected on the same kind of processor
with the same versions of torch and numpy; the record says which it was made with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
RECORD = HERE / "golden.json"
EVAL_EVERY_FRAMES = 200
UNTIMED = ("speed/", "eval/seconds")
"""Metrics by the clock, which no two runs share."""

PIXELS = [
    "env=tiny_envs:PixelReach-v0",
    "env.image_size=24",
    "env.action_repeat=1",
    "agent.hidden_dim=64",
    "agent.encoder_channels=8",
    "agent.feature_dim=20",
    "agent.batch_size=32",
    "agent.lr=1e-3",
    "agent.shift_pixels=1",
    "agent.exploration_steps=100",
    "agent.std_duration_steps=300",
    "replay.capacity=5000",
    "seed_frames=100",
    "video_size=0",
    "train_frames=600",
]
STATES = ["env=tiny_envs:StateReach-v0", "env.action_repeat=1", "agent.discount=0.9"]
OFF_POLICY = [
    *STATES,
    "agent.hidden_dim=32",
    "agent.batch_size=64",
    "agent.target_tau=0.02",
    "agent.learning_starts_steps=100",
    "replay.capacity=5000",
    "train_frames=400",
]
AGENTS = {
    "drm": [*PIXELS, "agent.perturb_every_steps=150"],
    "drqv2": PIXELS,
    "td3": OFF_POLICY,
    "sac": OFF_POLICY,
    "ppo": [*STATES, "agent.rollout_steps=128", "agent.minibatches=4", "train_frames=1100"],
}
ADAPTIVE = [
    "replay_ratio=adaptive",
    "adaptive_ratio.check_every_steps=50",
    "adaptive_ratio.threshold=0.05",
    "plasticity.every_steps=40",
]
SNAPSHOTS = ["snapshot=SNAPSHOT", "snapshot_phase.until_steps=200", "snapshot_phase.clusters=2"]
UNIFORM = [*SNAPSHOTS[:2], "snapshot_phase.selection=uniform"]
INTERVENED = {
    "drm": [
        "intervention=[redo,weight_decay,layer_norm]",
        "redo.every_steps=60",
        "plasticity.every_steps=50",
    ],
    "drqv2": [
        "intervention=[shrink_perturb,l2_init,reset,augmentation]",
        "shrink_perturb.every_steps=120",
        "reset.every_steps=200",
        "augmentation.at_step=250",
    ],
    "td3": ["intervention=[injection,spectral_norm]", "injection.at_step=200"],
    "sac": ["intervention=[crelu,reset,l2_init]", "reset.every_steps=150"],
    "ppo": ["intervention=[redo,shrink_perturb]", "shrink_perturb.every_steps=300"],
}


def cases(small: bool) -> dict[str, list[str]]:
    """Training words by case. SNAPSHOT stands for a file recorded from the agent's plain run."""
    found = {}
    for agent, words in AGENTS.items():
        evaluated = f"eval_every_frames={EVAL_EVERY_FRAMES}"
        words = [f"agent={agent}", *words, evaluated, "eval_episodes=2"]
        found[f"{agent} plain"] = words
        if small:
            continue
        if agent != "ppo":
            found[f"{agent} adaptive"] = [*words, *ADAPTIVE]
        found[f"{agent} interventions"] = [*words, *INTERVENED[agent]]
        found[f"{agent} snapshots"] = [*words, *(UNIFORM if words[1] in PIXELS else SNAPSHOTS)]
    if small:
        return {name: [*words, "train_frames=300"] for name, words in found.items()}
    found["drm bf16"] = [*found["drm plain"], "precision=bf16"]
    found["drqv2 fused and annealed"] = [
        *found["drqv2 plain"],
        "env=tiny_envs:FusedReach-v0",
        "agent.nstep_schedule=decay(2,3,200)",
        "agent.discount_schedule=linear(0.9,0.97,300)",
        "agent.q_dropout=0.1",
        "agent.q_layer_norm=true",
        "replay.compression=zstd",
    ]
    found["td3 three envs"] = [
        *found["td3 plain"],
        "num_envs=3",
        "replay_ratio=2",
        "replay.prefetch=2",
        "replay.storage=disk",
    ]
    found["ppo two envs"] = [*found["ppo plain"], "num_envs=2"]
    found["drm cartpole_balance"] = [
        *("agent=drm", "env=cartpole_balance", "preset=cpu", "train_frames=4000"),
        *("seed_frames=3000", "eval_every_frames=0", "video_size=0"),
    ]
    found["sac Hopper"] = [
        *("agent=sac", "env=Hopper-v5", "train_frames=500", "agent.learning_starts_steps=300"),
        "eval_every_frames=0",
    ]
    return found


def record(source: Path, small: bool = False, only: str = "") -> dict[str, Any]:
    """What the code in `source` computes, by case."""
    found: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in cases(small).items():
            if only and only not in name and name != f"{only.split()[0]} plain":
                continue
            agent, run = name.split()[0], Path(folder, name.replace(" ", "_"))
            snapshot = Path(folder, f"{agent}.h5")
            if "snapshot=SNAPSHOT" in words:
                plain = Path(folder, f"{agent}_plain")
                call(
                    source,
                    "teacher",
                    f"run={plain}",
                    f"out={snapshot}",
                    "episodes=4",
                    "best_episodes=3",
                )
            words = [word.replace("SNAPSHOT", str(snapshot)) for word in words]
            fixed = ["threads=1", "checkpoint_every_frames=0", f"run_dir={run}"]
            call(source, "train", *words, *fixed)
            found[name] = read(run)
            print(f"{name}: {found[name]['hashes']['weights'][:12]}", file=sys.stderr, flush=True)
    return found


def call(source: Path, command: str, *words: str) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{source}{os.pathsep}{HERE}"}
    done = subprocess.run(
        [sys.executable, "-m", f"rlearly.{command}", *words],
        cwd=source,
        env=env,
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(f"rlearly.{command} {' '.join(words)}:\n{done.stdout}{done.stderr}")


def machine() -> dict[str, str]:
    """What the hashes depend on besides the code."""
    models = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": models[0].partition(":")[2].strip() if models else "unknown",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.partition("+")[0],
        "numpy": np.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def read(run: Path) -> dict[str, Any]:
    """Hashes and sums of a run's last checkpoint and of its rows."""
    numbered = [path for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    newest = max(numbered, key=lambda path: int(path.name))
    state = torch.load(newest / "state.pt", weights_only=True, map_location="cpu")
    agent = list(leaves(state["agent"]))
    kinds = {
        "weights": [leaf for path, leaf in agent if "networks" in path],
        "moments": [leaf for path, leaf in agent if "optimizers" in path],
        "other agent state": [
            leaf for path, leaf in agent if "networks" not in path and "optimizers" not in path
        ],
        "replay": [*stored(newest), *(a for _, a in referred(state["replay"], newest))],
    }
    rows = [
        {key: value for key, value in json.loads(line).items() if not key.startswith(UNTIMED)}
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows = without_the_evaluation_at_the_end(rows)
    written = json.dumps(rows, sort_keys=True).encode()
    hashes = {kind: hash_of(arrays) for kind, arrays in kinds.items()}
    sums = {kind: sum_of(arrays) for kind, arrays in kinds.items()}
    sums["rows"] = [len(rows), sum(abs(value) for row in rows for value in row.values())]
    return {"hashes": hashes | {"rows": hashlib.sha256(written).hexdigest()}, "sums": sums}


def without_the_evaluation_at_the_end(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that runs wrote when the record was made: at intervals only."""
    evaluations = [row for row in rows if "eval/episode_return" in row]
    intervals = [0, *(row["frames"] // EVAL_EVERY_FRAMES for row in evaluations)]
    if not evaluations or intervals[-1] > intervals[-2]:
        return rows
    return [row for row in rows if row is not evaluations[-1]]


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Every tensor and array of a nested state with its path."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from leaves(value, path)
    elif isinstance(tree, torch.Tensor):
        yield path, tree.view(torch.int16).numpy() if tree.dtype == torch.bfloat16 else tree.numpy()


def referred(tree: Any, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays beside state.pt to which a part of it refers."""
    if isinstance(tree, dict) and set(tree) == {"__array__"}:
        yield "", np.load(folder / f"array_{tree['__array__']}.npy", allow_pickle=False)
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from referred(value, folder)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from referred(value, folder)


def stored(checkpoint: Path) -> Iterator[np.ndarray]:
    """The rows of the replay: .npy blocks, one after the other, in files beside the checkpoints."""
    for path in sorted(checkpoint.parent.rglob("*.rows")):
        with path.open("rb") as stream:
            while stream.tell() < path.stat().st_size:
                yield np.load(stream, allow_pickle=False)


def hash_of(arrays: list[np.ndarray]) -> str:
    each = sorted(
        hashlib.sha256(f"{a.dtype}{a.shape}".encode() + np.ascontiguousarray(a).tobytes()).digest()
        for a in arrays
    )
    return hashlib.sha256(b"".join(each)).hexdigest()


def sum_of(arrays: list[np.ndarray]) -> list[float]:
    """[numbers, sum of their absolute values]."""
    total = sum(float(np.abs(a.astype(np.float64)).sum()) for a in arrays)
    return [sum(a.size for a in arrays), total]


def different(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """`case: kind` of each hash of `after` that is not the one in `before`."""
    return [
        f"{case}: {kind}"
        for case, found in after.items()
        if case != "machine"
        for kind, value in found["hashes"].items()
        if case not in before or before[case]["hashes"].get(kind) != value
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=HERE.parent, help="a checkout of rlearly")
    parser.add_argument("--against", type=Path, default=RECORD, help="a record to compare with")
    parser.add_argument("--write", type=Path, help="keep the record in this file")
    parser.add_argument("--small", action="store_true", help="one short run of each agent")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    found = record(options.source.resolve(), options.small, options.only)
    if options.write:
        options.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    key = "small" if options.small else "full"
    before = json.loads(options.against.read_text(encoding="utf-8"))
    before = before.get(key, before)
    if before["machine"] != found["machine"]:
        print(f"The record is of {before['machine']}, this is {found['machine']}.")
    print(f"{'case':36}{'kind':20}{'before':14}{'after':14}")
    for case, values in found.items():
        for kind, value in values.get("hashes", {}).items():
            then = before.get(case, {}).get("hashes", {}).get(kind, "none")
            mark = "" if then == value else "  DIFFERS"
            print(f"{case:36}{kind:20}{then[:12]:14}{value[:12]:14}{mark}")
    wrong = different(before, found)
    print(f"{len(wrong)} of {5 * (len(found) - 1)} hashes differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

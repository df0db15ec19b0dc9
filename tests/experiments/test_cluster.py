"""Real clusters: SLURM and Ray with two nodes each on this machine, where nodes, jobs and workers
are killed. Takes minutes: `pytest -m cluster`, as root, with Debian's slurmctld, slurmd,
slurm-client and munge installed and the packages submitit and ray."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import slurm_here
import torch
from saved import agent_state, equal
from slurm_here import until

from rlearly import sweep
from rlearly.experiments.job import Record, jobs_of, log_of
from rlearly.experiments.launchers.slurm import queue_of
from rlearly.experiments.plan import Plan
from rlearly.experiments.status import statuses

pytestmark = pytest.mark.cluster

OVERRIDES = [
    "agent=td3",
    "env=gated_envs:GatedPendulum-v0",
    "train_frames=6000",
    "eval_every_frames=3000",
    "eval_episodes=1",
    "agent.hidden_dim=8",
    "agent.learning_starts_steps=20",
]
SEEDS = 4
PATIENCE = 400


def name(seed):
    return f"runs/td3/gated_envs-GatedPendulum-v0/{seed}"


@pytest.fixture
def gate(tmp_path):
    """A closed gate: runs with `env.kwargs.gate` end only after its `unlink`, see gated_envs.py."""
    file = tmp_path / "gate"
    file.touch()
    return file


def states(out):
    return [s.state for s in statuses(out, jobs_of(Plan.load(out)), queue_of(out))]


def learning(out, seed):
    log = log_of(out, name(seed))
    return "frames/s" in (log.read_text(encoding="utf-8") if log.exists() else "")


def training_process(out, seed):
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "rlearly.train" in command and any(str(out / name(seed)) in word for word in command):
            return process
    return None


def all_done(out, seeds=SEEDS):
    return states(out)[:seeds] == ["done"] * seeds


@pytest.fixture(scope="module", autouse=True)
def surroundings():
    """Nodes start from here: they find the package and the tests' envs, and use one thread."""
    before = dict(os.environ)
    folders = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
    # Ray requires a token by default, which the second node would have to know
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "RAY_AUTH_MODE": "disabled"}
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The same runs on this machine, uninterrupted."""
    out = tmp_path_factory.mktemp("local")
    assert sweep.main([*OVERRIDES, f"seeds={SEEDS}", f"sweep_dir={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if slurm_here.missing():
        pytest.skip(f"no SLURM here: {', '.join(slurm_here.missing())} missing")
    pytest.importorskip("submitit")
    cluster = slurm_here.Slurm(tmp_path_factory.mktemp("slurm"))
    cluster.start()
    yield cluster
    cluster.stop()


def test_array_survives_a_requeue_a_crash_and_a_cancel(slurm, reference, gate, tmp_path, capsys):
    overrides = [*OVERRIDES, f"seeds={SEEDS}", f"sweep_dir={tmp_path}", "launcher=slurm"]
    overrides += [f"env.kwargs.gate={gate}"]
    assert sweep.main(overrides) == 0
    assert "submitted 4 jobs as" in capsys.readouterr().out
    assert sweep.main(overrides) == 0
    assert "4 jobs are already in SLURM's queue" in capsys.readouterr().out
    until(lambda: all(learning(tmp_path, seed) for seed in range(SEEDS)), PATIENCE, "learning")
    number = {job: id for id, job in launch_numbers(tmp_path).items()}
    slurm.ask("scontrol", "requeue", number[name(0)])
    training_process(tmp_path, 1).kill()
    slurm.ask("scancel", number[name(2)])
    until(lambda: states(tmp_path)[1:3] == ["failed", "saved"], PATIENCE, "the crash, the cancel")
    until(lambda: Record.load(tmp_path, name(0)).tries == 2, PATIENCE, "the requeued one")
    gate.unlink()
    expected = ["done", "failed", "saved", "done"]
    until(lambda: states(tmp_path) == expected, PATIENCE, f"{expected}, not {states(tmp_path)}")
    assert slurm.states()[number[name(1)]] == "FAILED"
    assert slurm.states()[number[name(2)]] == "CANCELLED", "and stays so"
    assert Record.load(tmp_path, name(0)).tries == 2
    assert sweep.main([f"status={tmp_path}"]) == 1
    assert "seed 1 failed, try 1:" in capsys.readouterr().out
    assert sweep.main(overrides) == 0
    assert "submitted 2 jobs as" in capsys.readouterr().out
    until(lambda: all_done(tmp_path), PATIENCE, "all done")
    for seed in range(SEEDS):
        assert equal(agent_state(tmp_path / name(seed)), agent_state(reference / name(seed)))


def launch_numbers(out):
    from rlearly.experiments.launchers.slurm import submitted

    return submitted(out)


STUDY = """
title: three launchers
envs: [Pendulum-v1, MountainCarContinuous-v0]
seeds: 2
common: [agent=td3, train_frames=3000, eval_every_frames=1500, eval_episodes=1,
         agent.hidden_dim=8, agent.learning_starts_steps=20, checkpoint_every_frames=1000]
teacher: [agent=td3, seed=1000, train_frames=2000, eval_every_frames=1000, eval_episodes=1,
          agent.hidden_dim=8, agent.learning_starts_steps=20]
teacher_snapshots: [episodes=2, every_steps=20]
arms:
  plain: []
  S3RL: [snapshot=TEACHER, snapshot_phase.clusters=2, snapshot_phase.until_steps=1000]
"""


def test_one_study_ends_in_the_same_weights_with_three_launchers(slurm, tmp_path, capsys):
    """Two envs, arms and seeds, and the teachers that one arm waits for, with each launcher."""
    pytest.importorskip("ray")
    (tmp_path / "launchers.yaml").write_text(STUDY, encoding="utf-8")
    ends = {}
    for launcher in ("local", "slurm", "ray"):
        out = tmp_path / launcher
        overrides = [
            f"study={tmp_path / 'launchers.yaml'}",
            f"sweep_dir={out}",
            f"launcher={launcher}",
        ]
        assert sweep.main(overrides) == 0
        until(lambda out=out: set(states(out)) == {"done"}, PATIENCE, f"{launcher} to end")
        plan = Plan.load(out)
        assert {Record.load(out, run.name).engine for run in plan.runs} == {launcher}
        ends[launcher] = {run.name: agent_state(out / run.name) for run in plan.runs}
        assert len(ends[launcher]) == 8
        if launcher == "slurm":
            assert "jobs as" in capsys.readouterr().out
    for run in ends["local"]:
        prints = [weights_print(ends[launcher][run]) for launcher in ends]
        print(run, *prints)
        assert equal(ends["local"][run], ends["slurm"][run])
        assert equal(ends["local"][run], ends["ray"][run])
        assert len(set(prints)) == 1
    assert len({weights_print(state) for state in ends["local"].values()}) == 8


def weights_print(state):
    """A short name for what a run has learnt."""
    digest = hashlib.sha256()

    def add(part):
        if isinstance(part, dict):
            for key in sorted(part, key=str):
                digest.update(str(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            for one in part:
                add(one)
        elif isinstance(part, torch.Tensor):
            digest.update(part.numpy().tobytes())
        else:
            digest.update(str(part).encode())

    add(state)
    return digest.hexdigest()[:12]


def test_warning_before_the_time_limit_saves_and_requeues(slurm, gate, tmp_path):
    """The limit is a minute, the warning comes half a minute before, and the run needs longer."""
    overrides = [*OVERRIDES, f"env.kwargs.gate={gate}"]
    limits = ["slurm.time_min=1", "slurm.signal_seconds=30"]
    assert (
        sweep.main([*overrides, *limits, "seeds=1", f"sweep_dir={tmp_path}", "launcher=slurm"]) == 0
    )
    until(lambda: (Record.load(tmp_path, name(0)) or NOTHING).tries >= 2, PATIENCE, "a second try")
    until(
        lambda: "resumed at" in log_of(tmp_path, name(0)).read_text(encoding="utf-8"),
        PATIENCE,
        "resuming",
    )
    assert "SIGUSR2: saving" in log_of(tmp_path, name(0)).read_text(encoding="utf-8")
    assert sweep.main([f"cancel={tmp_path}"]) == 0
    until(lambda: states(tmp_path) == ["saved"], 60, "the cancel")
    time.sleep(8)
    assert states(tmp_path) == ["saved"], "a cancelled run is not resurrected"


NOTHING = Record("", "", "", 0, 0, 0.0)


def test_higher_partition_preempts_and_the_run_goes_on(slurm, reference, gate, tmp_path):
    low, high = tmp_path / "low", tmp_path / "high"
    overrides = [*OVERRIDES, "launcher=slurm", "slurm.cpus=2"]
    gated = [*overrides, f"env.kwargs.gate={gate}"]
    assert sweep.main([*gated, "slurm.partition=low", "seeds=2", f"sweep_dir={low}"]) == 0
    until(lambda: learning(low, 0) and learning(low, 1), PATIENCE, "both nodes to be busy")
    assert sweep.main([*overrides, "slurm.partition=high", "seeds=[3]", f"sweep_dir={high}"]) == 0
    until(lambda: all_done(high, 1), PATIENCE, "the urgent one")
    gate.unlink()
    until(lambda: all_done(low, 2), PATIENCE, "the others")
    assert sorted(Record.load(low, name(seed)).tries for seed in range(2)) == [1, 2]
    for seed in range(2):
        assert equal(agent_state(low / name(seed)), agent_state(reference / name(seed)))


def test_lost_node_gives_its_run_to_another(slurm, reference, gate, tmp_path):
    overrides = [*OVERRIDES, "launcher=slurm", "slurm.cpus=2", "seeds=2", f"sweep_dir={tmp_path}"]
    overrides += [f"env.kwargs.gate={gate}"]
    assert sweep.main(overrides) == 0
    until(lambda: learning(tmp_path, 0) and learning(tmp_path, 1), PATIENCE, "both nodes")
    slurm.kill_node("n2")
    gate.unlink()
    until(lambda: all_done(tmp_path, 2), PATIENCE, "both runs on the node that is left")
    slurm.start_node("n2")
    assert sorted(Record.load(tmp_path, name(seed)).tries for seed in range(2)) == [1, 2]
    for seed in range(2):
        assert equal(agent_state(tmp_path / name(seed)), agent_state(reference / name(seed)))


def test_refusals_of_slurm_are_passed_on(slurm, tmp_path, capsys):
    overrides = [*OVERRIDES, "launcher=slurm", "seeds=1", f"sweep_dir={tmp_path}"]
    assert sweep.main([*overrides, "slurm.partition=nowhere"]) == 2
    assert "SLURM refused the jobs" in capsys.readouterr().err


# --- Ray ---


class RayNode:
    """`ray start`, and its processes by the pids that it started."""

    def __init__(self, folder, *overrides):
        ray = Path(sys.executable).parent / "ray"
        sizes = ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"]
        self.process = subprocess.Popen(
            [ray, "start", "--block", "--node-ip-address=127.0.0.1", *sizes, *overrides],
            stdout=(folder / f"ray{len(overrides)}.log").open("w", encoding="utf-8"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def raylet(self):
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if child.name() == "raylet":
                return child
        return None

    def stop(self):
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGTERM)
        psutil.wait_procs(family, timeout=20)
        for process in family:
            if process.is_running():
                process.kill()
        self.process.wait(20)


@pytest.fixture
def two_rays(tmp_path):
    pytest.importorskip("ray")
    nodes = [RayNode(tmp_path, "--head", "--port=26379", "--include-dashboard=false")]
    try:
        until(nodes[0].raylet, 60, "the head")
        time.sleep(5)
        nodes.append(RayNode(tmp_path, "--address=127.0.0.1:26379"))
        until(nodes[1].raylet, 60, "the second node")
        yield "127.0.0.1:26379", nodes[1]
    finally:
        for node in reversed(nodes):
            if node.process.poll() is None:
                node.stop()


def test_killed_ray_node_gives_its_runs_to_another(two_rays, reference, gate, tmp_path):
    address, second = two_rays
    out = tmp_path / "sweep"
    overrides = [
        *OVERRIDES,
        f"seeds={SEEDS}",
        f"sweep_dir={out}",
        "launcher=ray",
        f"ray.address={address}",
        f"env.kwargs.gate={gate}",
    ]
    driver = subprocess.Popen(
        [sys.executable, "-m", "rlearly.sweep", *overrides],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    until(lambda: all(learning(out, seed) for seed in range(SEEDS)), PATIENCE, "four runs at once")
    second.raylet().kill()
    gate.unlink()
    said, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, said
    tries = [Record.load(out, name(seed)).tries for seed in range(SEEDS)]
    assert sorted(tries) == [1, 1, 2, 2]
    for seed in range(SEEDS):
        assert equal(agent_state(out / name(seed)), agent_state(reference / name(seed)))


def test_ray_of_its_own_and_a_stop(reference, gate, tmp_path):
    pytest.importorskip("ray")
    overrides = [*OVERRIDES, "seeds=1", f"sweep_dir={tmp_path}", "launcher=ray"]
    overrides += [f"env.kwargs.gate={gate}"]
    command = [sys.executable, "-m", "rlearly.sweep", *overrides]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    until(lambda: learning(tmp_path, 0), PATIENCE, "learning")
    driver.send_signal(signal.SIGTERM)
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 75, said
    assert states(tmp_path) == ["saved"]
    gate.unlink()
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", timeout=PATIENCE)
    assert done.returncode == 0, done.stdout
    assert equal(agent_state(tmp_path / name(0)), agent_state(reference / name(0)))


def test_ray_that_does_not_answer_gets_one_sentence(tmp_path, capsys):
    pytest.importorskip("ray")
    overrides = [*OVERRIDES, "seeds=1", f"sweep_dir={tmp_path}", "launcher=ray"]
    assert sweep.main([*overrides, "ray.address=127.0.0.1:1"]) == 2
    assert "no Ray answers at 127.0.0.1:1" in capsys.readouterr().err

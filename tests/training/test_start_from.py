"""`start_from`: a new run with chosen parts of another one, and all that does not fit."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import TINY_STATE
from saved import plain, rows
from test_faults import rows_so_far
from test_trainer import make_trainer

from rlearly import report
from rlearly.config import resolve
from rlearly.core.errors import ConfigError
from rlearly.experiments.study import grid
from rlearly.training import checkpoint
from rlearly.training.continuing.lineage import lineage
from rlearly.training.continuing.start_from import split_run

STATE = [
    word
    for word in TINY_STATE["td3"]
    if not word.startswith(("env=", "eval_", "checkpoint_", "agent.learning"))
]
OLD = [
    *STATE,
    "env=tiny_envs:StateReach-v0",
    "agent.learning_starts_steps=40",
    "eval_every_frames=60",
    "eval_episodes=2",
    "checkpoint_every_frames=80",
    "keep_best=true",
    "train_frames=200",
    "threads=1",
]
NEW = [
    *STATE,
    "env=tiny_envs:WideReach-v0",
    "eval_every_frames=50",
    "eval_episodes=2",
    "checkpoint_every_frames=60",
    "log_every_frames=20",
    "train_frames=150",
    "seed=7",
    "threads=1",
]
ALL = "start_from.parts=[networks,optimizers,replay,normalizers]"
PPO = [
    *(w for w in TINY_STATE["ppo"] if not w.startswith(("env=", "eval_", "checkpoint_"))),
    "env=tiny_envs:StateReach-v0",
    "agent.rollout_steps=32",
    "train_frames=128",
    "eval_every_frames=0",
    "threads=1",
]


@pytest.fixture(scope="module")
def old(zygote, tmp_path_factory):
    run = tmp_path_factory.mktemp("old") / "run"
    assert zygote.run(*OLD, f"run_dir={run}", log=run.parent / "log")[0] == 0
    return run


@pytest.fixture(scope="module")
def ppo(zygote, tmp_path_factory):
    run = tmp_path_factory.mktemp("ppo") / "run"
    assert zygote.run(*PPO, f"run_dir={run}", log=run.parent / "log")[0] == 0
    return run


def state_of(run, chosen=None, logs=False):
    return checkpoint.load_at(run / "checkpoints", chosen, logs=logs)[1]


def test_another_task_with_another_learning_rate_begins_with_the_networks(old, tmp_path):
    trainer = make_trainer(tmp_path, f"start_from={old}", "agent.lr=1e-4", base=NEW)
    assert not trainer.agent.modules.optimizers["actor"].state
    trainer.begin()
    there = state_of(old)["agent"]["modules"]
    here = trainer.agent.state_dict()["modules"]
    assert plain(here["networks"]) == plain(there["networks"])
    assert trainer.agent.config.learning_starts_steps == 0 and trainer.config.seed_frames == 25_000
    assert len(trainer.memory) == 0 and trainer.updates == 0
    said = [text for text in trainer.display.messages if text.startswith("start_from")]
    assert said == [
        "start_from: actions are the policy's from the first step, with the exploration of a new "
        "run; updates begin at 25,000 frames",
        f"start_from: {old} at 200 frames: this run begins with its networks, normalizers",
    ]


def test_chosen_parts_and_checkpoints_are_taken(old, tmp_path):
    trainer = make_trainer(tmp_path, f"start_from={old}@160", ALL, "agent.lr=1e-4", base=NEW)
    trainer.begin()
    there, here = state_of(old, 160, logs=True), trainer.state_dict()
    assert plain(here["agent"]["modules"]["networks"]) == plain(
        there["agent"]["modules"]["networks"]
    )
    optimizers = there["agent"]["modules"]["optimizers"]
    for name, optimizer in trainer.agent.optimizers.items():
        assert plain(optimizer.state_dict()["state"]) == plain(optimizers[name]["state"])
        assert optimizer.param_groups[0]["lr"] == 1e-4
    assert len(trainer.memory) == 160 and trainer.config.seed_frames == 0
    assert trainer.run() and trainer.updates == 150
    assert rows(tmp_path)[0]["frames"] == 1, "and frames count from 0"


def test_a_user_may_ask_for_random_steps_and_other_first_updates(old):
    config = resolve.compose([*NEW, f"start_from={old}", "agent.learning_starts_steps=30"])
    assert (config.agent.learning_starts_steps, config.seed_frames) == (30, 30)
    config = resolve.compose([*NEW, f"start_from={old}", "seed_frames=90"])
    assert (config.agent.learning_starts_steps, config.seed_frames) == (0, 90)
    config = resolve.compose([*NEW, f"start_from={old}", "start_from.parts=[replay]"])
    assert (config.agent.learning_starts_steps, config.seed_frames) == (25_000, 0)


def test_the_best_checkpoint_is_taken(old, tmp_path):
    trainer = make_trainer(tmp_path, f"start_from={old}@best", base=NEW)
    trainer.begin()
    assert plain(trainer.agent.state_dict()["modules"]["networks"]) == plain(
        state_of(old, "best")["agent"]["modules"]["networks"]
    )
    with pytest.raises(ConfigError, match=r"best checkpoint of .* holds no replay; leave replay o"):
        resolve.compose([*NEW, f"start_from={old}@best", ALL])


def test_random_streams_and_counters_stay_the_new_runs(old, tmp_path):
    plain_run = make_trainer(tmp_path / "plain", "agent.learning_starts_steps=0", base=NEW)
    started = make_trainer(tmp_path / "started", f"start_from={old}", ALL, base=NEW)
    started.begin()
    one, two = plain_run.state_dict(), started.state_dict()
    assert plain(one["agent"]["modules"]["generators"]) == plain(
        two["agent"]["modules"]["generators"]
    )
    assert plain(one["env"]) == plain(two["env"]) and one["trainer"] == two["trainer"]
    assert [b["generator"] for b in one["replay"]["buffers"]] == [
        b["generator"] for b in two["replay"]["buffers"]
    ]


@pytest.mark.parametrize("at_steps", [0, 30, 130])
def test_resumed_run_needs_no_ancestor_and_equals_an_uninterrupted_one(old, tmp_path, at_steps):
    ancestor = tmp_path / "ancestor"
    shutil.copytree(old, ancestor)
    words = [f"start_from={ancestor}", ALL, "intervention=l2_init", "plasticity.every_steps=20"]
    straight = make_trainer(tmp_path / "straight", *words, base=NEW)
    assert straight.run()
    first = make_trainer(tmp_path / "run", *words, base=NEW)
    first.stop_requested = lambda: first.steps >= at_steps
    config = resolve.compose([*NEW, *words])
    assert not first.run()
    first.close()
    shutil.rmtree(ancestor)
    second = build(tmp_path / "run", config)
    assert second.resume() == at_steps and second.run()
    assert plain(second.state_dict()) == plain(straight.state_dict())
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")


def build(folder, config):
    """A trainer of a config that was composed before."""
    import torch
    from conftest import Silent

    from rlearly.training import builder
    from rlearly.training.sinks import JsonLines, Sinks

    return builder.build(
        config,
        folder,
        make_sinks=lambda: Sinks(JsonLines(folder / "metrics.jsonl"), []),
        display=Silent(),
        device=torch.device("cpu"),
    )


def test_killed_before_its_first_checkpoint_it_goes_on_without_its_ancestor(zygote, old, tmp_path):
    ancestor, log = tmp_path / "ancestor", tmp_path / "log"
    shutil.copytree(old, ancestor)
    words = [*NEW, f"start_from={ancestor}", ALL]
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert zygote.run(*words, f"run_dir={straight}", log=log)[0] == 0
    endless = ["train_frames=100000", "checkpoint_every_frames=0"]
    pid = zygote.start([*words, *endless, f"run_dir={run}"], log)
    while not (run / "metrics.jsonl").exists() or not rows_so_far(run):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert zygote.wait(pid) == -signal.SIGKILL
    assert [p.name for p in checkpoint.list_checkpoints(run / "checkpoints")] == ["0" * 12]
    shutil.rmtree(ancestor)
    usual = ["train_frames=150", "checkpoint_every_frames=60"]
    status, said = zygote.run(f"resume={run}", *usual, log=log)
    assert status == 0 and "resumed at 0 frames" in said, said
    assert plain(state_of(run, logs=True)) == plain(state_of(straight, logs=True))
    assert rows(run) == rows(straight)


def test_ppo_begins_with_its_statistics(ppo, tmp_path):
    words = [f"start_from={ppo}", "agent.lr=1e-4", "seed=4"]
    trainer = make_trainer(tmp_path, *words, base=PPO)
    trainer.begin()
    there = state_of(ppo)["agent"]
    assert trainer.agent.obs_rms.state_dict() == there["obs_rms"]
    assert trainer.agent.return_rms.state_dict() == there["return_rms"]
    assert trainer.run() and trainer.agent.learnt_steps == 128


def test_normalizers_of_the_run_are_taken_and_must_be_the_same(zygote, tmp_path):
    run = tmp_path / "run"
    words = [*OLD, "env.normalize=obs,reward"]
    assert zygote.run(*words, f"run_dir={run}", log=tmp_path / "log")[0] == 0
    new = [*NEW, f"start_from={run}"]
    with pytest.raises(ConfigError, match=r"env\.normalize=obs,reward, and this run has env.norm"):
        resolve.compose(new)
    trainer = make_trainer(tmp_path / "new", "env.normalize=[reward,obs]", base=new)
    trainer.begin()
    there, here = state_of(run)["agent"]["normalizer"], trainer.agent.normalizer.state_dict()
    assert here == {**there, "running_returns": {}} and here["obs"]["count"] > 200


def test_the_replay_alone_fits_another_agent(old, tmp_path):
    words = [w for w in TINY_STATE["sac"] if not w.startswith(("env=", "eval_", "checkpoint_"))]
    words += [*NEW[-7:], "env=tiny_envs:StateReach-v0", f"start_from={old}"]
    trainer = make_trainer(tmp_path, "start_from.parts=[replay]", "agent.nstep=3", base=words)
    trainer.begin()
    assert len(trainer.memory) == 200
    with pytest.raises(ConfigError, match="agent=td3, whose networks and normalizers do not fit"):
        resolve.compose(words)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["agent.hidden_dim=16"],
            r"actor\.policy\.0\.weight is \[32, 2\] there and \[16, 2\] here",
        ),
        (
            ["intervention=crelu"],
            "does not fit this run: the parameters of actor have other names|is",
        ),
        (["env=Pendulum-v1"], r"observations are float32 \[2\] there and float32 \[3\] here"),
        (["num_envs=2", ALL], "the replay is of 1 envs there and of 2 here"),
        (
            ["env=Pendulum-v1", "start_from.parts=[replay]"],
            r"float32 \[2\] there and float32 \[3\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(old, tmp_path, words, sentence):
    trainer = make_trainer(tmp_path, f"start_from={old}", *words, base=NEW)
    with pytest.raises(ConfigError, match=f"start_from: .* at 200 frames .*{sentence}"):
        trainer.begin()
    assert trainer.steps == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["start_from=nowhere"], "nowhere does not exist"),
        (
            ["start_from=OLD@70"],
            r"there is none at 70 frames.*kept: 160, 200",
        ),
        (["start_from=OLD@newest"], "expected RUN, RUN@FRAMES or RUN@best, received"),
        (
            ["start_from=OLD", "start_from.parts=[network]"],
            "no part 'network'; did you mean",
        ),
        (["start_from=OLD", "start_from.parts=[]"], "expected some of networks, optimizers"),
        (
            ["start_from=OLD", "start_from.parts=[optimizers]"],
            "add networks or leave optimizers out",
        ),
        (
            ["start_from.parts=[networks]"],
            r"parts: has no effect without start_from=RU",
        ),
        (["start_from=OLD", "start_from.sha256=1"], "is set by start_from=RUN; leave it out"),
    ],
)
def test_request_that_cannot_be_met_is_refused(old, words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolve.compose([*NEW, *(word.replace("OLD", str(old)) for word in words)])


def test_replay_of_an_on_policy_run_is_refused(ppo):
    with pytest.raises(ConfigError, match="an on-policy agent has no replay to take over"):
        resolve.compose([*PPO, f"start_from={ppo}", "start_from.parts=[networks,replay]"])
    with pytest.raises(ConfigError, match="agent=ppo, which is on policy and has no replay"):
        resolve.compose([*NEW, f"start_from={ppo}", "start_from.parts=[replay]"])


def test_refusal_of_the_command_leaves_nothing_behind(zygote, old, tmp_path):
    words = [*NEW, f"start_from={old}", "agent.hidden_dim=16", f"run_dir={tmp_path / 'run'}"]
    status, said = zygote.run(*words, log=tmp_path / "log")
    assert status == 2 and "is [32, 2] there and [16, 2] here" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_checkpoint_that_changed_or_went_since_is_refused(old, tmp_path):
    ancestor = tmp_path / "ancestor"
    shutil.copytree(old, ancestor)
    config = resolve.compose([*NEW, f"start_from={ancestor}@160"])
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    shutil.rmtree(ancestor / "checkpoints/000000000160")
    with pytest.raises(ConfigError, match="no longer has the checkpoint 160"):
        build(tmp_path / "one", config).begin()
    shutil.copytree(ancestor / "checkpoints/000000000200", ancestor / "checkpoints/000000000160")
    with pytest.raises(ConfigError, match=r"manifest is not what was written|no longer the one"):
        build(tmp_path / "two", config).begin()


def test_run_and_checkpoint_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd@12").mkdir()
    assert [
        (str(run), at) for run, at in map(split_run, ("a/b@250_000", "a@b@best", "odd@12", "odd"))
    ] == [("a/b", 250_000), ("a@b", "best"), ("odd@12", None), ("odd", None)]


def test_a_sweep_pins_the_path(old, tmp_path, monkeypatch):
    monkeypatch.chdir(old.parent)
    plan = grid([*NEW[:-2], "agent=td3", "start_from=run@160,run@200"], [0])
    words = [word for run in plan.runs for word in run.overrides if word.startswith("start_from")]
    assert words == [f"start_from={old}@160", f"start_from={old}@200"]
    assert {config.start_from.checkpoint for config in plan.configs().values()} == {"160", "200"}


def test_provenance_names_all_ancestors_and_the_report_draws_them(zygote, old, tmp_path, capsys):
    log, child, grandchild = tmp_path / "log", tmp_path / "child", tmp_path / "grandchild"
    assert zygote.run(*NEW, f"start_from={old}@160", f"run_dir={child}", log=log)[0] == 0
    assert zygote.run(*NEW, f"start_from={child}", f"run_dir={grandchild}", log=log)[0] == 0
    entry = json.loads((grandchild / "provenance.json").read_text(encoding="utf-8"))[0]["ancestor"]
    ids = [
        json.loads((run / "identity.json").read_text(encoding="utf-8"))["id"]
        for run in (child, old)
    ]
    assert [entry["id"], entry["ancestor"]["id"]] == ids and entry["ancestor"]["ancestor"] is None
    assert (entry["frames"], entry["ancestor"]["frames"]) == (150, 160)
    assert entry["sha256"] == checkpoint.digest(child / "checkpoints", 150)
    found = [(part.run, part.first, part.end) for part in lineage(grandchild)]
    assert found == [(old, 0, 160), (child, 160, 150), (grandchild, 310, None)]

    out = tmp_path / "all.png"
    both = [str(grandchild), str(old)]
    assert report.main([*both, "ancestors=true", f"out={out}"]) == 0 and out.is_file()
    table = out.with_suffix(".csv").read_text(encoding="utf-8").splitlines()[1:9]
    frames = [int(line.split(",")[-2]) for line in table]
    assert frames == [60, 120, 210, 260, 310, 360, 410, 460]
    values = [float(line.split(",")[-1]) for line in table]
    of_runs = [
        [row["eval/episode_return"] for row in rows(run) if "eval/episode_return" in row]
        for run in (old, child, grandchild)
    ]
    assert np.allclose(values, [*of_runs[0][:2], *of_runs[1], *of_runs[2]], atol=0.01)
    out = tmp_path / "one.png"
    assert report.main([f"run={grandchild}", "ancestors=true", f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert out.is_file() and "frames      460" in said
    assert "begins: at 160, 310 frames" in said
    child.rename(tmp_path / "elsewhere")
    assert report.main([str(grandchild), "ancestors=true", f"out={out}"]) == 2
    assert "began from" in capsys.readouterr().err

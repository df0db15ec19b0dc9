"""Sweeps: what is planned, what is run and what is skipped, and what survives which death."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from saved import agent_state, equal

from rlearly import envs, report, sweep
from rlearly.agents import AGENTS, agent_spec
from rlearly.api import launch
from rlearly.config.metric_names import METRICS, PARTS
from rlearly.config.overrides import sweep_values
from rlearly.core.errors import ConfigError
from rlearly.experiments.job import Job, Record, commands, jobs_of, log_of
from rlearly.experiments.job_runner import JobRunner
from rlearly.experiments.launchers import local
from rlearly.experiments.launchers.base import ending
from rlearly.experiments.launchers.lock import only_launcher, owner_of
from rlearly.experiments.launchers.slurm import submitted
from rlearly.experiments.plan import Plan, Run
from rlearly.experiments.status import overview, statuses, totals
from rlearly.experiments.study import STUDIES, Study, grid, shipped
from rlearly.training import run_directory

ROOT = Path(__file__).parents[2]
TINY = [
    "agent=td3",
    "env=Pendulum-v1",
    "train_frames=60",
    "eval_every_frames=30",
    "eval_episodes=1",
    "agent.hidden_dim=8",
    "agent.learning_starts_steps=20",
]
STUDY = """
title: tiny
envs: [Pendulum-v1]
seeds: 2
common: [agent=td3, train_frames=60, eval_every_frames=30, eval_episodes=1,
         agent.hidden_dim=8, agent.learning_starts_steps=20]
teacher: [agent=td3, seed=9, train_frames=30, agent.hidden_dim=8]
teacher_snapshots: [episodes=1, every_steps=20]
arms:
  plain: []
  started: [snapshot=TEACHER, snapshot_phase.clusters=2, snapshot_phase.until_steps=30]
metrics: [loss/critic]
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# --- plans ---


class Ended:
    """A process that has done its work."""

    def wait(self, timeout):
        return 0


def test_seeds_are_a_number_or_a_list():
    assert launch.seeds_of("3") == [0, 1, 2]
    assert launch.seeds_of("3,5,8") == [3, 5, 8]
    assert launch.seeds_of("[7]") == [7]
    for bad in ("0", "", "-1", "3,x", "2,2", "[]", "1.5"):
        with pytest.raises(ConfigError, match="seeds: expected"):
            launch.seeds_of(bad)


def test_commas_list_values_and_brackets_are_one():
    assert sweep_values("agent=drm,drqv2") == ("agent", ["drm", "drqv2"])
    assert sweep_values("intervention=[redo,reset],redo")[1] == ["[redo,reset]", "redo"]
    assert sweep_values("x=1") == ("x", ["1"])
    assert sweep_values("x='a,b',\"c\",d(1,2)") == ("x", ["'a,b'", '"c"', "d(1,2)"])
    assert sweep_values("x=josé's,o'neil's") == ("x", ["josé's", "o'neil's"])
    for bad in ("+x=1", "x", "x=1,", "x=1,,2"):
        with pytest.raises(ConfigError, match=r"Expected (key|x)="):
            sweep_values(bad)


def test_grid_is_every_combination_on_every_seed():
    overrides = [
        "agent=td3,sac",
        "env=Hopper-v5,ALE/Pong-v5",
        "replay_ratio=1,'linear(1,2,9)'",
        "lr=3",
    ]
    plan = grid(overrides, [0, 4])
    assert len(plan.runs) == 2 * 2 * 2 * 2
    assert [run.name for run in plan.runs[:4]] == [
        "runs/td3 replay_ratio=1/Hopper-v5/0",
        "runs/td3 replay_ratio='linear(1,2,9)'/Hopper-v5/0",
        "runs/td3 replay_ratio=1/ALE-Pong-v5/0",
        "runs/td3 replay_ratio='linear(1,2,9)'/ALE-Pong-v5/0",
    ]
    assert {run.seed for run in plan.runs[:8]} == {0}, "all arms at the first seed come first"
    last = ["agent=sac", "env=ALE/Pong-v5", "replay_ratio='linear(1,2,9)'", "lr=3", "seed=4"]
    assert plan.runs[-1].overrides == [*last, "threads=1"]
    assert "threads=2" in grid([*overrides, "threads=2"], [0]).runs[0].overrides
    assert grid(["agent='td3'", "env='a'"], [0]) == grid(["agent=td3", "env=a"], [0])


def test_adding_seeds_and_arms_changes_no_run():
    few = {run.name: run.overrides for run in grid(["agent=td3", "env=a,b"], range(2)).runs}
    many = {run.name: run.overrides for run in grid(["agent=td3,sac", "env=b,a,c"], range(5)).runs}
    assert all(many[name] == overrides for name, overrides in few.items())


def test_plan_is_read_back_and_joined(tmp_path):
    plan = grid(TINY, range(2))
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    more = grid(TINY, [1, 2]).joined(plan, tmp_path)
    assert sorted(run.seed for run in more.runs) == [0, 1, 2]
    assert grid(TINY[::-1], [0]).joined(plan, tmp_path).runs[0].overrides == plan.runs[0].overrides
    other = grid([*TINY, "agent.lr=1"], [0])
    with pytest.raises(
        ConfigError, match=r"\(agent.lr=0.0003\) than this command \(agent.lr=1.0\)"
    ):
        other.joined(plan, tmp_path)


def test_grid_joined_to_a_study_keeps_its_teachers(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY, encoding="utf-8")
    study = Study.load(file).plan()
    study.save(tmp_path)
    more = grid(["agent=sac", "env=Pendulum-v1"], [0])
    both = more.joined(study, tmp_path)
    assert (both.teacher, both.metrics[-1]) == (study.teacher, "loss/critic")
    both.save(tmp_path)
    both, jobs = launch.joined(more, tmp_path)
    assert [job.name for job in jobs] == ["runs/sac/Pendulum-v1/0"], "and needs no teacher"
    assert study.joined(both, tmp_path).teacher == study.teacher
    other = Study.load(file)
    file.write_text(STUDY.replace("seed=9", "seed=8"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"its teachers \(seed=9\) than this command \(seed=8\)"):
        Study.load(file).plan().joined(other.plan(), tmp_path)


def test_two_runs_never_share_a_directory():
    with pytest.raises(ConfigError, match="would hold two runs"):
        Plan("t", [Run("a", "x/y", 0, []), Run("a", "x-y", 0, [])])


def test_shipped_studies_compose_every_run():
    for name in shipped():
        plan = Study.load(Path(name)).plan()
        plan.check()
        assert all("threads=1" in run.overrides for run in plan.runs)
        for env, numbers in plan.published.items():
            assert {(arm, env) for arm in numbers} <= {(run.arm, run.env) for run in plan.runs}
    assert shipped() == sorted(path.stem for path in STUDIES.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("clusters=2", "clusterz=2", "started on Pendulum-v1: There is no key"),
        ("seed=9", "sed=9", "teacher on Pendulum-v1: There is no key"),
        (
            "teacher: [agent",
            "teacher: []\nteacherz: [agent",
            "there is no key 'teacherz'; did you mean",
        ),
        ("seeds: 2", "seeds: two", "seeds: expected a number of at least 1, received 'two'"),
        ("envs: [Pendulum-v1]", "envs: Pendulum-v1", "envs: expected a list of strings"),
        ("title: tiny", "title: [", "does not load as a study (line 4: "),
        (
            "title: tiny",
            "title: tiny\ntitle: b",
            "does not load as a study (line 3: found duplicate",
        ),
        ("arms:", "armz:", "there is no key 'armz'; did you mean arms?"),
        ("title: tiny\n", "", "does not load as a study: it lacks title."),
        ("plain: []", "a/b: []", "received 'a/b'; use 'a-b'."),
        ("loss/critic", "loss/critc", "no run writes 'loss/critc'; did you mean loss/critic"),
        (
            "loss/critic",
            "loss/zzzzz",
            "metrics of this group: loss/actor, loss/alpha, ",
        ),
        ("loss/critic", "zzz", "groups: plasticity, train, eval, loss, "),
        ("  plain: []", "  0.5: []", "arms: expected names, received 0.5; quote it"),
        ("metrics: [", "published: {Pendulum-v1: 3}\nmetrics: [", "v1: expected ARM: number"),
        ("metrics: [", "published: {Pendulum: {}}\nmetrics: [", "did you mean Pendulum-v1?"),
        (
            "metrics: [",
            "published: {Pendulum-v1: {plane: 3}}\nmetrics: [",
            "there is no arm 'plane' on it in this study; did you mean plain?",
        ),
    ],
)
def test_typos_are_found_before_anything_is_run(tmp_path, capsys, old, new, sentence):
    file = tmp_path / "tiny.yaml"
    assert old in STUDY
    file.write_text(STUDY.replace(old, new), encoding="utf-8")
    assert sweep.main([f"study={file}", f"sweep_dir={tmp_path / 'out'}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_directories_are_taken_as_they_are_typed(tmp_path, capsys):
    out = tmp_path / "td3 a=1,2 [b], 'c'"
    grid(TINY, [0]).save(out)
    assert sweep.main([f"status={out}"]) == 0 and "1 waiting" in capsys.readouterr().out
    assert launch.split([f"sweep_dir={out}"])[0].sweep_dir == str(out)
    assert report.main([f"sweep={out}", f"out={tmp_path / 'a=1'}"]) == 0
    assert (tmp_path / "a=1" / "index.html").exists()


def test_list_is_no_study(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n- b\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected the keys title, envs, .*, received a list"):
        Study.load(tmp_path / "list.yaml")


def test_known_metrics_are_those_that_the_code_writes():
    """Each `group/name` in the source is known, and no other but what is put together there."""
    written = set()
    for file in (ROOT / "rlearly").rglob("*.py"):
        if "experiments" not in file.parts:
            groups = "|".join(METRICS)
            written |= set(
                re.findall(rf'"((?:{groups})/[a-z_0-9]+)"', file.read_text(encoding="utf-8"))
            )
    known = {f"{group}/{name}" for group, names in METRICS.items() for name in names}
    assert written - {"eval/video"} <= known, "a video is no number"
    parts = {name for agent in AGENTS for name in agent_spec(agent).networks}
    assert parts <= set(PARTS)
    put_together = {name for name in known if name.startswith(("plasticity/", "train/"))}
    assert known - written <= put_together


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["agent=td3", "seeds=2"], "env: expected one or several"),
        (["agent=td3", "env=Hopper-v5"], "seeds: expected the number of runs of each"),
        (["agent=td3", "env=Hopper-v5", "seeds=0"], "seeds: expected at least one"),
        (["agent=td3", "env=Hoper-v5", "seeds=1"], "did you mean Hopper-v5"),
        (["agent=td3", "env=Hopper-v5", "seeds=1", "seed=3"], "seed: every run of a sweep has its"),
        (["agent=td3", "env=Hopper-v5", "seeds=1", "run_dir=x"], "write sweep_dir="),
        (["agent=td3", "env=Hopper-v5", "seeds=1", "agent.lrr=1,2"], "did you mean agent.lr"),
        (
            ["study=nothing"],
            "There is no study nothing; shipped studies: adaptive_rr_atari_cpu, drm, drm_adroit",
        ),
        (["study=s3rl_cpu", "env=Hopper-v5"], "a study sets this itself"),
        (["agent=td3", "env=Hopper-v5", "seeds=1", "launcher=pbs"], "one of local, slurm, ray"),
        (["agent=td3", "env=Hopper-v5", "seeds=1", "slurm.gpu=1"], "slurm.gpus"),
        (["agent=td3", "env=Hopper-v5", "seeds=1", "teachers=x"], "only a study has them"),
        (["study=s3rl_cpu", "resume=x"], "a study sets this itself"),
        (["study=s3rl_cpu", "teachers=nowhere"], "nowhere/Hopper-v5.h5, which does not exist"),
        (["status=nowhere"], "nowhere is not the directory of a sweep"),
        (["cancel=nowhere"], "is not the directory of a sweep"),
        (["sync=nowhere"], "is not the directory of a sweep"),
        (["status=nowhere", "agent=td3"], "status: cannot be combined with 'agent=td3'"),
        (["agent=td3", "env=Hopper-v5", "seeds=1", "lancher=slurm"], "did you mean launcher or"),
        (["agent=td3", "env=Hopper-v5", "seedz=1"], "did you mean seed or seeds or"),
        (["agent=td3", "env=Hopper-v5", "seeds=1", "hiden_dim=3"], "did you mean agent.hidden_dim"),
        (["watch=true"], "watch: has no effect without status=SWEEP_DIR"),
        (["status"], "status: expected the directory of a sweep, as in status=sweeps/NAME"),
        (["status="], "status: expected the directory of a sweep, as in status=sweeps/NAME"),
        (
            ["agent=td3,", "env=Hopper-v5", "seeds=1"],
            "ends in a comma: write agent=td3, or add",
        ),
        (["agent=(a", "env=Hopper-v5", "seeds=1"], "There is no agent '(a'"),
        (["study=my/own.yaml"], "There is no file my/own.yaml; shipped studies: "),
        (["dry-run"], "Expected key=value, received 'dry-run'"),
    ],
)
def test_bad_requests_get_one_sentence(tmp_path, monkeypatch, capsys, overrides, sentence):
    monkeypatch.chdir(tmp_path)
    assert sweep.main(overrides) == 2
    said = capsys.readouterr().err
    assert sentence in said.replace("\n", " ") and said.count("rlearly: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_launchers_that_are_not_installed_say_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    overrides = [*TINY, "seeds=1", f"sweep_dir={tmp_path / 'out'}"]
    assert sweep.main([*overrides, "launcher=slurm"]) == 2
    assert "sbatch, srun, squeue not found" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert sweep.main([*overrides, "launcher=ray"]) == 2
    assert "needs the package ray: pip install 'rlearly[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("there", [False, True])
def test_refused_launch_leaves_no_trace(tmp_path, monkeypatch, capsys, there):
    class Refusing:
        def launch(self, sweep, jobs, report):
            (sweep / "slurm").mkdir()
            raise ConfigError("SLURM refused the jobs")

    out = tmp_path / "a" / "out"
    if there:
        grid(TINY, [0]).save(out)
        (out / "mine.txt").touch()
    before = {p: p.read_text(encoding="utf-8") for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(launch, "make_launcher", lambda config: Refusing())
    assert sweep.main([*TINY, "seeds=2", f"sweep_dir={out}"]) == 2
    assert "SLURM refused" in capsys.readouterr().err
    assert {p: p.read_text(encoding="utf-8") for p in tmp_path.rglob("*") if p.is_file()} == before
    assert out.exists() == there and (tmp_path / "a").exists() == there


def test_refused_second_launcher_leaves_the_first_alone(tmp_path):
    with only_launcher(tmp_path / "a", "local"):
        (tmp_path / "a" / "plan.json").touch()
        with (
            pytest.raises(ConfigError, match="is being launched by another"),
            only_launcher(tmp_path / "a", "local"),
        ):
            pass
        kept = {path.name for path in (tmp_path / "a").iterdir()}
    assert kept == {"plan.json", "launcher.json", "launcher.lock"}


def test_launcher_is_found_and_a_second_refused_without_locks(tmp_path, monkeypatch, caplog):
    def flock(handle, operation):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_launcher(tmp_path, "local"):
        assert owner_of(tmp_path)["pid"] == os.getpid()
        with (
            pytest.raises(ConfigError, match="is being launched by another"),
            only_launcher(tmp_path, "local"),
        ):
            pass
    assert owner_of(tmp_path) is None and "no locks here" in caplog.text
    gone = {"launcher": "local", "pid": 2**22 + 1, "host": socket.gethostname()}
    (tmp_path / "launcher.json").write_text(json.dumps(gone), encoding="utf-8")
    assert owner_of(tmp_path) is None, "it ended without a word"
    with only_launcher(tmp_path, "local"):
        pass


def test_help_names_every_key_of_a_study(capsys):
    assert sweep.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {field.name} " in said for field in dataclasses.fields(Study))
    assert "snapshot=TEACHER" in said and "sync=SWEEP_DIR" in said
    assert "sweeps/" in (ROOT / ".gitignore").read_text(encoding="utf-8")


def test_grids_print_where_an_arm_is_stored_that_no_folder_can_be_named_after(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sweep, "dry_run", lambda *arguments: 0)
    overrides = [
        *TINY,
        "seeds=1",
        f"sweep_dir={tmp_path / 'x'}",
        "wandb.project=a/b,c",
        "dry_run=true",
    ]
    assert sweep.main(overrides) == 0
    assert (
        "td3 wandb.project=a/b is stored in runs/td3 wandb.project=a-b" in capsys.readouterr().out
    )


# --- runs ---


def test_sweep_runs_what_is_missing_and_only_that(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY, encoding="utf-8")
    out = tmp_path / "out"
    overrides = [f"study={file}", f"sweep_dir={out}", "workers=2"]
    assert sweep.main([*overrides, "dry_run=true"]) == 0
    planned = capsys.readouterr().out
    assert "5 of 5 jobs are to be run" in planned and not out.exists()
    assert planned.count("rlearly.train") == 5 and planned.count("rlearly.teacher") == 1
    assert f"{out}/teachers/Pendulum-v1.h5" in planned
    assert sweep.main(overrides) == 0
    said = capsys.readouterr().out
    assert said.count("start ") == 5 and said.count("done ") >= 5
    plan = Plan.load(out)
    assert {s.state for s in statuses(out, jobs_of(plan))} == {"done"}
    ends = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*/*/done.json")}
    assert len(ends) == 4
    assert sweep.main([*overrides, "seeds=3"]) == 0
    said = capsys.readouterr().out
    assert said.count("start ") == 2 and "5 of 7 jobs are done already" in said
    assert all(p.stat().st_mtime_ns == at for p, at in ends.items())
    assert sweep.main(overrides) == 0, "fewer seeds are all done, and the third ones stay"
    said = capsys.readouterr().out
    assert "5 of 5 jobs of this command are done already" in said
    assert "5 jobs of this command: 5 done" in said and "7 jobs of the sweep: 7 done" in said
    assert len(Plan.load(out).runs) == 6
    assert sweep.main([f"status={out}"]) == 0
    assert "7 jobs: 7 done" in capsys.readouterr().out


def test_dry_run_prints_commands_count_and_memory_and_makes_no_env(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(envs, "make", lambda *a, **k: pytest.fail("an env was made"))
    overrides = ["agent=td3,drqv2", "env=cartpole_swingup,dog_run", "train_frames=20000"]
    overrides += ["replay.capacity=5000", f"sweep_dir={tmp_path / 'x'}", "dry_run=true"]
    assert sweep.main([*overrides, "seeds=2", "workers=2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("rlearly.train") == 8 and "8 of 8 jobs are to be run" in printed
    frames = 2 * 5000 * (3 * 84 * 84 + 10)  # two runs at once, and 10 bytes of bookkeeping
    assert f"With 2 at once, the replays grow to about {frames / 1e9:.2f} GB" in printed
    assert "not counting 4 runs without pixels" in printed and "teachers" not in printed
    assert sweep.main([*overrides[1:], "agent=ppo", "obs=state", "seeds=1"]) == 2
    assert sweep.main(["agent=td3", *overrides[1:], "seeds=1"]) == 0
    assert "depends on the envs' observations" in capsys.readouterr().out
    assert not (tmp_path / "x").exists()


def test_names_and_folders_may_hold_any_character(tmp_path):
    out = tmp_path / "jos\u00e9's [a=1], 50%"
    overrides = [
        "agent=td3",
        "env=Pendulum-v1",
        "replay_ratio=1,'linear(1,2,9)'",
        "train_frames=30",
    ]
    small = ["agent.learning_starts_steps=20", "agent.hidden_dim=8", "eval_every_frames=0"]
    Plan.save(grid([*overrides, *small], [0]), out)
    for job in jobs_of(Plan.load(out)):
        assert JobRunner(out, job.name, "test").run() == 0, log_of(out, job.name).read_text(
            encoding="utf-8"
        )
        folder = out / job.name
        assert (folder / "done.json").exists() and "replay_ratio=" in job.name
        (folder / "done.json").unlink()
        assert JobRunner(out, job.name, "test").run() == 0, "resumed, though it was at its end"
        assert "resumed at 30 frames" in log_of(out, job.name).read_text(encoding="utf-8")


def test_finished_sweep_is_trained_on_with_more_frames(tmp_path, capsys):
    out = tmp_path / "out"
    overrides = [*TINY, "seeds=2", f"sweep_dir={out}", "workers=1"]
    assert sweep.main(overrides) == 0
    longer = [word.replace("train_frames=60", "train_frames=90") for word in overrides]
    capsys.readouterr()
    assert sweep.main([*longer, "seeds=1", "dry_run=true"]) == 0
    run = out / "runs/td3/Pendulum-v1/0"
    said = capsys.readouterr().out
    assert f"python -m rlearly.train resume={run} train_frames=90\n" in said
    assert sweep.main([*longer, "seeds=1", "eval_episodes=2"]) == 0
    assert json.loads((run / "done.json").read_text(encoding="utf-8"))["frames"] == 90
    assert "resumed at 60 frames" in log_of(out, "runs/td3/Pendulum-v1/0").read_text(
        encoding="utf-8"
    )
    assert [run.train_frames for run in Plan.load(out).runs] == [90, 60]
    capsys.readouterr()
    assert sweep.main([*longer, "seeds=1", "eval_episodes=2"]) == 0
    assert "1 of 1 jobs of this command are done already" in capsys.readouterr().out
    assert sweep.main(overrides) == 2
    assert (
        "expected at least the 90 frames that td3 on Pendulum-v1, seed 0 has done, received 60"
        in (capsys.readouterr().err)
    )
    shutil.rmtree(run.parent / "1" / "checkpoints")
    assert sweep.main([w for w in longer if "seeds" not in w] + ["seeds=[1]"]) == 2
    assert "seed 1 is done with 60 frames and has no checkpoint left" in capsys.readouterr().err


def test_conflicting_settings_alone_are_shown(tmp_path):
    plan = grid([*TINY, "agent.lr=2"], [0])
    plan.save(tmp_path)
    other = grid([*TINY, "train_frames=99", "agent.lr=1"], [0])
    with pytest.raises(
        ConfigError, match=r"\(agent.lr=2.0 train_frames=60\) than this command \(agen"
    ):
        other.joined(plan, tmp_path)
    with pytest.raises(
        ConfigError, match=r"\(train_frames=60\) than this command \(train_frames=1000000"
    ):
        grid([w for w in [*TINY, "agent.lr=2"] if "train" not in w], [0]).joined(plan, tmp_path)


def test_settings_are_compared_as_they_compose(tmp_path):
    """The default, another spelling, another order and a quoted value are the same setting."""
    plan = grid([*TINY, "agent.lr=0.0003"], [0])
    for same in (TINY, [*TINY, "agent.lr=3e-4"], [*TINY[::-1], "agent.lr=.0003"]):
        assert grid(same, [0]).joined(plan, tmp_path).runs == plan.runs
    longer = grid([*TINY, "train_frames=90", "agent.lr=3e-4"], [0])
    assert longer.joined(plan, tmp_path).runs == longer.runs, "frames may change"
    with pytest.raises(ConfigError, match="has other settings for td3 on Pendulum-v1, seed 0"):
        grid([*TINY, "agent.hidden_dim=16"], [0]).joined(plan, tmp_path)
    tracked = grid([*TINY, "wandb.mode=offline", "wandb.group=x"], [0])
    assert tracked.joined(plan, tmp_path).runs == tracked.runs, "no result depends on tracking"


def test_failing_runs_stop_no_others_and_are_tried_again(tmp_path, capsys):
    out = tmp_path / "out"
    broken = out / "runs" / "td3" / "Pendulum-v1" / "0"
    broken.parent.mkdir(parents=True)
    broken.write_text("not a folder", encoding="utf-8")
    overrides = [*TINY, "seeds=2", f"sweep_dir={out}", "workers=1"]
    assert sweep.main(overrides) == 1
    said = capsys.readouterr().out
    assert "FAILED td3 on Pendulum-v1, seed 0" in said and "done td3 on Pendulum-v1, seed 1" in said
    assert "td3 on Pendulum-v1, seed 0 failed, try 1:" in said and "cannot be written" in said
    assert sweep.main([f"status={out}"]) == 1
    assert "1 done, 1 failed" in capsys.readouterr().out
    broken.unlink()
    assert sweep.main(overrides) == 0
    assert Record.load(out, "runs/td3/Pendulum-v1/0").tries == 2


def test_sweep_of_which_all_runs_failed_at_once_is_repeated_with_other_settings(tmp_path):
    failed, mended = grid(TINY, [0, 1]), grid([*TINY, "agent.batch_size=8"], [0, 1])
    failed.save(tmp_path)
    for run in failed.runs:
        Record("failed", "local", "here", 1, 1, 0.0, 1.0, 1).save(tmp_path, run.name)
        (tmp_path / run.name).mkdir(parents=True)
    assert launch.joined(mended, tmp_path)[0] == mended
    (tmp_path / failed.runs[0].name / "checkpoints" / "000000000030").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has other settings for"):
        launch.joined(mended, tmp_path)


def test_runs_of_a_failed_teacher_are_skipped(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY.replace("seeds: 2", "seeds: 1"), encoding="utf-8")
    out = tmp_path / "out"
    (out / "teachers").mkdir(parents=True)
    (out / "teachers" / "Pendulum-v1").write_text("not a folder", encoding="utf-8")
    assert sweep.main([f"study={file}", f"sweep_dir={out}", "workers=1"]) == 1
    said = capsys.readouterr().out
    assert "skipped started on Pendulum-v1, seed 0: its teacher did not finish" in said
    assert "done plain on Pendulum-v1, seed 0" in said


def test_teachers_of_ones_own_are_taken(tmp_path, capsys):
    file = tmp_path / "tiny.yaml"
    file.write_text(STUDY, encoding="utf-8")
    (tmp_path / "Pendulum-v1.h5").touch()
    taught = ["dry_run=true", f"teachers={tmp_path}", f"sweep_dir={tmp_path / 'out'}"]
    assert sweep.main([f"study={file}", *taught]) == 0
    said = capsys.readouterr().out
    assert "rlearly.teacher" not in said and f"snapshot={tmp_path}/Pendulum-v1.h5" in said


def test_tracked_runs_are_grouped_by_sweep(tmp_path):
    config, overrides = launch.split([*TINY, "seeds=1", f"sweep_dir={tmp_path / 'my sweep'}"])
    plan, _ = launch.plan_of(config, [*overrides, "wandb.mode=offline"])
    assert plan.runs[0].overrides[-1] == "wandb.group=my sweep"
    assert launch.plan_of(config, overrides)[0] == grid(TINY, [0])


def test_runs_of_a_sweep_do_not_share_the_wandb_id_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "shared")
    grid(TINY, [0]).save(tmp_path)
    started = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, *, env, **kwargs: started.append(env) or Ended()
    )
    runner = JobRunner(tmp_path, "runs/td3/Pendulum-v1/0", "test", {"CUDA_VISIBLE_DEVICES": "3"})
    assert runner.run() == 0
    (environment,) = started
    assert "WANDB_RUN_ID" not in environment and environment["CUDA_VISIBLE_DEVICES"] == "3"


def test_moved_sweep_keeps_its_group_and_its_runs_find_its_teachers(tmp_path):
    study = tmp_path / "tiny.yaml"
    study.write_text(STUDY, encoding="utf-8")
    words = [f"study={study}", "wandb.mode=offline"]
    first, _ = launch.plan_of(*launch.split([*words, f"sweep_dir={tmp_path / 'first'}"]))
    first.save(tmp_path / "first")
    launch.identify(first, tmp_path / "first")
    moved = (tmp_path / "first").rename(tmp_path / "moved")
    plan, _ = launch.plan_of(*launch.split([*words, f"sweep_dir={moved}"]))
    assert plan == first
    name = plan.runs[-1].name
    saved_run(moved / name, {"snapshot": f"{tmp_path}/first/teachers/Pendulum-v1.h5"})
    (command,) = commands(plan, moved, name)
    assert command[-2:] == [f"resume={moved / name}", f"snapshot={moved}/teachers/Pendulum-v1.h5"]


def test_copied_sweep_says_so_and_has_a_group_and_jobs_of_its_own(tmp_path, capsys):
    words = [*TINY, "wandb.mode=offline", "seeds=1"]
    first, _ = launch.plan_of(*launch.split([*words, f"sweep_dir={tmp_path / 'first'}"]))
    first.save(tmp_path / "first")
    launch.identify(first, tmp_path / "first")
    (tmp_path / "first" / "slurm").mkdir()
    (tmp_path / "first" / "slurm" / "jobs.json").write_text('{"7_0": "runs/x"}', encoding="utf-8")
    assert capsys.readouterr().out == ""
    copy = shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert submitted(copy) == {} and submitted(tmp_path / "first") == {"7_0": "runs/x"}
    plan, _ = launch.plan_of(*launch.split([*words, f"sweep_dir={copy}"]))
    joined, _ = launch.joined(plan, copy)
    assert joined == first, "the settings of its runs are those of the original"
    own = launch.identify(joined, copy)
    assert f"{copy} is a copy of {tmp_path / 'first'}: " in capsys.readouterr().out
    assert own == plan and own.runs[0].overrides[-1] == "wandb.group=copy"
    assert submitted(copy) == {} and launch.identify(own, copy) == own
    assert capsys.readouterr().out == "", "it is a copy only once"
    saved_run(copy / own.runs[0].name, {"wandb": {"group": "first", "mode": "offline"}})
    (command,) = commands(own, copy, own.runs[0].name)
    assert command[-1] == "wandb.group=copy"


def saved_run(folder, settings):
    """A run that has a checkpoint, and only these settings in its config."""
    (folder / "checkpoints" / "000000000060").mkdir(parents=True)
    settings = {"train_frames": 60, "eval_every_frames": 30, "eval_episodes": 1, **settings}
    settings = {"threads": 1, "wandb": {"mode": "offline", "group": "first"}, **settings}
    (folder / "config.yaml").write_text(json.dumps(settings), encoding="utf-8")


def test_plan_edited_by_hand_is_refused_or_refuses(tmp_path, capsys):
    out = tmp_path / "out"
    overrides = [*TINY, "seeds=1", f"sweep_dir={out}"]
    assert sweep.main(overrides) == 0
    file = out / "plan.json"
    file.write_text(
        file.read_text(encoding="utf-8").replace("agent.hidden_dim=8", "agent.hidden_dim=9"),
        encoding="utf-8",
    )
    assert sweep.main(overrides) == 2
    assert "(agent.hidden_dim=9) than this command (agent.hidden_dim=8)" in capsys.readouterr().err
    file.write_text(file.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert sweep.main(overrides) == 2
    assert "cannot be read as a plan" in capsys.readouterr().err
    file.write_text("{}", encoding="utf-8")
    assert sweep.main(overrides) == 2
    assert "cannot be read as a plan (it does not have format 2)" in capsys.readouterr().err
    file.write_text('{"format": 2}', encoding="utf-8")
    assert sweep.main(overrides) == 2
    assert "(its keys are not those of a plan)" in capsys.readouterr().err
    file.unlink()
    assert sweep.main(overrides) == 0, "what is done stays done"


def test_jobs_wait_for_what_they_need(monkeypatch, tmp_path):
    """A barrier holds the teacher until b has run: a waits for t, and b does not wait for a."""
    barrier, ran = threading.Event(), []

    def run(self):
        ran.append(self.name)
        if self.name == "t":
            assert barrier.wait(300), "b did not start beside t"
        if self.name == "b":
            barrier.set()
        return 0

    monkeypatch.setattr(JobRunner, "run", run)
    jobs = [Job("t", "t"), Job("a", "a", "t"), Job("b", "b")]
    messages = []
    local.LocalLauncher(2).launch(tmp_path, jobs, messages.append)
    assert sorted(ran) == ["a", "b", "t"] and ran[-1] == "a"
    assert messages.index("done t: ") < messages.index("start a")
    ran.clear()
    local.LocalLauncher(1).launch(tmp_path, [Job("a", "a", "done before")], messages.append)
    assert ran == ["a"]


@pytest.mark.parametrize("status", [1, 75])
def test_jobs_are_not_started_without_what_they_need(monkeypatch, tmp_path, status):
    ran, messages = [], []
    monkeypatch.setattr(JobRunner, "run", lambda self: ran.append(self.name) or status)
    jobs = [Job("t", "t"), Job("a", "a", "t")]
    local.LocalLauncher(2).launch(tmp_path, jobs, messages.append)
    assert ran == ["t"] and messages[-1] == "skipped a: its teacher did not finish"


def test_a_stop_starts_no_further_jobs(monkeypatch, tmp_path):
    launcher, ran, messages = local.LocalLauncher(1), [], []

    def run(self):
        ran.append(self.name)
        launcher.stop()
        assert self.stopping, "running jobs are asked to save"
        return 75

    monkeypatch.setattr(JobRunner, "run", run)
    launcher.launch(tmp_path, [Job("t", "t"), Job("a", "a", "t"), Job("b", "b")], messages.append)
    assert ran == ["t"] and messages == ["start t", "stopped t before its first checkpoint"]


def test_gpus_are_dealt_out(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert local.usable_gpus() == ["2", "5"]
    seen = []

    def run(self):
        seen.append(self.environment["CUDA_VISIBLE_DEVICES"])
        time.sleep(0.1)
        return 0

    monkeypatch.setattr(JobRunner, "run", run)
    jobs = [Job(str(n), str(n)) for n in range(6)]
    local.LocalLauncher(4, local.usable_gpus()).launch(tmp_path, jobs, lambda text: None)
    assert sorted(seen) != ["2"] * 6 and set(seen) == {"2", "5"}


# --- deaths ---

LONG = [*TINY[:2], "train_frames=100000", "eval_every_frames=0", "log_every_frames=200", *TINY[5:]]


def start(out, *overrides):
    """A sweep in a process of its own."""
    command = [sys.executable, "-m", "rlearly.sweep", *LONG, f"sweep_dir={out}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", env=environment
    )


def wait_until_learning(out, seeds):
    files = [out / f"runs/td3/Pendulum-v1/{seed}/metrics.jsonl" for seed in seeds]
    until(
        lambda: all(
            '"frames": 400,' in (p.read_text(encoding="utf-8") if p.exists() else "") for p in files
        )
    )


def until(holds, seconds=300):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_stopped_sweep_saves_its_runs_and_goes_on(tmp_path):
    process = start(tmp_path, "seeds=2", "workers=1")
    wait_until_learning(tmp_path, [0])
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 75
    assert "saved td3 on Pendulum-v1, seed 0: saved at" in said
    assert said.splitlines()[-1] == "stopped; repeat the command to continue."
    found = statuses(tmp_path, jobs_of(Plan.load(tmp_path)))
    assert [status.state for status in found] == ["saved", "waiting"]


def test_cancel_stops_a_sweep_from_elsewhere_and_a_second_launcher_is_refused(tmp_path, capsys):
    process = start(tmp_path, "seeds=1")
    wait_until_learning(tmp_path, [0])
    assert sweep.main([f"status={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "running" in said and "frames/s" in said and "left" in said
    assert sweep.main([*LONG, "seeds=1", f"sweep_dir={tmp_path}"]) == 2
    assert "is being launched by another process" in capsys.readouterr().err
    assert sweep.main([f"cancel={tmp_path}"]) == 0
    assert f"the local launcher, process {process.pid}" in capsys.readouterr().out
    assert process.wait(300) == 75
    process.stdout.close()
    assert sweep.main([f"cancel={tmp_path}"]) == 0
    assert "nothing is running" in capsys.readouterr().out


def test_killed_launcher_takes_its_run_with_it_and_the_command_goes_on(
    tmp_path, monkeypatch, capsys
):
    """SIGKILL cannot be handled: the run notices that its launcher is gone, and saves."""
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, *sys.path]))
    out, straight, gate = (tmp_path / name for name in ("killed", "straight", "gate"))
    gated = ["env=gated_envs:GatedPendulum-v0", f"env.kwargs.gate={gate}", "train_frames=1200"]
    overrides = ["seeds=2", "workers=1", *gated]
    process = start(out, *overrides)
    folders = [out / f"runs/td3/gated_envs-GatedPendulum-v0/{seed}" for seed in range(2)]
    until((folders[0] / "done.json").exists)
    gate.touch()  # the second run must not end before it has noticed
    rows = folders[1] / "metrics.jsonl"
    until(lambda: rows.exists() and '"frames": 400,' in rows.read_text(encoding="utf-8"))
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=300)
    assert children and not [child for child in children if child.is_running()]
    jobs = jobs_of(Plan.load(out))
    found = statuses(out, jobs)
    assert [status.state for status in found] == ["done", "saved"], "it had time to save"
    assert found[1].seconds > 0.5
    first, second = (out / job.name for job in jobs)
    assert any((second / "checkpoints").iterdir()), "it has saved"
    gate.unlink()
    ended = (first / "done.json").stat().st_mtime_ns
    assert sweep.main([*LONG, *overrides, f"sweep_dir={out}"]) == 0
    assert "1 of 2 jobs are done already" in capsys.readouterr().out
    assert (first / "done.json").stat().st_mtime_ns == ended
    assert "resumed at" in log_of(out, jobs[1].name).read_text(encoding="utf-8")
    grid([*LONG, *gated], [1]).save(straight)
    assert JobRunner(straight, jobs[1].name, "test").run() == 0
    assert equal(agent_state(second), agent_state(straight / jobs[1].name))


def test_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    plan = grid(TINY, [0])
    plan.save(tmp_path)
    run = tmp_path / plan.runs[0].name
    run.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "wandb_id"):
        (run / name).write_text("half writ", encoding="utf-8")
    identity = run_directory.identify(run)
    (run / "checkpoints" / ".000000000030.partial").mkdir(parents=True)
    assert JobRunner(tmp_path, plan.runs[0].name, "test").run() == 0
    assert (run / "done.json").exists()
    assert run_directory.identity_of(run) == identity, "it is still the same run"
    assert (run / "wandb_id").read_text(encoding="utf-8") == "half writ"


def test_runner_waits_for_the_process_of_an_earlier_try(tmp_path):
    plan = grid(TINY, [0])
    plan.save(tmp_path)
    run = tmp_path / plan.runs[0].name
    run.mkdir(parents=True)
    runner = JobRunner(tmp_path, plan.runs[0].name, "test")
    with FileLock(run / "run.lock"):
        thread = threading.Thread(target=runner.run)
        thread.start()
        time.sleep(1)
        assert not log_of(tmp_path, plan.runs[0].name).exists()
    thread.join(300)
    assert (run / "done.json").exists()


def test_second_try_at_once_leaves_the_first_alone(tmp_path, monkeypatch):
    from rlearly.experiments import job_runner

    monkeypatch.setattr(job_runner, "BUSY_SECONDS", 0.5)
    plan = grid(TINY, [0])
    plan.save(tmp_path)
    name = plan.runs[0].name
    first, second = JobRunner(tmp_path, name, "one"), JobRunner(tmp_path, name, "two")
    thread = threading.Thread(target=first.run)
    thread.start()
    until(lambda: Record.load(tmp_path, name) is not None)
    assert second.run() == 1
    thread.join(300)
    assert "in use by another process" in log_of(tmp_path, name).read_text(encoding="utf-8")
    record = Record.load(tmp_path, name)
    assert (record.state, record.engine, record.tries) == ("done", "one", 1)
    assert JobRunner(tmp_path, name, "three").run() == 0, "nothing is left to do"
    assert log_of(tmp_path, name).read_text(encoding="utf-8").count("rlearly.train") == 0


def test_trouble_of_one_job_is_not_the_others(tmp_path, monkeypatch):
    def run(self):
        if self.name == "a":
            raise OSError("disk full")
        return 0

    monkeypatch.setattr(JobRunner, "run", run)
    said = []
    jobs = [Job("a", "a"), Job("b", "b"), Job("c", "c", "a")]
    local.LocalLauncher(1).launch(tmp_path, jobs, said.append)
    expected = ["start a", "FAILED a: disk full", "skipped c: its teacher did not finish"]
    assert said == [*expected, "start b", "done b: "]


def test_stale_launcher_is_not_signalled(tmp_path, capsys, monkeypatch):
    grid(TINY, [0]).save(tmp_path)
    who = {"launcher": "local", "pid": os.getpid(), "host": socket.gethostname()}
    (tmp_path / "launcher.json").write_text(json.dumps(who), encoding="utf-8")
    monkeypatch.setattr(os, "kill", lambda *a: pytest.fail("a stranger was signalled"))
    assert sweep.main([f"cancel={tmp_path}"]) == 0
    assert "nothing is running" in capsys.readouterr().out


def test_child_ends_with_its_parent():
    code = (
        "import subprocess, sys, os, time\n"
        "os.environ['RLEARLY_PARENT'] = str(os.getpid())\n"
        "p = subprocess.Popen([sys.executable, '-m', 'rlearly.experiments.tethered', 'timeit',"
        " '-n', '1', '-r', '1', 'import time; time.sleep(900)'])\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(900)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, encoding="utf-8"
    )
    child = psutil.Process(int(parent.stdout.readline()))
    until(lambda: "timeit" in child.cmdline())
    time.sleep(1)
    parent.kill()
    parent.communicate()
    with contextlib.suppress(psutil.NoSuchProcess):
        child.wait(300)
    assert not child.is_running()


# --- status ---


def test_states_are_read_off_the_directory(tmp_path):
    plan = grid(TINY, range(6))
    plan.save(tmp_path)
    jobs = jobs_of(plan)
    rows = [{"frames": 30, "steps": 30, "eval/episode_return": -7.0}, {"frames": 40, "steps": 40}]
    rows[1]["speed/frames_per_second"] = 10.0

    here, me = socket.gethostname(), os.getpid()

    def note(seed, state, pid=me, host=here, exit=None):
        began = time.time() - 5
        Record(state, "local", host, pid, 2, began, 3.0, exit).save(tmp_path, jobs[seed].name)

    run = tmp_path / jobs[0].name
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"fra', encoding="utf-8"
    )
    (run / "config.yaml").write_text("train_frames: 100\n", encoding="utf-8")
    note(0, "running")
    note(1, "running", pid=2**22 + 1)
    note(2, "running", pid=2**22 + 1, host="elsewhere")
    note(3, "failed", exit=1)
    log_of(tmp_path, jobs[3].name).write_text("a\nb\n\nthe reason\n", encoding="utf-8")
    note(4, "saved", exit=75)
    found = statuses(tmp_path, jobs, {jobs[5].name: "queued"})
    states = ["running", "lost", "running", "failed", "saved", "queued"]
    assert [status.state for status in found] == states
    first = found[0]
    assert (first.frames, first.train_frames, first.last_return) == (40, 100, -7.0)
    assert first.seconds_left == 6.0 and 7.5 < first.seconds < 12
    assert found[3].log_lines == ["a", "b", "the reason"] and found[3].tries == 2
    assert totals(found).startswith("6 jobs: 2 running, 1 queued, 1 saved, 1 failed, 1 lost, 10")
    (run / "done.json").write_text("{}", encoding="utf-8")
    assert statuses(tmp_path, jobs)[0].state == "done"


def test_run_that_saved_after_its_launchers_death_is_saved_not_lost(tmp_path):
    plan = grid(TINY, range(3))
    plan.save(tmp_path)
    jobs = jobs_of(plan)
    now = time.time()
    for job, began in zip(jobs, (now - 50, now + 50, now - 50), strict=True):
        record = Record("running", "local", socket.gethostname(), 2**22 + 1, 1, began, 3.0)
        record.save(tmp_path, job.name)
        (tmp_path / job.name).mkdir(parents=True)
    for job in jobs[:2]:
        (tmp_path / job.name / "checkpoints" / "000000000030").mkdir(parents=True)
    found = statuses(tmp_path, jobs)
    assert [status.state for status in found] == ["saved", "lost", "lost"], (
        "one is an earlier try's"
    )
    assert 52 < found[0].seconds < 60 and found[1].seconds == 3.0
    log_of(tmp_path, jobs[2].name).write_text(
        "saved at 30 frames; continue with: x\n", encoding="utf-8"
    )
    with FileLock(tmp_path / jobs[1].name / "run.lock"):
        states = [status.state for status in statuses(tmp_path, jobs)]
    assert states == ["saved", "running", "saved"], "a run that still saves is running"


def test_wide_sweeps_show_what_matters_first(tmp_path):
    from rich.console import Console

    plan = grid(TINY, range(40))
    plan.save(tmp_path)
    jobs = jobs_of(plan)
    Record("failed", "local", "here", 1, 1, 0.0, 1.0, 1).save(tmp_path, jobs[37].name)
    console = Console(width=100, height=20, force_terminal=True, record=True)
    with console.capture() as shown:
        console.print(overview(statuses(tmp_path, jobs), console))
    lines = shown.get().splitlines()
    assert len(lines) < 20 and "seed 37" in lines[1] and "and 26 more" in shown.get()


def test_run_stopped_before_its_first_checkpoint_is_not_called_saved(tmp_path):
    job = Job("runs/td3/E/0", "td3 on E, seed 0")
    log = log_of(tmp_path, job.name)
    log.parent.mkdir(parents=True)
    log.write_text("rlearly: interrupted.\n", encoding="utf-8")
    assert ending(tmp_path, job, 75) == "stopped td3 on E, seed 0 before its first checkpoint"
    (tmp_path / job.name / "checkpoints" / "000000000100").mkdir(parents=True)
    assert ending(tmp_path, job, 75).startswith("saved td3 on E, seed 0: ")

"""Faults around a run cost no more than they must; FAULTS.md lists them."""

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_STATE
from saved import plain, rows
from test_kills import once
from test_trainer import make_trainer

from rlearly.core.errors import RunFailed
from rlearly.training import checkpoint
from rlearly.training.failure import not_finite

HERE = Path(__file__).parents[1]
RUN = [
    *TINY_STATE["td3"],
    "threads=1",
    "train_frames=300",
    "log_every_frames=20",
    "checkpoint_every_frames=40",
]
FAULTY = [*RUN, "env=tiny_envs:Faulty-v0", "env.action_repeat=1"]
MENDED = {"MENDED": "1"}


def newest(run):
    return checkpoint.load_newest(run / "checkpoints")


def assert_equal_runs(one, two):
    assert plain(newest(one)[1]) == plain(newest(two)[1])
    assert rows(one) == rows(two)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    {
        "raise": "env=tiny_envs:Faulty-v0: step(action) raised ZeroDivisionError: division by zero "
        "at TINY in a training step",
        "reset": "env=tiny_envs:Faulty-v0: reset(SEED) raised OSError: the simulator is gone at "
        "TINY in a reset",
        "observation": "the env returned an observation that is not finite in a training step",
        "infinite": "the env returned an observation that is not finite in a training step",
        "shape": "env=tiny_envs:Faulty-v0: step(action) returned an observation of float32 [4] in "
        "a training step; expected float32 [2], as its observation_space says",
        "reward": "env=tiny_envs:Faulty-v0: step(action) returned a reward of nan in a training "
        "step; expected one finite number",
    }.items(),
)
def test_failing_env_ends_a_run_that_goes_on_when_it_is_mended(zygote, tmp_path, fault, sentence):
    overrides = once([*FAULTY, f"env.kwargs={{fault: {fault}}}"])
    run, log = tmp_path / "run", tmp_path / "log"
    status, said = zygote.run(*overrides, f"run_dir={run}", log=log)
    assert status == 1 and "Traceback" not in said, said
    last = said.strip().splitlines()[-1]
    last = re.sub(r"reset\(seed=\d+, options=None\)", "reset(SEED)", last)
    last = re.sub(r"\S*tiny_envs\.py:\d+", "TINY", last)
    assert f"rlearly: stopped at 149 frames: {sentence}." in last or "at 150 frames" in last
    assert sentence in last and "continue from the checkpoint of 120 frames" in last
    report = json.loads((run / "failure.json").read_text(encoding="utf-8"))
    assert report["what"].startswith(sentence.partition("reset(")[0].partition(" at TINY")[0])
    assert report["not_finite"] == {}
    assert report["frames"] in (149, 150) and report["updates"] > 0
    assert (report["traceback"] is not None) == (fault in ("raise", "reset"))
    if fault == "raise":
        again, _ = zygote.run(f"resume={run}", log=log)
        assert again == 1, "what is not mended fails again"
    status, said = zygote.run(f"resume={run}", log=log, **MENDED)
    assert status == 0 and not (run / "failure.json").exists(), said
    straight = tmp_path / "straight"
    assert zygote.run(*overrides, f"run_dir={straight}", log=log, **MENDED)[0] == 0
    assert_equal_runs(straight, run)


def test_failing_env_in_an_evaluation_ends_the_run(zygote, tmp_path):
    """The evaluation env counts on from the steps of training, in each episode anew."""
    overrides = [*FAULTY, "eval_every_frames=20", "eval_episodes=4", "video_size=0"]
    overrides = once([*overrides, "env.kwargs={at_step: 65}", f"run_dir={tmp_path / 'run'}"])
    status, said = zygote.run(*overrides, log=tmp_path / "log")
    assert status == 1 and re.search(r"division by zero at \S+:\d+ in an evaluation", said), said


def test_lost_rows_are_said(tmp_path, caplog):
    trainer = make_trainer(tmp_path, "train_frames=200", base=TINY_STATE["td3"])
    assert trainer.run()
    trainer.close()
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    later = make_trainer(tmp_path, "train_frames=240", base=TINY_STATE["td3"])
    assert later.resume() == 200 and "rows were lost" in caplog.text
    assert later.run()
    assert [row["frames"] for row in rows(tmp_path)][-1] == 240, "no row is torn"


def begun_and_killed(zygote, folder, overrides=RUN):
    """A run that was killed before its first checkpoint."""
    overrides = once([*overrides, "checkpoint_every_frames=0", "train_frames=100000"])
    pid = zygote.start([*overrides, f"run_dir={folder}"], folder.parent / "log")
    while not (folder / "metrics.jsonl").exists() or not rows_so_far(folder):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    zygote.wait(pid)


def rows_so_far(folder):
    return (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n")


def test_trouble_when_a_run_begins_anew_takes_nothing_away(zygote, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    begun_and_killed(zygote, run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    status, said = zygote.run(f"resume={run}", log=log, BROKEN_IMPORT="1")
    assert status == 2 and "gymnasium cannot make it: RuntimeError: broken" in said, said
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    status, said = zygote.run(f"resume={run}", "train_frames=300", log=log)
    assert status == 0 and "the run ended before its first checkpoint and starts over" in said
    overrides = once([*RUN, "checkpoint_every_frames=0"])
    assert zygote.run(*overrides, f"run_dir={tmp_path / 'straight'}", log=log)[0] == 0
    assert_equal_runs(tmp_path / "straight", run)


@pytest.mark.parametrize("done", [True, False])
def test_run_whose_checkpoints_are_gone_is_not_begun_anew(zygote, tmp_path, done):
    run, log = tmp_path / "run", tmp_path / "log"
    assert zygote.run(*RUN, f"run_dir={run}", log=log)[0] == 0
    shutil.rmtree(run / "checkpoints")
    if not done:
        (run / "done.json").unlink()
    count = rows_so_far(run)
    status, said = zygote.run(f"resume={run}", "train_frames=400", log=log)
    assert status == 2 and "but its checkpoints are gone: put them back, or start another" in said
    assert ("is done" if done else "has rows up to 300 frames") in said
    assert rows_so_far(run) == count


def test_edited_config_is_refused_with_what_was_changed(zygote, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    assert zygote.run(*RUN, f"run_dir={run}", log=log)[0] == 0
    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(
        text.replace("discount: 0.9", "discount: 0.1"), encoding="utf-8"
    )
    status, said = zygote.run(f"resume={run}", "train_frames=400", log=log)
    assert status == 2 and "was trained with agent.discount 0.9, now 0.1: put its config" in said
    (run / "config.yaml").write_bytes(b"\xff" + text.encode())
    status, said = zygote.run(f"resume={run}", "train_frames=400", log=log)
    assert status == 2 and "does not load as a run's config" in said and "Traceback" not in said
    (run / "config.yaml").write_text(text, encoding="utf-8")
    (run / "provenance.json").write_text('[{"argv": [', encoding="utf-8")
    status, said = zygote.run(f"resume={run}", "train_frames=400", log=log)
    assert status == 0 and "it is now provenance.json.damaged" in said, said
    assert len(json.loads((run / "provenance.json").read_text(encoding="utf-8"))) == 1


def test_crash_of_the_simulator_costs_what_came_after_the_checkpoint(zygote, tmp_path):
    overrides = once([*FAULTY, "env.kwargs={fault: kill}"])
    run, log = tmp_path / "run", tmp_path / "log"
    status, _ = zygote.run(*overrides, f"run_dir={run}", log=log)
    assert status == -signal.SIGSEGV and newest(run)[0] == 120
    assert zygote.run(f"resume={run}", log=log, **MENDED)[0] == 0
    straight = tmp_path / "straight"
    assert zygote.run(*overrides, f"run_dir={straight}", log=log, **MENDED)[0] == 0
    assert_equal_runs(straight, run)


def test_diverged_learning_ends_with_the_last_good_checkpoint_kept(zygote, tmp_path):
    run = tmp_path / "run"
    overrides = once([*RUN, "agent.lr=1e25", "agent.learning_starts_steps=130"])
    status, said = zygote.run(*overrides, f"run_dir={run}", log=tmp_path / "log")
    assert status == 1 and "Traceback" not in said, said
    assert re.search(r"learning diverged: .*actor.* and \d+ more are not finite", said), said
    frames, state = newest(run)
    assert frames == 120 and not not_finite(state["agent"])
    report = json.loads((run / "failure.json").read_text(encoding="utf-8"))
    assert 130 < report["frames"] < 140 and any("actor" in name for name in report["not_finite"])
    dumped = torch.load(run / "failure.pt", weights_only=True)
    assert not_finite(dumped) == report["not_finite"]
    assert all(
        "NaN" not in line
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    )


def test_no_checkpoint_holds_a_weight_that_is_no_number(tmp_path):
    trainer = make_trainer(tmp_path, "train_frames=200", base=TINY_STATE["td3"])
    assert trainer.run()
    with torch.no_grad():
        trainer.agent.critic.q1[0].weight[0, 0] = float("inf")
    trainer.steps += 1
    with pytest.raises(RunFailed, match=r"learning diverged: .*critic.* are not finite"):
        trainer.save()
    assert newest(tmp_path)[0] == 200


def test_loss_that_is_no_number_ends_the_run_at_the_next_row(tmp_path):
    overrides = ("train_frames=300", "log_every_frames=20", "plasticity.every_steps=0")
    trainer = make_trainer(tmp_path, *overrides, base=TINY_STATE["td3"])
    real = trainer.agent.update

    def update(batch, *, step):
        metrics = dict(real(batch, step=step))
        return metrics | ({"train/critic_loss": float("nan")} if step == 133 else {})

    trainer.agent.update = update
    with pytest.raises(RunFailed, match="learning diverged: train/critic_loss nan"):
        trainer.run()
    assert trainer.steps == 140


def test_what_is_not_finite_is_counted_by_name():
    state = {
        "net": {"w": torch.tensor([1.0, float("inf")]), "steps": torch.tensor([3])},
        "rest": [1.0, float("nan"), "text", None, 7],
    }
    assert not_finite(state) == {"net.w": 1, "rest.1": 1}


@pytest.mark.parametrize("at_call", [60, 75, 90, 105])
def test_sigterm_during_a_checkpoint_completes_it_and_saves_another(zygote, tmp_path, at_call):
    run, log = tmp_path / "run", tmp_path / "log"
    overrides = once([*RUN, "log_every_frames=200"])
    status, said = zygote.run(
        *overrides, f"run_dir={run}", log=log, die_at=at_call, number=signal.SIGTERM
    )
    assert status == 75 and "SIGTERM: saving" in said, said
    for path in checkpoint.list_checkpoints(run / "checkpoints"):
        checkpoint.verify(path)
    assert zygote.run(f"resume={run}", log=log)[0] == 0
    assert zygote.run(*overrides, f"run_dir={tmp_path / 'straight'}", log=log)[0] == 0
    assert_equal_runs(tmp_path / "straight", run)


def test_clock_that_jumps_changes_no_result(tmp_path, monkeypatch):
    overrides = (
        "agent=td3",
        "train_frames=200",
        "eval_every_frames=60",
        "checkpoint_every_frames=50",
    )
    straight = make_trainer(tmp_path / "straight", *overrides, base=TINY_STATE["td3"])
    assert straight.run()
    days = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 86400 * next(days) * (-1) ** next(days))
    jumped = make_trainer(tmp_path / "jumped", *overrides, base=TINY_STATE["td3"])
    assert jumped.run() and 0 <= jumped.elapsed_seconds < 600
    assert plain(straight.state_dict()) == plain(jumped.state_dict())
    assert rows(tmp_path / "straight") == rows(tmp_path / "jumped")


# --- a file system that is full or turns read-only ---


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system wants root")
    yield folder
    with contextlib.suppress(OSError):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Fill the disk."""
    with (folder / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


def test_full_file_system_costs_the_checkpoint_and_then_the_run_until_there_is_room(
    zygote, small_disk, tmp_path
):
    run, log = small_disk / "run", tmp_path / "log"
    overrides = once([*RUN, "train_frames=3000", "checkpoint_every_frames=400"])
    pid = zygote.start([*overrides, f"run_dir={run}"], log)
    while not checkpoint.list_checkpoints(run / "checkpoints"):
        time.sleep(0.01)
    os.kill(pid, signal.SIGSTOP)  # it must not end before the disk is full
    fill(small_disk)
    os.kill(pid, signal.SIGCONT)
    status = zygote.wait(pid)
    assert status == 2, log.read_text(encoding="utf-8")
    said = log.read_text(encoding="utf-8")
    assert "No space left on device); free space or fix it, then continue" in said, said
    assert "trainer.py" not in said, "no traceback of ours"
    status, said = zygote.run(f"resume={run}", log=log)
    assert status == 2 and "free space or fix it, then continue" in said, said
    assert newest(run)[0] >= 400
    (small_disk / "filler").unlink()
    assert zygote.run(f"resume={run}", log=log)[0] == 0
    straight = tmp_path / "straight"
    assert zygote.run(*overrides, f"run_dir={straight}", log=log)[0] == 0
    assert_equal_runs(straight, run)


def test_directory_that_turns_read_only_is_one_sentence(zygote, small_disk, tmp_path):
    run, log = small_disk / "run", tmp_path / "log"
    overrides = once([*RUN, "train_frames=3000", "checkpoint_every_frames=400"])
    pid = zygote.start([*overrides, f"run_dir={run}"], log)
    while not checkpoint.list_checkpoints(run / "checkpoints"):
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert zygote.wait(pid) == 75
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, said = zygote.run(f"resume={run}", log=log)
    assert status == 2 and "cannot be written (Read-only file system)" in said, said
    assert "Traceback" not in said
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert zygote.run(f"resume={run}", log=log)[0] == 0


# --- the table ---


def test_fault_table_names_tests_that_exist():
    named = re.findall(
        r"`(test_\w+)\.py::(test_\w+)`", (HERE / "FAULTS.md").read_text(encoding="utf-8")
    )
    assert len(named) >= 15
    for module, name in named:
        (file,) = HERE.rglob(f"{module}.py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name

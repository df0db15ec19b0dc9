"""The commands as a user runs them, each in its own process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY

from rlearly.config import overrides as overrides_module
from rlearly.config.overrides import python_command
from rlearly.training import checkpoint
from rlearly.training.run_directory import resume_command

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


def rlearly(command, *overrides, cwd, **changes):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"rlearly.{command}", *map(str, overrides)],
        cwd=cwd,
        env=ENVIRONMENT | changes,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def start(*overrides, cwd):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "rlearly.train", *map(str, overrides)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


BAD = {
    ("train", "agent=drmm env=dog_run"): "There is no agent 'drmm'; did you mean drm?",
    ("train", "agent=drm env=dog_rn"): "There is no env 'dog_rn'; did you mean dog_run",
    ("train", "env=dog_run seeed=1"): "There is no key 'seeed'; did you mean seed",
    ("train", "env=dog_run agent.lr=fast"): "agent.lr: expected float, received 'fast'",
    ("train", "env=dog_run train_frames=-1"): "train_frames: expected a number at least 1",
    ("train", "env=dog_run run_dir=/dev/null/x"): "run_dir: /dev/null/x cannot be written",
    ("train", "env=dog_run device=cuda:7"): "device: cuda:7 is not here",
    ("train", "env=dog_run device=tpu"): "device: expected auto, cpu, cuda or cuda:N",
    ("train", "resume=nowhere"): "nowhere does not exist; a run directory looks like",
    ("train", "resume=."): ". is not a run directory (it has no config.yaml)",
    ("train", "--halp"): "There is no option --halp; there are --help and --cfg job",
    ("evaluate", "run=nowhere"): "nowhere does not exist",
    ("evaluate", "run=x video=no/x.mp4"): "video: expected a path in a folder that exists",
    ("evaluate", "run=x video=x.txt"): "video: expected a path that ends in .mp4, received x.txt",
    ("evaluate", "run=x video=false"): "video: expected a path that ends in .mp4, received false",
    ("train", "resume = x"): "no spaces around =, received 'resume = x'; write resume=x",
    ("evaluate", ".. episodes=1"): "Expected key=value, received '..'; did you mean run=..?",
    ("evaluate", "rum=x"): "There is no key 'rum'; did you mean run?",
}


@pytest.mark.parametrize(("command", "overrides"), BAD)
def test_bad_input_is_one_sentence_and_status_2(command, overrides, tmp_path):
    done = rlearly(command, *overrides.split(), cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert BAD[command, overrides] in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_forbidden_gl_is_to_be_unset_and_each_command_names_its_own_key(tmp_path):
    done = rlearly("train", "env=dog_run", "run_dir=r", cwd=tmp_path, MUJOCO_GL="disable")
    assert (
        done.returncode == 2 and "unset MUJOCO_GL" in done.stderr and "install" not in done.stderr
    )
    assert "obs=state video_size=0" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "r").exists(), "a run that could not start leaves nothing behind"
    automatic = rlearly("train", "env=CartPole-v1", cwd=tmp_path)
    assert automatic.returncode == 2 and "use agent=drq_eps or agent=ppo" in automatic.stderr
    assert "->" not in automatic.stdout, "a run is announced once it can start"
    assert not (tmp_path / "runs").exists()
    overrides = ("env=cartpole_balance", "obs=state", "run_dir=r")
    state = rlearly("train", *overrides, cwd=tmp_path, MUJOCO_GL="disable")
    assert "-> r" not in state.stdout
    assert state.returncode == 2 and "or do without videos: video_size=0." in state.stderr
    assert "pixels=" not in state.stderr, "evaluate has no such key and says the same sentence"
    broken = rlearly("train", *overrides, cwd=tmp_path, MUJOCO_GL="bogus")
    assert broken.returncode == 2 and "expected one of egl, osmesa" in broken.stderr
    doctor = rlearly("doctor", "opengl", cwd=tmp_path, MUJOCO_GL="disable")
    assert doctor.returncode == 1 and "unset MUJOCO_GL" in doctor.stdout
    assert "install" not in doctor.stdout


def test_help_and_cfg_show_everything(tmp_path):
    text = rlearly("train", "--help", "agent=drm", cwd=tmp_path).stdout
    for word in ("drm ", "drqv2 ", "gymnasium", "agent.alpha_max", "env.pixels", "wandb.mode"):
        assert word in text
    config = rlearly("train", "agent=drm", "env=dog_run", "--cfg", "job", cwd=tmp_path).stdout
    assert "alpha_max: 0.6" in config and "train_frames: 30100000" in config


def test_a_command_to_continue_is_of_the_environment_that_runs(monkeypatch):
    here = Path(sys.executable).parent
    for path, python in ((here, "python"), (Path("/elsewhere"), sys.executable)):
        which = lambda name, path=path: str(path / name)  # noqa: E731
        monkeypatch.setattr(overrides_module.shutil, "which", which)
        assert resume_command(Path("a b")) == f'{python} -m rlearly.train "resume=a b"'
    monkeypatch.setattr(overrides_module.shutil, "which", lambda name: None)
    assert python_command("rlearly.report", "x").startswith(sys.executable)


def test_run_leaves_its_record_and_resumes_to_the_same_end(tmp_path):
    overrides = [*TINY, "agent=drm", "threads=1", "train_frames=1500", "eval_every_frames=750"]
    overrides += ["eval_episodes=2", "video_size=32", "log_every_frames=100"]
    done = rlearly("train", *overrides, "run_dir=straight", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "evaluation at 1500 frames" in done.stdout

    process = start(*overrides, "run_dir=stopped", cwd=tmp_path)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.stat().st_size > 3000):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGSTOP)  # it must not end before the second one has asked
    second = rlearly("train", "resume=stopped", cwd=tmp_path)
    assert second.returncode == 2 and "another process is training there" in second.stderr
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert f"continue with: {resume_command(Path('stopped'))}" in output
    assert not (tmp_path / "stopped" / "done.json").exists()
    resumed = rlearly("train", "resume=stopped", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "no longer guaranteed" not in resumed.stdout

    def rows(name):
        for line in (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield {k: v for k, v in row.items() if not k.startswith(("speed/", "eval/sec"))}

    assert list(rows("straight")) == list(rows("stopped"))

    run = tmp_path / "stopped"
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    assert len(provenance) == 2 and provenance[0]["packages"]["torch"]
    assert provenance[0]["determinism"] == provenance[1]["determinism"]
    assert provenance[0]["determinism"]["threads"] == 1
    assert json.loads((run / "done.json").read_text(encoding="utf-8"))["frames"] == 1500
    assert list((run / "events").iterdir())
    assert rlearly("train", "resume=stopped", cwd=tmp_path).stdout.count("is finished") == 1
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    shorter = rlearly("train", "resume=stopped", "train_frames=1000", cwd=tmp_path)
    assert shorter.returncode == 2 and "expected at least the 1500 frames" in shorter.stderr
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    longer = start("resume=stopped", "train_frames=100000", "threads=2", cwd=tmp_path)
    while (run / "done.json").exists():
        assert longer.poll() is None
        time.sleep(0.05)
    longer.send_signal(signal.SIGTERM)
    output, _ = longer.communicate(timeout=300)
    other = "changed since the last start: threads 1 -> 2; bit-for-bit equality is"
    assert other in output
    assert longer.returncode == 75, "what was asked on resuming is remembered, and not done"
    assert "train_frames: 100000" in (run / "config.yaml").read_text(encoding="utf-8")
    newest = checkpoint.list_checkpoints(run / "checkpoints")[-1]

    evaluated = rlearly("evaluate", "run=stopped", "episodes=3", "video_size=32", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "episode 2: return" in evaluated.stdout and "3 episodes: mean" in evaluated.stdout
    (film,) = (run / "videos").glob("evaluate_*.mp4")
    assert film.stat().st_size > 500

    state = newest / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    older = rlearly("evaluate", "run=stopped", "episodes=1", "video_size=0", cwd=tmp_path)
    assert "state.pt should have" in older.stderr and "Trying the one before it" in older.stderr
    assert older.returncode == 0 and "Traceback" not in older.stderr


def test_offline_wandb_needs_neither_network_nor_key(tmp_path):
    overrides = [
        *TINY,
        "train_frames=300",
        "eval_every_frames=300",
        "eval_episodes=1",
        "video_size=32",
    ]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "key.py").write_text("KEY = 'hunter2'", encoding="utf-8")
    subprocess.run(["git", "-C", tmp_path, "add", "key.py"], check=True)
    commit = ["git", "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "not of this run"]
    subprocess.run(commit, cwd=tmp_path, check=True)
    (tmp_path / "key.py").write_text("KEY = 'hunter3'", encoding="utf-8")
    done = rlearly(
        "train", *overrides, "run_dir=r", "wandb.mode=offline", cwd=tmp_path, WANDB_SAVE_CODE="true"
    )
    assert done.returncode == 0, done.stderr
    written = [file for file in (tmp_path / "r").rglob("*") if file.is_file()]
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path).strip()
    surrounding = re.compile(b"hunter|" + head)
    assert not [file for file in written if surrounding.search(file.read_bytes())]
    (run,) = (tmp_path / "r" / "wandb").glob("offline-run-*")
    assert (tmp_path / "r" / "wandb_id").read_text(encoding="utf-8") in run.name
    assert list(run.glob("*.wandb")) and list(run.rglob("*.mp4"))


def test_copied_run_says_so_and_has_an_identity_of_its_own(tmp_path):
    done = rlearly("train", *TINY, "train_frames=110", "run_dir=a", cwd=tmp_path)
    assert done.returncode == 0 and "copy" not in done.stdout, done.stderr
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copied = rlearly("train", "resume=b", "train_frames=120", cwd=tmp_path)
    assert copied.stdout.count("b is a copy of ") == 1, copied.stderr
    assert copied.stdout.splitlines()[0].startswith(
        f"b is a copy of {tmp_path / 'a'}: it continues"
    )
    first, second = json.loads((tmp_path / "b" / "provenance.json").read_text(encoding="utf-8"))
    assert first["identity"]["id"] == second["identity"]["copied_from"]["id"]
    assert first["identity"]["id"] != second["identity"]["id"]
    assert (
        json.loads((tmp_path / "b" / "identity.json").read_text(encoding="utf-8"))
        == second["identity"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        "agent=drm env=dog_run",
        "agent=drqv2 env=cheetah_run",
        "agent=drm env=manipulator_bring_ball",
        "agent=drqv2 env=quadruped_walk",
        "agent=drqv2 env=HalfCheetah-v5 env.pixels=true",
    ],
)
def test_paper_sized_runs_train_evaluate_and_checkpoint(overrides, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rlearly.train", *overrides.split(), "run_dir=r"),
            *("seed_frames=400", "train_frames=800", "eval_every_frames=800", "eval_episodes=1"),
        ],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert "done: 800 frames, 100 updates" in done.stdout
    assert list((tmp_path / "r" / "videos").glob("*.mp4"))
    assert list((tmp_path / "r" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "sweep", "tune", "teacher", "report", "doctor"]
)
def test_help_into_a_closed_pipe_ends_without_a_word(command):
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, "-W", "ignore", "-m", f"rlearly.{command}", "--help"]
    done = subprocess.run(
        words, stdout=write, stderr=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")

"""Choosing an OpenGL backend, and doing without one."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlearly import doctor, envs
from rlearly.core.errors import ConfigError
from rlearly.envs import dm_control, gl_backend

TESTS = Path(__file__).parents[1]
NO_GL = {
    "MUJOCO_GL": "nonsense",
    "MUJOCO_EGL_DEVICE_ID": "nonsense",
    "PYOPENGL_PLATFORM": "nonsense",
    "__EGL_VENDOR_LIBRARY_FILENAMES": os.devnull,
}
"""Variables with which nothing can be rendered, and with which importing dm_control fails."""

needs_egl = pytest.mark.skipif(gl_backend.choose_backend() != "egl", reason="EGL does not work")


def python(program, *arguments, cwd, **changes):
    """Run a program in a process of its own, in which no GL variable is set but those given."""
    kept = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "PYOPENGL_PLATFORM")}
    kept.pop("MUJOCO_GL", None)
    paths = os.pathsep.join((str(TESTS.parent), str(TESTS)))
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        cwd=cwd,
        env={**kept, "PYTHONPATH": paths, **changes},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.fixture
def errors(monkeypatch):
    """Backend -> why it does not work: a machine on which EGL works, but has only device 0."""

    def probed(backend, device):
        if backend == "egl" and device not in (None, "0"):
            return f"MUJOCO_EGL_DEVICE_ID: expected 0, received {device!r}"
        return found.get(backend)

    found = {"osmesa": "no osmesa", "glfw": "no screen"}
    monkeypatch.setattr(gl_backend, "_probed", probed)
    monkeypatch.setattr(gl_backend, "IMPORTED_WITH", {})
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "x")  # so that what is set below is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(gl_backend, "_chosen", None)
    monkeypatch.setattr(gl_backend, "_refusal", "")
    return found


def test_listed_tasks_are_dm_controls():
    from dm_control import manipulation, suite

    pairs = dm_control.suite_tasks()
    assert {pairs[name] for name in pairs} == set(suite.ALL_TASKS)
    assert set(pairs) - set(dm_control.ALIASES) == {"_".join(pair) for pair in suite.ALL_TASKS}
    listed = dm_control.manipulation_tasks()
    assert {f"{task}_{v}" for task in listed for v in listed[task]} == set(manipulation.ALL)


def test_missing_gl_names_the_packages(errors):
    errors |= {"egl": "no egl"}
    with pytest.raises(ConfigError, match=r"egl: no egl; osmesa: no osmesa.*libegl1.*libosmesa6"):
        gl_backend.require_backend(gl_backend.WITHOUT_VIDEOS)


@pytest.mark.parametrize("named", ["egl", "EGL", " egl ", "", None])
def test_a_working_backend_is_chosen_under_the_name_that_all_packages_know(
    named, errors, monkeypatch
):
    if named is not None:
        monkeypatch.setenv("MUJOCO_GL", named)
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    assert gl_backend.choose_backend() == "egl"
    assert os.environ["MUJOCO_GL"] == os.environ["PYOPENGL_PLATFORM"] == "egl"


def test_pyopengls_platform_is_preferred_if_it_works(errors, monkeypatch):
    del errors["osmesa"]
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    assert gl_backend.choose_backend() == "osmesa"


WRONG = {
    "glfw": r"MUJOCO_GL=glfw is set, but it does not work here \(no screen\): set MUJOCO_GL=egl",
    "glx": r"MUJOCO_GL=glx is set, but it does not work here \(no screen\): set MUJOCO_GL=egl",
    "osmesa": r"MUJOCO_GL=osmesa is set, but .*\(no osmesa\): set MUJOCO_GL=egl, which works here",
    "wgl": r"MUJOCO_GL: expected one of egl, osmesa, glfw, disable, received 'wgl': set MUJOCO_GL",
    "Nonsense": r"expected one of egl, osmesa, glfw, disable, received 'Nonsense': set MUJOCO_GL",
    "off": r"MUJOCO_GL=disable forbids it, while egl works; unset MUJOCO_GL",
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other backends")
@pytest.mark.parametrize("named", WRONG)
def test_a_backend_that_does_not_work_is_one_sentence_with_what_does(named, errors, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", named)
    with pytest.raises(ConfigError, match=f"{WRONG[named]}.*; or do without videos: video_size=0"):
        gl_backend.require_backend(gl_backend.WITHOUT_VIDEOS)


@pytest.mark.parametrize("named", [None, "egl"])
@pytest.mark.parametrize("device", ["1", "-1", "x", ""])
def test_an_egl_device_that_is_not_there_is_named(device, named, errors, monkeypatch):
    del errors["osmesa"]  # the user asked for a device, so no other backend takes its place
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", device)
    if named:
        monkeypatch.setenv("MUJOCO_GL", named)
    with pytest.raises(ConfigError, match=r"^MUJOCO_EGL_DEVICE_ID: expected 0.*or unset it"):
        gl_backend.choose_backend()
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert gl_backend.choose_backend() == "osmesa", "which has no devices"


@needs_egl
def test_the_probe_obeys_the_variables_of_the_run(monkeypatch):
    probe = gl_backend._probed.__wrapped__
    assert probe("egl", None) is None
    monkeypatch.delenv("DISPLAY", raising=False)
    assert probe("glfw", None) == "it needs a screen, but DISPLAY is not set"
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "99")
    assert "MUJOCO_EGL_DEVICE_ID: expected" in probe("egl", "99")
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", os.devnull)
    assert "no device can be initialised" in probe("egl", None)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 11)", "its driver crashed with SIGSEGV"),
        ("import time; time.sleep(60)", "its driver did not answer in 2 s"),
        ("raise SystemExit(3)", "its driver ended with 3"),
    ],
)
def test_a_driver_that_crashes_or_hangs_is_a_reason(code, reason, tmp_path, monkeypatch):
    probe = tmp_path / "probe.py"
    probe.write_text(code, encoding="utf-8")
    monkeypatch.setattr(gl_backend, "PROBE", probe)
    monkeypatch.setattr(gl_backend, "PROBE_SECONDS", 2)
    assert gl_backend._probed.__wrapped__("egl", None) == reason


STATES_ONLY = """
import sys
from pathlib import Path
from rlearly import sweep, train
from rlearly.envs import gl_backend

def never(*_):
    raise AssertionError("a backend was probed")

gl_backend._probed = never
tiny = "agent=td3 train_frames=60 seed_frames=20 eval_every_frames=0 agent.batch_size=8".split()
assert train.main(["agent=drm", "env=dog_run", "--cfg", "job"]) == 0
grid = "agent=drm env=dog_run,reach_duplo seeds=1 dry_run=true".split()
assert sweep.main(grid) == 0
assert "dm_control" not in sys.modules and "mujoco" not in sys.modules
for env in ("cartpole_balance", "reach_duplo", "Hopper-v5", "Pendulum-v1"):
    assert train.main([*tiny, f"env={env}", f"run_dir={env}"]) == 0, env
maps = Path("/proc/self/maps")
loaded = maps.read_text() if maps.exists() else ""
assert not [name for name in ("libEGL", "libOSMesa", "libOpenGL") if name in loaded]
"""


def test_states_the_config_and_a_dry_run_need_no_gl(tmp_path):
    done = python(STATES_ONLY, cwd=tmp_path, **NO_GL)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


REFUSED = """
from pathlib import Path
from rlearly import evaluate, sweep, teacher, train

tiny = "agent=td3 env=cartpole_balance train_frames=60 seed_frames=20 agent.batch_size=8".split()
films = "eval_every_frames=60 eval_episodes=1 video_size=32".split()
pixels = "agent=drqv2 env=cartpole_balance preset=cpu".split()
assert train.main([*tiny, "eval_every_frames=0", "run_dir=states"]) == 0
before = sorted(map(str, Path().rglob("*")))
assert train.main([*pixels, "run_dir=pixels"]) == 2
assert train.main([*tiny, *films, "run_dir=films"]) == 2
assert train.main(["agent=td3", "env=Hopper-v5", *films, "run_dir=films"]) == 2
assert evaluate.main(["run=states", "episodes=1", "video_size=32"]) == 2
assert sweep.main([*pixels, "seeds=2", "sweep_dir=pixels"]) == 2
assert sorted(map(str, Path().rglob("*"))) == before
"""


def test_what_cannot_be_rendered_is_refused_before_anything_is_made(tmp_path):
    done = python(REFUSED, cwd=tmp_path, MUJOCO_GL="glfw")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 5, "one sentence each, and no traceback when the process ends"
    for line in lines:
        assert line.startswith("rlearly: MUJOCO_GL=glfw is set, but it does not work here (it ")
        assert line.endswith("video_size=0.")


BOTH = """
import mujoco  # by the user, and without a word about GL

import numpy as np
from rlearly import envs

def image(**how):
    env = envs.make(envs.config_for("cartpole_balance"), model_seed=0, **how)
    env.reset(seed=0)
    frame = np.array(envs.frame_renderer(env)(48))
    env.close()
    return frame

undeclared, observed = image(pixels=False), image(pixels=True)
film = image(pixels=False, videos=True)
assert film.std() > 1 and (undeclared == film).all() and (film == observed).all()
hopper = envs.make(envs.config_for("Hopper-v5"), pixels=None, model_seed=0)
hopper.reset(seed=0)
assert envs.frame_renderer(hopper)(48).std() > 1
hopper.close()
"""


@needs_egl
def test_a_process_that_began_without_gl_can_render(tmp_path):
    done = python(BOTH, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr


OWN = """
import sys
from unittest import mock
import gymnasium
import numpy as np
import tiny_envs
from rlearly import envs

class Sphere(tiny_envs.PixelReach):
    "Its observation is a picture that it renders by itself."

    def _image(self):
        import mujoco

        model = mujoco.MjModel.from_xml_string(
            "<mujoco><worldbody><light pos='0 0 3'/><geom size='1'/></worldbody></mujoco>"
        )
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        with mujoco.Renderer(model, 24, 24) as renderer:
            renderer.update_scene(data)
            return renderer.render()

def maker(**kwargs):
    import mujoco

    return Sphere(**kwargs)

gymnasium.register("tests/Sphere-v0", maker)
config = envs.config_for("tiny_envs:StateReach-v0")
envs.make(config, pixels=None, model_seed=0).close()
assert "mujoco" not in sys.modules
env = envs.make(envs.config_for("tests/Sphere-v0"), pixels=None, model_seed=0)
print(np.std(env.reset(seed=0)[0]) > 1)
"""


@needs_egl
def test_an_env_that_renders_by_itself_finds_a_working_backend(tmp_path):
    done = python(OWN, cwd=tmp_path)
    assert done.stdout == "True\n" and not done.stderr, done.stderr


def test_an_env_of_another_package_that_cannot_be_rendered_names_what_the_user_set(
    errors, monkeypatch, caplog
):
    importlib.import_module("mujoco")  # before: then a backend is chosen at once
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with gl_backend.chosen_on_import():
        pass
    assert os.environ["MUJOCO_GL"] == "disable" and "MUJOCO_GL=glfw is set" in caplog.text
    with pytest.raises(ConfigError, match=r"MUJOCO_GL=glfw is set, .*; or do without videos"):
        gl_backend.require_backend(gl_backend.WITHOUT_VIDEOS)


SDL = """
from rlearly import envs

env = envs.make(envs.config_for("Pendulum-v1"), pixels=None, model_seed=0, videos=True)
env.reset(seed=0)
print(envs.frame_renderer(env)(32).std() > 1)
"""


def test_gymnasiums_own_envs_need_no_screen_for_their_videos(tmp_path):
    done = python(SDL, cwd=tmp_path, SDL_VIDEODRIVER="x11", DISPLAY=":99")
    assert done.stdout.endswith("True\n"), done.stderr


def test_the_doctor_goes_on_to_its_end(monkeypatch, capsys):
    def broken():
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    checks = {"packages": doctor.packages, "opengl": broken, "video": doctor.video}
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["ok", "packages"],
        ["PROBLEM", "opengl"],
        ["ok", "video"],
    ]
    assert "AttributeError: 'NoneType' object has no attribute 'eglQueryString'" in lines[1]
    assert lines[3] == "1 problem(s): see above."


def test_only_what_mujoco_renders_is_checked_before_it_is_made(errors, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    for name in ("Pendulum-v1", "tiny_envs:PixelReach-v0"):
        envs.check_rendering(envs.config_for(name), pixels=True, videos=True)
    for name in ("Hopper-v5", "dog_run", "adroit/door", "metaworld/reach"):
        envs.check_rendering(envs.config_for(name), pixels=False, videos=False)
        for pixels, videos in ((True, False), (False, True)):
            with pytest.raises(ConfigError, match="MUJOCO_GL=glfw"):
                envs.check_rendering(envs.config_for(name), pixels=pixels, videos=videos)
    envs.check_rendering(envs.config_for("Hopper-v5"), pixels=None, videos=False)
    with pytest.raises(ConfigError, match="MUJOCO_GL=glfw"):
        envs.check_rendering(envs.config_for("dog_run"), pixels=None, videos=False)

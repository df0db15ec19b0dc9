"""What an env or a policy of the user's raises, or returns wrongly, is one sentence everywhere."""

import json
import os
import pickle
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from conftest import TINY_STATE
from gymnasium.spaces import Box, Dict, Discrete, Text, Tuple

from rlearly import (
    SnapshotRL,
    ValueClusters,
    evaluate,
    record,
    restore,
    save,
    self_test,
    sweep,
    teacher,
    train,
)
from rlearly.core.errors import ConfigError, UserCodeFailed, place_of, raised
from rlearly.envs.guard import Guard, InnermostGuard, guarded, misfit
from rlearly.envs.snapshots.pretrained import Model
from rlearly.envs.state.action_replay import ActionRecorder
from rlearly.training import evaluation

HERE = Path(__file__).name


class Line(gymnasium.Env):
    """A point that moves on a line; the variants below break one of its calls."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = Box(-50, 50, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.x = 0, self.np_random.normal(size=1).astype(np.float32)
        return self.x.copy(), {}

    def step(self, action):
        self.steps += 1
        self.x = self.x + np.float32(0.1) * np.asarray(action, np.float32)
        return self.x.copy(), -1.0, False, False, {}


def returning(index, value, at_step=1):
    """A `step` whose result has another entry from its step number `at_step` on."""

    def step(self, action):
        self.taken = getattr(self, "taken", 0) + 1
        result = list(Line.step(self, action))
        if self.taken >= at_step:
            result[index] = value
        return tuple(result)

    return step


def broken(self, *args, **kwargs):
    raise RuntimeError("the simulator\nlost its connection")


BROKEN_LINE = broken.__code__.co_firstlineno + 1


def leaves(self, action):
    sys.exit(3)


OLD = "expected obs, reward, terminated, truncated, info: this is the API of gym before 0.26"
FAULTS = {
    "four": (
        {"step": lambda self, action: (*Line.step(self, action)[:2], False, {})},
        f"step(action) returned 4 values IN; {OLD}",
    ),
    "nothing": ({"step": lambda self, action: None}, "step(action) returned None IN; expected obs"),
    "raises": (
        {"step": broken},
        "step(action) raised RuntimeError: the simulator lost its connection at "
        f"PLACE:{BROKEN_LINE}",
    ),
    "exits": ({"step": leaves}, "step(action) raised SystemExit: 3 at PLACE"),
    "reset_raises": ({"reset": broken}, ") raised RuntimeError: the simulator lost its connection"),
    "bare": (
        {"reset": lambda self, seed=None, options=None: Line.reset(self, seed=seed)[0]},
        ") returned float32 [1] IN; expected obs, info: this is the API of gym before",
    ),
    "no_seed": (
        {"reset": lambda self: Line.reset(self)},
        "takes no keyword argument 'seed' IN; expected reset(self, *, seed=None, options=None)",
    ),
    "no_options": (
        {"reset": lambda self, seed=None: Line.reset(self, seed=seed)},
        "takes no keyword argument 'options' IN; expected reset(self, *, seed=None",
    ),
    "obs_none": ({"step": returning(0, None)}, "an observation of None IN; expected float32 [1]"),
    "obs_shape": (
        {"step": returning(0, np.zeros(3))},
        "an observation of float64 [3] IN; expected float32 [1], as its observation_space says",
    ),
    "reward_text": (
        {"step": returning(1, "1")},
        "a reward of the text '1' IN; expected one finite",
    ),
    "reward_none": ({"step": returning(1, None)}, "a reward of None IN; expected one finite"),
    "reward_nan": ({"step": returning(1, np.nan)}, "a reward of nan IN; expected one finite"),
    "rewards": ({"step": returning(1, np.zeros(3))}, "a reward of float64 [3] IN; expected one"),
    "endings": (
        {"step": returning(2, np.array([True, False]))},
        "returned terminated=bool [2] IN; expected True or False",
    ),
    "info_none": ({"step": returning(4, None)}, "an info of None IN; expected a dict"),
    "info_list": ({"step": returning(4, [])}, "an info of a list of 0 IN; expected a dict"),
}
FINE = {
    "flag_numpy": {"step": returning(2, np.bool_(False))},
    "flag_int": {"step": returning(3, 0)},
    "flag_tensor": {"step": returning(2, torch.tensor(False))},
    "reward_tensor": {"step": returning(1, torch.tensor(1.0))},
    "reward_array": {"step": returning(1, np.array([1.0]))},
    "obs_list": {"step": returning(0, [0.5])},
    "obs_float64": {"step": returning(0, np.zeros(1))},
    "closing": {"close": broken},
}
UNMADE = {
    "constructor": ({"__init__": broken}, "cannot make it: RuntimeError: the simulator lost its"),
    "no_space": (
        {"observation_space": None},
        "expected observation_space to be a space of gymnasium, received none",
    ),
}


def variant(methods):
    return type("Variant", (Line,), methods)


for name, methods in (
    {name: methods for name, (methods, _) in (FAULTS | UNMADE).items()}
    | FINE
    | {"late": {"step": returning(1, None, at_step=130)}}
).items():
    gymnasium.register(f"Guard{name}-v0", variant(methods), max_episode_steps=20)
gymnasium.register("GuardNoEnv-v0", lambda **kwargs: None)

SHORT = [*TINY_STATE["td3"], "train_frames=40", "seed_frames=100", "threads=1"]


def trained(name, folder, *overrides):
    return train.main([*SHORT, f"env=Guard{name}-v0", f"run_dir={folder}", *overrides])


@pytest.fixture
def taught(monkeypatch, tmp_path):
    """Records a teacher of an env, whose model always acts alike: (exit status, its folder)."""
    model = Model("a library", "PPO", lambda obs: np.zeros(1, np.float32), lambda obs: 0.0)
    monkeypatch.setattr("rlearly.envs.snapshots.pretrained.read_model", lambda *_, **__: model)

    def record_teacher(name):
        words = ["model=any", f"env=Guard{name}-v0", f"out={tmp_path / 't.h5'}", "overwrite=true"]
        return teacher.main([*words, "episodes=1"])

    return record_teacher


def sentence_of(capsys, where):
    """The one line of an error, with the path of this file replaced and `where` as IN."""
    said = capsys.readouterr().err
    (line,) = said.strip().splitlines()
    return line.replace(str(Path(__file__).relative_to(Path.cwd())), "PLACE").replace(where, " IN")


@pytest.mark.parametrize("fault", FAULTS)
def test_failing_env_is_one_sentence_in_training_and_leaves_its_report(fault, tmp_path, capsys):
    run, expected = tmp_path / "run", FAULTS[fault][1]
    assert trained(fault, run) == 1
    where = " in a reset" if "reset" in FAULTS[fault][0] else " in a training step"
    line = sentence_of(capsys, where)
    assert f"rlearly: stopped at 0 frames: env=Guard{fault}-v0: " in line and expected in line
    assert f"{run / 'failure.json'} has the details" in line
    report = json.loads((run / "failure.json").read_text(encoding="utf-8"))
    raises = "raised" in expected
    assert (report["traceback"] is not None) == raises
    if "lost its connection" in expected:
        assert "raise RuntimeError(" in "".join(report["traceback"])


@pytest.mark.parametrize("fault", FAULTS)
def test_failing_env_is_one_sentence_of_the_teacher(fault, taught, tmp_path, capsys):
    assert taught(fault) == 1
    line = sentence_of(capsys, " in nothing")
    assert f"rlearly: env=Guard{fault}-v0: " in line
    assert FAULTS[fault][1].replace(" IN", "") in line
    assert "what" in json.loads((tmp_path / "t.h5.failure.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "t.h5").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_failing_env_is_an_error_with_its_cause_in_python(fault):
    methods, expected = FAULTS[fault]
    with pytest.raises(UserCodeFailed) as failed:
        record(variant(methods)(), lambda obs: np.zeros(1, np.float32), episodes=1)
    assert str(failed.value).startswith(f"env={__name__}:Variant: ")
    assert (failed.value.__cause__ is not None) == ("raised" in expected)


@pytest.mark.parametrize("kind", FINE)
def test_scalars_of_other_types_lists_and_a_failing_close_are_accepted(
    kind, taught, tmp_path, caplog
):
    assert trained(kind, tmp_path / "run") == 0
    assert taught(kind) == 0
    assert ("close() raised RuntimeError" in caplog.text) == (kind == "closing")


@pytest.mark.parametrize("kind", [*UNMADE, "NoEnv"])
def test_env_that_cannot_be_made_is_refused_and_leaves_nothing(kind, taught, tmp_path, capsys):
    expected = UNMADE[kind][1] if kind in UNMADE else "its entry point returned None; expected a"
    for status in (trained(kind, tmp_path / "run"), taught(kind)):
        assert status == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and all(expected in line for line in lines)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("raise SystemExit('usage')", "SystemExit: usage at "),
        ("x = 1", "X"),
    ],
)
def test_module_that_does_not_import_or_lacks_the_id_is_refused(
    source, expected, tmp_path, monkeypatch, capsys
):
    name = f"guard_module_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    words = [*SHORT, f"env={name}:NoSuchId-v0", f"run_dir={tmp_path / 'run'}"]
    assert train.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    refusals = (f"the module {name} cannot be imported: ", f"{name} registers no env ")
    assert any(f"env={name}:NoSuchId-v0: {refusal}" in line for refusal in refusals)
    assert (expected if expected != "X" else "NoSuchId") in line
    assert not (tmp_path / "run").exists()


def test_env_that_fails_to_close_too_does_not_hide_the_failure(tmp_path, capsys, caplog):
    gymnasium.register("Guardboth-v0", variant({"step": broken, "close": broken}))
    assert trained("both", tmp_path / "run") == 1
    assert "step(action) raised RuntimeError" in capsys.readouterr().err.splitlines()[-1]
    assert "close() raised RuntimeError" in caplog.text


@pytest.mark.parametrize("overlap", [False, True])
def test_failure_in_the_middle_of_a_run_of_several_envs(overlap, tmp_path, capsys):
    words = ("num_envs=3", "train_frames=900", f"overlap={overlap}", "checkpoint_every_frames=60")
    assert trained("late", tmp_path / "run", *words, "seed_frames=1000") == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "stopped at 387 frames: env=Guardlate-v0: step(action) returned a reward of None" in last
    assert "from the checkpoint of 360 frames" in last


def test_a_run_that_failed_before_its_first_step_is_replaced_by_the_next(tmp_path, capsys):
    run = tmp_path / "run"
    assert trained("four", run) == 1
    assert trained("flag_int", run) == 0 and not (run / "failure.json").exists()
    assert trained("four", run) == 2, "a run that has steps is kept"
    assert "holds a run already" in capsys.readouterr().err


def test_start_that_fails_inside_rlearly_leaves_no_directory(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("rlearly.training.builder.make_agent", fail)
    with pytest.raises(ZeroDivisionError):
        trained("flag_int", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_networks_that_do_not_fit_into_memory_are_refused(tmp_path, capsys):
    assert trained("flag_int", tmp_path / "run", "agent.hidden_dim=100000000") == 2
    assert "agent=td3: its networks do not fit into memory" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_render_that_raises_is_named_with_its_call(tmp_path, capsys):
    gymnasium.register("Guardrender-v0", variant({"render": broken}))
    words = ("video_size=64", "eval_every_frames=20")
    assert trained("render", tmp_path / "run", *words) == 1
    assert "env=Guardrender-v0: render() raised RuntimeError" in capsys.readouterr().err
    assert (tmp_path / "run" / "failure.json").exists()


@pytest.mark.parametrize(
    ("image", "received"),
    [
        (None, "None"),
        (np.zeros((8, 8, 3)), "float64 [8, 8, 3]"),
        (np.zeros(8, np.uint8), "uint8 [8]"),
    ],
)
def test_render_that_returns_no_image_is_refused(image, received, tmp_path, capsys):
    env_id = f"Guardimage{received[:5]}-v0"
    gymnasium.register(env_id, variant({"render": lambda self: image}))
    words = [*SHORT, "video_size=64", "eval_every_frames=20", f"run_dir={tmp_path / 'run'}"]
    assert train.main([*words, f"env={env_id}"]) == (2 if image is None else 1)
    assert f"env={env_id}: render() returned {received}" in capsys.readouterr().err


def test_video_of_an_env_that_does_not_render_is_refused_with_what_to_do(tmp_path, capsys):
    gymnasium.register("Guardblind-v0", variant({}), max_episode_steps=20)
    assert trained("blind", tmp_path / "run") == 0
    words = [f"run={tmp_path / 'run'}", "episodes=1", "threads=1"]
    assert evaluate.main(words) == 2
    said = capsys.readouterr().err
    assert "env=Guardblind-v0: render() raised NotImplementedError" in said
    assert "cannot render itself" in said and "video_size=0" in said
    assert evaluate.main([*words, "video_size=0"]) == 0


def test_evaluation_that_fails_keeps_the_users_traceback_beside_the_run(
    tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    env = variant(
        {"works": True, "step": lambda self, a: Line.step(self, a) if self.works else {}["x"]}
    )
    gymnasium.register("Guardswitch-v0", env, max_episode_steps=20)
    assert trained("switch", run) == 0
    words = [f"run={run}", "episodes=1", "video_size=0", "threads=1"]
    env.works = False
    assert evaluate.main(words) == 1
    line = capsys.readouterr().err.strip()
    assert "env=Guardswitch-v0: step(action) raised KeyError: 'x' at" in line, line
    assert "in an evaluation" in line and f"{run / 'evaluate.failure.json'} has the details" in line
    report = json.loads((run / "evaluate.failure.json").read_text(encoding="utf-8"))
    assert HERE in "".join(report["traceback"]) and (run / "done.json").exists()
    fail = evaluation.evaluate

    def while_another_fails(*args, **kwargs):
        monkeypatch.setattr(evaluation, "evaluate", fail)
        assert evaluate.main(words) == 1
        return fail(*args, **kwargs)

    monkeypatch.setattr(evaluation, "evaluate", while_another_fails)
    assert evaluate.main(words) == 1
    first, second = capsys.readouterr().err.strip().splitlines()
    assert f"{run / 'evaluate.failure.json'} has" in first
    assert f"{run / 'evaluate.failure-2.json'} has" in second
    assert json.loads((run / "evaluate.failure-2.json").read_text(encoding="utf-8"))[
        "what"
    ].startswith("env=")
    env.works = True

    def while_another_is_over(*args, **kwargs):
        (run / "evaluate.failure.json").write_text(
            "of an evaluation that has failed meanwhile", encoding="utf-8"
        )
        return fail(*args, **kwargs)

    monkeypatch.setattr(evaluation, "evaluate", while_another_is_over)
    assert evaluate.main(words) == 0
    assert [path.name for path in run.glob("evaluate.*")] == ["evaluate.failure.json"]
    monkeypatch.setattr(evaluation, "evaluate", fail)
    assert evaluate.main(words) == 0 and not list(run.glob("evaluate.*"))


@pytest.mark.slow
def test_sweep_shows_the_sentence_of_a_failing_env(tmp_path, monkeypatch, capsys):
    tests = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([tests, *sys.path]))
    words = [f"sweep_dir={tmp_path / 'sweep'}", "seeds=1", *TINY_STATE["td3"], "train_frames=100"]
    words = [word for word in words if not word.startswith("env=")]
    assert sweep.main([*words, "env=tiny_envs:Faulty-v0", "env.kwargs={at_step: 30}"]) == 1
    sentence = "env=tiny_envs:Faulty-v0: step(action) raised ZeroDivisionError: division by zero at"
    assert sentence in capsys.readouterr().out
    assert sweep.main([f"status={tmp_path / 'sweep'}"]) == 1
    assert sentence in " ".join(capsys.readouterr().out.split())


# --- policies and SnapshotRL ---


@pytest.mark.parametrize("what", ["policy", "value"])
def test_policy_or_value_that_raises_is_named_with_its_step(what):
    functions = {"policy": lambda obs: np.zeros(1, np.float32), "value": lambda obs: 0.0}
    functions[what] = lambda obs: {}["goal"]
    with pytest.raises(
        UserCodeFailed, match=rf"{what}: it raised KeyError: 'goal' at .*{HERE}:\d+ "
    ) as failed:
        record(Line(), **functions, episodes=1)
    assert isinstance(failed.value.__cause__, KeyError)
    assert "in step 0 of an episode" in str(failed.value)


@pytest.mark.parametrize("value", ["high", None, [1, 2], torch.zeros(2, requires_grad=True)])
def test_value_that_is_no_number_is_refused(value):
    env = gymnasium.wrappers.TimeLimit(Line(), 5)
    with pytest.raises(ConfigError, match="value: expected one finite number"):
        record(env, lambda obs: np.zeros(1, np.float32), value=lambda obs: value, episodes=1)


def snapshots_of_line():
    env = gymnasium.wrappers.TimeLimit(Line(), 10)
    return record(env, lambda obs: np.ones(1, np.float32), value=lambda obs: 1.0, episodes=1)


def test_snapshot_rl_around_a_failing_env_raises_our_error():
    snapshots = snapshots_of_line()
    kind = type("Line", (Line,), {"step": broken, "__module__": Line.__module__})
    with pytest.raises(UserCodeFailed, match=r"step\(action\) raised RuntimeError") as failed:
        SnapshotRL(kind(), snapshots, ValueClusters(1))
    assert isinstance(failed.value.__cause__, RuntimeError)


def test_self_test_names_the_call_that_failed():
    with pytest.raises(UserCodeFailed, match=r"reset\(seed=1.*\) raised RuntimeError"):
        self_test(variant({"reset": broken})())


# --- the guard itself ---


def test_guard_changes_no_value_and_no_saved_state():
    made = [gymnasium.make("Pendulum-v1", disable_env_checker=True) for _ in range(2)]
    bare, env = made[0], guarded(made[1])
    assert isinstance(env.env.env, InnermostGuard) and env.spec == bare.spec
    for one in (bare, env):
        one.reset(seed=3)
    state = save(env)
    assert [name for name, _ in state.wrappers] == [name for name, _ in save(bare).wrappers]
    for action in ([1.0], [-2.0]):
        mine, theirs = env.step(action), bare.step(action)
        assert mine[0].tobytes() == theirs[0].tobytes() and mine[1:] == theirs[1:]
    restore(bare, state)
    assert bare.step([1.0])[0].tobytes() == restored_step(env, state, [1.0])


def restored_step(env, state, action):
    restore(env, state)
    return env.step(action)[0].tobytes()


def test_guards_are_put_in_once_and_stay_innermost():
    env = guarded(guarded(gymnasium.wrappers.TimeLimit(Line(), 5)))
    kinds = []
    while isinstance(env, gymnasium.Wrapper):
        kinds.append(type(env).__name__)
        env = env.env
    assert kinds == ["TimeLimit", "InnermostGuard"]
    recorder = ActionRecorder(guarded(Line()))
    assert isinstance(recorder.env, InnermostGuard)


class Curriculum(gymnasium.Wrapper):
    """A wrapper of the user's that reads and writes attributes of the env inside it."""

    def step(self, action):
        self.env.difficulty = self.env.steps + 1
        obs, reward, *rest = self.env.step(action)
        return obs, reward, *(rest if self.unwrapped.difficulty < 3 else rest[1:])


def test_wrappers_of_the_users_see_their_env_and_are_guarded_too():
    base = Line()
    env = guarded(Curriculum(base))
    assert isinstance(env, Guard) and isinstance(env.env.env, InnermostGuard)
    env.reset(seed=0)
    env.step(np.zeros(1))
    assert base.difficulty == 1 and not hasattr(env, "no_such_attribute")
    env.step(np.zeros(1))
    with pytest.raises(UserCodeFailed, match=r"step\(action\) returned 4 values"):
        env.step(np.zeros(1))


def test_guard_survives_pickling():
    env = pickle.loads(
        pickle.dumps(guarded(gymnasium.make("Pendulum-v1", disable_env_checker=True)))
    )
    env.reset(seed=0)
    assert len(env.step([0.0])) == 5 and isinstance(env.env.env, InnermostGuard)


def test_observation_that_changes_in_the_middle_of_a_run_is_found():
    space = Dict(a=Box(-1, 1, (2,), np.float32), b=Discrete(3))
    good = {"a": np.zeros(2, np.float32), "b": np.array(1)}
    env = guarded(variant({"observation_space": space, "step": None})())
    seen = iter([good] * 300 + [{"a": np.zeros(2, np.float32)}])
    env.unwrapped.step = lambda action: (next(seen), 0.0, False, False, {})
    for _ in range(300):
        env.step(np.zeros(1))
    with pytest.raises(
        UserCodeFailed, match="an observation of a dict of a; expected a dict of a, b"
    ):
        env.step(np.zeros(1))


PIXELS = Box(0, 255, (4, 4, 3), np.uint8)
NESTED = Dict(image=PIXELS, inner=Tuple((Discrete(4), Text(8))))


@pytest.mark.parametrize(
    ("obs", "space", "expected"),
    [
        (np.zeros((4, 4, 3), np.uint8), PIXELS, None),
        (np.zeros((4, 4, 3)), PIXELS, ("float64 [4, 4, 3]", "uint8 [4, 4, 3]")),
        (np.zeros((4, 4)), PIXELS, ("float64 [4, 4]", "uint8 [4, 4, 3]")),
        (np.array([1, 2]), Box(-1, 1, (2,)), None),
        (np.array(["a", "b"]), Box(-1, 1, (2,)), ("<U1 [2]", "float32 [2]")),
        ([[1.0], [2.0, 3.0]], Box(-1, 1, (2,)), ("a list of 2", "float32 [2]")),
        ({"image": np.zeros((4, 4, 3), np.uint8), "inner": (2, "go")}, NESTED, None),
        ({"image": 1}, NESTED, ("a dict of image", "a dict of image, inner")),
        (
            {"image": np.zeros((4, 4, 3), np.uint8), "inner": (2, 3)},
            NESTED,
            ("3 at obs['inner'][1]", "text"),
        ),
        (1.5, Discrete(4), ("float64 []", "int64 []")),
    ],
)
def test_misfit_says_what_was_received_and_expected(obs, space, expected):
    assert misfit(obs, space) == expected


class Unreadable(Exception):
    def __str__(self):
        raise ValueError


def test_raised_says_what_and_where_in_the_users_own_file():
    try:
        json.loads("{")
    except ValueError as error:
        assert raised(error).startswith("raised JSONDecodeError: Expecting property name")
        assert place_of(error).endswith(f"{HERE}:{error.__traceback__.tb_lineno}")
    assert raised(Unreadable()) == "raised Unreadable: (its text cannot be read)"
    loop = ValueError("again")
    loop.__cause__ = loop
    assert raised(loop) == "raised ValueError: again"

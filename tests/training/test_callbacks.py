"""Callbacks: when they are called, what they change, and that resuming restores it to the bit."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_STATE
from saved import plain, rows
from test_trainer import Silent, make_trainer
from tiny_callbacks import Idle, Stopper, Widen

from rlearly.config import resolve
from rlearly.core.errors import ConfigError, UserCodeFailed
from rlearly.training import builder, checkpoint
from rlearly.training.callbacks import Callback
from rlearly.training.sinks import JsonLines, Sinks

WIDE = [
    *(word for word in TINY_STATE["td3"] if not word.startswith(("env=", "eval_", "checkpoint_"))),
    "env=tiny_envs:WideReach-v0",
    "train_frames=300",
    "eval_every_frames=70",
    "eval_episodes=2",
    "log_every_frames=20",
    "checkpoint_every_frames=60",
    "env.max_episode_steps=20",
]
PPO = [
    *(word for word in TINY_STATE["ppo"] if not word.startswith(("env=", "eval_", "checkpoint_"))),
    *WIDE[-7:],
    "agent.rollout_steps=32",
    "num_envs=2",
    "overlap=true",
]
WIDEN = "callback=tiny_callbacks:Widen"


def trainer_with(folder, *callbacks, words=()):
    """A trainer with callbacks that are objects."""
    folder.mkdir(exist_ok=True)
    return builder.build(
        resolve.compose([*WIDE, *words]),
        folder,
        make_sinks=lambda: Sinks(JsonLines(folder / "metrics.jsonl"), []),
        display=Silent(),
        device=torch.device("cpu"),
        callbacks=callbacks,
    )


def without_callbacks(trainer):
    state = plain(trainer.state_dict())
    del state["callbacks"], state["env_attributes"]
    return state


@pytest.mark.parametrize("base", [WIDE, PPO, [*TINY, "train_frames=150"]], ids=["td3", "ppo", "px"])
def test_idle_callback_changes_nothing(tmp_path, base):
    alone = make_trainer(tmp_path / "alone", base=base)
    watched = make_trainer(tmp_path / "watched", "callback=tiny_callbacks:Idle", base=base)
    assert alone.run() and watched.run()
    one, two = without_callbacks(alone), without_callbacks(watched)
    one["fixed_config"]["callback"] = two["fixed_config"]["callback"]
    assert one == two and rows(tmp_path / "alone") == rows(tmp_path / "watched")


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def on_start(self, run):
        self.calls.append(("start", run.steps, run.frames))

    def on_step(self, run):
        self.calls.append(("step", run.steps, run.updates))

    def on_episode(self, run, episode):
        self.calls.append(("episode", run.steps, episode))

    def on_update(self, run, metrics):
        self.calls.append(("update", run.steps, float(metrics["loss/critic"])))

    def on_evaluation(self, run, metrics):
        self.calls.append(("evaluation", run.steps, metrics["eval/episode_return"]))


def test_callback_is_told_updates_then_episodes_then_the_step(tmp_path):
    seen = Recorder()
    trainer = trainer_with(tmp_path, seen, words=["train_frames=110"])
    trainer.run()
    kinds = [kind for kind, *_ in seen.calls]
    assert seen.calls[0] == ("start", 0, 0) and kinds.count("start") == 1
    assert [at for kind, at, _ in seen.calls if kind == "step"] == list(range(1, 111))
    assert kinds.count("update") == trainer.updates == 10
    after = [(kind, at) for kind, at, _ in seen.calls if at == 110]
    assert after[0] == ("update", 110) and after[-2:] == [("step", 110), ("evaluation", 110)]
    written = rows(tmp_path)
    episodes = [call[2] for call in seen.calls if call[0] == "episode"]
    returns = [row["train/episode_return"] for row in written if "train/episode_return" in row]
    assert [episode.episode_return for episode in episodes] == returns
    assert {(episode.kind, episode.info["width"]) for episode in episodes} == {("episode", 1.0)}
    evaluated = [row["eval/episode_return"] for row in written if "eval/episode_return" in row]
    assert [call[2] for call in seen.calls if call[0] == "evaluation"] == evaluated


class WidthOfEpisodes(Callback):
    """Sets a new width in the middle of an episode, and notes what each episode is played with."""

    def __init__(self):
        self.widths = []
        self.read = []

    def on_step(self, run):
        if run.steps >= 3 and not self.read:
            run.envs.set_attr("width", 0.25)
            self.read.append(run.envs.get_attr("width"))

    def on_episode(self, run, episode):
        self.widths.append(episode.info["width"])


@pytest.mark.parametrize("words", [[], ["num_envs=2"], ["num_envs=2", "overlap=true"]], ids=str)
def test_attribute_is_set_when_the_next_episode_of_each_env_begins(tmp_path, words):
    seen = WidthOfEpisodes()
    trainer_with(tmp_path, seen, words=words).run()
    num_envs = 2 if words else 1
    assert seen.widths[:num_envs] == [1.0] * num_envs
    assert set(seen.widths[num_envs:]) == {0.25} and seen.read == [[1.0] * num_envs]


@pytest.mark.parametrize("evaluation", [False, True])
def test_evaluation_keeps_the_target_unless_it_is_asked_for(tmp_path, evaluation, monkeypatch):
    goals = []
    evaluated = "rlearly.training.trainer.evaluate"
    from rlearly.training.evaluation import evaluate

    def watched(agent, env, **kwargs):
        def on_step(episode, length):
            goals.append(env.unwrapped.width)

        return evaluate(agent, env, **{**kwargs, "on_step": on_step})

    monkeypatch.setattr(evaluated, watched)
    trainer = trainer_with(tmp_path, Widen(0.1, evaluation=evaluation))
    trainer.run()
    assert (max(goals) < 0.9) == evaluation and (set(goals) == {1.0}) == (not evaluation)


def test_command_that_evaluates_has_the_same_envs_as_the_run(tmp_path):
    """The checkpoint holds the width that evaluations have, not that of training."""
    trainer = trainer_with(tmp_path, Widen(0.1))
    trainer.run()
    _, state = checkpoint.load_newest(tmp_path / "checkpoints")
    env = builder.make_evaluation_env(
        resolve.compose(WIDE),
        videos=False,
        kept=builder.kept_in(state),
        attributes=builder.attributes_in(state),
        message=print,
    )
    env.reset(seed=0)
    assert env.unwrapped.width == 1.0 != trainer.envs[0].unwrapped.width


@pytest.mark.parametrize("base", [WIDE, PPO], ids=["td3", "ppo"])
@pytest.mark.parametrize("at_steps", [38, 156])
def test_resumed_run_with_a_curriculum_equals_an_uninterrupted_one(tmp_path, base, at_steps):
    words = [WIDEN, "callback_kwargs.first=0.2"]
    straight = make_trainer(tmp_path / "straight", *words, base=base)
    assert straight.run()
    first = make_trainer(tmp_path / "run", *words, base=base)
    first.stop_requested = lambda: first.steps >= at_steps
    assert not first.run()
    first.close()
    second = make_trainer(tmp_path / "run", *words, base=base)
    assert second.resume() == at_steps and second.run()
    assert plain(second.state_dict()) == plain(straight.state_dict())
    assert rows(tmp_path / "run") == rows(tmp_path / "straight")
    widths = [row["curriculum/width"] for row in rows(tmp_path / "run") if len(row) == 3]
    assert len(widths) > 5 and 0.2 < widths[0] < widths[-1]
    assert straight.envs[0].unwrapped.width in [0.2, *widths]


def test_callback_ends_the_run_and_its_metric_may_too(zygote, tmp_path):
    log = tmp_path / "log"
    words = [*WIDE, "threads=1"]
    stopper = ["callback=tiny_callbacks:Stopper", "callback_kwargs={at_steps: 90}"]
    run = tmp_path / "run"
    assert zygote.run(*words, *stopper, f"run_dir={run}", log=log)[0] == 0
    end = json.loads((run / "done.json").read_text(encoding="utf-8"))
    assert (end["frames"], end["stopped"]) == (90, "callback=tiny_callbacks:Stopper: enough")
    assert rows(run)[-1]["frames"] == 90 and "eval/episode_return" in str(rows(run)[-2:])
    code = json.loads((run / "provenance.json").read_text(encoding="utf-8"))[0]["plugins"]
    assert "tiny_callbacks" in str(code)
    run = tmp_path / "metric"
    rule = "stop_when=curriculum/width>0.15"
    assert zygote.run(*words, WIDEN, rule, f"run_dir={run}", log=log)[0] == 0
    end = json.loads((run / "done.json").read_text(encoding="utf-8"))
    assert end["frames"] < 300 and end["stopped"].startswith("stop_when: curriculum/width was >")


@pytest.mark.parametrize("method", ["on_step", "on_episode", "on_update", "on_evaluation"])
def test_callback_that_raises_leaves_a_run_that_resumes(tmp_path, method):
    words = ["callback=tiny_callbacks:Failing", "callback_kwargs.at_steps=130"]
    words += [f"callback_kwargs.method={method}"]
    trainer = make_trainer(tmp_path, *words, base=WIDE)
    with pytest.raises(UserCodeFailed) as caught:
        trainer.run()
    said = f"callback=tiny_callbacks:Failing: {method} raised KeyError: 'no such level' at "
    assert str(caught.value).startswith(said) and "tiny_callbacks.py:" in str(caught.value)
    trainer.close()
    assert make_trainer(tmp_path, *words, base=WIDE).resume() == 120


def test_failing_callback_is_one_sentence_of_the_command(zygote, tmp_path):
    words = [*WIDE, "callback=tiny_callbacks:Failing", "callback_kwargs={method: on_step}"]
    status, said = zygote.run(*words, f"run_dir={tmp_path / 'run'}", log=tmp_path / "log")
    assert status == 1 and "Traceback" not in said, said
    assert "callback=tiny_callbacks:Failing: on_step raised KeyError: 'no such level' at" in said


class SetsAttribute(Callback):
    def __init__(self, name, value):
        self.name, self.value = name, value

    def on_start(self, run):
        run.envs.set_attr(self.name, self.value)


class Logs(Callback):
    def __init__(self, **metrics):
        self.metrics = {name.replace("__", "/"): value for name, value in metrics.items()}

    def on_start(self, run):
        run.log(self.metrics)


@pytest.mark.parametrize(
    ("callback", "sentence"),
    [
        (SetsAttribute("widht", 1.0), "no attribute 'widht'; did you mean width?"),
        (SetsAttribute("width", object()), "width is of type object: expected numbers"),
        (Logs(level=1), "expected names of your own with a group, as in curriculum/level"),
        (Logs(eval__episode_return=1), "received 'eval/episode_return'"),
        (Logs(my__level=float("nan")), "expected finite numbers, received my/level=nan"),
    ],
    ids=["unknown", "object", "no group", "ours", "nan"],
)
def test_what_a_callback_may_not_do_is_said(tmp_path, callback, sentence):
    with pytest.raises(UserCodeFailed) as caught:
        trainer_with(tmp_path, callback).run()
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    {
        ("callback=Widen",): "expected module:NAME, as in callback=my_module:NAME",
        ("callback=tiny_callback:Widen",): "there is no module tiny_callback: run the command in",
        ("callback=tiny_callbacks:Wide",): "tiny_callbacks has no Wide; did you mean Widen",
        ("callback=tiny_callbacks:LEVEL",): "expected a class, or a function that returns a call",
        ("callback=tiny_callbacks:not_one",): "received a str: let its class inherit from that",
        ("callback=tiny_callbacks:Misspelt",): "nothing calls its on_epsiode; did you mean on_epi",
        ("callback=tiny_callbacks:Stopper",): "making it raised TypeError",
        (WIDEN, "callback_kwargs.last=1"): "unexpected keyword argument 'last'",
        ("callback=[tiny_callbacks:Widen,tiny_callbacks:Widen]",): "it is given twice",
        (
            "callback=[tiny_callbacks:Widen,tiny_callbacks:Idle]",
            "callback_kwargs.first=1",
        ): "as in callback_kwargs.Widen.KEY=VALUE, received 'first'",
        ("callback_kwargs.first=1",): "callback_kwargs.first: has no effect without callback=",
    }.items(),
    ids=str,
)
def test_callback_that_cannot_be_made_is_refused(tmp_path, words, sentence):
    with pytest.raises(ConfigError) as caught:
        make_trainer(tmp_path, *words, base=WIDE)
    assert sentence in str(caught.value)


def test_module_that_fails_to_import_is_said_with_its_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_callbacks.py").write_text("\n1 / 0\n", encoding="utf-8")
    (tmp_path / "lacking_callbacks.py").write_text("import no_such_package\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"raised ZeroDivisionError.* at \S*broken_callbacks"):
        make_trainer(tmp_path, "callback=broken_callbacks:A", base=WIDE)
    with pytest.raises(ConfigError, match="lacking_callbacks raised ModuleNotFoundError: No mo"):
        make_trainer(tmp_path, "callback=lacking_callbacks:A", base=WIDE)


def test_state_that_a_checkpoint_cannot_hold_is_said_before_the_first_step(tmp_path):
    trainer = make_trainer(tmp_path, "callback=tiny_callbacks:Opaque", base=WIDE)
    with pytest.raises(UserCodeFailed, match=r"state_dict\(\)\['seen'\]\[1\] is of type set"):
        trainer.run()
    assert trainer.steps == 0


def test_several_callbacks_have_arguments_by_name_and_a_factory_is_called(tmp_path):
    words = "callback=[tiny_callbacks:make_widen,tiny_callbacks:Stopper]"
    kwargs = "callback_kwargs={make_widen: {first: 0.3}, Stopper: {at_steps: 30}}"
    trainer = make_trainer(tmp_path, words, kwargs, base=WIDE)
    assert trainer.run() and trainer.steps == 30
    assert trainer.envs[0].unwrapped.width == 0.3


def test_run_resumes_only_with_the_callbacks_that_it_began_with(tmp_path):
    first = trainer_with(tmp_path, Widen(0.1), words=["train_frames=60"])
    first.run()
    first.close()
    with pytest.raises(ConfigError, match="tiny_callbacks:Widen, received none; objects that Pyth"):
        trainer_with(tmp_path).resume()
    with pytest.raises(ConfigError, match="received tiny_callbacks:Idle"):
        trainer_with(tmp_path, Idle()).resume()
    again = Widen(0.7)
    assert trainer_with(tmp_path, again).resume() == 60 and again.width < 0.5


def test_arrays_and_numbers_of_numpy_come_back_as_they_were(tmp_path):
    class Remembers(Callback):
        def __init__(self):
            self.kept = {"a": np.arange(3), "b": (np.float32(0.5), [True, None]), 7: "x"}

        def state_dict(self):
            return self.kept

        def load_state_dict(self, state):
            self.kept = state

    trainer_with(tmp_path, Remembers(), words=["train_frames=60"]).run()
    later = Remembers()
    later.kept = None
    trainer_with(tmp_path, later).resume()
    assert later.kept["a"].tolist() == [0, 1, 2]
    assert (later.kept["b"], later.kept[7]) == ((0.5, [True, None]), "x")


def test_python_hands_over_objects_and_loads_the_best(tmp_path):
    import rlearly

    seen = Recorder()
    words = [*WIDE, "threads=1", "keep_best=true", f"run_dir={tmp_path / 'run'}"]
    run = rlearly.train(*words, "train_frames=140", callbacks=[seen], progress=False)
    assert run.finished and seen.calls[-1][:2] == ("evaluation", 140)
    with pytest.raises(ConfigError, match="test_callbacks:Recorder, received none"):
        rlearly.train(resume=run.path, train_frames=200, progress=False)
    again = Recorder()
    rlearly.train(resume=run.path, train_frames=200, callbacks=[again], progress=False)
    assert again.calls[1] == ("step", 141, 41)
    assert rlearly.load(f"{run.path}@best").frames in (70, 140)


def test_unused_stopper_is_not_met(tmp_path):
    trainer = trainer_with(tmp_path, Stopper(1000), words=["train_frames=60"])
    assert trainer.run() and trainer.stop_reason is None

"""Interventions of the user's own, alone and with ours."""

import json

import pytest
import torch
from conftest import TINY_STATE
from saved import plain, rows
from test_trainer import make_trainer

from rlearly import train
from rlearly.config.resolve import compose, load
from rlearly.core.errors import ConfigError
from rlearly.plasticity.interventions.own import build_own
from rlearly.plasticity.interventions.registry import build_interventions, settings_of
from rlearly.system.seeding import Seeds

TD3 = [*TINY_STATE["td3"], "train_frames=200", "threads=1"]
CLIP, NOISE, DRAWS = "plugin_rules:Clip", "plugin_rules:Noise", "plugin_rules:Draws"


def test_it_acts_and_its_settings_are_read_and_checked(tmp_path):
    words = [*TD3, f"intervention={CLIP}", "intervention_kwargs.bound=0.05"]
    folder = tmp_path / "run"
    trainer = make_trainer(folder, base=words)
    assert trainer.run() and trainer.updates
    largest = max(p.abs().max() for p in trainer.agent.networks["actor"].parameters())
    assert 0.04 < largest < 0.06, "one step of the optimizer follows the last clipping"
    target = max(p.abs().max() for p in trainer.agent.networks["actor_target"].parameters())
    assert target > largest or target < 0.2


def test_it_follows_ours_in_a_list_and_its_networks_are_selected():
    words = [*TD3, f"intervention=[redo,{CLIP},{NOISE}]", "intervention_kwargs.networks=[actor]"]
    config = compose([*words, "intervention_kwargs.size=0.5", "redo.every_steps=50"])
    built = build_interventions(config, Seeds(0))
    assert [part.name for part in built] == ["redo", CLIP, NOISE]
    assert (
        settings_of(config, CLIP).networks == ["actor"] and settings_of(config, NOISE).size == 0.5
    )
    assert settings_of(config, "redo").every_steps == 50
    assert built[1].applies_to("actor") and not built[1].applies_to("critic")
    assert built[2].applies_to("critic"), "it has no such setting"


def test_each_has_a_random_stream_of_its_own():
    config = compose([*TD3, f"intervention=[reset,redo,{NOISE},{DRAWS}]"])
    built = build_interventions(config, Seeds(0))
    drawn = [torch.randn(3, generator=part.weights) for part in built]
    assert len({tuple(one.tolist()) for one in drawn}) == 4
    again = build_own(config, Seeds(0))[0]
    assert torch.equal(torch.randn(3, generator=again.weights), drawn[2])


@pytest.mark.parametrize("agent", ["td3", "ppo"])
def test_resumed_run_equals_uninterrupted_run(agent, tmp_path):
    base = [*TINY_STATE[agent], f"intervention=[{NOISE},{DRAWS},weight_decay]", "train_frames=300"]
    base += ["agent.rollout_steps=32"] if agent == "ppo" else []
    straight, stopped, again = (
        make_trainer(tmp_path / name, base=base) for name in ("one", "two", "two")
    )
    assert straight.run()
    stopped.stop_requested = lambda: stopped.steps >= 207
    assert not stopped.run()
    again.resume()
    assert again.run()
    assert plain(straight.state_dict()) == plain(again.state_dict())
    events = [row["event/noise"] for row in rows(tmp_path / "one") if "event/noise" in row]
    assert events == sorted(events) and len(events) > 3
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


def test_commands_resume_it_and_record_its_code(tmp_path):
    folder = tmp_path / "run"
    words = [
        *TD3,
        f"intervention={NOISE}",
        "intervention_kwargs.every_steps=20",
        f"run_dir={folder}",
    ]
    assert train.main(words) == 0
    assert train.main([f"resume={folder}", "train_frames=220"]) == 0
    assert load(folder).intervention_kwargs == {"every_steps": 20}
    starts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    assert [[part["module"] for part in start["plugins"]] for start in starts] == [
        ["plugin_rules"]
    ] * 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["intervention=plugin_rules:Clp"], "has no Clp; did you mean Clip"),
        (["intervention=plugin_rules:ClipConfig"], "expected a subclass of Intervention, received"),
        (["intervention=plugin_rules:OddSettings"], "expected a frozen dataclass of settings"),
        (["intervention=no_module:X"], "there is no module no_module"),
        ([f"intervention={CLIP}", "intervention_kwargs.bond=1"], "bond: is no setting of plugin_"),
        (
            [f"intervention={CLIP}", "intervention_kwargs.bound=x"],
            "bound: expected float, received",
        ),
        ([f"intervention={CLIP}", "intervention_kwargs.bound=0"], "expected a number above 0"),
        (["intervention_kwargs.bound=1"], "bound: is no setting of an intervention of your own"),
        (
            [f"intervention={CLIP}", "intervention_kwargs.networks=[value]"],
            "intervention_kwargs.networks: expected some of actor, critic",
        ),
    ],
)
def test_what_cannot_be_an_intervention_is_refused(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        compose([*TD3, *words])


@pytest.mark.parametrize(
    ("name", "status", "sentence"),
    [
        ("RaisesAtOnce", 2, "making it raised LookupError: no such layer at "),
        ("RaisesLate", 1, "before_update() raised LookupError: no such layer at "),
    ],
)
def test_intervention_that_fails_is_named(name, status, sentence, tmp_path, capsys):
    words = [*TD3, f"intervention=plugin_rules:{name}", f"run_dir={tmp_path / 'run'}"]
    assert train.main(words) == status
    said = capsys.readouterr().err
    assert f"intervention=plugin_rules:{name}: {sentence}" in said and "bug in" not in said

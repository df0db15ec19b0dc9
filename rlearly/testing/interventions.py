"""The contract of an intervention, checked on small agents."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from rlearly.agents import agent_spec
from rlearly.config import plugins
from rlearly.core.tree_diff import first_difference
from rlearly.plasticity.interventions.base import Intervention
from rlearly.system.seeding import Seeds
from rlearly.testing.agents import (
    AgentSubject,
    env_specs_for,
    loaded_agent_continues_to_the_bit,
    nothing_draws_from_a_global_generator,
    same_seed_same_learning,
    updates_return_metrics,
)
from rlearly.testing.laws import Law, add_tests, check_all, expect

SMALL: dict[str, dict[str, Any]] = {
    "td3": {"hidden_dim": 16, "batch_size": 16, "learning_starts_steps": 10},
    "ppo": {"hidden_dim": 16, "rollout_steps": 8, "minibatches": 2},
    "drqv2": {
        "hidden_dim": 16, "batch_size": 16, "feature_dim": 8, "encoder_channels": 4,
        "exploration_steps": 10,
    },
}  # fmt: skip
"""Agents that an intervention is tried on, with small networks."""


def subjects_for(
    cls: type[Intervention], settings: Mapping[str, Any], agents: Sequence[str]
) -> Iterator[AgentSubject]:
    """Each agent with the intervention."""

    def make(seeds: Seeds) -> list[Intervention]:
        config = plugins.settings_from(cls.config_class(), settings, "settings")
        stream = seeds.torch("interventions", "cpu", zlib.crc32(cls.__name__.encode()), 1)
        made = cls(config, weights=stream)
        made.name = cls.__name__
        made.stream = stream
        return [made]

    for name in agents:
        spec = agent_spec(name)
        yield AgentSubject(
            spec, env_specs_for(spec)[-1 if spec.observes_pixels else 0], SMALL[name], make
        )


def it_changes_what_an_agent_learns(subject: AgentSubject) -> None:
    """It acts in the first updates, with settings that let it."""
    plain = AgentSubject(subject.spec, subject.env, subject.settings)
    one, two = subject.make(), plain.make()
    subject.learn(one)
    plain.learn(two)
    states = [agent.state_dict()["modules"]["networks"] for agent in (one, two)]
    expect(
        first_difference(*states) is not None,
        "expected the intervention to change what an agent learns in its first updates; choose "
        "settings with which it acts at once, such as every_steps=1",
    )


INTERVENTION_LAWS: tuple[Law, ...] = (
    it_changes_what_an_agent_learns,
    updates_return_metrics,
    same_seed_same_learning,
    nothing_draws_from_a_global_generator,
    loaded_agent_continues_to_the_bit,
)
"""What holds for an agent with any intervention. Laws take an AgentSubject."""


def check_intervention(
    cls: type[Intervention],
    settings: Mapping[str, Any] | None = None,
    agents: Sequence[str] = tuple(SMALL),
) -> None:
    """Check all laws of an intervention.

    Args:
        cls: its class.
        settings: with which it acts at once, such as every_steps=1.
        agents: some of td3, ppo and drqv2.

    Raises:
        LawBroken: a law is broken; the message lists all that are.
    """
    for subject in subjects_for(cls, settings or {}, agents):
        check_all(INTERVENTION_LAWS, subject)


class InterventionContract:
    """Tests of an intervention, one for each law, for pytest.

        class TestMyIntervention(InterventionContract):
            intervention = my_module.MyIntervention
            settings = {"every_steps": 1}

    settings: with which it acts at once. agents: those that it is tried on.
    """

    intervention: ClassVar[type[Intervention]]
    settings: ClassVar[Mapping[str, Any]] = {}
    agents: ClassVar[Sequence[str]] = tuple(SMALL)

    def subjects(self) -> Iterator[AgentSubject]:
        return subjects_for(self.intervention, self.settings, self.agents)


add_tests(InterventionContract, INTERVENTION_LAWS)

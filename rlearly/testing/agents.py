"""The contract of an agent, checked on random data in a second or two."""

from __future__ import annotations

import copy
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from rlearly.agents import AgentSpec, agent_spec
from rlearly.agents.spec import check_spec
from rlearly.config.interventions import INTERVENTIONS
from rlearly.core.spaces import has_images
from rlearly.core.tree import leaves
from rlearly.core.types import Agent, EnvSpec, Metrics
from rlearly.plasticity.interventions.base import Intervention, ModulesView
from rlearly.plasticity.monitor import PlasticityMonitor
from rlearly.system.seeding import Seeds
from rlearly.testing.data import random_batch, random_rollout
from rlearly.testing.laws import (
    Law,
    add_tests,
    check_all,
    expect,
    expect_equal,
    no_global_randomness,
)
from rlearly.training.checkpoint import Checkpoints

STEP = 1000
"""The agent step at which updates begin here."""
LATE = 10_000_000
"""An agent step at which exploration schedules have ended."""
ROWS = 5
UPDATES = 6

STATES = Box(-np.inf, np.inf, (7,), np.float32)
IMAGES = Box(0, 255, (9, 24, 24), np.uint8)
CONTINUOUS = Box(-1, 1, (3,), np.float32)
METRIC = re.compile(r"(now/)?[a-z_]+/\w+")


def env_specs_for(spec: AgentSpec) -> list[EnvSpec]:
    """An env of each kind that an agent takes: states and images, continuous and discrete."""
    actions = [CONTINUOUS if kind == "continuous" else Discrete(3) for kind in spec.actions]
    observations = [STATES, IMAGES] if spec.observes_pixels else [STATES]
    return [EnvSpec(obs, action, 1) for obs in observations for action in actions]


@dataclass(frozen=True)
class AgentSubject:
    """An agent to check: with some settings, in one env, perhaps with interventions."""

    spec: AgentSpec
    env: EnvSpec
    settings: Mapping[str, Any] = field(default_factory=dict)
    interventions: Callable[[Seeds], Sequence[Intervention]] = lambda seeds: ()

    @property
    def config(self) -> Any:
        config: Any = self.spec.config_class(**self.settings)
        if self.spec.on_policy:
            config = config.for_actions(self.env.action)
            if config.anneal_steps is None:
                config = dataclasses.replace(config, anneal_steps=LATE)
        return config

    def make(
        self,
        seed: int = 0,
        *,
        monitor: PlasticityMonitor | None = None,
        more: Sequence[Intervention] = (),
    ) -> Any:
        """A new agent on the CPU."""
        seeds = Seeds(seed)
        return self.spec.make(
            self.config,
            self.env,
            seeds=seeds,
            device=torch.device("cpu"),
            monitor=monitor or PlasticityMonitor(),
            interventions=[*self.interventions(seeds), *more],
            compute=None,
        )

    def observations(self, rows: int = ROWS, seed: int = 100) -> Any:
        obs = random_batch(self.env, rows, seed).obs
        if isinstance(obs, Mapping):
            return {key: part.numpy() for key, part in obs.items()}
        return obs.numpy()

    def data(self, agent: Agent, seed: int, begun: Sequence[np.ndarray] = ()) -> Any:
        """The data of one update; for an on-policy agent, a rollout of its own actions."""
        if self.spec.on_policy:
            steps = self.config.rollout_steps
            return random_rollout(agent, self.env, seed, steps, ROWS, begun)
        return random_batch(self.env, self.config.batch_size, seed)

    def learn(
        self,
        agent: Agent,
        updates: int = UPDATES,
        first: int = 0,
        begun: Sequence[np.ndarray] = (),
    ) -> list[Metrics]:
        """Updates, each on data that its number determines; the metrics of each."""
        found = []
        for number in range(first, first + updates):
            data = self.data(agent, number, begun if number == first else ())
            found.append(agent.update(data, step=STEP + number))
        return found


# --- laws ---


def declares_itself_well(subject: AgentSubject) -> None:
    """A run can use the AgentSpec."""
    check_spec("SPEC", subject.spec)
    frames = subject.config.seed_frames(subject.env.frames_per_step)
    expect(
        isinstance(frames, int) and frames >= 0,
        f"seed_frames: expected a whole number of at least 0, received {frames!r}",
    )


def acts_within_the_action_space(subject: AgentSubject) -> None:
    """An array of actions [N, A] in [-1, 1], or int64 [N], one for each observation."""
    agent, space = subject.make(), subject.env.action
    for rows, step, explore in (
        (ROWS, 0, True), (ROWS, LATE, True), (1, LATE, True), (1, 0, False), (ROWS, LATE, False),
    ):  # fmt: skip
        action = agent.act(subject.observations(rows), step=step, explore=explore)
        discrete = isinstance(space, Discrete)
        shape, dtype = ((rows,), "int64") if discrete else ((rows, *space.shape), "float32")
        expected = f"act(obs) of {rows} observations: expected a numpy array {dtype} {list(shape)}"
        expect(isinstance(action, np.ndarray), f"{expected}, received a {type(action).__name__}")
        expect(
            action.shape == shape and action.dtype == dtype,
            f"{expected}, received {action.dtype} {list(action.shape)}",
        )
        if discrete:
            expect(
                bool(((action >= 0) & (action < space.n)).all()),
                f"act(obs): expected numbers from 0 to {space.n - 1}, received {action.tolist()}",
            )
            continue
        expect(bool(np.isfinite(action).all()), f"act(obs): received {action.tolist()}")
        if not (explore and subject.spec.on_policy):  # it learns from unclipped samples
            largest = float(np.abs(action).max())
            expect(largest <= 1, f"act(obs): expected actions in [-1, 1], received {largest:.3g}")


def evaluates_each_observation_alone(subject: AgentSubject) -> None:
    """With explore=False, an action and a value depend on their own observation only."""
    agent = subject.make()
    subject.learn(agent, 2)
    obs = subject.observations()
    together = [agent.act(obs, step=LATE, explore=False), agent.value(obs)]
    rows = [_row(obs, number) for number in range(ROWS)]
    apart = [
        np.concatenate([agent.act(row, step=LATE, explore=False) for row in rows]),
        np.concatenate([agent.value(row) for row in rows]),
    ]
    for name, one, two in zip(("act", "value"), together, apart, strict=True):
        expect(
            np.allclose(one, two, rtol=1e-3, atol=1e-3),
            f"{name}(obs): expected the same for an observation alone as among others, received "
            f"{two.tolist()} and {one.tolist()}",
        )


def _row(obs: Any, number: int) -> Any:
    if isinstance(obs, Mapping):
        return {key: part[number : number + 1] for key, part in obs.items()}
    return obs[number : number + 1]


def evaluation_is_deterministic_and_changes_nothing(subject: AgentSubject) -> None:
    """With explore=False, actions and values draw no random numbers and do not affect training."""
    watched, alone = subject.make(), subject.make()
    obs = subject.observations()
    for number in range(UPDATES):
        first, second = (watched.act(obs, step=LATE, explore=False) for _ in range(2))
        expect_equal(first, second, "act(obs, explore=False): expected the same action twice")
        values = [watched.value(obs) for _ in range(2)]
        expect_equal(values[0], values[1], "value(obs): expected the same values twice")
        expect_equal(
            watched.state_dict(),
            alone.state_dict(),
            "expected act(obs, explore=False) and value(obs) to leave the agent as it was",
        )
        for agent in (watched, alone):
            subject.learn(agent, 1, number)
    expect_equal(
        watched.state_dict(),
        alone.state_dict(),
        "expected an agent that is evaluated between updates to learn like one that is not",
    )


def values_are_one_number_for_each_observation(subject: AgentSubject) -> None:
    """value(obs) is a float array [N]."""
    value = subject.make().value(subject.observations())
    fits = isinstance(value, np.ndarray) and value.shape == (ROWS,) and value.dtype.kind == "f"
    received = f"{value.dtype} {list(value.shape)}" if hasattr(value, "shape") else repr(value)
    expect(fits, f"value(obs): expected a numpy array of floats [{ROWS}], received {received}")
    expect(bool(np.isfinite(value).all()), f"value(obs): received {value.tolist()}")


def updates_return_metrics(subject: AgentSubject) -> None:
    """Metrics are finite numbers or detached 0-dimensional tensors, named group/name."""
    for metrics in subject.learn(subject.make()):
        expect(isinstance(metrics, Mapping), f"update: expected a dict, received {metrics!r:.80}")
        for name, value in metrics.items():
            expect(
                isinstance(name, str) and bool(METRIC.fullmatch(name)),
                f"update: expected metrics named like loss/critic, event/reset or "
                f"now/plasticity/rank, received {name!r}",
            )
            if isinstance(value, Tensor):
                expect(
                    value.ndim == 0 and not value.requires_grad,
                    f"update: expected {name} to be a detached tensor with no dimensions, received "
                    f"one of shape {list(value.shape)}"
                    + (" that requires a gradient" if value.requires_grad else ""),
                )
            expect(
                isinstance(value, Tensor | float | int | np.floating | np.integer),
                f"update: expected {name} to be a tensor or a number, received {value!r:.80}",
            )
            expect(bool(np.isfinite(float(value))), f"update: {name} is {float(value)}")


def updates_change_the_agent(subject: AgentSubject) -> None:
    """An agent that has learned differs from a new one."""
    agent = subject.make()
    before = _saved(agent)
    subject.learn(agent)
    expect(
        bool(_changed(before, agent.state_dict())),
        f"expected {UPDATES} updates to change what state_dict() returns; nothing did",
    )


def _saved(agent: Agent) -> Any:
    return copy.deepcopy(agent.state_dict())


def _changed(one: Any, two: Any) -> bool:
    try:
        expect_equal(one, two, "")
    except AssertionError:
        return True
    return False


def updates_and_acting_leave_their_inputs_alone(subject: AgentSubject) -> None:
    """Observations and batches belong to the replay buffer and must not change."""
    agent = subject.make()
    obs = subject.observations()
    before = copy.deepcopy(obs)
    agent.act(obs, step=LATE, explore=not subject.spec.on_policy)
    agent.value(obs)
    expect_equal(before, obs, "expected act and value to leave the observations as they are")
    data = subject.data(agent, 0)
    before = copy.deepcopy(vars(data))
    agent.update(data, step=STEP)
    expect_equal(before, vars(data), "expected update to leave its batch as it is")


def same_seed_same_learning(subject: AgentSubject) -> None:
    """The seeds that `make` is given determine everything."""
    one, two, other = subject.make(0), subject.make(0), subject.make(1)
    expect_equal(one.state_dict(), two.state_dict(), "expected equal agents from equal seeds")
    metrics = [subject.learn(agent) for agent in (one, two, other)]
    expect_equal(
        one.state_dict(), two.state_dict(), "expected agents with equal seeds to learn the same"
    )
    expect_equal(_numbers(metrics[0]), _numbers(metrics[1]), "expected equal seeds, equal metrics")
    expect(
        _changed(one.state_dict(), other.state_dict()),
        "expected agents with different seeds to differ; draw the weights from `seeds`",
    )


def _numbers(metrics: Sequence[Metrics]) -> list[dict[str, float]]:
    return [
        {n: float(v.detach() if isinstance(v, Tensor) else v) for n, v in row.items()}
        for row in metrics
    ]


def nothing_draws_from_a_global_generator(subject: AgentSubject) -> None:
    """All randomness is the agent's own."""
    with no_global_randomness("make(...)"):
        agent = subject.make()
    with no_global_randomness("act(obs)"):
        agent.act(subject.observations(), step=0, explore=not subject.spec.on_policy)
        agent.act(subject.observations(), step=LATE, explore=not subject.spec.on_policy)
        agent.act(subject.observations(), step=LATE, explore=False)
    with no_global_randomness("value(obs)"):
        agent.value(subject.observations())
    with no_global_randomness("update(batch)"):
        subject.learn(agent)


def loaded_agent_continues_to_the_bit(subject: AgentSubject) -> None:
    """A new agent that loads a checkpoint continues bit for bit like the one that saved it."""
    agent, loaded = subject.make(0), subject.make(9)
    subject.learn(agent, 3)
    action = agent.act(subject.observations(), step=STEP + 3, explore=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), 1)
        checkpoints.save(1, {"agent": agent.state_dict()})
        loaded.load_state_dict(checkpoints.load_newest()[1]["agent"])
    expect_equal(
        agent.state_dict(), loaded.state_dict(), "expected the state that was loaded to be saved"
    )
    begun = [action] if subject.spec.on_policy else ()
    metrics = [subject.learn(each, UPDATES, 3, begun) for each in (agent, loaded)]
    sentence = (
        "expected a loaded agent to learn like the one that was saved; is something missing from "
        "state_dict (an optimizer, a target network, a generator, a counter)?"
    )
    expect_equal(_numbers(metrics[0]), _numbers(metrics[1]), sentence)
    expect_equal(agent.state_dict(), loaded.state_dict(), sentence)
    obs = subject.observations()
    for explore in (False, True):
        actions = [each.act(obs, step=STEP + 9, explore=explore) for each in (agent, loaded)]
        expect_equal(actions[0], actions[1], f"{sentence} act(obs, explore={explore}) differs")


def measuring_plasticity_changes_nothing(subject: AgentSubject) -> None:
    """A run with measurements learns like one without."""
    silent = subject.make()
    measured = subject.make(monitor=PlasticityMonitor(every_steps=1))
    without, with_them = (subject.learn(agent) for agent in (silent, measured))
    for one, two in zip(_numbers(without), _numbers(with_them), strict=True):
        common = {name: value for name, value in two.items() if name in one}
        expect_equal(one, common, "expected plasticity.every_steps to change no other metric")
    states = [
        {path: leaf for path, leaf in leaves(agent.state_dict()) if "monitor" not in path}
        for agent in (silent, measured)
    ]
    sentence = "expected plasticity.every_steps to leave training as it is"
    expect_equal(states[0], states[1], sentence)


class _Probe(Intervention):
    """Finds out which networks interventions are shown, and whether they are called."""

    networks: tuple[str, ...] | None = None
    calls = 0

    def attach(self, modules: ModulesView) -> None:
        super().attach(modules)
        self.networks = tuple(modules.online)

    def before_update(self, step: int) -> Metrics:
        self.calls += 1
        return {}


def interventions_act_or_are_refused(subject: AgentSubject) -> None:
    """`AgentSpec.networks` are those that interventions get; without any, all are refused."""
    probe = _Probe(None)
    agent = subject.make(more=[probe])
    subject.learn(agent, 2)
    if probe.networks is None:
        accepted = set(INTERVENTIONS) - set(subject.spec.refused_interventions)
        expect(
            not accepted,
            "the agent hands no networks to its interventions (AgentModules does that), so it must "
            f"refuse them in refused_interventions: {', '.join(sorted(accepted))}",
        )
        return
    expected = set(subject.spec.networks)
    found = {name for name in probe.networks if _has_weights(probe.modules.networks[name])}
    optional = set() if has_images(subject.env.observation) else {"encoder"}
    expect(
        expected - optional <= found <= expected,
        f"AgentSpec.networks: expected {', '.join(sorted(found))}, which interventions can act on, "
        f"received {', '.join(subject.spec.networks)}",
    )
    expect(
        probe.calls >= 2,
        "expected interventions to be called in every update: begin_update and end_update",
    )


def _has_weights(network: nn.Module) -> bool:
    return any(True for _ in network.parameters())


AGENT_LAWS: tuple[Law, ...] = (
    declares_itself_well,
    acts_within_the_action_space,
    evaluates_each_observation_alone,
    evaluation_is_deterministic_and_changes_nothing,
    values_are_one_number_for_each_observation,
    updates_return_metrics,
    updates_change_the_agent,
    updates_and_acting_leave_their_inputs_alone,
    same_seed_same_learning,
    nothing_draws_from_a_global_generator,
    loaded_agent_continues_to_the_bit,
    measuring_plasticity_changes_nothing,
    interventions_act_or_are_refused,
)
"""What holds for every agent. Laws take an AgentSubject."""


def check_agent(
    agent: AgentSpec | str, settings: Mapping[str, Any] | None = None, *envs: EnvSpec
) -> None:
    """Check all laws of an agent.

    >>> check_agent("td3", {"hidden_dim": 16, "batch_size": 8, "learning_starts_steps": 10})

    Args:
        agent: an AgentSpec, or the name of a registered agent or plug-in.
        settings: of `agent.*`; small ones make it quick.
        envs: what it learns in; none: one env of each kind that it takes.

    Raises:
        LawBroken: a law is broken; the message lists all that are.
    """
    spec = agent_spec(agent) if isinstance(agent, str) else agent
    for env in envs or env_specs_for(spec):
        check_all(AGENT_LAWS, AgentSubject(spec, env, settings or {}))


class AgentContract:
    """Tests of an agent, one for each law, for pytest.

        class TestMyAgent(AgentContract):
            agent = my_module.SPEC
            settings = {"hidden_dim": 16, "batch_size": 8}

    agent: an AgentSpec, or a name as in `agent=NAME`. settings: of `agent.*`; small ones make the
    tests quick. envs: EnvSpecs that it learns in; empty: one of each kind that it takes.
    """

    agent: ClassVar[AgentSpec | str]
    settings: ClassVar[Mapping[str, Any]] = {}
    envs: ClassVar[Sequence[EnvSpec]] = ()

    def subjects(self) -> Iterator[AgentSubject]:
        spec = agent_spec(self.agent) if isinstance(self.agent, str) else self.agent
        for env in self.envs or env_specs_for(spec):
            yield AgentSubject(spec, env, self.settings)


add_tests(AgentContract, AGENT_LAWS)

"""What is saved and restored of random envs is exact to the bit, or it is refused.

The laws see rlearly's public functions only. What they expect comes from envs that were never
saved, restored or wrapped in SnapshotRL.
"""

from __future__ import annotations

import copy
import pickle
import struct
from collections import Counter, deque
from collections.abc import Mapping

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from random_envs import RandomEnv, random_envs
from random_parts import FUNCTIONS, PARTS, WRAPPERS

from rlearly import EnvState, SnapshotRL, Snapshots, record, restore, save, self_test
from rlearly.core.errors import ConfigError
from rlearly.envs.state.action_replay import with_action_recorder

FEW = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MANY = settings(FEW, max_examples=600, derandomize=False, phases=[Phase.generate, Phase.shrink])

pytestmark = pytest.mark.filterwarnings("ignore")


class Refused(Exception):
    """rlearly has refused an env in one of its own sentences."""


def ask(function, *args, **kwargs):
    """A result of rlearly. Its refusals become `Refused`; any other error is a failure."""
    try:
        return function(*args, **kwargs)
    except ConfigError as error:
        name = getattr(function, "__qualname__", str(function))
        raise Refused(f"{name}: {error}") from error


# ------------------------------------------------------------------ what is compared


def bits(value):
    """A value as plain data that is equal only if the value is equal to the bit."""
    if isinstance(value, np.ndarray | np.generic):
        data = value.tolist() if value.dtype.hasobject else value.tobytes()
        return "array", type(value).__name__, value.dtype.str, value.shape, data
    if isinstance(value, torch.Tensor):
        return "tensor", str(value.dtype), bits(value.detach().numpy())
    if isinstance(value, np.random.Generator):
        return bits(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return bits(value.get_state(legacy=False))
    if hasattr(value, "getstate"):
        return value.getstate()
    if type(value) is float:
        return struct.pack("<d", value)
    if isinstance(value, Mapping):
        return type(value), [(bits(key), bits(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return type(value), [bits(item) for item in value]
    return type(value), id(value) if callable(value) else value


def said(result):
    """The bits of what reset or step returned, without wall-clock times."""
    *rest, info = result
    if isinstance(info.get("episode"), dict):
        info = info | {"episode": {key: info["episode"][key] for key in ("r", "l")}}
    return bits([*rest, info])


def play(env, actions):
    """All that an env says to these actions. Where an episode ends, the env is reset."""
    heard = []
    for action in actions:
        result = env.step(action)
        heard.append(said(result))
        if result[2] or result[3]:
            heard.append(said(env.reset()))
    return heard


def actions_for(world, count, seed):
    draws = np.random.default_rng(seed).uniform(-1, 1, count)
    if world.discrete:
        return [int(draw > 0) + int(draw > 0.5) for draw in draws]
    return [np.array([draw], np.float32) for draw in draws]


class Inside:
    """Looks up paths and conditions in an env."""

    def __init__(self, env, module):
        self.names = {**vars(module), "self": env.unwrapped, "w": self._wrapper}
        self.env = env

    def _wrapper(self, name):
        env = self.env
        while type(env).__name__ != name:
            env = env.env
        return env

    def value(self, path):
        return eval(path if path.startswith("w(") else f"self.{path}", self.names)

    def values(self, paths):
        return {path: bits(self.value(path)) for path in paths}

    def assign(self, path, value):
        """Set an attribute; an array keeps its place, so that its views see the new numbers."""
        held = self.value(path)
        if isinstance(held, np.ndarray):
            held[...] = value
        else:
            exec(f"self.{path} = value", self.names, {"value": value})

    def check(self, conditions, when):
        broken = [one for one in conditions if not eval(one, self.names)]
        assert not broken, f"{when}, this is no longer true: {'; '.join(broken)}"


def first_difference(expected, got):
    for number, (one, two) in enumerate(zip(expected, got, strict=False)):
        if one != two:
            return f"output {number}: expected {one}, got {two}"
    return f"expected {len(expected)} outputs, got {len(got)}"


def runs_alone(world, module):
    """Whether the env and its wrappers work together, without rlearly."""
    try:
        env = module.make()
        env.reset(seed=0)
        play(env, actions_for(world, 2 * world.length_steps, 0))
        return True
    except Exception:
        return False


# ------------------------------------------------------------------ law 1: save and restore


def continues(world, module, data, *, proved=True, others=None):
    """What was saved continues as it did, in this env and in another of the same arguments.

    `proved`: whether the env has passed the self-test; if not, it is a registered one. `others`:
    the arguments of both envs, if the one that passed it was made with the teacher's.
    """
    seed, before, after = data

    def make():
        if proved:
            return module.make(**(others or {}))
        return module.wrap(gymnasium.make(module.ID, disable_env_checker=True))

    env, method = make(), None
    if proved:
        tested = module.make() if others else env
        method = ask(self_test, tested, make_fresh=module.make)
        if method == "replay":
            env = with_action_recorder(env)
    env.reset(seed=seed)
    heard = play(env, actions_for(world, before, seed))
    inside, settings_ = Inside(env, module), world.facts("settings")
    before_all = inside.values(settings_)

    def go_on(number, one=env):
        return play(one, actions_for(world, after, seed + number))

    points, expected = [], []
    for number in range(2):
        points.append(ask(save, env).to_bytes())
        expected.append(go_on(number))
    recorded = method == "replay"  # then a reset without a seed draws one
    if proved and not recorded and world.all("episodic") and world.all("independent"):
        twin = make()
        twin.reset(seed=seed)
        heard += [*expected[0], *expected[1]]
        got = play(twin, actions_for(world, before, seed))
        for number in range(2):
            got += play(twin, actions_for(world, after, seed + number))
        assert heard == got, "self_test or save changed the env: " + first_difference(got, heard)
    env.reset()
    play(env, actions_for(world, 3, seed + 7))
    for number in (0, 1, 0):
        ask(restore, env, EnvState.from_bytes(points[number]))
        inside.check(world.holds, "After restoring")
        got = go_on(number)
        assert got == expected[number], "the same env: " + first_difference(expected[number], got)
        inside.check(world.holds, "After going on")
        assert inside.values(settings_) == before_all, "the settings were changed"
    fresh = with_action_recorder(make()) if recorded else make()
    if before % 2:
        fresh.reset(seed=seed + 1)
        play(fresh, actions_for(world, 3, seed + 8))
    for number in (1, 0):
        ask(restore, fresh, EnvState.from_bytes(points[number]))
        look = Inside(fresh, module)
        look.check(world.holds, "After restoring in another env")
        got = go_on(number, fresh)
        assert got == expected[number], "another env: " + first_difference(expected[number], got)


def continues_with_other_arguments(world, module, data):
    """The same of an env with other arguments than those of the one that was tested."""
    others = {key: eval(text, vars(module)) for key, text in world.arguments(True).items()}
    continues(world, module, data, others=others)


def continues_unproved(world, module, data):
    """The same of a registered env, without a self-test before."""
    continues(world, module, data, proved=False)


# ------------------------------------------------------------------ law 2: a teacher's world


def teach(world, module, seed, env):
    """(snapshots of two episodes, the actions of each)."""
    draws = iter(actions_for(world, 20_000, seed + 3))
    taken, episodes = [], []

    def policy(obs):
        taken.append(next(draws))
        return taken[-1]

    def on_episode(episode, total, steps):
        episodes.append(taken[-steps:])

    snapshots = ask(
        record, env, policy, episodes=2, every_steps=3, seed=seed, on_episode=on_episode
    )
    return snapshots, episodes


def starts_in_the_teachers_world(world, module, data, *, other="same"):
    """A student's env goes on from a snapshot as the teacher's did, with its own settings.

    `other`: whether the student's settings are the same, are others from its construction on, or
    are set later.
    """
    seed, at, beyond = data
    make, generators = module.make, [*world.facts("generators"), "np_random"]
    settings_, lasting = world.facts("settings"), world.facts("lasting")
    chain = [path for one in world.wrappers for path in WRAPPERS[one].lasting]
    others = {key: eval(text, vars(module)) for key, text in world.arguments(True).items()}
    donor = Inside(make(**others), module)
    snapshots, episodes = teach(world, module, seed, make())
    at %= len(snapshots)

    def student_env():
        return make(**(others if other == "built" else {}))

    student, twin = student_env(), student_env()
    inside, reference = Inside(student, module), Inside(twin, module)
    before = inside.values([*settings_, *lasting])
    student = ask(SnapshotRL, student, snapshots, truncate_steps=None, probability=0.0)
    inside = Inside(student, module)
    assert inside.values([*settings_, *lasting]) == before, "SnapshotRL changed the env"
    if other == "later":
        for path in settings_:
            inside.assign(path, copy.copy(donor.value(path)))
            reference.assign(path, copy.copy(donor.value(path)))
    before = inside.values(settings_)

    obs, info = ask(student.reset, seed=seed + 1, options={"snapshot": at})
    obs = copy.deepcopy(obs)
    twin.reset(seed=seed + 1)
    assert inside.values(settings_) == before, "the student's settings were changed"
    inside.check(world.holds, "After starting at a snapshot")
    own = [*lasting, *chain, *(generators if world.all("independent") else [])]
    if world.all("independent"):
        assert inside.values(own) == reference.values(own), "what is the student's own was changed"

    oracle = module.Generated(
        **{key: eval(v, vars(module)) for key, v in world.arguments(False).items()}
    )
    steps, episode = int(snapshots.steps[at]), int(snapshots.episodes[at])
    shown, told = oracle.reset(
        seed=np.random.SeedSequence(seed).generate_state(2).tolist()[episode]
    )
    for action in episodes[episode][:steps]:
        shown, _, _, _, told = oracle.step(action)
    shown = np.array(shown)
    look = Inside(oracle, module)
    for path in settings_:
        look.assign(path, copy.copy(inside.value(path)))
    shows = [WRAPPERS[one].shows for one in world.wrappers]
    visible = all(shows) and world.all("independent")

    def compare(obs, info, shown, told, step, *, seeded=False):
        """`seeded`: whether generators that no reset seeds are in the same state."""
        if not visible:
            return
        for show in reversed(shows):
            obs = eval(show, {"obs": obs})
        for number, (part, place) in enumerate(world.seen):
            differs = step == 0 and part.dynamic and other != "same"
            if part.episodic and (part.seeded or seeded) and not differs:
                one, two = bits(np.array(shown[place])), bits(np.array(obs[place]))
                assert one == two, (
                    f"{step} steps after snapshot {at} ({world.parts[number]}): expected "
                    f"{shown[place]}, got {obs[place]}"
                )
                key = str(number)
                if key in info:
                    assert bits(info[key]) == bits(told[key]), f"info {step} steps after it"
        assert obs[0] == shown[0], f"the clock {step} steps after it"

    compare(obs, info, shown, told, 0)
    on = [*episodes[episode][steps:], *actions_for(world, beyond, seed + 5)]
    over, step = False, 0
    while not over and step < len(on):
        obs, reward, terminated, truncated, info = student.step(on[step])
        twin.step(on[step])
        step += 1
        if not world.any("draws"):
            shown, paid, ended, cut, told = oracle.step(on[step - 1])
            compare(obs, info, shown, told, step)
            if visible and not world.wrappers and world.all("episodic"):
                one, two = bits([paid, ended, cut]), bits([reward, terminated, truncated])
                assert one == two, f"reward or end {step} steps after it: {one}, {two}"
        over = terminated or truncated
    inside.check(world.holds, "After going on from a snapshot")
    assert inside.values(settings_) == before, "the student's settings were changed by steps"
    if world.all("independent"):
        own = [*lasting, *chain]
        assert inside.values(own) == reference.values(own), "what is the student's own was changed"

    heard, expected = student.reset(seed=seed + 2), twin.reset(seed=seed + 2)
    inside.check(world.holds, "After the next ordinary reset")
    for action in [*actions_for(world, 6, seed + 6), None]:
        step += 1
        compare(*_shown_and_told(heard), *_shown_and_told(expected, shows), step, seeded=True)
        if action is None:
            break
        heard, expected = student.step(action), twin.step(action)
    inside.check(world.holds, "In the next ordinary episode")


def _shown_and_told(result, shows=()):
    obs = result[0]
    for show in reversed(shows):
        obs = eval(show or "obs", {"obs": obs})
    return obs, result[-1]


def starts_with_other_settings(world, module, data):
    starts_in_the_teachers_world(world, module, data, other="built")


def starts_with_settings_set_later(world, module, data):
    starts_in_the_teachers_world(world, module, data, other="later")


# ------------------------------------------------------------------ law 3: copies and files


def survives_copies_and_files(world, module, data, folder):
    """Snapshots are the same from a file; SnapshotRL is copied and pickled as its env is."""
    seed, at, _ = data
    snapshots, _ = teach(world, module, seed, module.make())
    ask(snapshots.save, folder / "teacher.h5")
    loaded = ask(Snapshots.load, folder / "teacher.h5")
    assert list(loaded.records) == list(snapshots.records)
    for name in ("kwargs", "versions", "provenance"):
        assert bits(getattr(loaded, name)) == bits(getattr(snapshots, name)), name
    for name in ("observations", "values", "rewards", "returns", "steps", "episodes"):
        assert bits(getattr(loaded, name)) == bits(getattr(snapshots, name)), name
    heard = []
    for held in (snapshots, loaded):
        env = ask(SnapshotRL, module.make(), held, truncate_steps=None)
        options = {"snapshot": at % len(held)}
        heard.append([said(ask(env.reset, seed=seed, options=options))])
        heard[-1] += play(env, actions_for(world, 9, seed))
    if world.all("independent") and world.all("episodic"):
        assert heard[0] == heard[1], first_difference(*heard)
    functions = {*FUNCTIONS, "closure over a counter"}  # copies share what they keep
    copies_alone = (
        world.plain and not world.holds and not functions & {*world.parts, *world.wrappers}
    )
    for copied in (copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))):
        try:
            alone = module.make()
            alone.reset(seed=0)
            copied(alone).reset(seed=0)
        except Exception:
            continue
        env = SnapshotRL(module.make(), loaded, truncate_steps=None)
        env.reset(seed=seed, options=options)
        twin = copied(env)
        if copies_alone and world.all("independent"):
            actions = actions_for(world, 9, seed + 1)
            one, two = (
                [*play(each, actions), said(each.reset(seed=3, options=options))]
                for each in (env, twin)
            )
            assert one == two, "the copy: " + first_difference(one, two)
    return snapshots


# ------------------------------------------------------------------ the laws are held

LAWS = {
    "save and restore": continues,
    "save with other arguments": continues_with_other_arguments,
    "save without a proof": continues_unproved,
    "a teacher's world": starts_in_the_teachers_world,
    "a teacher's world and other settings": starts_with_other_settings,
    "a teacher's world and settings set later": starts_with_settings_set_later,
}
DATA = st.tuples(st.integers(0, 2**20), st.integers(0, 15), st.integers(1, 25))
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def may_be_refused(world, law):
    """Whether a refusal of this env is right.

    Plain envs must be saved, if they were tested with the same arguments. They may be refused as a
    student's env if what goes on from episode to episode influences their world, or if the
    student's other settings do.
    """
    if not world.plain or law is continues_unproved:
        return True
    if law in (continues, continues_with_other_arguments):
        return law is not continues and bool(world.arguments(True))
    dynamic = law is not starts_in_the_teachers_world and world.any("dynamic")
    return dynamic or not world.all("episodic")


def hold(law, world, data):
    """Return "exact", or who refused; None if the env does not run. Raises if a law is broken."""
    with world.loaded() as module:
        if not runs_alone(world, module):
            return None
        try:
            law(world, module, data)
            return "exact"
        except Refused as refusal:
            if may_be_refused(world, law):
                return f"refused by {str(refusal).partition(':')[0]}"
            raise AssertionError(f"This must not be refused: {refusal}\n{world.source}") from None
        except Exception as error:
            error.add_note(f"{world}\n{world.source}")
            raise


def counted(law, profile):
    """How often each outcome came of random envs."""
    outcomes = Counter()

    @profile
    @given(world=random_envs(), data=DATA)
    def holds(world, data):
        outcome = hold(law, world, data)
        assume(outcome)
        outcomes[outcome] += 1

    holds()
    return outcomes


@every_law
def test_random_envs_are_exact_or_refused(law):
    outcomes = counted(law, FEW)
    assert sum(outcomes.values()) >= FEW.max_examples
    assert outcomes["exact"] >= 1


@pytest.mark.slow
@every_law
def test_thousands_of_random_envs_are_exact_or_refused(law, capsys):
    outcomes = counted(law, MANY)
    names = {one: name for name, one in LAWS.items()}
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    with capsys.disabled():
        print(f"\n{sum(outcomes.values())} random envs, {names[law]}: {counts}")
    assert sum(outcomes.values()) >= MANY.max_examples
    assert outcomes["exact"] > MANY.max_examples / 10


@pytest.mark.slow
@every_law
def test_each_kind_alone_is_exact_or_refused(law):
    worlds = [RandomEnv((part,)) for part in PARTS]
    worlds += [RandomEnv(("np_random at reset",), (wrapper,)) for wrapper in WRAPPERS]
    broken = {}
    for world in worlds:
        for data in ((5, 4, 20), (12, 7, 20)):
            try:
                assert hold(law, world, data), "it does not run"
            except Exception as error:
                broken[world.parts + world.wrappers] = repr(error)
    assert not broken


def test_copies_and_files_of_random_envs_are_the_same(tmp_path):
    outcomes = Counter()

    @settings(FEW, max_examples=8)
    @given(world=random_envs(), data=DATA)
    def holds(world, data):
        def law(*given):
            survives_copies_and_files(*given, tmp_path)

        outcomes[hold(law, world, data)] += 1

    holds()
    assert outcomes["exact"] > 2


# ------------------------------------------------------------------ arguments through a file


class Argued(gymnasium.Env):
    """An env with one argument, of any kind."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, extra=None):
        self.extra = extra

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal()
        return np.array([self.x]), {}

    def step(self, action):
        self.x += action
        return np.array([self.x]), 0.0, False, self.x > 3, {}


gymnasium.register("Argued-v0", entry_point=Argued)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        [
            np.arange(6.0).reshape(2, 3).T,
            np.array([1, 2], np.int8),
            np.array([["S", "F"], ["F", "G"]]),
            np.zeros((0, 2), np.float32),
            np.float32(0.1),
            np.int64(3),
            np.array([True]),
        ]
    ),
)
ARGUMENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)


@settings(FEW, max_examples=6)
@given(extra=ARGUMENTS)
def test_arguments_of_any_kind_equal_themselves_after_a_file(extra, tmp_path_factory):
    path = tmp_path_factory.mktemp("arguments") / "teacher.h5"

    def make():
        return gymnasium.make("Argued-v0", extra=copy.deepcopy(extra))

    snapshots = record(make(), lambda obs: 1, episodes=1)
    snapshots.save(path)
    for held in (snapshots, Snapshots.load(path)):
        assert bits(held.kwargs["extra"]) == bits(extra)
        SnapshotRL(make(), held).reset(seed=0)


# ------------------------------------------------------------------ the laws can be broken


class DeepCopies:
    """save and restore by deep copies: exact for plain data that holds no views, and only there."""

    def __init__(self):
        self.kept = {}

    def save(self, env):
        base = env.unwrapped
        held = vars(base).copy()
        self.kept[len(self.kept)] = copy.deepcopy(held, {id(base): base}), base
        number = len(self.kept) - 1

        class State:
            def to_bytes(self):
                return number

        return State()

    def from_bytes(self, number):
        return self.kept[number]

    def restore(self, env, state):
        held, base = state
        kept = vars(env.unwrapped)
        kept.clear()
        kept.update(copy.deepcopy(held, {id(base): env.unwrapped}))

    def self_test(self, env, make_fresh):
        return "copies"


@pytest.fixture
def deep_copies(monkeypatch):
    copies = DeepCopies()
    for name in ("save", "restore", "self_test"):
        monkeypatch.setitem(globals(), name, getattr(copies, name))
    monkeypatch.setitem(globals(), "EnvState", copies)


COPIED = [
    "counter rewound at reset",
    "level that rises with the episodes",
    "array changed in place",
    "two names of one array",
    "objects that know each other and their env",
    "objects made anew at reset in varying number",
    "own generators of other kinds",
    "album of what the env holds at reset",
    "iterator over a list",
]


def test_law_is_kept_by_deep_copies_of_plain_data(deep_copies):
    for data in ((5, 4, 20), (12, 7, 20)):
        assert hold(continues, RandomEnv(tuple(COPIED)), data) == "exact"


@pytest.mark.parametrize(
    "part",
    [
        "views",
        "row of a table kept as a view",
        "views made anew at reset",
        "closure made at reset",
        "two closures over one cell",
        "default argument that is changed",
        "module global",
        "class attribute rewound at reset",
        "global numpy in steps",
        "global random now and then",
    ],
)
def test_law_notices_what_a_deep_copy_misses(part, deep_copies):
    def broken(data):
        try:
            return hold(continues, RandomEnv((part,)), data) is None
        except AssertionError:
            return True

    assert any(map(broken, ((5, 4, 20), (12, 7, 20))))


SPOILT = {
    "self.weight# = 9.0": "reward weight",
    "self.robot#.motor.power = 1.0": "nested objects with settings and state",
    "self.table# = self.table# * 2": "row of a table kept as a view",
    "self.episodes# += 1": "episode counter that nothing reads",
    "self.np_random.random()": "np_random in steps",
    "self.rng#.random()": "own generator for good",
    "self.position# = self.position#.copy()": "views",
    "self.target# = self.target#.copy()": "two names of one array",
    "self.count# += 1": "counter rewound at reset",
    "self.t += 1": "np_random at reset",
    "self.bonus# = make_bonus#(0.0)": "closure over a reward weight",
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_law_notices_what_a_careless_start_changes(spoil, monkeypatch):
    class Careless(SnapshotRL):
        def reset(self, **given):
            result = super().reset(**given)
            names = {**vars(module), "self": self.unwrapped}
            exec(spoil.replace("#", "0"), names)
            return result

    world = RandomEnv((SPOILT[spoil],))
    with world.loaded() as module:
        starts_in_the_teachers_world(world, module, (5, 4, 20))
        monkeypatch.setitem(globals(), "SnapshotRL", Careless)
        with pytest.raises(AssertionError):
            starts_in_the_teachers_world(world, module, (5, 4, 20))

"""The parts of random envs: kinds of state, with what is known of each.

A part is a few lines that keep one kind of state in an env: what its constructor, resets and steps
do with it, and where it is seen. `#` in these lines stands for the part's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One kind of state in an env.

    Attributes:
        module: lines before the env's class.
        members: lines of its body.
        init, reset, step: lines of these methods. In step, `a` is the action as a number.
        see: numbers in the observation.
        pay: a term of the reward.
        tell: an entry of the info.
        ends: when the episode terminates.
        arguments: of the constructor -> (the teacher's value, the student's).
        settings: paths of what no reset and no step changes.
        dynamic: whether the settings enter more than the reward.
        lasting: paths of what goes on from episode to episode and influences nothing.
        generators: paths of random generators.
        holds: what is true of every env of this kind from its first reset on. `self` is the
            unwrapped env.
        draws: whether steps draw randomness.
        seeded: whether resets seed all generators that it draws from.
        episodic: whether the seed of the episode's reset and its actions determine what is seen.
        independent: whether an env is unaffected by others of its class.
    """

    module: str = ""
    members: str = ""
    init: str = ""
    reset: str = ""
    step: str = ""
    see: tuple[str, ...] = ()
    pay: str = ""
    tell: str = ""
    ends: str = ""
    arguments: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    dynamic: bool = False
    lasting: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    draws: bool = False
    seeded: bool = True
    episodic: bool = True
    independent: bool = True


COUNTERS = {
    "counter rewound at reset": Part(
        reset="self.count# = 0",
        step="self.count# += 1",
        see=("self.count#",),
    ),
    "counter that ends the episode": Part(
        reset="self.lives# = 9",
        step="self.lives# -= a > 0",
        see=("self.lives#",),
        ends="self.lives# <= 0",
    ),
    "episode counter that nothing reads": Part(
        init="self.episodes# = 0",
        reset="self.episodes# += 1",
        lasting=("episodes#",),
    ),
    "step counter that nothing reads": Part(
        init="self.total_steps# = 0",
        step="self.total_steps# += 1",
        lasting=("total_steps#",),
    ),
    "best result so far that nothing reads": Part(
        init="self.best# = 0.0",
        reset="self.result# = 0.0",
        step="self.result# += a\nself.best# = max(self.best#, self.result#)",
        see=("self.result#",),
    ),
    "history of all episodes that nothing reads": Part(
        init="self.history# = []",
        reset="self.history#.append(0)",
        step="self.history#[-1] += 1",
        lasting=("history#",),
    ),
    "episode counter in the observation": Part(
        init="self.episodes# = 0",
        reset="self.episodes# += 1",
        see=("self.episodes#",),
        episodic=False,
    ),
    "step counter in the info": Part(
        init="self.total_steps# = 0",
        step="self.total_steps# += 1",
        tell="self.total_steps#",
        episodic=False,
    ),
    "level that rises with the episodes": Part(
        init="self.episodes#, self.level# = 0, 1.0",
        reset="""
            self.episodes# += 1
            if self.episodes# % 2 == 0:
                self.level# += 0.5
            self.x# = 0.0""",
        step="self.x# += self.level# * a",
        see=("self.x#",),
        episodic=False,
    ),
    "queue of starts used up over the episodes": Part(
        init="self.starts# = [3.0, 1.0, 4.0, 1.0, 5.0]",
        reset="self.start# = self.starts#.pop(0)\nself.starts#.append(self.start# + 1)",
        see=("self.start#",),
        episodic=False,
    ),
    "bias drawn at the first reset": Part(
        reset="""
            if not hasattr(self, "bias#"):
                self.bias# = np.random.default_rng(seed).normal()""",
        see=("self.bias#",),
        episodic=False,
    ),
    "names that simulators and clocks have": Part(
        init="self.model = {'friction': 0.5}\nself.viewer = None",
        reset="""
            self.data, self.world, self._elapsed_steps, self.ale = [0.0], 1, 0, None
            self._physics, self._control, self._env = 0.0, None, "none"
            self.curr_path_length = 0""",
        step="""
            self.data[0] += a
            self.world *= 3
            self._physics -= a
            self._elapsed_steps += 1
            self.curr_path_length += 2
            self._control = a""",
        see=(
            "self.data[0] * self.model['friction']",
            "self.world % 1000",
            "self._physics",
            "self._elapsed_steps",
            "self.curr_path_length",
            "self._control or 0.0",
        ),
    ),
}
"""Counters: what an episode rewinds, and what goes on."""

TABLES = {
    "table of the module read by step": Part(
        module="ROWS# = np.random.default_rng(3).normal(size=(40, 2))",
        reset="self.row# = 0",
        step="self.row# = (self.row# + 1) % 40",
        see=("ROWS#[self.row#][0]", "ROWS#[self.row#][1]"),
    ),
    "own table read by step": Part(
        init="self.table# = np.random.default_rng(table#).normal(size=40)",
        reset="self.row# = 0",
        step="self.row# = (self.row# + 1) % 40",
        see=("self.table#[self.row#]",),
        arguments={"table#": ("0", "1")},
        settings=("table#",),
        dynamic=True,
    ),
    "large table": Part(
        init="self.table# = np.arange(20000.0) * 1.1",
        reset="self.row# = int(self.np_random.uniform(0, 10000))",
        step="self.row# += 1",
        see=("self.table#[self.row#]",),
        settings=("table#",),
    ),
    "row of a table kept as a view": Part(
        init="self.table# = np.arange(120.0).reshape(40, 3) ** 2",
        reset="self.at# = 0\nself.row# = self.table#[0]",
        step="self.at# = (self.at# + 1) % 40\nself.row# = self.table#[self.at#]",
        see=("self.row#[2]",),
        settings=("table#",),
        holds=("np.shares_memory(self.row#, self.table#)",),
    ),
    "order of rows drawn at reset": Part(
        init="self.rows# = [[1.0, 2.0], [3.0, 5.0], [8.0, 13.0]]",
        reset="self.order#, self.at# = self.np_random.permutation(3), 0",
        step="self.at# = (self.at# + 1) % 3",
        see=("self.rows#[self.order#[self.at#]][1]",),
        settings=("rows#",),
    ),
    "table made anew at reset and worn away": Part(
        reset="self.grid# = self.np_random.uniform(0, 9, (3, 4)).astype(np.uint8)",
        step="self.grid#[self.t % 3, self.t % 4] = 0",
        see=("self.grid#.sum()", "self.grid#[1, 2]"),
    ),
    "table changed for good by steps": Part(
        init="self.pheromone# = np.zeros(4)",
        step="self.pheromone#[self.t % 4] += 0.25",
        see=("self.pheromone#.sum()",),
        episodic=False,
    ),
}

ARRAYS = {
    "array replaced at each step": Part(
        reset="self.x# = self.np_random.normal(size=2)",
        step="self.x# = self.x# + a",
        see=("self.x#[0]", "self.x#[1]"),
    ),
    "array changed in place": Part(
        init="self.x# = np.zeros(3)",
        reset="self.x#[:] = self.np_random.normal(size=3)",
        step="self.x#[1:] += a\nself.x#[0] *= -0.5",
        see=("self.x#[0]", "self.x#[2]"),
    ),
    "arrays of all dtypes": Part(
        reset="""
            self.half#, self.sign# = np.zeros(2, np.float16), np.ones(2, bool)
            self.wave#, self.name# = np.zeros(1, np.complex64), np.array(["a", "bcd"])
            self.big#, self.point# = np.zeros(2, ">i4"), np.array(1.5)
            self.none#, self.fortran# = np.zeros((0, 3)), np.zeros((2, 3), order="F")""",
        step="""
            self.half# += np.float16(a)
            self.sign#[0] ^= a > 0
            self.wave# += 1j * a
            self.name#[0] = str(self.t)
            self.big#[1] += 7
            self.point#[...] = a
            self.fortran#.ravel(order="K")[self.t % 6] += 1""",
        see=(
            "self.half#[0]",
            "self.sign#[0]",
            "self.wave#[0].imag",
            "len(self.name#[0])",
            "self.big#[1]",
            "self.point#",
            "self.none#.shape[1]",
            "self.fortran#.ravel(order='K')[1]",
            "self.fortran#.flags.f_contiguous",
        ),
    ),
    "views": Part(
        init="""
            self.state# = np.zeros(6)
            self.position#, self.velocity# = self.state#[:3], self.state#[2:5]""",
        reset="self.state#[:] = self.np_random.normal(size=6)",
        step="self.position# += a\nself.velocity# *= 0.5",
        see=("self.state#[2]", "self.state#[0]", "self.velocity#[0]"),
        holds=(
            "np.shares_memory(self.position#, self.state#)",
            "np.shares_memory(self.velocity#, self.position#)",
        ),
    ),
    "views held before their array": Part(
        init="""
            state = np.zeros(5)
            self.first#, self.rest#, self.state# = state[:1], state[1:], state""",
        reset="self.state#[:] = 1",
        step="self.first# += a\nself.rest#[0] -= a",
        see=("self.state#[0]", "self.state#[1]"),
        holds=(
            "np.shares_memory(self.first#, self.state#)",
            "np.shares_memory(self.rest#, self.state#)",
        ),
    ),
    "views made anew at reset": Part(
        reset="""
            self.body# = self.np_random.normal(size=(3, 2))
            self.head#, self.column# = self.body#[0], self.body#[:, 1]""",
        step="self.head#[1] += a\nself.column# *= 0.9",
        see=("self.body#[0, 1]", "self.head#[1]", "self.column#[2]"),
        holds=(
            "np.shares_memory(self.head#, self.body#)",
            "np.shares_memory(self.column#, self.head#)",
        ),
    ),
    "transposed and reversed views": Part(
        init="""
            self.m# = np.zeros((2, 3))
            self.t# = self.m#.T
            self.back# = self.m#[::-1, ::-2]""",
        reset="self.m#[:] = self.np_random.normal(size=(2, 3))",
        step="self.t#[2] += a\nself.back#[0] += 1",
        see=("self.m#[0, 2]", "self.m#[1, 2]", "self.back#[1, 1]", "self.t#[0, 1]"),
        holds=(
            "np.shares_memory(self.t#, self.m#)",
            "np.shares_memory(self.back#, self.m#)",
            "self.t#.strides == self.m#.strides[::-1]",
            "self.back#.strides[0] < 0",
        ),
    ),
    "views in containers and objects": Part(
        module="""
            class Limb#:
                def __init__(self, joint):
                    self.joint = joint""",
        init="""
            self.joints# = np.zeros(4)
            self.limbs# = [Limb#(self.joints#[i : i + 2]) for i in range(3)]
            self.named# = {"knee": self.joints#[3:]}""",
        reset="self.joints#[:] = self.np_random.normal(size=4)",
        step="self.limbs#[1].joint += a\nself.named#['knee'][0] *= 0.5",
        see=("self.joints#[1]", "self.joints#[3]", "self.limbs#[2].joint[1]"),
        holds=(
            "all(np.shares_memory(limb.joint, self.joints#) for limb in self.limbs#)",
            "np.shares_memory(self.named#['knee'], self.joints#)",
        ),
    ),
}

ALIASES = {
    "two names of one list": Part(
        reset="self.queue# = self.waiting# = []",
        step="self.queue#.append(a)",
        see=("len(self.waiting#)", "sum(self.waiting#)"),
        holds=("self.queue# is self.waiting#",),
    ),
    "two names of one array": Part(
        init="self.target# = self.goal# = np.zeros(2)",
        reset="self.goal#[:] = self.np_random.normal(size=2)",
        step="self.target# += a",
        see=("self.goal#[1]", "self.target#[0]"),
        holds=("self.goal# is self.target#",),
    ),
    "one of many objects by a second name": Part(
        module="""
            class Car#:
                def __init__(self, place):
                    self.place, self.speed = place, 0.0""",
        reset="""
            self.cars# = [Car#(self.np_random.normal()) for _ in range(3)]
            self.mine# = self.cars#[int(self.np_random.uniform(0, 3))]""",
        step="self.mine#.speed += a\nself.mine#.place += self.mine#.speed",
        see=("sum(car.place for car in self.cars#)", "self.mine#.speed"),
        holds=("any(car is self.mine# for car in self.cars#)",),
    ),
    "one list in two containers": Part(
        init="self.shared# = {'a': [0.0], 'b': None}\nself.shared#['b'] = (self.shared#['a'], 1)",
        reset="self.shared#['a'][:] = [1.0]",
        step="self.shared#['b'][0].append(a)",
        see=("sum(self.shared#['a'])",),
        holds=("self.shared#['a'] is self.shared#['b'][0]",),
    ),
    "objects that know each other and their env": Part(
        module="""
            class Node#:
                def __init__(self, env):
                    self.env, self.peer, self.load = env, None, 0.0""",
        init="""
            self.one#, self.two# = Node#(self), Node#(self)
            self.one#.peer, self.two#.peer = self.two#, self.one#""",
        reset="self.one#.load, self.two#.load = 0.0, self.np_random.normal()",
        step="self.one#.peer.load += a\nself.two#.peer.load += self.two#.env.t",
        see=("self.one#.load", "self.two#.load"),
        holds=("self.one#.peer is self.two#", "self.one#.env is self"),
    ),
    "album of what the env holds at reset": Part(
        reset="self.album# = None\nself.album# = dict(vars(self))",
        see=(
            "sum(self.album#.get(key) is value for key, value in vars(self).items()"
            " if isinstance(value, list | dict | np.ndarray))",
        ),
    ),
    "action and observation kept": Part(
        reset="self.action# = self.kept# = None",
        step="self.kept# = self.action#\nself.action# = action",
        see=("0.0 if self.kept# is None else np.sum(self.kept#)",),
    ),
}

OBJECTS = {
    "nested objects with settings and state": Part(
        module="""
            class Motor#:
                def __init__(self, power):
                    self.power, self.heat = power, 0.0


            class Robot#:
                def __init__(self, power):
                    self.motor, self.cost = Motor#(power), 0.1""",
        init="self.robot# = Robot#(power#)",
        reset="self.robot#.motor.heat = self.np_random.normal()",
        step="self.robot#.motor.heat += a",
        see=("self.robot#.motor.heat",),
        pay="self.robot#.motor.power * self.robot#.motor.heat + self.robot#.cost",
        arguments={"power#": ("2.0", "7.0")},
        settings=("robot#.motor.power", "robot#.cost"),
    ),
    "objects made anew at reset in varying number": Part(
        module="""
            class Ball#:
                def __init__(self, x):
                    self.x, self.hits = x, 0""",
        reset="""
            self.balls# = [
                Ball#(self.np_random.normal()) for _ in range(int(self.np_random.uniform(1, 6)))
            ]""",
        step="""
            for ball in self.balls#:
                ball.x += a
                ball.hits += 1
            if self.t % 4 == 0 and len(self.balls#) > 1:
                self.balls#.pop(0)
            if self.t % 5 == 0:
                self.balls#.append(Ball#(0.5))""",
        see=("len(self.balls#)", "self.balls#[-1].x", "sum(b.hits for b in self.balls#)"),
    ),
    "object made late": Part(
        module="""
            class Door#:
                width = 3

                def __init__(self):
                    self.open = 0""",
        init="self.door# = None",
        reset="self.door# = None",
        step="""
            if self.t == 4:
                self.door# = Door#()
            elif self.door#:
                self.door#.open += self.door#.width""",
        see=("self.door#.open if self.door# else -1",),
    ),
    "dataclasses": Part(
        module="""
            @dataclasses.dataclass
            class Pose#:
                x: float
                trail: list = dataclasses.field(default_factory=list)


            @dataclasses.dataclass(frozen=True)
            class Goal#:
                x: float""",
        reset="self.pose#, self.goal# = Pose#(self.np_random.normal()), Goal#(0.5)",
        step="""
            self.pose#.x += a
            self.pose#.trail.append(a)
            self.goal# = dataclasses.replace(self.goal#, x=self.goal#.x + 1)""",
        see=("self.pose#.x", "sum(self.pose#.trail)", "self.goal#.x"),
    ),
    "frozen dataclass shared before it is replaced": Part(
        module="""
            @dataclasses.dataclass(frozen=True)
            class Task#:
                x: float""",
        init="self.tasks# = [Task#(1.0), Task#(2.0), Task#(3.0)]",
        reset="self.task# = self.tasks#[int(self.np_random.uniform(0, 3))]",
        step="""
            if self.t == 5:
                self.task# = self.tasks#[0]""",
        see=("self.task#.x", "self.tasks#[0].x", "self.tasks#[2].x"),
        holds=("any(self.task# is task for task in self.tasks#)",),
    ),
    "attributes that come and go": Part(
        reset="self.__dict__.pop('bonus#', None)",
        step="""
            if self.t == 3:
                self.bonus# = 10.0
            if self.t > 3:
                self.bonus# += a
            if self.t == 8:
                self.late# = "yes\"""",
        see=("getattr(self, 'bonus#', -1.0)",),
    ),
    "cached property deleted at reset": Part(
        members="""
            @functools.cached_property
            def origin#(self):
                return self.place#""",
        reset="self.place# = self.np_random.normal()\nself.__dict__.pop('origin#', None)",
        step="self.place# += a",
        see=("self.place# - (self.origin# if self.t > 2 else 0.0)",),
    ),
    "env within the env": Part(
        module="""
            class Inner#(gymnasium.Env):
                observation_space = Box(-9, 9, (1,), np.float64)
                action_space = Box(-1, 1, (1,), np.float32)

                def reset(self, *, seed=None, options=None):
                    super().reset(seed=seed)
                    self.x = self.np_random.normal()
                    return np.array([self.x]), {}

                def step(self, action):
                    self.x += action
                    return np.array([self.x]), 0.0, False, False, {}""",
        init="self.inner# = Inner#()",
        reset="self.inner#.reset(seed=int(self.np_random.uniform(0, 99)))",
        step="self.inner#.step(a)",
        see=("self.inner#.x",),
    ),
}

SETTINGS = {
    "reward weight": Part(
        init="self.weight# = weight#",
        pay="self.weight# * a * self.t",
        arguments={"weight#": ("1.5", "4.0")},
        settings=("weight#",),
    ),
    "dict of reward weights": Part(
        init="self.config# = {'weights': {'control': weight#}, 'scale': (0.5, scale#)}",
        reset="self.effort# = 0.0",
        step="self.effort# += a * a",
        see=("self.effort#",),
        pay="self.config#['weights']['control'] * self.effort# * self.config#['scale'][1]",
        arguments={"weight#": ("0.1", "2.5"), "scale#": ("3", "5")},
        settings=("config#",),
    ),
    "settings and state in one dict": Part(
        init="self.memo# = {'weight': weight#, 'count': 0}",
        reset="self.memo#['count'] = 0",
        step="self.memo#['count'] += 1",
        see=("self.memo#['count']",),
        pay="self.memo#['weight'] * self.memo#['count']",
        arguments={"weight#": ("0.25", "1.75")},
        settings=("memo#['weight']",),
    ),
    "reward weight copied at each reset": Part(
        init="self.config#, self.cost# = {'cost': cost#}, cost#",
        reset="self.cost# = self.config#['cost']",
        pay="self.cost# * a",
        arguments={"cost#": ("0.5", "6.5")},
        settings=("config#", "cost#"),
    ),
    "difficulty": Part(
        init="self.difficulty# = difficulty#",
        reset="self.x# = 0.0",
        step="self.x# += self.difficulty# * a",
        see=("self.x#",),
        arguments={"difficulty#": ("1.0", "3.0")},
        settings=("difficulty#",),
        dynamic=True,
    ),
    "function of the reward": Part(
        init="self.bonus# = bonus#",
        pay="self.bonus#(a)",
        arguments={"bonus#": ("(lambda a: 2 * a)", "(lambda a: a * a)")},
        settings=("bonus#",),
    ),
    "closure over a reward weight": Part(
        module="""
            def make_bonus#(weight):
                def bonus(a):
                    return weight * a

                return bonus""",
        init="self.bonus# = make_bonus#(weight#)",
        pay="self.bonus#(a)",
        arguments={"weight#": ("2.0", "9.0")},
        settings=("bonus#.__closure__[0].cell_contents",),
    ),
    "array of reward weights": Part(
        init="self.weights# = np.array(weights#)\nself.first# = self.weights#[:1]",
        reset="self.effort# = 0.0",
        step="self.effort# += a * a",
        see=("self.effort#",),
        pay="float(self.weights# @ [a, self.effort#]) + float(self.first#[0])",
        arguments={"weights#": ("(0.5, 0.25)", "(4.0, 2.0)")},
        settings=("weights#", "first#"),
        holds=("np.shares_memory(self.first#, self.weights#)",),
    ),
}

VALUES = {
    "numbers at the edge": Part(
        reset="""
            self.nan#, self.zero#, self.inf#, self.huge# = float("nan"), -0.0, -math.inf, 2**200
            self.i# = 1 + 0j""",
        step="self.zero# *= -1.0\nself.inf# = -self.inf#\nself.huge# += self.t\nself.i# *= 1j",
        see=(
            "self.nan#",
            "math.copysign(1, self.zero#)",
            "self.inf#",
            "self.huge# % 1001",
            "self.i#.real",
        ),
        tell="(self.nan#, self.zero#, self.huge#, None)",
    ),
    "numpy scalars": Part(
        reset="self.f#, self.i#, self.b# = np.float32(0.1), np.int16(3), np.bool_(True)",
        step="self.f# *= np.float32(1.1)\nself.i# += np.int16(2)\nself.b# = ~self.b#",
        see=("self.f#", "self.i#", "self.b#"),
        tell="{'f': self.f#, 'kinds': (type(self.i#).__name__, type(self.b#).__name__)}",
    ),
    "text and bytes": Part(
        reset="self.text#, self.raw# = 'start\\x00\\ud800', b''",
        step="self.text# += 'é'\nself.raw# += bytes([self.t % 256])",
        see=("len(self.text#)", "sum(self.raw#)"),
        tell="self.text#",
    ),
    "dicts with keys of all kinds": Part(
        init="self.prices# = {1: 0.0, (2, 'b'): 1.0, None: 2.0, 2.5: 3.0, 'x': 4.0}",
        reset="self.prices#[1] = 0.0\nself.seen# = {}",
        step="self.prices#[1] += a\nself.seen#[(self.t, -self.t)] = a",
        see=("sum(self.prices#.values())", "len(self.seen#)", "list(self.prices#)[3]"),
    ),
    "dict with odd text keys": Part(
        reset="self.odd# = {'~': 'tuple', 'items': [0], '': {'~': 'same', 'as': 0}}",
        step="self.odd#['items'].append(self.t)",
        see=("len(self.odd#['items'])", "len(self.odd#['']['~'])"),
    ),
    "sets": Part(
        reset="self.cells#, self.fixed# = {3, 1}, frozenset([(1, 2)])",
        step="self.cells#.add(self.t * 7 % 11)\nself.cells#.discard(3)",
        see=("sum(self.cells#)", "len(self.cells#)", "(1, 2) in self.fixed#"),
    ),
    "deques": Part(
        reset="self.last# = collections.deque([0.0], maxlen=3)\nself.all# = collections.deque()",
        step="self.last#.append(a)\nself.all#.appendleft(self.t)",
        see=("sum(self.last#)", "self.last#.maxlen", "len(self.all#)"),
    ),
    "enums": Part(
        module="""
            class Mode#(enum.Enum):
                IDLE = 0
                BUSY = 1


            class Rank#(enum.IntEnum):
                LOW = 1
                HIGH = 5""",
        reset="self.mode#, self.rank# = Mode#.IDLE, Rank#.LOW",
        step="self.mode# = Mode#(self.t % 2)\nself.rank# = Rank#.HIGH if a > 0 else Rank#.LOW",
        see=("self.mode# is Mode#.BUSY", "self.rank#", "type(self.rank#) is Rank#"),
    ),
    "named tuples": Part(
        module="""Point# = collections.namedtuple("Point#", "x y")""",
        reset="self.point# = Point#(0.0, [1])",
        step="self.point# = self.point#._replace(x=self.point#.x + a)\nself.point#.y.append(1)",
        see=("self.point#.x", "len(self.point#.y)"),
        tell="tuple(self.point#)",
    ),
    "array of objects": Part(
        reset="self.cells# = np.array([None, [1], 'x'], dtype=object)",
        step="self.cells#[1].append(self.t)\nself.cells#[0] = a",
        see=("self.cells#[0] or 0.0", "len(self.cells#[1])"),
    ),
    "bytearray": Part(
        reset="self.ram# = bytearray(4)",
        step="self.ram#[self.t % 4] += 1",
        see=("sum(self.ram#)", "self.ram#[1]"),
    ),
}

RANDOMNESS = {
    "np_random at reset": Part(
        reset="self.x# = self.np_random.normal()",
        step="self.x# += a",
        see=("self.x#",),
    ),
    "np_random in steps": Part(
        reset="self.x# = 0.0",
        step="self.x# += self.np_random.normal()",
        see=("self.x#",),
        draws=True,
    ),
    "own generator for good": Part(
        init="self.rng# = np.random.default_rng(7)",
        reset="self.x# = 0.0",
        step="self.x# += self.rng#.random()",
        see=("self.x#",),
        generators=("rng#",),
        draws=True,
        seeded=False,
    ),
    "own generator made at reset": Part(
        reset="""
            self.rng# = np.random.default_rng(int(self.np_random.uniform(0, 2**31)))
            self.x# = 0.0""",
        step="self.x# += self.rng#.standard_normal()",
        see=("self.x#",),
        generators=("rng#",),
        draws=True,
    ),
    "own generators of other kinds": Part(
        init="""
            self.philox# = np.random.Generator(np.random.Philox(5))
            self.old#, self.python# = np.random.RandomState(3), random.Random(2)
            self.more# = [np.random.Generator(np.random.SFC64(1))]""",
        reset="self.x# = 0.0",
        step="""
            self.x# += self.philox#.integers(5) + self.old#.randn()
            self.x# += self.python#.gauss(0, 1) + self.more#[0].random()""",
        see=("self.x#",),
        generators=("philox#", "old#", "python#", "more#[0]"),
        draws=True,
        seeded=False,
    ),
    "second name of np_random": Part(
        reset="self.rng# = self.np_random\nself.x# = 0.0",
        step="self.x# += self.rng#.random() - self.np_random.random()",
        see=("self.x#",),
        holds=("self.rng# is self.np_random",),
        draws=True,
    ),
    "generator shared by two objects": Part(
        module="""
            class Noise#:
                def __init__(self, rng):
                    self.rng, self.level = rng, 0.0

                def advance(self):
                    self.level += self.rng.normal()""",
        init="""
            rng = np.random.default_rng(1)
            self.wind#, self.rain# = Noise#(rng), Noise#(rng)""",
        reset="self.wind#.level = self.rain#.level = 0.0",
        step="self.wind#.advance()\nself.rain#.advance()",
        see=("self.wind#.level", "self.rain#.level"),
        generators=("wind#.rng",),
        holds=("self.wind#.rng is self.rain#.rng",),
        draws=True,
        seeded=False,
    ),
    "RandomState as np_random": Part(
        reset="""
            if seed is not None or not hasattr(self, "x#"):
                self.np_random = np.random.RandomState((seed or 0) % 2**32)
            self.x# = self.np_random.randn()""",
        step="self.x# += self.np_random.randn()",
        see=("self.x#",),
        draws=True,
    ),
    "noise drawn for the whole episode at reset": Part(
        reset="self.noise# = self.np_random.normal(size=64)",
        see=("self.noise#[self.t]",),
    ),
}

FUNCTIONS = {
    "closure that counts for good": Part(
        module="""
            def make_counter#():
                n = 0

                def count():
                    nonlocal n
                    n += 1
                    return n

                return count""",
        init="self.count# = make_counter#()\nself.n# = 0",
        step="self.n# = self.count#()",
        see=("self.n#",),
        episodic=False,
    ),
    "closure made at reset": Part(
        module="""
            def make_sum#(start):
                total = start

                def add(x):
                    nonlocal total
                    total += x
                    return total

                return add""",
        reset="self.add# = make_sum#(self.np_random.normal())\nself.sum# = 0.0",
        step="self.sum# = self.add#(a)",
        see=("self.sum#",),
    ),
    "two closures over one cell": Part(
        module="""
            def make_pair#():
                level = [0.0]

                def put(x):
                    level[0] += x

                def get():
                    return level[0]

                return put, get""",
        init="self.put#, self.get# = make_pair#()",
        reset="self.put#(-self.get#())",
        step="self.put#(a)",
        see=("self.get#()",),
    ),
    "lambda over the env": Part(
        init="self.look# = lambda: self.x# * 2",
        reset="self.x# = self.np_random.normal()",
        step="self.x# += a",
        see=("self.look#()",),
    ),
}

PLAIN: dict[str, Part] = {
    **COUNTERS,
    **TABLES,
    **ARRAYS,
    **ALIASES,
    **OBJECTS,
    **SETTINGS,
    **VALUES,
    **RANDOMNESS,
    **FUNCTIONS,
}
"""Kinds of state that must be saved and restored to the bit: refusing them is a failure."""


UNUSUAL_ARRAYS = {
    "view with another dtype and shape": Part(
        init="self.raw# = np.zeros(8, np.uint8)\nself.words# = self.raw#.view(np.uint16)[1:3]",
        reset="self.raw#[:] = 1",
        step="self.words# += 300",
        see=("self.raw#[2]", "self.raw#[5]"),
        holds=("np.shares_memory(self.raw#, self.words#)",),
    ),
    "views of an array that has no name": Part(
        init="""
            hidden = np.zeros(6)
            self.left#, self.right# = hidden[:4], hidden[2:]""",
        reset="self.left#[:] = 0\nself.right#[:] = self.np_random.normal(size=4)",
        step="self.left#[3] += a\nself.right#[0] += 1",
        see=("self.left#[2]", "self.right#[1]"),
        holds=("np.shares_memory(self.left#, self.right#)",),
    ),
    "view of the array of a local simulator": Part(
        module="""
            class Simulator#:
                def __init__(self):
                    self._qpos = np.zeros(4)

                @property
                def qpos(self):
                    return self._qpos[:]""",
        init="self.sim# = Simulator#()\nself.joint# = self.sim#.qpos[1:3]",
        reset="self.sim#.qpos[:] = self.np_random.normal(size=4)",
        step="self.joint# += a",
        see=("self.sim#.qpos[2]",),
        holds=("np.shares_memory(self.joint#, self.sim#._qpos)",),
    ),
    "sliding windows": Part(
        init="""
            self.line# = np.zeros(6)
            self.windows# = np.lib.stride_tricks.sliding_window_view(self.line#, 3)""",
        reset="self.line#[:] = 0",
        step="self.line#[self.t % 6] += a",
        see=("self.windows#[:, 1].sum()", "self.windows#[3, 2]"),
        holds=("np.shares_memory(self.line#, self.windows#)",),
    ),
    "broadcast view": Part(
        init="self.gain# = np.ones(1)\nself.gains# = np.broadcast_to(self.gain#, (3, 1))",
        reset="self.gain#[0] = 1",
        step="self.gain#[0] += a",
        see=("self.gains#.sum()",),
        holds=("np.shares_memory(self.gain#, self.gains#)",),
    ),
    "read-only array": Part(
        reset="self.map# = np.arange(3.0)\nself.map#.flags.writeable = False",
        step="self.map# = self.map# + a\nself.map#.flags.writeable = self.t % 2 > 0",
        see=("self.map#[1]", "self.map#.flags.writeable"),
    ),
    "structured and date arrays": Part(
        reset="""
            self.cars# = np.zeros(2, [("x", "f4"), ("lane", "i1")])
            self.day# = np.array(["2020-02-28"], "datetime64[D]")""",
        step="self.cars#['x'][1] += a\nself.day# += 1",
        see=("self.cars#['x'].sum()", "self.day#.astype(int)[0]"),
    ),
    "array of a subclass": Part(
        module="""
            class Tagged#(np.ndarray):
                pass""",
        reset="self.x# = np.zeros(2).view(Tagged#)\nself.x#.tag = 0",
        step="self.x#[0] += a\nself.x#.tag += 1",
        see=("self.x#[0]", "self.x#.tag"),
    ),
    "masked array": Part(
        reset="self.x# = np.ma.masked_array(np.zeros(3), [True, False, False])",
        step="self.x#[self.t % 3] = a",
        see=("self.x#.sum()", "self.x#.mask.sum()"),
    ),
    "memory-mapped array": Part(
        init="self.map# = np.memmap(tempfile.TemporaryFile(), float, 'w+', shape=(2,))",
        reset="self.map#[:] = 0",
        step="self.map#[1] += a",
        see=("self.map#[1]",),
    ),
    "buffers": Part(
        reset="""
            self.ram# = bytearray(4)
            self.view#, self.cells# = memoryview(self.ram#)[1:], array.array("i", [0, 0])""",
        step="self.view#[self.t % 3] += 1\nself.cells#[1] += self.t",
        see=("sum(self.ram#)", "self.ram#[2]", "self.cells#[1]"),
    ),
    "array over a bytearray": Part(
        init="self.ram# = bytearray(4)\nself.cells# = np.frombuffer(self.ram#, np.uint8)",
        reset="self.cells#[:] = 0",
        step="self.cells#[self.t % 4] += 1",
        see=("sum(self.ram#)", "self.cells#[1]"),
        holds=("self.cells#.tolist() == list(self.ram#)",),
    ),
    "numbers of C": Part(
        reset="self.ticks#, self.many# = ctypes.c_int(0), (ctypes.c_double * 2)()",
        step="self.ticks#.value += 1\nself.many#[1] += a",
        see=("self.ticks#.value", "self.many#[1]"),
    ),
    "tensors": Part(
        init="self.weight# = torch.ones(2, requires_grad=True)",
        reset="self.x# = torch.zeros(2)\nself.first# = self.x#[:1]",
        step="self.first# += a\nself.x#[1] += self.weight#.detach().sum()",
        see=("float(self.x#[0])", "float(self.x#[1])"),
        tell="self.x#.clone()",
        holds=("self.first#.data_ptr() == self.x#.data_ptr()",),
    ),
    "network that learns in the env": Part(
        reset="self.net# = torch.nn.Linear(1, 1)\nself.net#.weight.data.fill_(0.5)",
        step="self.net#.weight.data += a",
        see=("float(self.net#.weight.detach().sum())",),
    ),
}

UNUSUAL_OBJECTS = {
    "set from which elements are taken": Part(
        reset="self.left# = set(range(0, 160, 8)) | {3, 11}",
        step="self.taken# = self.left#.pop() if self.left# else -1",
        see=("getattr(self, 'taken#', -2) if self.t else -2", "len(self.left#)"),
    ),
    "dict subclass with an attribute": Part(
        module="""
            class Bag#(dict):
                def __init__(self):
                    self.added = 0

                def put(self, key):
                    self.added += 1
                    self[key] = self.get(key, 0) + 1""",
        reset="self.bag# = Bag#()",
        step="self.bag#.put(self.t % 3)",
        see=("self.bag#.added", "self.bag#.get(1, 0)"),
    ),
    "counter and defaultdict": Part(
        reset="self.counts#, self.lists# = collections.Counter(), collections.defaultdict(list)",
        step="self.counts#[a > 0] += 1\nself.lists#[self.t % 2].append(a)",
        see=("self.counts#[True]", "sum(self.lists#[1])", "len(self.lists#)"),
    ),
    "ordered dict moved about": Part(
        reset="self.order# = collections.OrderedDict(a=1, b=2, c=3)",
        step="self.order#.move_to_end(next(iter(self.order#)))",
        see=("next(iter(self.order#.values()))",),
    ),
    "list subclass": Part(
        module="""
            class Stack#(list):
                pass""",
        reset="self.stack# = Stack#([1.0])\nself.stack#.limit = 0",
        step="self.stack#.append(a)\nself.stack#.limit += 2",
        see=("sum(self.stack#)", "self.stack#.limit"),
    ),
    "list that holds itself": Part(
        reset="self.loop# = [0.0]\nself.loop#.append(self.loop#)",
        step="self.loop#[1][1][0] += a",
        see=("self.loop#[0]",),
        holds=("self.loop#[1] is self.loop#",),
    ),
    "long linked list": Part(
        module="""
            class Link#:
                def __init__(self, before):
                    self.before, self.x = before, 0.0""",
        init="""
            self.head# = None
            for _ in range(1500):
                self.head# = Link#(self.head#)""",
        reset="self.head#.x = 0.0",
        step="self.head#.x += a",
        see=("self.head#.x",),
    ),
    "slots": Part(
        module="""
            @dataclasses.dataclass(slots=True)
            class Cell#:
                x: float


            class Pair#:
                __slots__ = ("a", "b")""",
        members="__slots__ = ('hidden#',)",
        reset="self.cell#, self.pair#, self.hidden# = Cell#(0.0), Pair#(), 0.0\nself.pair#.a = 1",
        step="self.cell#.x += a\nself.pair#.a += 1\nself.hidden# -= a",
        see=("self.cell#.x", "self.pair#.a", "self.hidden#"),
    ),
    "flags": Part(
        module="""
            class Flags#(enum.Flag):
                LEFT = enum.auto()
                RIGHT = enum.auto()""",
        reset="self.flags# = Flags#.LEFT",
        step="self.flags# ^= Flags#.RIGHT if a > 0 else Flags#.LEFT",
        see=("self.flags#.value",),
    ),
    "member of an enum with state": Part(
        module="""
            class Lamp#(enum.Enum):
                RED = 1

            Lamp#.RED.uses = 0""",
        init="self.lamp# = Lamp#.RED",
        reset="self.lamp#.uses = 0",
        step="self.lamp#.uses += 1",
        see=("self.lamp#.uses",),
        independent=False,
    ),
    "exact numbers and dates": Part(
        reset="""
            self.part#, self.price# = fractions.Fraction(1, 3), decimal.Decimal("0.1")
            self.clock# = datetime.datetime(2020, 2, 28)""",
        step="""
            self.part# += fractions.Fraction(1, 7)
            self.price# += decimal.Decimal("0.2")
            self.clock# += datetime.timedelta(hours=5)""",
        see=("float(self.part#)", "float(self.price#)", "self.clock#.hour"),
        tell="str(self.part#)",
    ),
    "numbers of a subclass": Part(
        module="""
            class Metres#(float):
                pass""",
        reset="self.far# = Metres#(1.0)\nself.far#.unit = 1",
        step="self.far# = Metres#(self.far# + a)\nself.far#.unit = self.t",
        see=("self.far#", "self.far#.unit", "type(self.far#) is Metres#"),
    ),
    "objects that guard their attributes": Part(
        module="""
            class Guarded#:
                def __init__(self):
                    self._x = 0.0

                x = property(lambda self: self._x * 2, lambda self, x: setattr(self, "_x", x / 4))

                def __setattr__(self, name, value):
                    object.__setattr__(self, name, value + 1)

                def __eq__(self, other):
                    return True

                __hash__ = None""",
        init="self.guarded# = Guarded#()",
        reset="self.guarded#.x = 0.0",
        step="self.guarded#.x = self.guarded#.x + a",
        see=("self.guarded#.x",),
        episodic=False,
    ),
    "objects with a pickle of their own": Part(
        module="""
            class Frugal#:
                def __init__(self):
                    self.x, self.cache = 0.0, 0.0

                def __getstate__(self):
                    return {"x": self.x}

                def __setstate__(self, state):
                    self.x, self.cache = state["x"], 100.0""",
        reset="self.frugal# = Frugal#()",
        step="self.frugal#.x += a\nself.frugal#.cache -= a",
        see=("self.frugal#.x", "self.frugal#.cache"),
    ),
    "storage behind a property": Part(
        module="STORE# = weakref.WeakKeyDictionary()",
        members="""
            @property
            def fuel#(self):
                return STORE#.get(self, 0.0)

            @fuel#.setter
            def fuel#(self, value):
                STORE#[self] = value""",
        reset="self.fuel# = 5.0",
        step="self.fuel# -= a",
        see=("self.fuel#",),
    ),
    "class attribute": Part(
        members="n# = 0",
        step="type(self).n# += 1",
        see=("type(self).n#",),
        episodic=False,
        independent=False,
    ),
    "class attribute rewound at reset": Part(
        module="""
            class Registry#:
                made = []""",
        reset="Registry#.made.clear()",
        step="Registry#.made.append(a)",
        see=("sum(Registry#.made)",),
        independent=False,
    ),
    "list on the class": Part(
        members="trace# = []",
        reset="self.trace#.clear()",
        step="self.trace#.append(a)",
        see=("sum(self.trace#)",),
        independent=False,
    ),
    "module global": Part(
        module="ticks# = 0",
        step="global ticks#\nticks# += 1",
        see=("ticks#",),
        episodic=False,
        independent=False,
    ),
    "module cache filled at reset": Part(
        module="""
            @functools.lru_cache(maxsize=None)
            def level#(episode):
                return [0.0]""",
        reset="level#(0)[0] = 0.0",
        step="level#(0)[0] += a",
        see=("level#(0)[0]",),
        independent=False,
    ),
    "weak reference": Part(
        module="""
            class Prey#:
                x = 0.0""",
        reset="self.prey# = [Prey#(), Prey#()]\nself.chased# = weakref.ref(self.prey#[0])",
        step="""
            self.chased#().x += a
            if self.t == 5:
                self.chased# = weakref.ref(self.prey#[1])""",
        see=("self.prey#[0].x", "self.prey#[1].x"),
        holds=("any(self.chased#() is prey for prey in self.prey#)",),
    ),
    "lock": Part(
        init="self.lock# = threading.Lock()",
        reset="self.guarded# = 0",
        step="""
            with self.lock#:
                self.guarded# += 1""",
        see=("self.guarded#",),
    ),
    "open file": Part(
        init="""
            self.file# = tempfile.TemporaryFile("w+")
            self.file#.write("31415926535897932384" * 20)""",
        reset="self.file#.seek(0)",
        step="self.digit# = int(self.file#.read(1))",
        see=("getattr(self, 'digit#', 0) if self.t else 0",),
    ),
    "text buffer": Part(
        reset="self.buffer# = io.StringIO()",
        step="self.buffer#.write(str(self.t))",
        see=("len(self.buffer#.getvalue())",),
    ),
    "path, type and function as state": Part(
        module="""
            def idle#(a):
                return 0.0


            def busy#(a):
                return a""",
        reset="self.path#, self.kind#, self.rule# = pathlib.PurePath('a'), int, idle#",
        step="""
            self.path# /= str(self.t)
            self.kind# = float if self.t % 2 else int
            self.rule# = busy# if a > 0 else idle#""",
        see=("len(str(self.path#))", "self.kind# is int", "self.rule#(1.0)"),
    ),
    "state machine of methods": Part(
        members="""
            def wait#(self, a):
                return self.go# if a > 0 else self.wait#

            def go#(self, a):
                return self.wait#""",
        reset="self.now# = self.wait#",
        step="self.now# = self.now#(a)",
        see=("self.now# == self.go#",),
    ),
    "operation of numpy as state": Part(
        reset="self.op#, self.dtype#, self.x# = np.add, np.dtype('f4'), 1.0",
        step="""
            self.x# = float(self.op#(self.x#, a))
            self.op# = np.subtract if self.t % 3 else np.add
            self.dtype# = np.dtype("f8") if self.t % 2 else np.dtype("f4")""",
        see=("self.x#", "self.dtype#.itemsize"),
    ),
    "space as state": Part(
        reset="self.choices# = gymnasium.spaces.Discrete(2)",
        step="self.choices# = gymnasium.spaces.Discrete(self.choices#.n + 1)",
        see=("self.choices#.n",),
    ),
    "draws from a space": Part(
        init="self.goals# = gymnasium.spaces.Discrete(100, seed=1)\nself.goal# = 0",
        reset="self.goal# = int(self.goals#.sample())",
        step="self.goal# += int(self.goals#.sample())",
        see=("self.goal#",),
        episodic=False,
        draws=True,
    ),
    "metadata as state": Part(
        init="self.metadata = {'n': 0}",
        reset="self.metadata['n'] = 0",
        step="self.metadata['n'] += 1",
        see=("self.metadata['n']",),
    ),
    "picture drawn on": Part(
        reset="self.canvas# = PIL.Image.new('L', (4, 4))",
        step="self.canvas#.putpixel((self.t % 4, 0), self.t)",
        see=("self.canvas#.getpixel((1, 0))", "self.canvas#.getpixel((2, 0))"),
    ),
    "names of cameras and renderers": Part(
        module="""
            class Camera#:
                def __init__(self):
                    self.zoom = 1.0


            Camera = Renderer = Camera#""",
        init="self.camera# = Camera()",
        reset="self.camera#.zoom = 1.0",
        step="self.camera#.zoom += a",
        see=("self.camera#.zoom",),
    ),
    "thread": Part(
        init="self.pool# = concurrent.futures.ThreadPoolExecutor(1)",
        reset="self.done# = 0",
        step="self.done# += self.pool#.submit(lambda: 1).result()",
        see=("self.done#",),
    ),
}

UNUSUAL_RANDOMNESS = {
    "global numpy in steps": Part(
        step="self.x# = np.random.normal()",
        see=("getattr(self, 'x#', 0.0) if self.t else 0.0",),
        episodic=False,
        draws=True,
    ),
    "global numpy if an argument asks for it": Part(
        init="self.noise# = noise#",
        reset="self.x# = 0.0",
        step="""
            if self.noise#:
                self.x# += np.random.normal()""",
        see=("self.x#",),
        arguments={"noise#": ("0", "1")},
        settings=("noise#",),
        dynamic=True,
        draws=True,
        episodic=False,
    ),
    "global numpy at reset": Part(
        reset="self.x# = np.random.rand()",
        see=("self.x#",),
        episodic=False,
    ),
    "global random now and then": Part(
        reset="self.x# = 0.0",
        step="""
            if self.t % 6 == 5:
                self.x# += random.random()""",
        see=("self.x#",),
        episodic=False,
        draws=True,
    ),
    "global random at reset": Part(
        reset="self.x# = random.randint(0, 10**6)",
        see=("self.x#",),
        episodic=False,
    ),
    "global torch": Part(
        step="self.x# = float(torch.rand(()))",
        see=("getattr(self, 'x#', 0.0) if self.t else 0.0",),
        episodic=False,
        draws=True,
    ),
    "global numpy seeded at reset": Part(
        reset="np.random.seed(int(self.np_random.uniform(0, 99)))\nself.x# = 0.0",
        step="self.x# += np.random.normal()",
        see=("self.x#",),
        draws=True,
        episodic=False,
        independent=False,
    ),
    "clock of the machine": Part(
        reset="self.started# = time.perf_counter()",
        step="self.late# = time.perf_counter() - self.started#",
        see=("getattr(self, 'late#', 0.0) if self.t else 0.0",),
        episodic=False,
    ),
    "clock of the machine that nothing reads": Part(
        reset="self.started# = time.perf_counter()",
    ),
    "torch generator": Part(
        init="self.torch# = torch.Generator().manual_seed(3)",
        reset="self.x# = 0.0",
        step="self.x# += float(torch.rand((), generator=self.torch#))",
        see=("self.x#",),
        draws=True,
        seeded=False,
    ),
    "bit generator by a second name": Part(
        init="self.bits# = np.random.PCG64(4)\nself.rng# = np.random.Generator(self.bits#)",
        reset="self.x# = 0.0",
        step="self.x# += self.rng#.random() + self.bits#.random_raw() % 7",
        see=("self.x#",),
        generators=("rng#",),
        draws=True,
        seeded=False,
    ),
    "method of a generator": Part(
        init="self.draw# = np.random.default_rng(9).normal",
        reset="self.x# = 0.0",
        step="self.x# += self.draw#()",
        see=("self.x#",),
        draws=True,
        episodic=False,
    ),
    "method of random": Part(
        init="self.draw# = random.Random(9).random",
        reset="self.x# = 0.0",
        step="self.x# += self.draw#()",
        see=("self.x#",),
        draws=True,
        episodic=False,
    ),
}

UNUSUAL_FUNCTIONS = {
    "default argument that is changed": Part(
        init="self.remember# = lambda x, memory=[]: memory.append(x) or len(memory)",
        step="self.n# = self.remember#(a)",
        see=("getattr(self, 'n#', 0)",),
        episodic=False,
    ),
    "attribute of a function": Part(
        module="""
            def make_tick#():
                def tick():
                    tick.n += 1
                    return tick.n

                tick.n = 0
                return tick""",
        init="self.tick# = make_tick#()",
        reset="self.tick#.n = 0",
        step="self.n# = self.tick#()",
        see=("getattr(self, 'n#', 0) if self.t else 0",),
    ),
    "method of an object with state": Part(
        module="""
            class Source#:
                def __init__(self):
                    self.n = 0

                def draw(self):
                    self.n += 3
                    return self.n""",
        init="self.draw# = Source#().draw",
        step="self.x# = self.draw#()",
        see=("getattr(self, 'x#', 0)",),
        episodic=False,
    ),
    "method made at reset": Part(
        reset="self.items# = []\nself.push# = self.items#.append",
        step="self.push#(a)",
        see=("sum(self.items#)",),
    ),
    "partial with state": Part(
        module="""
            def advance#(memory, x):
                memory["sum"] = memory.get("sum", 0.0) + x
                return memory["sum"]""",
        reset="self.add# = functools.partial(advance#, {})\nself.x# = 0.0",
        step="self.x# = self.add#(a)",
        see=("self.x#",),
    ),
    "state outside if an argument asks for it": Part(
        module="log# = []",
        init="self.loud# = loud#",
        reset="""
            if self.loud#:
                log#.clear()""",
        step="""
            if self.loud#:
                log#.append(a)""",
        see=("sum(log#) if self.loud# else 0.0",),
        arguments={"loud#": ("0", "1")},
        settings=("loud#",),
        dynamic=True,
        independent=False,
        episodic=False,
    ),
    "iterator over a list": Part(
        reset="self.rest# = iter([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0] * 9)",
        step="self.x# = next(self.rest#)",
        see=("getattr(self, 'x#', 0.0) if self.t else 0.0",),
    ),
    "counts and cycles": Part(
        init="self.ids#, self.turns# = itertools.count(), itertools.cycle([1, 5, 7])",
        step="self.id#, self.turn# = next(self.ids#), next(self.turns#)",
        see=("getattr(self, 'id#', 0)", "getattr(self, 'turn#', 0)"),
        episodic=False,
    ),
    "generator function": Part(
        members="""
            def script#(self):
                x = 0.0
                while True:
                    x += self.t
                    yield x""",
        reset="self.plot# = self.script#()",
        step="self.x# = next(self.plot#)",
        see=("getattr(self, 'x#', 0.0) if self.t else 0.0",),
    ),
    "callable object": Part(
        module="""
            class Smooth#:
                def __init__(self):
                    self.mean = 0.0

                def __call__(self, x):
                    self.mean = 0.9 * self.mean + 0.1 * x
                    return self.mean""",
        reset="self.smooth#, self.y# = Smooth#(), 0.0",
        step="self.y# = self.smooth#(a)",
        see=("self.y#",),
    ),
    "closure over objects and generators": Part(
        module="""
            def make_noise#(seed):
                rng, trail = np.random.default_rng(seed), []

                def noise():
                    trail.append(rng.normal())
                    return sum(trail)

                return noise""",
        init="self.noise# = make_noise#(4)",
        step="self.x# = self.noise#()",
        see=("getattr(self, 'x#', 0.0)",),
        draws=True,
        episodic=False,
    ),
    "closure in a closure": Part(
        module="""
            def make_outer#():
                n = 0

                def inner():
                    nonlocal n
                    n += 1
                    return n

                return lambda: inner() * 2""",
        init="self.twice# = make_outer#()",
        step="self.x# = self.twice#()",
        see=("getattr(self, 'x#', 0)",),
        episodic=False,
    ),
}

UNUSUAL: dict[str, Part] = {
    **UNUSUAL_ARRAYS,
    **UNUSUAL_OBJECTS,
    **UNUSUAL_RANDOMNESS,
    **UNUSUAL_FUNCTIONS,
}
"""Kinds of state that may be refused, but never be restored inexactly."""
PARTS = {**PLAIN, **UNUSUAL}


@dataclass(frozen=True)
class Wrapping:
    """A wrapper, as the source of an expression and of the class that it needs.

    Attributes:
        wrap: an expression of `env`.
        module: the lines that it needs.
        holds: what is true of it from its first reset on; `self` is the unwrapped env, `w(name)` is
            the wrapper of that class.
        shows: the env's own observation as an expression of `obs`; empty: it cannot be told, or
            actions or the env's state are changed.
        lasting: paths of what is the wrapper's own and depends on the number of calls only.
        independent: whether it is unaffected by others of its class.
    """

    wrap: str
    module: str = ""
    holds: tuple[str, ...] = ()
    shows: str = "obs"
    lasting: tuple[str, ...] = ()
    independent: bool = True


PLAIN_WRAPPERS = {
    "time limit": Wrapping(
        "gymnasium.wrappers.TimeLimit(env, 9)", lasting=("w('TimeLimit')._elapsed_steps",)
    ),
    "statistics": Wrapping(
        "gymnasium.wrappers.RecordEpisodeStatistics(env)",
        lasting=("w('RecordEpisodeStatistics').episode_lengths",),
    ),
    "frame stack": Wrapping("gymnasium.wrappers.FrameStackObservation(env, 3)", shows="obs[-1]"),
    "normalised observations": Wrapping("gymnasium.wrappers.NormalizeObservation(env)", shows=""),
    "normalised rewards": Wrapping("gymnasium.wrappers.NormalizeReward(env)"),
    "lambda on rewards": Wrapping("gymnasium.wrappers.TransformReward(env, lambda r: 2 * r)"),
    "order enforced": Wrapping("gymnasium.wrappers.OrderEnforcing(env)"),
    "own counter": Wrapping(
        "Counted(env)",
        """
            class Counted(gymnasium.Wrapper):
                def __init__(self, env):
                    super().__init__(env)
                    self.calls, self.recent = 0, []

                def reset(self, **kwargs):
                    self.recent = []
                    return self.env.reset(**kwargs)

                def step(self, action):
                    self.calls += 1
                    self.recent.append(self.calls)
                    obs, reward, *rest = self.env.step(action)
                    return obs, reward + self.calls + len(self.recent), *rest""",
        lasting=("w('Counted').calls", "w('Counted').recent"),
    ),
    "own generator": Wrapping(
        "Noisy(env)",
        """
            class Noisy(gymnasium.Wrapper):
                def __init__(self, env):
                    super().__init__(env)
                    self.rng = np.random.default_rng(5)

                def step(self, action):
                    obs, reward, *rest = self.env.step(action)
                    return obs, reward + self.rng.normal(), *rest""",
        lasting=("w('Noisy').rng",),
    ),
    "closure over a counter": Wrapping(
        "Fading(env, make_fading())",
        """
            class Fading(gymnasium.wrappers.TransformReward):
                pass


            def make_fading():
                n = 0

                def fade(reward):
                    nonlocal n
                    n += 1
                    return reward / n

                return fade""",
        lasting=("w('Fading').func.__closure__[0].cell_contents",),
    ),
}
"""Wrappers that must be saved and restored to the bit."""

UNUSUAL_WRAPPERS = {
    "buffer that the env views": Wrapping(
        "Buffered(env)",
        """
            class Buffered(gymnasium.Wrapper):
                def __init__(self, env):
                    super().__init__(env)
                    self.buffer = np.zeros(4)
                    env.unwrapped.window = self.buffer[1:3]

                def reset(self, **kwargs):
                    self.buffer[:] = 0
                    return self.env.reset(**kwargs)

                def step(self, action):
                    self.buffer += np.sum(action)
                    obs, reward, *rest = self.env.step(action)
                    self.env.unwrapped.window *= 0.5
                    reward = reward + self.buffer.sum() + self.env.unwrapped.window[0]
                    return obs, reward, *rest""",
        holds=("np.shares_memory(w('Buffered').buffer, self.window)",),
    ),
    "object that the env holds too": Wrapping(
        "Shared(env)",
        """
            class Shared(gymnasium.Wrapper):
                def __init__(self, env):
                    super().__init__(env)
                    self.log = env.unwrapped.log = []

                def reset(self, **kwargs):
                    self.log.clear()
                    return self.env.reset(**kwargs)

                def step(self, action):
                    self.log.append(np.sum(action))
                    obs, reward, *rest = self.env.step(action)
                    return obs, reward + sum(self.env.unwrapped.log), *rest""",
        holds=("w('Shared').log is self.log",),
    ),
    "global numpy": Wrapping(
        "Slips(env)",
        """
            class Slips(gymnasium.Wrapper):
                def step(self, action):
                    obs, reward, *rest = self.env.step(action)
                    return obs, reward + np.random.normal(), *rest""",
    ),
    "global random at reset": Wrapping(
        "Chance(env)",
        """
            class Chance(gymnasium.Wrapper):
                def reset(self, **kwargs):
                    self.luck = random.random()
                    return self.env.reset(**kwargs)

                def step(self, action):
                    obs, reward, *rest = self.env.step(action)
                    return obs, reward + self.luck, *rest""",
    ),
    "state on the class": Wrapping(
        "Tallied(env)",
        """
            class Tallied(gymnasium.Wrapper):
                n = 0

                def step(self, action):
                    type(self).n += 1
                    obs, reward, *rest = self.env.step(action)
                    return obs, reward + self.n, *rest""",
        independent=False,
    ),
    "state in slots": Wrapping(
        "Slotted(env)",
        """
            class Slotted(gymnasium.Wrapper):
                __slots__ = ("n",)

                def reset(self, **kwargs):
                    self.n = 0
                    return self.env.reset(**kwargs)

                def step(self, action):
                    self.n += 1
                    obs, reward, *rest = self.env.step(action)
                    return obs, reward + self.n, *rest""",
    ),
    "iterator": Wrapping(
        "Scheduled(env)",
        """
            class Scheduled(gymnasium.Wrapper):
                def __init__(self, env):
                    super().__init__(env)
                    self.scales = itertools.cycle([1.0, 2.0, 5.0])

                def step(self, action):
                    obs, reward, *rest = self.env.step(action)
                    return obs, reward * next(self.scales), *rest""",
    ),
    "sticky actions": Wrapping("gymnasium.wrappers.StickyAction(env, 0.4)", shows=""),
    "delayed observations": Wrapping("gymnasium.wrappers.DelayObservation(env, 2)", shows=""),
    "time in the observation": Wrapping(
        "gymnasium.wrappers.TimeAwareObservation(gymnasium.wrappers.TimeLimit(env, 9))", shows=""
    ),
}
"""Wrappers that may be refused."""
WRAPPERS = {**PLAIN_WRAPPERS, **UNUSUAL_WRAPPERS}

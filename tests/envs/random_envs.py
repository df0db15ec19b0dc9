"""Small random envs as the source of a module, put together from the parts of random_parts.py.

The source of a random env is its own minimal example: `print(RandomEnv(("views",)).source)`.
"""

from __future__ import annotations

import functools
import hashlib
import linecache
import re
import sys
import textwrap
import types
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
from hypothesis import strategies as st
from random_parts import PARTS, PLAIN, PLAIN_WRAPPERS, WRAPPERS, Part

CLOCKS = ("t", "step_count", "_steps", "_step_count", "elapsed_steps", "curr_path_length")
REWARDS = ("float({})", "np.float32({})", "np.array({})", "np.array([{}])", "torch.tensor({})")
MODULES = """array collections concurrent.futures ctypes dataclasses datetime decimal enum fractions
functools io itertools math pathlib random tempfile threading time weakref PIL.Image torch"""


@dataclass(frozen=True)
class RandomEnv:
    """A small env of some parts, in some wrappers.

    Attributes:
        parts: names from `PARTS`.
        wrappers: names from `WRAPPERS`, innermost first.
        length_steps: of an episode.
        terminates: whether its end is a termination.
        discrete: whether actions are 0, 1, 2.
        clock: the name of its step counter.
        reward: an expression that makes a reward of a number.
        own_buffer: whether observations are always the same array, filled anew.
    """

    parts: tuple[str, ...]
    wrappers: tuple[str, ...] = ()
    length_steps: int = 12
    terminates: bool = False
    discrete: bool = False
    clock: str = "t"
    reward: str = REWARDS[0]
    own_buffer: bool = False

    @property
    def plain(self) -> bool:
        """Whether it must not be refused."""
        if self.wrappers and self.reward.startswith("torch"):
            return False  # wrappers may keep the rewards
        return set(self.parts) <= set(PLAIN) and set(self.wrappers) <= set(PLAIN_WRAPPERS)

    def facts(self, name: str) -> list[str]:
        """All settings, lasting values, generators or conditions of its parts."""
        return [
            self._named(text, number)
            for number, part in enumerate(self.parts)
            for text in getattr(PARTS[part], name)
        ]

    @property
    def holds(self) -> list[str]:
        """The conditions that are always true."""
        return self.facts("holds") + [text for one in self.wrappers for text in WRAPPERS[one].holds]

    @functools.cached_property
    def seen(self) -> list[tuple[Part, slice]]:
        """Each part with its place in the observation, which begins with the clock."""
        found, at = [], 1
        for name in self.parts:
            found.append((PARTS[name], slice(at, at + len(PARTS[name].see))))
            at += len(PARTS[name].see)
        return found

    def all(self, name: str) -> bool:
        """Whether something is true of all parts and, if it applies to them, of all wrappers."""
        wrappers = [WRAPPERS[one] for one in self.wrappers]
        return all(getattr(part, name) for part, _ in self.seen) and all(
            getattr(one, name, True) for one in wrappers
        )

    def any(self, name: str) -> bool:
        """Whether something is true of any part."""
        return any(getattr(part, name) for part, _ in self.seen)

    def arguments(self, student: bool) -> dict[str, str]:
        """The constructor's arguments, as source, for the teacher's env or the student's."""
        return {
            self._named(key, number): values[student]
            for number, name in enumerate(self.parts)
            for key, values in PARTS[name].arguments.items()
        }

    def _named(self, text: str, number: int) -> str:
        return re.sub(r"self\.t\b", f"self.{self.clock}", text.replace("#", str(number)))

    @functools.cached_property
    def source(self) -> str:
        """The module: the class `Generated`, `wrap(env)`, and `make(**arguments)` of both."""

        def lines(name: str, before: int) -> str:
            texts = [
                self._named(textwrap.dedent(getattr(PARTS[part], name)).strip("\n"), number)
                for number, part in enumerate(self.parts)
            ]
            return "".join(textwrap.indent(text + "\n", " " * before) for text in texts if text)

        def terms(name: str) -> list[str]:
            return [
                self._named(getattr(PARTS[part], name), number)
                for number, part in enumerate(self.parts)
                if getattr(PARTS[part], name)
            ]

        size = self.seen[-1][1].stop if self.seen else 1
        numbers = ", ".join([f"self.{self.clock}", *self.facts("see")])
        info = ", ".join(
            f'"{number}": {self._named(PARTS[part].tell, number)}'
            for number, part in enumerate(self.parts)
            if PARTS[part].tell
        )
        over = f"self.{self.clock} >= {self.length_steps}"
        ends = " or ".join([*terms("ends"), *([over] if self.terminates else [])]) or "False"
        reward = self.reward.format(" + ".join(["0.1 * a", *terms("pay")]))
        keywords = "".join(f", {key}={value}" for key, value in self.arguments(False).items())
        passed = ", ".join(f"{key}={key}" for key in self.arguments(False))
        if self.own_buffer:
            look = f"self.obs[:] = [{numbers}]\n        return self.obs"
        else:
            look = f"return np.array([{numbers}], np.float64)"
        space = "Discrete(3)" if self.discrete else "Box(-1, 1, (1,), np.float32)"
        wrappers = dict.fromkeys(self.wrappers)
        module = lines("module", 0) + "".join(
            textwrap.dedent(WRAPPERS[one].module).strip("\n") + "\n\n\n" for one in wrappers
        )
        wrapping = "".join(f"    env = {WRAPPERS[one].wrap}\n" for one in self.wrappers)
        body = f"""
{module}class Generated(gymnasium.Env):
    observation_space = Box(-np.inf, np.inf, ({size},), np.float64)
    action_space = {space}
{lines("members", 4)}
    def __init__(self{keywords}):
        {"self.obs = np.zeros(" + str(size) + ")" if self.own_buffer else "pass"}
{lines("init", 8)}
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.{self.clock} = 0
{lines("reset", 8)}        return self.look(), self.tell()

    def step(self, action):
        a = float(np.sum(action))
        self.{self.clock} += 1
{lines("step", 8)}        reward = {reward}
        return self.look(), reward, {ends}, {not self.terminates and over}, self.tell()

    def look(self):
        {look}

    def tell(self):
        return {{{info}}}


def wrap(env):
{wrapping}    return env


def make({keywords[2:]}):
    return wrap(Generated({passed}))
"""
        used = [one for one in MODULES.split() if re.search(rf"\b{re.escape(one)}\.", body)]
        imports = [f"import {one}" for one in used]
        imports += ["import gymnasium", "import numpy as np"]
        head = "\n".join(imports) + "\nfrom gymnasium.spaces import Box, Discrete\n\n"
        return head + re.sub(r"\n{3,}", "\n\n\n", body)

    @contextmanager
    def loaded(self):
        """Its module, importable in this block, with the env's class registered under `ID`."""
        name = f"random_env_{hashlib.sha256(self.source.encode()).hexdigest()[:12]}"
        module: Any = types.ModuleType(name)
        module.__file__ = f"<{name}>"
        linecache.cache[module.__file__] = (
            len(self.source),
            None,
            self.source.splitlines(True),
            module.__file__,
        )
        sys.modules[name] = module
        module.ID = f"{name}-v0"
        try:
            exec(compile(self.source, module.__file__, "exec"), vars(module))
            gymnasium.register(module.ID, entry_point=module.Generated)
            yield module
        finally:
            gymnasium.registry.pop(module.ID, None)
            del sys.modules[name], linecache.cache[module.__file__]


def random_envs(parts=tuple(PARTS), wrappers=tuple(WRAPPERS), most_parts=4):
    """A strategy: random envs of these parts and wrappers."""

    def names(pool, least, most):
        chosen = st.lists(st.sampled_from(pool), min_size=least, max_size=most, unique=True)
        return chosen.map(tuple)

    return st.builds(
        RandomEnv,
        parts=names(parts, 1, most_parts),
        wrappers=st.one_of(st.just(()), names(wrappers, 0, 2)) if wrappers else st.just(()),
        length_steps=st.integers(4, 18),
        terminates=st.booleans(),
        discrete=st.booleans(),
        clock=st.sampled_from(CLOCKS),
        reward=st.sampled_from(REWARDS),
        own_buffer=st.booleans(),
    )

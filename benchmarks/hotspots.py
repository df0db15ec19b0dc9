"""Where the time of an update and of an agent step goes, compared with the machine's peaks.

`python benchmarks/hotspots.py` prints Markdown tables. `agent=` and `env=` select the training loop
(default: DrM on dog_run), `rounds=` the number of updates, `threads=` the CPU threads; `precision=`
and `compile=` go to rlearly's config. The loop is the real one, built as in loop.py.

The parts of a step are timed by wrapping them; the time of an inner part does not count for the
outer one. Updates are also run under torch's profiler. Profiling takes time itself, so it only
gives shares, which are applied to the measured milliseconds. FLOP are counted separately, in one
uncompiled update, for matrix products and convolutions. The peaks are measured first, by peaks.py;
`quick=true` makes them quick and meaningless, for trying the script out.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import loop as loops
import turns

from rlearly.config.fields import setting
from rlearly.core.errors import ConfigError

CONVOLUTIONS, PRODUCTS = "convolutions", "matrix products"
OTHER = "element-wise and reductions"
PYTHON = "Python, autograd and dispatch"
GROUPS = {
    CONVOLUTIONS: ("conv",),
    PRODUCTS: ("::mm", "addmm", "bmm", "matmul", "linear"),
    "Adam and slow targets": ("adam", "_foreach_", "lerp"),
    "gather and augmentation": ("index", "gather", "grid_sampler", "pad", "unfold"),
    "copies and changes of format": ("copy", "clone", "contiguous", "::cat", "::to", "reorder"),
    "random numbers": ("normal", "random", "uniform", "bernoulli"),
    "new memory": ("empty", "zero", "fill", "resize", "set_"),
}
"""Group -> parts of operator names; the first match counts, and all others are element-wise."""

COMPILED = "compiled kernels"
OTHER_THREAD = ", in another thread"


@dataclass(frozen=True)
class HotspotsConfig:
    """Settings of the benchmark."""

    agent: str = setting("drm", "agent to measure")
    env: str = setting("dog_run", "env of the training loop")
    rounds: int = setting(5, "updates to time, and updates to profile", at_least=1)
    threads: int = setting(1, "CPU threads", at_least=1)
    precision: str | None = setting(None, "precision= of rlearly's side")
    compile: bool | None = setting(None, "compile= of rlearly's side")
    quick: bool = setting(
        False, "measure the peaks quickly, with few calls of small sizes: meaningless numbers"
    )


class Clock:
    """Seconds and calls of each part, excluding the parts inside it.

    Parts that run in another thread than the loop get a name that says so.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.inner: dict[int, list[float]] = defaultdict(lambda: [0.0])
        self.timed: list[tuple[Any, str]] = []

    def around(self, owner: Any, method: str, name: str) -> None:
        """Time a method of an object under a name."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            here = threading.current_thread() is threading.main_thread()
            inner = self.inner[threading.get_ident()]
            inner.append(0.0)
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                taken = time.perf_counter() - began
                part = name if here else name + OTHER_THREAD
                self.seconds[part] += taken - inner.pop()
                self.calls[part] += 1
                inner[-1] += taken

        setattr(owner, method, timed)
        self.timed.append((owner, method))

    def leave(self) -> None:
        """Stop timing, and drop the references to the timed objects."""
        for owner, method in reversed(self.timed):
            delattr(owner, method)
        self.timed.clear()


def watch(loop: Any, clock: Clock) -> None:
    """Time everything that a step of the training loop calls."""
    clock.around(loop.agent, "act", "agent.act")
    clock.around(loop.agent, "update", "agent.update")
    clock.around(loop.memory, "sample", "memory.sample")
    clock.around(loop.memory, "add", "memory.add")
    clock.around(loop.sinks, "write", "sinks.write")
    clock.around(loop.display, "on_progress", "display.on_progress")
    for env in loop.envs:
        clock.around(env, "step", "env.step without rendering")
        clock.around(env, "reset", "env.reset without rendering")
        clock.around(env.get_wrapper_attr("render_frame").__self__, "render_frame", "rendering")


@contextmanager
def each_update(agent: Any, inside: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Run every update inside a context of its own."""
    original = agent.update

    def update(*args: Any, **kwargs: Any) -> Any:
        with inside():
            return original(*args, **kwargs)

    agent.update = update
    try:
        yield
    finally:
        del agent.update


@contextmanager
def without_stderr() -> Iterator[None]:
    """Hide the messages that the profiler's library prints at each start and stop."""
    kept = os.dup(2)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def group_of(operator: str) -> str:
    if not operator.startswith(("aten::", "mkldnn::", "onednn::", "quantized::")):
        return COMPILED if "fused" in operator or "ompiled" in operator else PYTHON
    for name, parts in GROUPS.items():
        if any(part in operator for part in parts):
            return name
    return OTHER


def shares(loop: Any, advance: Callable[[int], None], steps: int) -> dict[str, float]:
    """The share of each group of operators in the updates of `steps` agent steps."""
    from torch.autograd.profiler import profile

    found: dict[str, float] = defaultdict(float)

    @contextmanager
    def watched() -> Iterator[None]:
        with profile(use_kineto=False) as profiler:
            began = time.perf_counter()
            yield
            taken = time.perf_counter() - began
        inside, events = 0.0, cast(Any, profiler).key_averages()
        for event in events:
            seconds = event.self_cpu_time_total / 1e6
            found[group_of(event.key)] += seconds
            inside += seconds
        found[PYTHON] += max(0.0, taken - inside)

    with without_stderr(), each_update(loop.agent, watched):
        advance(steps)
    total = sum(found.values())
    return {name: seconds / total for name, seconds in found.items()}


def counted_flop(loop: Any, advance: Callable[[int], None], steps: int) -> dict[str, float]:
    """FLOP of an update by group, averaged over the updates of `steps` agent steps."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def product(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    own = {
        getattr(torch.ops.mkldnn, name): product
        for name in ("_linear_pointwise", "_convolution_pointwise")
        if hasattr(torch.ops.mkldnn, name)
    }
    counters: list[FlopCounterMode] = []

    def counting() -> FlopCounterMode:
        counters.append(FlopCounterMode(display=False, custom_mapping=own))
        return counters[-1]

    with each_update(loop.agent, counting):
        advance(steps)
    found: dict[str, float] = defaultdict(float)
    for counter in counters:
        for operator, flop in counter.get_flop_counts().get("Global", {}).items():
            kind = CONVOLUTIONS if "conv" in str(operator) else PRODUCTS
            found[kind] += flop / len(counters)
    return found


def best(peaks: list[Any], precision: str, *kinds: str) -> float:
    """The highest of some peaks, in FLOP/s."""
    fits = (p for p in peaks if p.precision == precision and p.what.startswith(kinds))
    return max(p.rate for p in fits) * 1e9


def update_table(
    part: dict[str, float], flop: dict[str, float], seconds: float, peaks: list[Any], precision: str
) -> str:
    lines = [
        "| of an update | what | share | ms | GFLOP | GFLOP/s | of the measured peak |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    most = {
        PRODUCTS: best(peaks, precision, "product"),
        CONVOLUTIONS: best(peaks, precision, "convolution", "its gradients"),
    }
    for name, share in sorted(part.items(), key=lambda item: -item[1]):
        numbers = "| | |"
        if flop.get(name) and share:
            rate = flop[name] / (share * seconds)
            gflop = f"{flop[name] / 1e9:,.3g}"
            numbers = f"{gflop} | {rate / 1e9:,.0f} | {rate / most[name]:.0%} |"
        lines.append(f"| update | {name} | {share:.1%} | {1e3 * share * seconds:,.3g} | {numbers}")
    floor = sum(flop[name] / most[name] for name in flop)
    lines.append(
        f"| all of it | | | {1e3 * seconds:,.4g} | {sum(flop.values()) / 1e9:,.3g} | "
        f"{sum(flop.values()) / seconds / 1e9:,.0f} | {floor / seconds:.0%} |"
    )
    return "\n".join(lines)


def loop_table(clock: Clock, seconds: float, steps: int) -> str:
    lines = [
        f"| of {1e3 * seconds / steps:,.4g} ms per agent step | share | ms | calls per step |",
        "|---|---:|---:|---:|",
    ]
    named = dict(clock.seconds)
    here = sum(taken for name, taken in named.items() if not name.endswith(OTHER_THREAD))
    named["the loop itself, including waiting for other threads"] = seconds - here
    for name, taken in sorted(named.items(), key=lambda item: -item[1]):
        calls = f"{clock.calls[name] / steps:,.3g}" if name in clock.calls else ""
        row = f"| {name} | {taken / seconds:.1%} | {1e3 * taken / steps:,.3g} | {calls} |"
        lines.append(row)
    return "\n".join(lines)


def report(config: HotspotsConfig) -> None:
    import peaks
    import torch

    from rlearly.system import machine

    loops.prepare_env_libraries()
    torch.manual_seed(0)
    machine.set_threads(config.threads)
    best_rates = peaks.measure(quick=config.quick)
    print(f"{peaks.table(best_rates)}\n", flush=True)
    overrides = turns.given(precision=config.precision)
    compiled = turns.given(compile=config.compile)
    steps_per_update = {"td3": 1, "sac": 1, "ppo": 2048, "drq_eps": 1}
    each = steps_per_update.get(config.agent, 2)
    begin = loops.STARTS_STEPS.get(config.agent, 0) + 2 * each
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        where = (config.agent, config.env)
        loop, advance = loops.build(*where, overrides, config.threads, Path(first))
        advance(begin)
        flop = counted_flop(loop, advance, 2 * each)
        loop.close()
        loop, advance = loops.build(*where, overrides + compiled, config.threads, Path(second))
        advance(begin + 2 * each)
        part = shares(loop, advance, config.rounds * each)
        clock = Clock()
        watch(loop, clock)
        steps = config.rounds * each
        began = time.perf_counter()
        advance(steps)
        seconds = time.perf_counter() - began
        clock.leave()
        loop.close()
    update = clock.seconds["agent.update"] / clock.calls["agent.update"]
    print(update_table(part, flop, update, best_rates, config.precision or "fp32"), end="\n\n")
    print(loop_table(clock, seconds, steps))


def main() -> int:
    try:
        config = turns.parse_config(HotspotsConfig(), __doc__)
        from rlearly.config import resolve

        overrides = turns.given(precision=config.precision, compile=config.compile)
        resolve.compose([f"agent={config.agent}", f"env={config.env}", *overrides])
    except ConfigError as error:
        print(f"benchmarks/hotspots.py: {error}", file=sys.stderr)
        return 2
    report(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())

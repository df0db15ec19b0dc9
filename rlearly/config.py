"""What a run is made of: RunConfig and its groups, validated, and the override grammar on them.

Each field says in one place what it is, its default and its bounds; `--help`, the checks and the
error sentences are all read off that. Agents keep their own group beside their code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(Exception):
    """A request that cannot be met; its text is the whole sentence for the person who made it."""


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    multiple_of: int | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A config field with its one-line description and its bounds."""
    bounds = {
        "above": above,
        "at_least": at_least,
        "at_most": at_most,
        "multiple_of": multiple_of,
        "choices": choices,
    }
    metadata = {"help": help} | {name: bound for name, bound in bounds.items() if bound is not None}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(cls: type, help: str) -> Any:
    """A nested group of settings with its own defaults."""
    return dataclasses.field(default_factory=cls, metadata={"help": help})


@dataclass(frozen=True)
class EnvConfig:
    """The world."""

    name: str = setting("", "what `env=` named")
    family: str = setting("control", "the file of rlearly/envs that makes it")
    pixels: bool | None = setting(None, "observe rendered images; null: gymnasium no, others yes")
    action_repeat: int = setting(2, "simulator frames in one agent step", at_least=1)
    frame_stack: int = setting(3, "images in one pixel observation", at_least=1)
    image_size: int = setting(84, "side of an image in pixels", at_least=15, at_most=480)
    render: str = setting(
        "exact",
        "fast: no shadows, reflections and multisampling, which is another observation",
        choices=("exact", "fast"),
    )
    camera: int | None = setting(None, "camera number; null: the family's usual one")
    rules: str = setting(
        "paper",
        "Adroit's rewards, goals and horizons: DrM's, or package: gymnasium-robotics'",
        choices=("paper", "package"),
    )
    kwargs: dict[str, Any] = setting({}, "further arguments for gymnasium.make; dm_control: none")


@dataclass(frozen=True)
class ReplayConfig:
    """The memory that off-policy agents learn from."""

    capacity: int = setting(1_000_000, "transitions kept, of all copies", at_least=10)
    compression: str = setting(
        "none", "of images, without loss; zstd: a third of the memory", choices=("none", "zstd")
    )
    storage: str = setting(
        "memory",
        "of frames; disk: in a file that is gone when the run ends",
        choices=("memory", "disk"),
    )
    folder: str | None = setting(None, "of that file; null: the run's directory")
    device: str = setting(
        "auto",
        "where frames lie; auto: on the learner's GPU if all of them fit there",
        choices=("auto", "cpu", "cuda"),
    )
    prefetch: int = setting(
        0, "batches gathered ahead by a thread, at most; they are the same", at_least=0, at_most=8
    )


@dataclass(frozen=True)
class SnapshotConfig:
    """How training episodes start from the snapshots of `snapshot=FILE` (SnapshotRL, S3RL)."""

    selection: str = setting(
        "clusters",
        "clusters (S3RL), uniform, return_to_go, novelty or learner_error",
        choices=("uniform", "clusters", "return_to_go", "novelty", "learner_error"),
    )
    clusters: int | None = setting(None, "null: the paper's, 4 for sac, else 6", at_least=1)
    truncate_steps: int | None = setting(
        100, "agent steps of an episode that began at a snapshot; null: no cut", at_least=1
    )
    until_steps: int = setting(
        100_000, "agent steps of the phase (paper: of a million)", at_least=0
    )
    probability: float = setting(
        1.0, "of starting at a snapshot, in the phase", at_least=0, at_most=1
    )
    probability_end: float | None = setting(
        None, "to which it falls in a line over the phase; null: constant", at_least=0, at_most=1
    )
    keep_replay: bool = setting(True, "false: forget the phase's transitions when it ends")


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases; the local files are written whatever this says."""

    mode: str = setting(
        "disabled",
        "offline needs neither network nor key",
        choices=("disabled", "offline", "online"),
    )
    project: str = setting("rlearly", "project that runs are filed under")
    entity: str | None = setting(None, "user or team; null: the account's own")
    group: str | None = setting(None, "label that groups runs")


@dataclass(frozen=True)
class PlasticityConfig:
    """What is measured of every network while it learns; it changes nothing in training."""

    every_steps: int = setting(1000, "agent steps between two measurements; 0: never", at_least=0)
    dormant_threshold: float = setting(
        0.025, "a unit of at most this score is dormant", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class AdaptiveRatioConfig:
    """`replay_ratio=adaptive`: raise the ratio once the critic's plasticity has recovered."""

    low: float = setting(0.5, "updates a step until then", above=0, at_most=100)
    high: float = setting(2.0, "updates a step from then on", above=0, at_most=100)
    threshold: float = setting(
        0.001, "change of the critic's FAU that counts as none", above=0, at_most=1
    )
    check_every_episodes: int = setting(50, "episodes from one check to the next", at_least=1)
    check_every_steps: int | None = setting(
        None, "agent steps instead of episodes (paper, Atari: 2000)", at_least=1
    )
    window: str = setting(
        "episode",
        "whose mean FAU is compared: the last episode's (official), or the whole interval's",
        choices=("episode", "interval"),
    )


NETWORKS = "networks it is for, as in [actor,critic]; null: all"


@dataclass(frozen=True)
class LayerNormConfig:
    """LayerNorm before every activation."""

    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class CReLUConfig:
    """CReLU in the place of ReLU."""

    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class SpectralNormConfig:
    """Spectral normalisation of hidden linear layers."""

    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class InjectionConfig:
    """Plasticity injection into every head."""

    at_step: int = setting(100_000, "agent step of the injection", at_least=0)
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class WeightDecayConfig:
    """Adam's L2 term: gradient + strength * weight."""

    strength: float = setting(1e-5, "of the pull to 0", above=0)
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class L2InitConfig:
    """Loss + strength * |weights - initial weights|^2."""

    strength: float = setting(1e-2, "of the pull to the initial weights", above=0)
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class FreezeEncoderConfig:
    """The encoder stops learning."""

    at_step: int = setting(0, "agent step from which it does", at_least=0)


@dataclass(frozen=True)
class AugmentationConfig:
    """Data augmentation, switched once."""

    at_step: int = setting(0, "agent step of the switch; the opposite holds before it", at_least=0)
    on: bool = setting(False, "whether images are augmented from then on")


@dataclass(frozen=True)
class ShrinkPerturbConfig:
    """Weights are mixed with fresh ones."""

    every_steps: int = setting(100_000, "agent steps between two", at_least=1)
    alpha: float | None = setting(
        None, "weight that is kept; null: by the actor's dormant ratio", at_least=0, at_most=1
    )
    alpha_min: float = setting(0.2, "least that is kept, by dormancy", at_least=0, at_most=1)
    alpha_max: float = setting(1.0, "most that is kept, by dormancy", at_least=0, at_most=1)
    scope: str = setting(
        "linear", "linear: linear layers, not the encoder; all: all", choices=("linear", "all")
    )
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class ResetConfig:
    """Heads begin anew."""

    every_steps: int = setting(200_000, "agent steps between two", at_least=1)
    layers: str = setting(
        "heads",
        "heads: all after encoder and trunk; last: output layers",
        choices=("heads", "last"),
    )
    networks: list[str] | None = setting(None, NETWORKS)


@dataclass(frozen=True)
class ReDoConfig:
    """Dormant units are recycled."""

    every_steps: int = setting(1000, "agent steps between two", at_least=1)
    threshold: float = setting(0.1, "a unit of at most this score is", at_least=0, at_most=1)
    networks: list[str] | None = setting(None, NETWORKS)


INTERVENTIONS = {
    "augmentation": "switch data augmentation on or off at a step",
    "crelu": "relu(x) beside relu(-x) in the place of ReLU",
    "freeze_encoder": "no more learning of the encoder from a step on",
    "injection": "plasticity injection: fresh heads whose outputs begin at the old ones'",
    "l2_init": "pull the weights to where they began",
    "layer_norm": "LayerNorm before every activation",
    "redo": "recycle dormant units (ReDo)",
    "reset": "give heads, or their last layers, fresh weights",
    "shrink_perturb": "mix the weights with fresh ones, by dormancy or by a fixed share",
    "spectral_norm": "divide the weights of hidden layers by their spectral norm",
    "weight_decay": "pull the weights to 0",
}
"""Name -> one line. Each has a group of settings of its name."""


@dataclass(frozen=True)
class RunConfig:
    """One run, completely: the same config gives the same run."""

    agent: Any = setting(None, "who learns (a name)")
    env: Any = setting(None, "where (a name)")
    agent_name: str = setting("drm", "what `agent=` named")
    preset: str = setting("paper", "size of the whole setting", choices=("paper", "cpu"))
    obs: str = setting(
        "auto", "auto, pixels or state: sets env.pixels", choices=("auto", "pixels", "state")
    )
    seed: int = setting(0, "everything random in the run follows from it", at_least=0)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = setting(
        None,
        "CPU threads; null: OMP_NUM_THREADS, or as many as help the agent and are free",
        at_least=1,
    )
    precision: str = setting(
        "fp32",
        "of hidden layers: fp32, tf32 (GPUs only) or bf16; weights, losses and outputs are fp32",
        choices=("fp32", "tf32", "bf16"),
    )
    compile: bool = setting(False, "compile networks (for GPUs): a slow start, faster updates")
    num_envs: int = setting(1, "copies of the env stepped together", at_least=1)
    overlap: bool | None = setting(
        None, "step each copy in a thread of its own, beside the update; null: if it draws images"
    )
    train_frames: int = setting(1_000_000, "simulator frames to train for", at_least=1)
    seed_frames: int | None = setting(
        None, "frames before the first update; null: the agent's own", at_least=0
    )
    replay_ratio: Any = setting(
        0.5,
        "updates in one agent step: a number, adaptive, 'linear(START,END,STEPS)' or "
        "'step(FIRST,THEN,AT_STEP)'",
    )
    adaptive_ratio: AdaptiveRatioConfig = group(AdaptiveRatioConfig, "replay_ratio=adaptive")
    eval_every_frames: int = setting(10_000, "0: never", at_least=0)
    eval_episodes: int = setting(10, "episodes in one evaluation, mean action", at_least=1)
    eval_workers: int = setting(1, "of them played side by side, in threads", at_least=1)
    video_size: int = setting(
        256, "side of evaluation videos; 0: none", at_least=0, at_most=480, multiple_of=8
    )
    log_every_frames: int = setting(1000, "how often update metrics are written", at_least=1)
    checkpoint_every_frames: int = setting(100_000, "0: at the end only", at_least=0)
    keep_checkpoints: int = setting(2, "newest ones kept", at_least=1)
    replay: ReplayConfig = group(ReplayConfig, "the memory")
    snapshot: str | None = setting(None, "file of a teacher's snapshots to start episodes from")
    snapshot_sha256: str | None = setting(None, "of that file; filled in, and checked on resuming")
    snapshot_phase: SnapshotConfig = group(SnapshotConfig, "how they are used")
    plasticity: PlasticityConfig = group(PlasticityConfig, "what is measured of the networks")
    intervention: Any = setting(None, "what is done to the networks: a name, or [NAME,NAME,...]")
    augmentation: AugmentationConfig = group(AugmentationConfig, "an intervention")
    crelu: CReLUConfig = group(CReLUConfig, "an intervention")
    freeze_encoder: FreezeEncoderConfig = group(FreezeEncoderConfig, "an intervention")
    injection: InjectionConfig = group(InjectionConfig, "an intervention")
    l2_init: L2InitConfig = group(L2InitConfig, "an intervention")
    layer_norm: LayerNormConfig = group(LayerNormConfig, "an intervention")
    redo: ReDoConfig = group(ReDoConfig, "an intervention")
    reset: ResetConfig = group(ResetConfig, "an intervention")
    shrink_perturb: ShrinkPerturbConfig = group(ShrinkPerturbConfig, "an intervention")
    spectral_norm: SpectralNormConfig = group(SpectralNormConfig, "an intervention")
    weight_decay: WeightDecayConfig = group(WeightDecayConfig, "an intervention")
    wandb: WandbConfig = group(WandbConfig, "tracking beside the local files")
    run_dir: str | None = setting(None, "null: runs/<agent>/<env>/<seed>-<time>")
    resume: str | None = setting(None, "a run directory to continue; everything else is read there")


# --- the override grammar ---


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """`key=value` words in Hydra's grammar as (key, value) pairs.

    Raises:
        ConfigError: a word does not parse, adds or deletes a key, or lists several values.
    """
    _refuse_spaces(arguments)
    return [
        (override.key_or_group, _value(override, word)) for override, word in _parsed(arguments)
    ]


def as_word(key: str, value: object) -> str:
    """`key=value`, or `key='value'` where the grammar would read other than this text."""
    with contextlib.suppress(ConfigError):
        if parse_overrides([f"{key}={value}"]) == [(key, str(value))]:
            return f"{key}={value}"
    quoted = str(value).replace("'", "\\'")
    return f"{key}='{quoted}'"


def as_shell(words: Iterable[str]) -> str:
    """A command as a shell takes it: quoted where it must be, in double quotes if they do."""
    shown = []
    for word in words:
        quoted = shlex.quote(word)
        plain = quoted == word or set(word) & set('"$`\\!')
        shown.append(quoted if plain else f'"{word}"')
    return " ".join(shown)


def choices(word: str) -> tuple[str, list[str]]:
    """The key of a word, and each of the values that it lists, as words write them: `a=1,2` gives
    a, [1, 2], and `a=[1,2]` one value.

    Raises:
        ConfigError: it does not parse, or adds or deletes a key, or lists no plain values.
    """
    ((override, _),) = _parsed([word])
    if not override.is_sweep_override():
        _value(override, word)
        return override.key_or_group, [word.split("=", 1)[1]]
    try:
        if override.type == OverrideType.CHANGE and override.is_choice_sweep():
            return override.key_or_group, list(override.sweep_string_iterator())
    except HydraException:  # of a choice that is none, as glob(*)
        pass
    raise ConfigError(f"Expected key=VALUE,VALUE,..., received {word!r}.")


def _parsed(words: Sequence[str]) -> Iterator[tuple[Override, str]]:
    functions = create_functions()
    for name in ("linear", "step", "decay"):
        functions.register(name, _as_text(name))
    parser = OverridesParser(functions)
    for word in words:
        try:
            yield parser.parse_override(word), word
        except HydraException:
            if word.endswith(","):
                raise ConfigError(
                    f"Expected key=value, received {word!r}, which ends in a comma: write "
                    f"{word.rstrip(',')}, or another value after it."
                ) from None
            key = word.partition("=")[0]
            raise ConfigError(
                f"Expected key=value, received {word!r}, which is not in the grammar; a value with "
                f"spaces at its ends, commas, brackets or = in it wants quotes: \"{key}='VALUE'\"."
            ) from None


def _as_text(name: str) -> Any:
    """A function of the grammar whose value is its own text, as in linear(0.5,2,1000)."""

    def text(*arguments):  # unannotated: the grammar would check the types
        return f"{name}({','.join(map(str, arguments))})"

    return text


def _refuse_spaces(words: Sequence[str]) -> None:
    """`agent = td3` arrives as three words, `agent= td3` and `agent =td3` as two."""
    for at, word in enumerate(words):
        after = words[at + 1 : at + 2]
        if word.startswith("=") and at:
            parts = [words[at - 1], word, *(after if word == "=" else [])]
        elif word.endswith("=") and after and "=" not in after[0] and not word.startswith("="):
            parts = [word, *after]
        else:
            continue
        raise ConfigError(
            f"Expected key=value with no spaces around =, received {' '.join(parts)!r}; "
            f"write {''.join(parts)}."
        )


def _value(override: Override, word: str) -> Any:
    if override.type != OverrideType.CHANGE:
        raise ConfigError(
            f"Expected key=value, received {word!r}: keys cannot be added or deleted, "
            "only set (see --help)."
        )
    if override.is_sweep_override():
        raise ConfigError(
            f"{override.key_or_group}: expected one value, received the list {word!r}; "
            "a run has one of each, so start one run for each value (a list as one value is "
            f"written '{override.key_or_group}=[A,B]')."
        )
    return override.value()


def assign(config: DictConfig, key: str, value: Any) -> None:
    """Set one dotted key of a structured config, converting `value` to the field's type.

    Raises:
        ConfigError: there is no such key (the nearest ones are named), or the type is wrong.
    """
    known = dict(keys(config))
    if key not in known and not any(key.startswith(f"{k}.") for k in known if k.endswith("kwargs")):
        groups = sorted({k.rsplit(".", 1)[0] for k in known if "." in k})
        if key in groups:
            raise ConfigError(
                f"{key}: expected one of its keys, "
                f"{', '.join(k for k in known if k.startswith(key + '.'))}."
            )
        raise ConfigError(
            f"There is no key {key!r}; {did_you_mean(key, known)} (--help lists all keys)."
        )
    expected = known.get(key, "a value")
    if isinstance(value, str) and expected.startswith("list[str]"):
        value = [value]
    if isinstance(value, float) and value.is_integer() and expected.startswith("int"):
        value = int(value)
    try:
        OmegaConf.update(config, key, value)
    except OmegaConfBaseException:
        raise ConfigError(f"{key}: expected {expected}, received {value!r}.") from None


def from_words(defaults: Any, words: Sequence[str]) -> Any:
    """A config dataclass with `key=value` words set on it, checked.

    Raises:
        ConfigError: a word does not parse, names no key, or its value has a wrong type or size.
    """
    view = editable(defaults)
    for key, value in parse_overrides(words):
        assign(view, key, value)
    return frozen(view)


def keys(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every dotted key of a structured config with the name of its type."""
    for name, type_name, _, _, nested in describe(OmegaConf.get_type(config)):
        node = OmegaConf.select(config, name)
        nested = nested or (isinstance(node, DictConfig) and type_name == "Any")
        if nested and isinstance(node, DictConfig):
            yield from keys(node, f"{prefix}{name}.")
        else:
            yield prefix + name, type_name


def describe(cls: Any) -> Iterator[tuple[str, str, str, Any, bool]]:
    """(name, type, help, default, is a group) of every field of a config dataclass."""
    for field in dataclasses.fields(cls):
        type_name = str(field.type).replace("dict[str, Any]", "{key: value}")
        if field.default_factory is dataclasses.MISSING:
            default = field.default
        else:
            default = field.default_factory()
        is_group = dataclasses.is_dataclass(default)
        yield field.name, type_name, field.metadata.get("help", ""), default, is_group


def did_you_mean(name: str, valid: Iterable[str], most: int = 4) -> str:
    """`did you mean X or Y?`, or the valid names if none is near (a handful of them)."""
    names = sorted(valid)
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(name.lower(), lower, n=most, cutoff=0.55)
    near += [n for n in lower if n.rsplit(".", 1)[-1] == name.lower() and n not in near]
    if near:
        return f"did you mean {' or '.join(lower[n] for n in near)}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"valid names: {shown}."


# --- validation ---


def problems(config: Any, prefix: str = "") -> Iterator[str]:
    """One sentence for every value outside its field's bounds."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from problems(value, f"{key}.")
        elif value is not None:
            expected = _violation(value, field.metadata)
            if expected:
                yield f"{key}: expected {expected}, received {value!r}."


def _violation(value: Any, bounds: Any) -> str | None:
    if "choices" in bounds and value not in bounds["choices"]:
        return f"one of {', '.join(bounds['choices'])}"
    checks = {
        "above": lambda bound: value > bound,
        "at_least": lambda bound: value >= bound,
        "at_most": lambda bound: value <= bound,
        "multiple_of": lambda bound: value % bound == 0,
    }
    wanted = [
        f"{name.replace('_', ' ')} {bounds[name]}"
        for name, holds in checks.items()
        if name in bounds and not holds(bounds[name])
    ]
    return f"a number {' and '.join(wanted)}" if wanted else None


def editable(config: Any) -> DictConfig:
    """A structured, typed and writable view of a frozen config dataclass."""
    view = OmegaConf.structured(config)
    _unlock(view)
    return view


def _unlock(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for name in node:
        if not OmegaConf.is_interpolation(node, str(name)):
            child = node[name]
            if isinstance(child, DictConfig):
                _unlock(child)


def frozen(view: DictConfig) -> Any:
    """The frozen dataclass of an edited view, checked against every field's bounds.

    Raises:
        ConfigError: one or more values are out of bounds; all of them are reported together.
    """
    try:
        config = OmegaConf.to_object(view)
    except OmegaConfBaseException as error:
        raise ConfigError(f"The config does not resolve: {str(error).splitlines()[0]}.") from None
    found = list(problems(config))
    if found:
        raise ConfigError(" ".join(found))
    return config


def as_yaml(config: Any) -> str:
    """The config as YAML text, groups nested."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))

"""Text is text: what is typed for a key, or printed as a command, comes back as it was."""

import dataclasses
import functools
import shutil
import subprocess
import typing
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from rlearly import evaluate, report, sweep, teacher, tune
from rlearly.agents import AGENTS, agent_spec
from rlearly.config.overrides import (
    format_command,
    format_override,
    parse_text,
    parse_value,
    quoted,
    split_overrides,
    sweep_values,
)
from rlearly.config.resolve import compose, load
from rlearly.config.schema import EnvConfig, RunConfig
from rlearly.config.structured import as_yaml, from_overrides, read_yaml
from rlearly.experiments.launchers.lock import sweep_command
from rlearly.training.run_directory import create, resume_command

ODD = [
    "2026_01_15", "1e3", "true", "~", "null", "Null", "none", "", " x ", "a=b", "a,b", "[a,b]",
    "a]", "(1)", "{a: b}", "'a'", '"a"', "'", '"', "''", "josé's", "größe", "#x", "a #b", "$x",
    "${seed}", "\\${seed}", "$(x)", "`x`", "\\", "a\\'", "C:\\new", "!x", "-x", "--help", "%d", "*",
    "a;b", "a&b", "a\nb", "\t", "\x85", "\u2028", "\x7f", "\U0001f600", "0x10", "1:30",
    "2026-01-15", "@a", "|", "x:y",
]  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    st.text("'\"\\$`{}[]()<>~#!&|;*?%=,:@/ \t\n\rnulétrue1e3_-.\x85\u2028\x7f", max_size=12),
).filter(lambda text: text != "???")  # OmegaConf's word for a missing value, which is refused

SLOW = {  # no shrinking: composing a config takes a while
    "deadline": None,
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": list(HealthCheck),
}

CONFIGS = {
    **{
        f"train {name}": RunConfig(agent=agent_spec(name).config_class(), env=EnvConfig())
        for name in AGENTS
    },
    "evaluate": evaluate.EvaluateConfig(),
    "teacher": teacher.TeacherConfig(),
    "report": report.ReportConfig(),
    "sweep": sweep.SweepConfig(),
    "tune": tune.TuneConfig(),
}


def text_keys(config, prefix=""):
    """Dotted name -> whether it is a list, of every key whose declared type is text."""
    found = {}
    types = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), types[field.name]
        plain = {kind, *typing.get_args(kind)} - {type(None), Ellipsis}
        if dataclasses.is_dataclass(value):
            found |= text_keys(value, f"{prefix}{field.name}.")
        elif (
            str in plain and typing.get_origin(kind) is not dict and "choices" not in field.metadata
        ):
            found[prefix + field.name] = typing.get_origin(kind) is tuple
        elif list[str] in plain:
            found[prefix + field.name] = True
    return found


def value_of(config, key):
    return functools.reduce(getattr, key.split("."), config)


def through_bash(commands):
    """The arguments of each command as bash passes them on."""
    show = 'show() { printf \'%s\\0\' "$#" "$@"; }'
    script = "\n".join([show, *(f"show {command}" for command in commands)])
    shown = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    parts = iter(shown.decode().split("\0")[:-1])
    return [[next(parts) for _ in range(int(count))] for count in parts]


# --- reading and printing single values ---


@given(st.text("'\"\\$ a,=\n", max_size=10), st.sampled_from("'\""))
@example("\\", "'")
def test_quoted_text_is_read_as_in_hydras_grammar(inner, quote):
    text = f"{quote}{inner}{quote}"
    try:
        value = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return
    if isinstance(value, str):
        assert parse_text(text) == value


def test_text_is_taken_as_it_was_typed():
    for text in ODD:
        if text not in ("null", "'a'", '"a"', "''"):
            assert parse_value("key", text, "str | None") == text
    assert parse_value("key", "null", "str | None") is None
    assert parse_value("key", "'null'", "str | None") == "null"
    assert parse_value("key", "null", "str") == "null"
    assert parse_value("key", "'a'", "str") == parse_value("key", '"a"', "str") == "a"
    assert parse_value("key", "'a' and 'b'", "str") == "'a' and 'b'"
    assert parse_value("key", r"'josé\'s'", "str") == "josé's"


def test_list_of_texts_is_in_brackets_or_one_text():
    def read(text):
        return parse_value("key", text, "list[str] | None")

    assert read("[2026_01_15, 1e3,null,'a,b',lr=0.1]") == [
        "2026_01_15",
        "1e3",
        "null",
        "a,b",
        "lr=0.1",
    ]
    assert read("1e3") == ["1e3"] and read("a,b") == ["a,b"] and read("'[a]'") == ["[a]"]
    assert read("[]") == [] and read("null") is None
    assert parse_value("key", "[a,b]", "tuple[str, ...]") == ["a", "b"]


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_sweep_lists_quoted_texts(texts):
    override = f"key={','.join(map(quoted, texts))}"
    assert [parse_text(value) for value in sweep_values(override)[1]] == texts


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, min_size=20, max_size=20))
@example(ODD)
def test_printed_commands_give_the_same_arguments_and_values_in_a_shell(texts):
    folders = [Path(text) for text in texts]
    overrides = [format_override("key", text) for text in texts]
    printed = [
        format_command([*texts, *overrides]),
        *(resume_command(folder) for folder in folders),
        *(sweep_command(verb, folder) for verb in ("status", "cancel") for folder in folders),
    ]
    first, *others = through_bash(printed)
    assert first == [*texts, *overrides]
    assert [parse_value(*pair, "str | None") for pair in split_overrides(overrides)] == texts
    found = [parse_value(*split_overrides(words[-1:])[0], "str | None") for words in others]
    assert found == [str(folder) for folder in folders] * 3
    assert {tuple(words[1:3]) for words in others} == {
        ("-m", "rlearly.train"),
        ("-m", "rlearly.sweep"),
    }


# --- whole configs ---


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=2, **SLOW)
@given(data=st.data())
def test_every_text_key_comes_back_from_a_shell_and_from_its_file(name, data, tmp_path_factory):
    defaults = CONFIGS[name]
    keys = text_keys(defaults)
    texts = {key: data.draw(TEXTS, label=key) for key in keys}
    overrides = [
        f"{key}=[{quoted(text)}]" if keys[key] else format_override(key, text)
        for key, text in texts.items()
    ]
    (words,) = through_bash([format_command(overrides)])
    config = from_overrides(defaults, words)
    for key, text in texts.items():
        assert value_of(config, key) in (text, [text], (text,)), key
    file = tmp_path_factory.getbasetemp() / f"{name.replace(' ', '-')}.yaml"
    file.write_text(as_yaml(config), encoding="utf-8")
    plain = yaml.safe_load(file.read_text(encoding="utf-8"))
    ours = OmegaConf.to_container(read_yaml(file), resolve=True)
    for key, text in texts.items():
        for tree in (plain, ours):
            assert functools.reduce(dict.__getitem__, key.split("."), tree) in (text, [text]), key


def test_keys_are_found_in_every_command():
    """What the law above goes over: a key that is forgotten there is checked nowhere."""
    assert {"run_dir", "snapshot", "wandb.group", "jump_start.run"} < set(
        text_keys(CONFIGS["train td3"])
    )
    assert "agent.nstep_schedule" in text_keys(CONFIGS["train drm"])
    assert {"redo.networks", "snapshot_phase.keep"} < set(text_keys(CONFIGS["train td3"]))
    assert {"status", "slurm.partition", "ray.address"} < set(text_keys(CONFIGS["sweep"]))
    assert text_keys(CONFIGS["report"])["runs"] and "run" in text_keys(CONFIGS["evaluate"])


NAMES = TEXTS.filter(
    lambda text: not {"/", "\0"} & set(text) and text not in ("", ".", "..") and len(text) < 40
)


@settings(max_examples=3, **SLOW)
@given(st.tuples(NAMES, TEXTS, TEXTS))
@example(("2026_01_15", "1e3", "${seed}"))
@example(("lr=0.1,seed=3", "true", "null"))
def test_config_of_a_run_comes_back_from_its_directory(tmp_path, texts):
    name, group, folder = texts
    shutil.rmtree(tmp_path, ignore_errors=True)
    overrides = [
        "agent=td3",
        "env=Pendulum-v1",
        "replay.storage=disk",
        format_override("run_dir", tmp_path / name),
        format_override("wandb.group", group),
        format_override("replay.folder", folder),
    ]
    (words,) = through_bash([format_command(overrides)])
    config = compose(words)
    assert (config.wandb.group, config.replay.folder) == (group, folder)
    run = create(config)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert load(run) == config
    assert load(run, [format_override("replay.folder", name)]).replay.folder == name

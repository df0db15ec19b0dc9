"""What a build adds to the pages in docs/: generated references, files of the repository, checks.

mkdocs calls the functions named `on_*`. A warning fails the build, as `make docs` is strict.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
log = logging.getLogger("mkdocs.hooks")

INCLUDED = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmark-details.md": "benchmarks/README.md",
}
"""Page -> the file of the repository that it shows."""

LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^()\s]+)\)")
EXTERNAL = re.compile(
    r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    r"|<link\b[^>]*\brel=[\"']?(?:stylesheet|icon|preconnect|preload|dns-prefetch)[^>]*"
    r"\bhref=[\"']?(?:https?:)?//"
    r"|(?:@import|url\()\s*[\"']?(?:https?:)?//",
    re.IGNORECASE,
)
"""What makes a browser ask another server for something."""

# --- what mkdocs calls ---


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages, and every picture and table that a page links to."""
    from mkdocs.structure.files import File

    pages = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in INCLUDED.items()}
    pages["reference/configuration.md"] = configuration_page()
    pages["reference/metrics.md"] = metrics_page()
    pages |= api_pages()
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    written = {str(f.src_uri): f.content_string for f in files.documentation_pages()}
    for path in sorted({p for uri, text in written.items() for p in linked_files(uri, text)}):
        uri = f"files/{path.relative_to(ROOT)}"
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Make links that are right in the repository right on the site."""
    uri = page.file.src_uri
    markdown = markdown.replace("<!-- faults -->", faults_table())
    return rewrite_links(markdown, lambda text, target: site_link(uri, text, target))


def on_post_build(config: Any) -> None:
    """See that no page asks another server for anything."""
    for path in sorted(Path(config["site_dir"]).rglob("*")):
        if path.suffix in (".html", ".css"):
            for found in EXTERNAL.findall(path.read_text(encoding="utf-8")):
                log.warning("%s loads something from another server: %s", path, found)


# --- links ---


def source_of(uri: str) -> Path:
    """The file of the repository that a page was written in."""
    return ROOT / INCLUDED.get(uri, f"docs/{uri}")


def rewrite_links(markdown: str, replace: Any) -> str:
    """Markdown whose links are replaced by `replace(text, target)`, code blocks left alone."""
    blocks = re.split(r"^( *```.*?^ *```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    blocks[::2] = [LINK.sub(lambda m: replace(m[1], m[2]), block) for block in blocks[::2]]
    return "".join(blocks)


def target_path(uri: str, target: str) -> Path | None:
    """The file in the repository that a page's link points to; None: it is not a relative link."""
    if target.startswith(("#", "/")) or re.match(r"[a-z]+:", target):
        return None
    return Path(posixpath.normpath(source_of(uri).parent / target.partition("#")[0]))


def linked_files(uri: str, markdown: str) -> set[Path]:
    """Pictures, tables and study files outside docs/ that a page links to."""
    found: set[Path] = set()

    def note(text: str, target: str) -> str:
        path = target_path(uri, target)
        if path and path.suffix in (".png", ".csv", ".yaml") and path.is_file():
            found.add(path)
        return ""

    rewrite_links(markdown, note)
    return {path for path in found if not path.is_relative_to(ROOT / "docs")}


def site_link(uri: str, text: str, target: str) -> str:
    """A Markdown link as the site has it."""
    path = target_path(uri, target)
    if path is None:
        return f"{text}({target})"
    if not path.exists() and uri not in INCLUDED and path.is_relative_to(ROOT / "docs"):
        return f"{text}({target})"  # a generated page, or an error that mkdocs reports
    anchor = "".join(target.partition("#")[1:])
    here = posixpath.dirname(uri) or "."
    pages = {ROOT / source: page for page, source in INCLUDED.items()}
    pages[ROOT / "README.md"] = "index.md"
    if path in pages:
        return f"{text}({posixpath.relpath(pages[path], here)}{anchor})"
    if path.is_relative_to(ROOT / "docs"):
        return f"{text}({posixpath.relpath(str(path.relative_to(ROOT / 'docs')), here)}{anchor})"
    if not path.exists():
        log.warning("%s links to %s, which is not there", uri, target)
    if path.suffix == ".py" and path.is_relative_to(ROOT / "rlearly"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        return f"{text}[{'.'.join(p for p in parts if p != '__init__')}]"
    if path.suffix in (".png", ".csv", ".yaml"):
        file = posixpath.relpath(f"files/{path.relative_to(ROOT)}", here)
        return f"{text}({file})"
    return text.strip("[]")


# --- generated pages ---


def faults_table() -> str:
    """tests/FAULTS.md without its column of tests."""
    rows = [
        line
        for line in (ROOT / "tests/FAULTS.md").read_text(encoding="utf-8").splitlines()
        if "|" in line
    ]
    table = ["|".join(row.split("|")[:3]) + "|" for row in rows if row.startswith("|")]
    return "\n".join(['<div class="keys" markdown>', "", *table, *TAIL])


def bounds_of(metadata: Any) -> str:
    """A field's bounds in words."""
    words = [f"above {metadata['above']:g}"] if "above" in metadata else []
    words += [f"at least {metadata['at_least']:g}"] if "at_least" in metadata else []
    words += [f"at most {metadata['at_most']:g}"] if "at_most" in metadata else []
    words += [f"a multiple of {metadata['multiple_of']}"] if "multiple_of" in metadata else []
    if "choices" in metadata:
        choices = [*metadata["choices"], *(["module:NAME"] if "or_plugin" in metadata else [])]
        words.append("one of " + ", ".join(f"`{choice}`" for choice in choices))
    words += [f"tuned in `{metadata['search']}`"] if "search" in metadata else []
    return ", ".join(words)


def key_rows(cls: Any, prefix: str, skip: Any = ()) -> Iterator[str]:
    """A row of a table for every key of a config dataclass, its groups left out."""
    for field in dataclasses.fields(cls):
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        if dataclasses.is_dataclass(default) or prefix + field.name in skip:
            continue
        shown = "null" if default is None else str(default)
        shown = shown.lower() if isinstance(default, bool) else shown or "''"
        kind = str(field.type).replace(" | None", " or null").replace("dict[str, Any]", "mapping")
        facts = "; ".join(filter(None, ["" if kind == "Any" else kind, bounds_of(field.metadata)]))
        text = str(field.metadata.get("help", ""))
        text = text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
        yield f"| `{prefix}{field.name}` | `{shown}` | {text}{f' *({facts})*' if facts else ''} |"


def groups_of(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, dataclass) of every group of a config dataclass, groups of groups too."""
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default_factory):
            yield f"{prefix}{field.name}", field.default_factory
            yield from groups_of(field.default_factory, f"{prefix}{field.name}.")


HEAD = ["", '<div class="keys" markdown>', "", "| Key | Default | Meaning |", "|---|---|---|"]
TAIL = ["", "</div>"]
"""Around a table of keys, which a phone shows as a list."""


def configuration_page() -> str:
    """Every key of every command, from the dataclasses that define them."""
    from rlearly.config.help import NOT_SET_BY_KEY
    from rlearly.config.schema import EnvConfig, RunConfig

    lines = [
        "# Configuration reference",
        "",
        "Generated from the code when these pages were built. `python -m rlearly.train --help "
        "agent=NAME` prints the same, and `--cfg job` the whole config of a command.",
        "",
        "Precedence: defaults < agent < env < tuned (agent, env) pair < preset < command line.",
        "",
        "## A run",
        "",
        "`agent=NAME` and `env=NAME` are required; the other keys have these defaults.",
        *HEAD,
        *key_rows(RunConfig, "", NOT_SET_BY_KEY),
        *TAIL,
    ]
    for name, cls in groups_of(RunConfig):
        first = (cls.__doc__ or "").strip().splitlines()[0]
        rows = list(key_rows(cls, f"{name}."))
        lines += ["", f"## {name}.*", "", first, *([*HEAD, *rows, *TAIL] if rows else [])]
    lines += ["", "## env.*", *HEAD, *key_rows(EnvConfig, "env.", NOT_SET_BY_KEY), *TAIL]
    for agent in agents():
        lines += ["", f"## agent.* of {agent}", "", *agent_text(agent), *HEAD]
        lines += [*key_rows(agent_config(agent), "agent."), *TAIL]
    for command, name in (
        ("sweep", "SweepConfig"),
        ("tune", "TuneConfig"),
        ("evaluate", "EvaluateConfig"),
        ("report", "ReportConfig"),
        ("teacher", "TeacherConfig"),
    ):
        cls = getattr(importlib.import_module(f"rlearly.{command}"), name)
        lines += ["", f"## python -m rlearly.{command}", *HEAD, *key_rows(cls, "")]
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(field.default_factory):
                lines += key_rows(field.default_factory, f"{field.name}.")
        lines += TAIL
    return "\n".join(lines) + "\n"


def agents() -> dict[str, str]:
    from rlearly.agents import AGENTS

    return AGENTS


def agent_config(agent: str) -> Any:
    from rlearly.agents import agent_spec

    return agent_spec(agent).config_class


def agent_text(agent: str) -> list[str]:
    """What an agent declares about itself, in sentences."""
    from rlearly.agents import agent_spec

    spec = agent_spec(agent)
    lines = [f"{agents()[agent]}.", "", f"Networks: {', '.join(spec.networks)}."]
    if spec.run_defaults:
        lines.append(f"Run defaults with this agent: `{' '.join(spec.run_defaults)}`.")
    refused = spec.refused_interventions.items()
    lines += [f"It does not support `{name}`: {why}." for name, why in refused]
    return lines


def metrics_page() -> str:
    """Every metric that a run may write, with what it means."""
    import yaml

    from rlearly.config.metric_names import METRICS, PARTS

    meanings = yaml.safe_load((ROOT / "docs/reference/metrics.yaml").read_text(encoding="utf-8"))

    lines = [
        "# Metrics reference",
        "",
        "A row of `metrics.jsonl` holds `frames`, `steps` and some of these. Losses, Q values and "
        "the like are means over the updates since the previous row; `event/*` and `plasticity/*` "
        "rows hold the value at one moment. TensorBoard and wandb get the same names.",
        "",
        f"`*` is one of {', '.join(f'`{part}`' for part in PARTS)}, if the agent has it.",
    ]
    for group, names in METRICS.items():
        shown = dict.fromkeys(f"{group}/{name}" for name in names)
        if group == "plasticity":  # one line for all networks
            part = re.compile(rf"_({'|'.join(sorted(PARTS, key=len, reverse=True))})$")
            shown = dict.fromkeys(part.sub("_*", name) for name in shown)
        lines += ["", f"## {group}", "", '<div class="keys" markdown>', ""]
        lines += ["| Name | Meaning |", "|---|---|"]
        for name in shown:
            meaning = meanings.get(group, {}).get(name.partition("/")[2])
            if meaning is None:
                log.warning("docs/reference/metrics.yaml has no line for %s", name)
            lines.append(f"| `{name}` | {meaning} |")
        lines += TAIL
    return "\n".join(lines) + "\n"


def api_pages() -> dict[str, str]:
    """A page for each folder of the package, and one for the names that `import rlearly` offers."""
    import rlearly

    public = ["# The public names", "", "`from rlearly import ...` offers these.", ""]
    names = [name for name in dir(rlearly) if not name.startswith("_")]
    offered = {name: getattr(rlearly, name) for name in names}
    for name in rlearly._COMMANDS:  # modules that are functions too
        offered[name] = offered[name].__wrapped__
    public += [
        f"::: {value.__module__}.{name}\n    options:\n      show_root_full_path: false\n"
        for name, value in sorted(offered.items())
        if getattr(value, "__module__", "").startswith("rlearly.")
    ]
    pages = {"reference/api/public.md": "\n".join(public)}
    for init in sorted((ROOT / "rlearly").rglob("__init__.py")):
        folder = init.parent
        name = ".".join(folder.relative_to(ROOT).parts)
        if folder == ROOT / "rlearly" or folder.name in ("results", "studies"):
            continue
        lines = [f"# {name}", "", f"::: {name}\n    options: {{members: false, heading_level: 2}}"]
        for module in sorted(folder.glob("*.py")):
            if module.name != "__init__.py":
                lines += ["", f"::: {name}.{module.stem}\n    options: {{show_submodules: false}}"]
        short = name.removeprefix("rlearly.")
        pages[f"reference/api/{short}.md"] = "\n".join(lines) + "\n"
    return pages

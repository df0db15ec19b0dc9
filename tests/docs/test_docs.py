"""The documentation is true: its examples run, its links lead somewhere, its references are whole.

A block of code that follows `<!-- run -->` in a page of docs/ is run here. The blocks of a page
share a folder, in order. A Python block that begins with a comment `# path/name.py` is written
there first; if the path is in rlearly/, the block is only written, into a copy of the package.
`<!-- run: COMMAND -->` runs a command that the page does not show. Excerpts are marked `py`.
"""

import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from test_architecture import MAY_IMPORT

from rlearly import record
from rlearly.agents import AGENTS
from rlearly.config.metric_names import METRICS
from rlearly.config.schema import RunConfig

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
MARKED = re.compile(
    r"<!-- run: (?P<hidden>.*?) -->|<!-- run -->\s*```(?P<language>\w+)\n(?P<code>.*?)```",
    re.DOTALL,
)
WITH_CODE = [page for page in PAGES if MARKED.search(page.read_text(encoding="utf-8"))]


def load_hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


@pytest.fixture(scope="module")
def teacher():
    env = gymnasium.make("Hopper-v5")
    env.action_space.seed(0)
    return record(
        env,
        lambda obs: env.action_space.sample(),
        value=lambda obs: float(np.sum(obs)),
        episodes=3,
        every_steps=3,
    )


def run(command, folder):
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_marked_examples_run_as_printed(page, teacher, tmp_path):
    """Each block in a process of its own, as a reader would run it."""
    blocks = list(MARKED.finditer(page.read_text(encoding="utf-8")))
    if "rlearly/" in "".join(block[0] for block in blocks):
        copied = shutil.ignore_patterns("results", "__pycache__")
        shutil.copytree(ROOT / "rlearly", tmp_path / "rlearly", ignore=copied)
    teacher.save(tmp_path / "teacher.h5")
    for block in blocks:
        code = block["code"] or block["hidden"]
        if block["language"] != "python":
            run(["bash", "-euc", code], tmp_path)
            continue
        named = re.match(r"# ([\w/]+\.py)\n", code)
        path = tmp_path / (named[1] if named else "example.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        if not path.is_relative_to(tmp_path / "rlearly"):
            run([sys.executable, str(path)], tmp_path)


def test_every_python_block_is_run():
    """Here, or as one of the README's, all of which are run (tests/envs/test_snapshot.py)."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        marked = [block["code"] for block in MARKED.finditer(page.read_text(encoding="utf-8"))]
        for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            assert code in marked or f"```python\n{code}```" in readme, (page, code)


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", [*SOURCES, *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere_in_the_repository(page):
    targets = []
    hooks.rewrite_links(
        page.read_text(encoding="utf-8"), lambda text, target: targets.append(target) or ""
    )
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if "reference/" in file and not path.exists():
            continue  # generated: the build checks it
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path.read_text(encoding="utf-8")), target


def test_every_name_that_is_printed_exists():
    """A name in code style, in the text of a page, occurs in the code or is a file of it."""
    folders = ("rlearly", "tests", "benchmarks", "docs/example-repo")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    known = {path.stem for path in files}
    for path in files:
        if path.suffix == ".py":
            known |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            names = set(re.findall(r"\b(?:[A-Z]\w*[a-z]\w*|_?[a-z]+_\w+)\b", code))
            assert names - known <= {"my_env", "my_ddpg", "auth_token"}, (page, code)


def test_import_table_is_the_rule_that_is_tested():
    table = (
        (ROOT / "CONTRIBUTING.md")
        .read_text(encoding="utf-8")
        .partition("### Who may import whom")[2]
    )
    rows = re.findall(r"^\| (`.*?) \| ((?:`[a-z]+`(?:, )?)+|nothing) \|$", table, re.MULTILINE)
    stated = {}
    for folders, allowed in rows:
        for folder in re.findall(r"`(\w+)`", folders):
            stated[folder] = set(re.findall(r"`(\w+)`", allowed))
    assert len(stated) == 12
    for folder, allowed in stated.items():
        tested = {name for name in MAY_IMPORT[folder].split() if "." not in name}
        assert allowed == tested, folder


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def keys_of(cls, prefix=""):
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default_factory):
            yield from keys_of(field.default_factory, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def test_configuration_reference_lists_every_key():
    page = hooks.configuration_page()
    for key in {*keys_of(RunConfig)} - {"agent", "env", "agent_name", "snapshot_sha256"}:
        assert f"| `{key}` |" in page
    for agent in AGENTS:
        own = page.partition(f"## agent.* of {agent}\n")[2].partition("\n## ")[0]
        for key in keys_of(hooks.agent_config(agent), "agent."):
            assert f"| `{key}` |" in own
    assert "| `agent.lambda_max` | `0.6` |" in page and "at least 0, at most 1" in page


def test_metrics_reference_explains_every_metric():
    page = hooks.metrics_page()
    assert "None" not in page
    for group in METRICS:
        assert f"## {group}\n" in page
    assert "| `eval/success_rate` |" in page and "| `plasticity/fau_*` |" in page


def test_links_of_the_repository_become_links_of_the_site():
    def site(uri, target):
        return hooks.site_link(uri, "[x]", target)

    assert site("methods/drm.md", "../../rlearly/agents/drm.py") == "[x][rlearly.agents.drm]"
    assert site("resuming.md", "../tests/FAULTS.md") == "x"
    assert site("methods/drm.md", "../../CONTRIBUTING.md#a") == "[x](../contributing.md#a)"
    assert site("contributing.md", "docs/extend/agent.md") == "[x](extend/agent.md)"
    assert site("index.md", "https://example.org") == "[x](https://example.org)"


@pytest.mark.parametrize(
    "html, asks",
    [
        ('<script src="https://cdn.example.org/a.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', True),
        ("body { background: url(https://example.org/a.png) }", True),
        ('<script src="assets/a.js"></script><a href="https://example.org">x</a>', False),
    ],
)
def test_requests_to_other_servers_are_found(html, asks):
    assert bool(hooks.EXTERNAL.search(html)) == asks

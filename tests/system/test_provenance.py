"""What a run records of the code that ran, and what it leaves alone."""

import importlib
import json
import subprocess
import sys

import gymnasium
import pytest
import tiny_envs
import torch

from rlearly import envs
from rlearly.system import provenance
from rlearly.system.provenance import PACKAGE, repository

SECRET = "hunter2"
NOTHING = dict.fromkeys(("path", "commit", "dirty", "diff", "untracked", "refused"))

IDENTITY = ["-c", "user.email=a@b", "-c", "user.name=n", "-c", "core.hooksPath=/dev/null"]


def git(folder, *arguments):
    command = ["git", "-C", str(folder), *IDENTITY, *arguments]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's repository: an env, a module that it imports, and a file with a changed token."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "my_env.py").write_text("import my_dynamics\nCLASS = 1\n", encoding="utf-8")
    (folder / "my_dynamics.py").write_text("GRAVITY = 1\n", encoding="utf-8")
    (folder / "secrets.py").write_text("TOKEN = 'none'\n", encoding="utf-8")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    (folder / "secrets.py").write_text(f"TOKEN = '{SECRET}'\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in ("my_env", "my_dynamics", "my_new"):
        sys.modules.pop(name, None)


def imported(project, name="my_env"):
    importlib.invalidate_caches()
    importlib.import_module(name)
    return project / f"{name}.py"


def test_repository_that_only_surrounds_the_code_is_not_recorded(project):
    package = project / "lib" / "rlearly"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    assert repository(package / "__init__.py", [package]) == NOTHING
    (project / ".gitignore").write_text("lib\n", encoding="utf-8")
    assert repository(package / "__init__.py", [package]) == NOTHING


def test_own_checkout_is_recorded_with_the_changes_of_the_package_alone(project):
    package = project / "lib" / "rlearly"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    git(project, "add", "lib")
    git(project, "commit", "-qm", "with the package")
    (package / "__init__.py").write_text("CHANGED = True\n", encoding="utf-8")
    (package / "mine.py").touch()
    found = repository(package / "__init__.py", [package])
    assert found["commit"] == git(project, "rev-parse", "HEAD") and found["dirty"]
    assert "+CHANGED = True" in found["diff"] and SECRET not in found["diff"]
    assert found["untracked"] == ["lib/rlearly/mine.py"]


def test_users_repository_is_recorded_with_the_changes_of_imported_files_alone(project):
    file = imported(project)
    found = repository(file)
    commit = git(project, "rev-parse", "HEAD")
    assert found == NOTHING | {
        "path": str(project),
        "commit": commit,
        "dirty": True,
        "untracked": [],
    }
    git(project, "checkout", "-q", "secrets.py")
    assert repository(file)["dirty"] is False
    (project / "my_dynamics.py").write_text("GRAVITY = 2\n", encoding="utf-8")
    found = repository(file)
    assert found["dirty"] and found["diff"].startswith("diff --git a/my_dynamics.py b/my_dynamics")
    assert "-GRAVITY = 1\n+GRAVITY = 2\n" in found["diff"]


def test_untracked_code_makes_a_repository_dirty_and_is_named(project):
    git(project, "checkout", "-q", "secrets.py")
    (project / "my_new.py").touch()
    assert repository(imported(project, "my_new")) == NOTHING
    found = repository(imported(project))
    assert found["dirty"] and found["untracked"] == ["my_new.py"]


def test_repository_of_the_environment_and_programs_of_a_repository_are_ignored(
    project, tmp_path, monkeypatch
):
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", f"touch {tmp_path / 'ran'}")
    for name in ("diff.external", "core.fsmonitor"):
        file = project / ".git" / "config"
        subprocess.run(["git", "config", "-f", file, name, f"touch {tmp_path / 'ran'}"], check=True)
    (project / "my_dynamics.py").write_text("GRAVITY = 2\n", encoding="utf-8")
    found = repository(imported(project))
    assert found["path"] == str(project) and "+GRAVITY = 2" in found["diff"]
    assert not (tmp_path / "ran").exists()


def test_worktrees_submodules_and_links_are_repositories_of_their_own(project, tmp_path):
    git(project, "checkout", "-q", "secrets.py")
    git(project, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    git(tmp_path / "side", "commit", "-q", "--allow-empty", "-m", "further")
    found = repository(tmp_path / "side" / "my_env.py")
    assert found["path"] == str(tmp_path / "side")
    assert found["commit"] == git(tmp_path / "side", "rev-parse", "HEAD")
    git(tmp_path, "init", "-q", "outer")
    outer = tmp_path / "outer"
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(project), "sub")
    found = repository(outer / "sub" / "my_env.py")
    assert found["path"] == str(outer / "sub")
    assert found["commit"] == git(project, "rev-parse", "HEAD")
    (outer / "link.py").symlink_to(project / "my_env.py")
    assert repository(outer / "link.py")["path"] == str(project)
    git(tmp_path, "clone", "-q", "--bare", str(project), "bare")
    (tmp_path / "bare" / "my_env.py").touch()
    assert repository(tmp_path / "bare" / "my_env.py")["commit"] is None


def test_repository_without_a_commit_is_dirty(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "new.py").touch()
    git(tmp_path, "add", "new.py")
    found = repository(tmp_path / "new.py")
    assert (found["path"], found["commit"], found["dirty"]) == (str(tmp_path), None, True)


def test_why_git_refuses_is_recorded(project, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setattr(
        provenance,
        "GIT_ENVIRONMENT",
        provenance.GIT_ENVIRONMENT | {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"},
    )
    found = repository(project / "my_env.py")
    assert found["commit"] is None and "dubious ownership" in found["refused"]
    monkeypatch.setenv("PATH", "/nowhere")
    found = repository(project / "my_env.py")
    assert found["commit"] is None and "'git'" in found["refused"]


def test_slow_git_leaves_open_whether_something_changed(project, monkeypatch):
    def run(folder, *arguments):
        if "--name-only" in arguments:
            raise subprocess.TimeoutExpired("git", 10)
        return answered(folder, *arguments)

    answered = provenance._git
    monkeypatch.setattr(provenance, "_git", run)
    found = repository(project / "my_env.py")
    assert found["commit"] == git(project, "rev-parse", "HEAD") and found["dirty"] is None
    assert "timed out" in found["refused"]


def test_files_that_only_look_like_code_are_no_trouble(tmp_path):
    (tmp_path / "a.py").write_text("A = 1\n", encoding="utf-8")
    before = provenance._sha256(tmp_path)
    (tmp_path / ".#a.py").symlink_to("me@host.1234")
    assert provenance._sha256(tmp_path) == before
    (tmp_path / "a.py").write_text("A = 2\n", encoding="utf-8")
    assert provenance._sha256(tmp_path) != before


def test_diffs_of_any_bytes_and_size_are_recorded_as_text(project, monkeypatch):
    file = imported(project)
    (project / "my_dynamics.py").write_bytes(b"# caf\xe9\n")
    assert "+# caf\\xe9" in repository(file)["diff"]
    monkeypatch.setattr(provenance, "DIFF_CHARACTERS", 20)
    diff = repository(file)["diff"]
    assert diff.startswith("diff --git a/my_dyna\n[cut here: the diff has ")
    json.dumps(diff).encode()


def test_code_of_an_env_is_the_named_module_and_that_of_its_class(monkeypatch):
    assert envs.code_of(envs.config_for("Pendulum-v1")) == []
    assert envs.code_of(envs.config_for("dog_run")) == []
    assert envs.code_of(envs.config_for("tiny_envs:StateReach-v0")) == ["tiny_envs"]
    gymnasium.register("Mine-v0", entry_point="my_package.envs:Mine")
    gymnasium.register("Here-v0", entry_point=gymnasium.Wrapper)
    try:
        assert envs.code_of(envs.config_for("Mine-v0")) == ["my_package.envs"]
        assert envs.code_of(envs.config_for("tiny_envs:Mine-v0")) == [
            "tiny_envs",
            "my_package.envs",
        ]
        assert envs.code_of(envs.config_for("Here-v0")) == []
    finally:
        del gymnasium.registry["Mine-v0"], gymnasium.registry["Here-v0"]


def installed(folder, version, direct_url=None):
    metadata = folder / f"rlearly-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: rlearly\nVersion: {version}\n", encoding="utf-8"
    )
    if direct_url:
        (metadata / "direct_url.json").write_text(json.dumps(direct_url), encoding="utf-8")


def test_version_is_that_of_the_code_that_runs(tmp_path, monkeypatch):
    installed(tmp_path / "other", "9.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other")])
    assert provenance._own_distribution() == {"version": None, "installed_from": None}
    link = tmp_path / "vcs"
    installed(
        link,
        "9.1",
        {
            "url": f"https://user:{SECRET}@host/rlearly.git",
            "vcs_info": {"vcs": "git", "commit_id": "abc"},
        },
    )
    (link / "rlearly").symlink_to(PACKAGE)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "other"), str(link)])
    assert provenance._own_distribution() == {
        "version": "9.1",
        "installed_from": {
            "url": "https://host/rlearly.git",
            "vcs_info": {"vcs": "git", "commit_id": "abc"},
        },
    }
    (tmp_path / "vcs" / "rlearly-9.1.dist-info" / "direct_url.json").write_text(
        "{", encoding="utf-8"
    )
    assert provenance._own_distribution() == {"version": "9.1", "installed_from": None}
    editable = {"url": PACKAGE.parent.as_uri(), "dir_info": {"editable": True}}
    installed(tmp_path / "editable", "9.2", editable)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "editable")])
    assert provenance._own_distribution() == {"version": "9.2", "installed_from": editable}


def test_provenance_has_no_secrets_of_the_environment_or_of_a_script(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "argv", ["my_script.py", "--token", SECRET])
    found = provenance.provenance(["env=x"], 1, torch.device("cpu"), ["tiny_envs"])
    assert SECRET not in json.dumps(found)
    assert found["argv"] == ["my_script.py", "env=x"]
    assert found["environment"]["OMP_NUM_THREADS"] == "1"
    assert found["packages"]["torch"] and len(found["code"]["sha256"]) == 64
    (env_code,) = found["env_code"]
    assert env_code["module"] == "tiny_envs" and env_code["file"] == tiny_envs.__file__

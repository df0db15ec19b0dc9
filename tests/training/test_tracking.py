"""The wandb id of a run, with wandb's client and no server."""

from types import SimpleNamespace

import pytest
import wandb

from rlearly.config.schema import WandbConfig
from rlearly.core.errors import ConfigError
from rlearly.training import sinks

CONFIG = {"agent_name": "td3", "env": {"name": "Pendulum-v1"}}


class Client:
    """Stands in for wandb's: `asked` are the ids that it was asked for.

    `taken`: the id that it takes, whatever it is asked; None: the one that it is asked for.
    """

    def __init__(self):
        self.asked = []
        self.taken = None

    def init(self, *, id, **kwargs):
        self.asked.append(id)
        self.refuse(id)
        return SimpleNamespace(id=self.taken or id or "new", define_metric=lambda *a, **k: None)

    def refuse(self, run_id):
        """Raise if this id is not to be had."""


@pytest.fixture
def client(monkeypatch):
    made = Client()
    monkeypatch.setattr(wandb, "init", made.init)
    return made


def start(folder, mode="offline"):
    return sinks.Wandb(WandbConfig(mode=mode), folder, CONFIG)


def test_id_is_the_one_that_wandb_took(tmp_path, monkeypatch):
    """wandb's own client: the first start takes the id of the environment, the next keep it."""
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    for _ in range(2):
        sink = start(tmp_path)
        sink.close()
        assert sink.run.id == (tmp_path / "wandb_id").read_text(encoding="utf-8") == "given"
        monkeypatch.setenv("WANDB_RUN_ID", "other")
    assert len(list((tmp_path / "wandb").glob("offline-run-*-given*"))) == 2


def test_other_id_that_wandb_took_is_kept_and_said(tmp_path, client, caplog):
    """As where an agent of a wandb sweep starts the command that resumes a run."""
    (tmp_path / "wandb_id").write_text("mine\n", encoding="utf-8")
    start(tmp_path)
    assert client.asked == ["mine"] and not caplog.messages
    client.taken = "of-the-agent"
    start(tmp_path)
    assert (tmp_path / "wandb_id").read_text(encoding="utf-8") == "of-the-agent"
    assert caplog.messages == ["wandb: this run had the id mine and continues under of-the-agent."]


def test_empty_id_is_none(tmp_path, client):
    (tmp_path / "wandb_id").write_text("", encoding="utf-8")
    start(tmp_path)
    assert client.asked == [None] and (tmp_path / "wandb_id").read_text(encoding="utf-8") == "new"


def test_id_that_was_deleted_on_the_server_is_replaced(tmp_path, client, caplog):
    def refuse(run_id):
        if run_id == "gone":
            raise wandb.errors.CommError(
                "Timed out while retrying: HTTP 409: run gone was previously created and deleted; "
                "try a new run name"
            )

    client.refuse = refuse
    (tmp_path / "wandb_id").write_text("gone", encoding="utf-8")
    start(tmp_path, "online")
    assert client.asked == ["gone", None]
    assert (tmp_path / "wandb_id").read_text(encoding="utf-8") == "new"
    assert caplog.messages == [
        "wandb: the run gone was deleted on the server.",
        "wandb: this run had the id gone and continues under new.",
    ]


@pytest.mark.parametrize(
    ("error", "mode", "sentence"),
    [
        (
            wandb.errors.CommError("no network\nsecond line."),
            "online",
            "no network second line); log in",
        ),
        (
            ValueError("mode\n  Input should be 'online' [type=x]"),
            "offline",
            "'online'); fix that",
        ),
        (OSError("read-only"), "offline", "read-only); fix that, or add wandb.mode=disabled"),
    ],
)
def test_wandb_that_does_not_start_is_one_sentence(tmp_path, client, error, mode, sentence):
    def refuse(run_id):
        raise error

    client.refuse = refuse
    with pytest.raises(ConfigError) as caught:
        start(tmp_path, mode)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "wandb_id").exists()

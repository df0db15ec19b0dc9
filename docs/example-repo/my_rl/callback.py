"""A callback: a curriculum on the env's `slip`."""

from __future__ import annotations

from typing import Any

from rlearly import Callback


class DryFloor(Callback):
    """Steps never slip at first; they slip as in the env itself once the lamp was found `times`."""

    def __init__(self, slip: float = 0.1, times: int = 20):
        self.slip = slip
        self.times = times
        self.found = 0

    def on_start(self, run: Any) -> None:
        run.envs.set_attr("slip", 0.0)  # reaches the first episode too

    def on_episode(self, run: Any, episode: Any) -> None:
        self.found += bool(episode.success)
        run.envs.set_attr("slip", self.slip * min(1.0, self.found / self.times))
        run.log({"curriculum/found": float(self.found)})

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.found = state["found"]

"""The callback's state is complete: a run that stops and goes on equals one that does not."""

import numpy as np

import rlearly

SHORT = {
    "agent": "my_rl.agent:dqn",
    "env": "my_rl.env:Corridor-v0",
    "callback": "my_rl.callback:DryFloor",
    "callback_kwargs": {"times": 5},
    "eval_every_frames": 0,
    "replay__capacity": 1000,
    "progress": False,
}


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    whole = rlearly.train(train_frames=400, run_dir=tmp_path / "whole", **SHORT)
    half = rlearly.train(train_frames=200, run_dir=tmp_path / "half", **SHORT)
    half = rlearly.train(resume=half, train_frames=400, progress=False)
    found = [run.metrics()["curriculum/found"] for run in (whole, half)]
    assert np.nanmax(found[0]) > 1
    np.testing.assert_array_equal(*[column[~np.isnan(column)] for column in found])
    for obs in ([0.5, -0.5], [-1.0, 1.0]):
        assert whole.policy(obs) == half.policy(obs)

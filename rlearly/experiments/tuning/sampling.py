"""Propose the values of the next trial by Optuna's TPE sampler.

A proposal depends only on the seed, the number of the trial and the trials so far: no sampler state
is kept. So a killed search continues as if nothing had happened.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlearly.core.errors import ConfigError
from rlearly.experiments.tuning.space import Numbers, Space, Value
from rlearly.experiments.tuning.trials import COMPLETE, PRUNED, Trial
from rlearly.system.seeding import Seeds

RANDOM_TRIALS = 10
"""The first trials are drawn at random, as in Optuna's default: TPE needs some to compare."""

MIN_TRIALS_FOR_IMPORTANCE = 8


def import_optuna() -> Any:
    """Import Optuna, and silence its messages.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "rlearly.tune needs the package optuna: pip install 'rlearly[tune]'."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def propose(
    space: Space, trials: Sequence[Trial], seed: int, defaults: Mapping[str, Value]
) -> Trial:
    """The next trial. The first one has the settings of runs that are not tuned, if it can.

    `defaults`: those of these settings that lie in the space.
    """
    number = len(trials)
    if number == 0 and defaults.keys() == space.keys():
        return Trial(0, {key: defaults[key] for key in space}, defaults=True)
    optuna = import_optuna()
    sampler = optuna.samplers.TPESampler(
        seed=int(Seeds(seed).sequence("tuner", number).generate_state(1)[0]),
        n_startup_trials=RANDOM_TRIALS,
        multivariate=True,
        group=False,
        constant_liar=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental arguments
        study = as_study(space, trials, sampler)
        proposed = study.ask(fixed_distributions=_distributions(space)).params
    params = {}
    for key, found in space.items():
        value = proposed[key]
        params[key] = found.rounded(value) if isinstance(found, Numbers) else value
    return Trial(number, params)


def as_study(space: Space, trials: Iterable[Trial], sampler: Any = None) -> Any:
    """The trials as a study of Optuna's, in memory, with its own names for their states."""
    optuna = import_optuna()
    states = optuna.trial.TrialState
    study = optuna.create_study(direction="maximize", sampler=sampler)
    known = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED}
    study.add_trials(
        [
            optuna.trial.create_trial(
                state=known.get(trial.state, states.RUNNING),
                value=trial.value,
                params=trial.params,
                distributions=_distributions(space),
                intermediate_values=trial.rungs,
            )
            for trial in trials
        ]
    )
    return study


def importances(space: Space, trials: Iterable[Trial], seed: int) -> dict[str, float]:
    """The share of the variance of complete trials that each setting explains, largest first.

    By fANOVA (Hutter et al. 2014). A trial without a score counts as the worst that has one. Empty
    if there are too few trials or all have the same value.
    """
    complete = [trial for trial in trials if trial.state == COMPLETE]
    finite = [t.value for t in complete if t.value is not None and math.isfinite(t.value)]
    if len(complete) < MIN_TRIALS_FOR_IMPORTANCE or len({*finite}) < 2:
        return {}
    optuna = import_optuna()
    lowest = min(finite)
    clipped = [Trial(**{**vars(t), "value": max(t.value or 0.0, lowest)}) for t in complete]
    number = int(Seeds(seed).sequence("tuner").generate_state(1)[0])
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            as_study(space, clipped), evaluator=evaluator
        )
    return {key: float(share) for key, share in found.items()}


def _distributions(space: Space) -> dict[str, Any]:
    optuna = import_optuna()
    found = {}
    for key, one in space.items():
        if not isinstance(one, Numbers):
            found[key] = optuna.distributions.CategoricalDistribution(one.texts)
        elif one.whole:
            low, high = int(one.low), int(one.high)
            found[key] = optuna.distributions.IntDistribution(low, high, log=one.log)
        else:
            found[key] = optuna.distributions.FloatDistribution(one.low, one.high, log=one.log)
    return found

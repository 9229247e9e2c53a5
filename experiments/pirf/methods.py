"""Methods by name: what is tuned and how, and what pushes samples of the base instead."""

from typing import Any

from experiments.pirf import Config

BASE, OURS, PUBLISHED, LOOSE = "base", "PIRF", "published reward", "not held"
FIRMER = "hold 0.2"
RANDOM, SCHEDULE = "N at random", (10, 20, 40)
DATA = "data"
"""Stands for fields of training, judged as if a model had drawn them."""
TUNED: dict[str, dict[str, Any]] = {
    OURS: {},
    PUBLISHED: {"region": "all", "bc_weight": 0.0, "repo_exact": True, "regularizer": "off"},
    LOOSE: {"regularizer": "off"},
    "hold 0.01": {"reg_weight": 1e-2},
    FIRMER: {"reg_weight": 0.2},
    "K = 1": {"num_grad_steps": 1},
    "K = 2": {"num_grad_steps": 2},
    "all weights": {"layers": "none"},
    "low resolution": {"layers": "late"},
    RANDOM: {"num_steps": SCHEDULE},
    "distillation": {"regularizer": "distillation", "reg_weight": 1.0},
    "published reward, held": {"region": "all", "bc_weight": 0.0, "repo_exact": True},
    "all weights, not held": {"regularizer": "off", "layers": "none"},
}
"""Arguments of `physics.make_pirf`, where they are not the study's."""
ON_DATA: dict[str, dict[str, Any]] = {
    "PIDM, mean": {"kind": "pidm_mean", "weight": 1e-2},
    "PIDM, sample": {"kind": "pidm_sample", "weight": 1e-2},
    "PBFM": {"kind": "pbfm"},
    "reward of D(x_t)": {"kind": "value"},
}
"""Arguments of `residual_losses.residual_objective`; the last differs from PIRF in this alone."""
CALLS = {"pidm_mean": 3, "pidm_sample": 6, "pbfm": 20, "value": 3}
"""Passes through the network of an update, of which a backward one counts two; PBFM makes one for
each of its losses."""
ZETAS = (1e-4, 3e-4, 1e-3, 3e-3)
"""Lengths of a step of guidance."""
GUIDED: dict[str, dict[str, Any]] = {
    f"{name} {zeta:g}": {"zeta": zeta, "post_steps": post_steps}
    for name, post_steps in (("DiffusionPDE", 0), ("CoCoGen", 5))
    for zeta in ZETAS
}
"""Arguments of `guidance.guided_sample`."""
SOLVER, GAUSS_NEWTON = "solver's projection", "Gauss-Newton"
PROJECTED = (SOLVER, GAUSS_NEWTON)
FIRST = (DATA, OURS, FIRMER, PUBLISHED, LOOSE, *GUIDED, *PROJECTED)
"""Methods of every law; the others are those of the first law alone, unless asked for. A base that
is farther from its law needs a firmer hold."""
NAMES = (*FIRST, *(name for name in (*TUNED, *ON_DATA) if name not in FIRST))
SENSOR_ZETAS = (0.3, 1.0, 3.0)
"""Lengths of a step down the error at sensors."""


def names(config: Config, *, released: bool, solved: bool, few: bool = False) -> tuple[str, ...]:
    """Returns the methods of a law, in their order: those that are asked for, or all that fit.

    Args:
        config: settings.
        released: whether the law has a published operator.
        solved: whether it has a solver.
        few: whether all means those of `FIRST`.

    Raises:
        ValueError: if a method is unknown or does not fit.
    """
    fit = [
        name
        for name in NAMES
        if (released or not name.startswith(PUBLISHED))
        and (solved or name != SOLVER)
        and (config.num_grad_steps <= min(SCHEDULE) or name != RANDOM)
    ]
    for name in config.methods:
        if name not in fit:
            raise ValueError(f"methods must be among {'; '.join(fit)}, got {name!r}")
    asked = config.methods or (FIRST if few else NAMES)
    return tuple(name for name in fit if name in asked)


def updates(name: str, config: Config) -> int:
    """Returns the updates of a method: as many passes through the network as PIRF makes."""
    if name not in ON_DATA:
        return config.updates
    ours = 2 * (config.num_steps - config.num_grad_steps) + 3 * (2 * config.num_grad_steps - 1)
    return max(config.updates * ours // CALLS[ON_DATA[name]["kind"]], 1)

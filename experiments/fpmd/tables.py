"""Tables of the comparison: every method's returns, and the ways of acting."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fpmd import Config, methods, tasks
from experiments.fpmd.rows import Found, Rates, tasks_of
from experiments.fpmd.training import Outcome
from experiments.harness import verdicts, words
from experiments.harness.result import Table
from jaxlab import rl
from jaxlab.core import stats

Cell = float | str | None


def tables(found: Found, rates: Rates, config: Config) -> tuple[Table, ...]:
    """Returns the tables of all tasks."""
    listed = []
    for task in tasks_of(found):
        ones = {name: one for (which, name), one in found.items() if which == task}
        listed.append(_returns(task, ones, rates, config))
        if any(one.modes for one in ones.values()):
            listed.append(_acting(task, ones, config))
    return tuple(listed)


def _returns(task: str, ones: dict[str, Outcome], rates: Rates, config: Config) -> Table:
    target = tasks.TARGETS.get(task)
    columns = ["Method", "Final", "95 % interval", "IQM", "Its interval", "Best so far"]
    columns += ["Its interval", "Learning rate", "ms per step"]
    cells = []
    for name, one in ones.items():
        best, rate = one.best, rates.get((task, name), config.learning_rate)
        row: list[Cell] = [name, *_mean(one.final), *_iqm(one.final), *_mean(best)]
        row += [rate, 1e3 * one.seconds_per_step if one.seconds_per_step else None]
        if target is not None:
            row.append(_seconds_to(target, one, config))
        cells.append(tuple(row))
    if target is not None:
        columns.append(f"Seconds to {target:g}")
    return Table(
        f"Returns on {task}",
        tuple(columns),
        tuple(cells),
        f"Means of {config.num_seeds} seeds, "
        f"{config.updates // tasks.SHORTER.get(task, 1):,} steps of {config.num_envs} "
        "environments, a gradient step of the critics for each (PPO has its own number). "
        "Times are of all seeds in one program, without compilation and evaluation. Intervals of "
        "means are Student's below 20 seeds; those of the IQM are of a bootstrap.",
    )


def _acting(task: str, ones: dict[str, Outcome], config: Config) -> Table:
    steps = {"FPMD-R": config.flow_steps, "FPMD-M": 1}
    return Table(
        f"Ways of acting on {task}",
        ("Method", "Way", "Evaluations of the policy", "Of the critics", "Return"),
        tuple(
            (
                name,
                mode,
                *rl.num_evaluations(
                    mode,
                    num_particles=config.num_particles,
                    num_steps=steps.get(name, config.diffusion_steps),
                ),
                verdicts.measure(returns).value,
            )
            for name, one in ones.items()
            if name in (*methods.OURS, "DPMD", "SDAC")
            for mode, returns in one.modes.items()
        ),
        "bon: the best of K samples by the critics; vanilla: one sample; one_step: one sample in "
        "one step; zero_noise: one step from zero.",
    )


def _mean(x: np.ndarray) -> tuple[Cell, Cell]:
    found = verdicts.measure(x)
    return found.value, words.span(found.interval) if found.interval else None


def _iqm(x: np.ndarray) -> tuple[Cell, Cell]:
    left = jnp.asarray(x[np.isfinite(x)])
    if left.size < 2:
        return verdicts.measure(x).value, None
    found = stats.bootstrap_interval(jax.random.key(0), left, statistic=stats.iqm)
    return float(found.estimate), words.span((float(found.low), float(found.high)))


def _seconds_to(target: float, one: Outcome, config: Config) -> Cell:
    """Seconds of training until the mean return over seeds first reached the target."""
    steps, returns = one.curve
    reached = [i for i, of_seeds in enumerate(returns) if verdicts.average(of_seeds) >= target]
    if not reached:
        return "–"
    return float(steps[reached[0]] / config.num_envs * one.seconds_per_step)

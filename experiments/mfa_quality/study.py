"""The comparison: every attention trained on every task, then set side by side."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import result, units, verdicts
from experiments.harness.result import Part, Result
from experiments.harness.units import Unit
from experiments.mfa_quality import Config, figures, methods, rows, tasks, training
from experiments.mfa_quality.methods import Model
from experiments.mfa_quality.rows import Found, Outcome
from experiments.mfa_quality.tasks import Task
from experiments.mfa_quality.training import Runs

PAPER = (
    "Hu et al.: Multi-matrix Factorization Attention, arXiv:2412.19255; StepFun: Step-3 is Large "
    "yet Affordable, arXiv:2507.19427"
)
LIMITS = (
    "The papers train models of billions of parameters on a trillion tokens; these have a hundred "
    "thousand (preset cpu) or three million (preset gpu) and see some millions of tokens.",
    "Parameters are made equal through the width of the feed-forward layers; time per step is not.",
    "MLA keeps half of its cache for the rotated key: with an eighth, as in DeepSeek's sizes, it "
    "was worse here (2.6 against 2.4 bits a byte after 400 steps on two seeds).",
    "One learning rate is tuned per task and attention, on one run each and on data of its own; "
    "who tunes more may find better.",
    "The byte task reads the standard library of the interpreter that runs it: its figures compare "
    "within a run, not between versions of Python.",
)
SETTINGS = (
    "seed",
    "d_model",
    "num_layers",
    "length",
    "recall_length",
    "pairs",
    "tokens",
    "num_steps",
    "eval_batches",
)
"""What a run depends on, besides its learning rate."""
Pairs = Mapping[tuple[str, str], tuple[Task, Model]]
"""What is compared, by the names of task and attention."""


def run(config: Config, out: pathlib.Path) -> Result:
    """Tunes and trains what is missing, then compares."""
    names = config.variants or tuple(methods.TABLE)
    models = {name: methods.make_model(name, config.d_model, config.num_layers) for name in names}
    todo = {name: tasks.make_task(name, config) for name in config.tasks}
    pairs = {(t, m): (task, model) for t, task in todo.items() for m, model in models.items()}
    rates = tune(config, pairs, out)
    found = train(config, pairs, rates, out)
    titles = {name: task.title for name, task in todo.items()}
    part = Part(
        rows=rows.rows(found, config.tasks),
        tables=tuple(rows.table(found, name, title) for name, title in titles.items()),
        figures=figures.draw(found, titles, out),
        limits=LIMITS,
    )
    return result.assemble(
        [part],
        experiment="mfa_quality",
        title="Attention with a small cache: quality at equal parameters",
        summary=_summary(found),
        paper=PAPER,
        interval_label=verdicts.LABEL,
    )


def tune(config: Config, pairs: Pairs, out: pathlib.Path) -> dict[tuple[str, str], float]:
    """Chooses the learning rate of every pair, on a run of its own each and on data of its own."""
    rates = config.learning_rates
    if len(rates) == 1:
        return dict.fromkeys(pairs, rates[0])
    # The same key for every rate: they differ in the rate alone.
    keys = jnp.broadcast_to(jax.random.fold_in(jax.random.key(config.seed), 0), (len(rates),))
    todo = {pair: _unit(config, pairs, pair, keys, rates, "tune") for pair in pairs}
    found = units.run(list(todo.values()), out, title="mfa_quality, tuning", metrics=_metrics)
    return {p: rates[best(found[unit.name].loss, p)] for p, unit in todo.items()}


def best(loss: np.ndarray, pair: tuple[str, str]) -> int:
    """Returns the index of the least loss.

    Raises:
        RuntimeError: if no run stayed finite.
    """
    if not np.isfinite(loss).any():
        raise RuntimeError(f"{pair[1]} on {pair[0]} diverges at every learning rate")
    return int(np.nanargmin(np.where(np.isfinite(loss), loss, np.nan)))


def train(
    config: Config, pairs: Pairs, rates: Mapping[tuple[str, str], float], out: pathlib.Path
) -> dict[tuple[str, str], Outcome]:
    """Trains the seeds of every pair at its rate."""
    root, seeds = jax.random.key(config.seed), jnp.arange(1, config.num_seeds + 1)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, seeds)
    todo = {
        pair: _unit(config, pairs, pair, keys, (rates[pair],) * config.num_seeds, "test")
        for pair in pairs
    }
    found = units.run(list(todo.values()), out, title="mfa_quality", metrics=_metrics)
    return {p: Outcome(pairs[p][1], rates[p], found[unit.name]) for p, unit in todo.items()}


def _unit(
    config: Config,
    pairs: Pairs,
    pair: tuple[str, str],
    keys: jax.Array,
    rates: Sequence[float],
    held_out: Literal["tune", "test"],
) -> Unit:
    """A run for every key and rate, judged on one of the parts that are held out."""
    task, model = pairs[pair]
    settings = {name: getattr(config, name) for name in SETTINGS}
    compute = functools.partial(
        training.train,
        model,
        task,
        keys,
        jnp.asarray(rates, jnp.float32),
        num_steps=config.num_steps,
        eval_batches=config.eval_batches,
        held_out=held_out,
    )
    name = "/".join((*pair, *(["tuning"] if held_out == "tune" else [])))
    return Unit(name, {**settings, "learning_rates": rates}, compute, Runs)


def _metrics(name: str, runs: Runs) -> dict[str, float]:
    kept = np.isfinite(runs.loss)  # a lost run has no loss
    if not kept.any():
        return {}
    return {"loss": float(runs.loss[kept].mean()), "error": float(runs.error[kept].mean())}


def _summary(found: Found) -> str:
    parts = []
    for task, what in (("recall", "associative recall"), ("bytes", "Python sources as bytes")):
        losses = {
            name: verdicts.measure(one.runs.loss).value
            for (name_task, name), one in found.items()
            if name_task == task and name in ("MHA", "MFA", "MQA", "MFA-KR")
        }
        if losses:
            listed = ", ".join(
                f"{name} lost" if loss is None else f"{name} {loss:.4g}"
                for name, loss in losses.items()
            )
            parts.append(f"{what}: {listed}")
    return "Held-out loss in bits at equal parameters; " + "; ".join(parts) + "."

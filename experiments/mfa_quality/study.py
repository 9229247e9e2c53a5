"""The comparison: every attention trained on every task, then set side by side."""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments.harness.result import Result, Row, Table
from experiments.mfa_quality import Config, figures, tasks, training, variants
from experiments.mfa_quality.variants import REFERENCE, Model
from jaxlab.core import logging

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
CLAIMS = (
    ("MFA", "MHA", "MFA holds MHA's quality with a fraction of its cache"),
    ("MFA-KR", "MHA", "MFA-KR, with half the cache of MFA, loses little"),
    ("MFA", "MLA", "MFA is better than MLA at the same cache"),
    ("MFA", "MQA", "MFA is better than MQA at the same cache"),
    ("MFA", "GQA", "MFA is better than GQA at half the cache"),
)
"""Attention, its rival, and what the papers say of the two."""


class Outcome(NamedTuple):
    """One attention on one task.

    Attributes:
        model: see `variants`.  learning_rate: the tuned one.
        tuning: held-out figure of every rate.
        loss: `[seeds]` bits.  error: `[seeds]` share of wrong predictions.
        curve: steps `[chunks]` and losses `[chunks, seeds]`.
    """

    model: Model
    learning_rate: float
    tuning: tuple[float, ...]
    loss: np.ndarray
    error: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]


def run(config: Config, out: pathlib.Path, *, resume: bool = False) -> Result:
    """Trains or resumes every unit, then compares."""
    del resume  # every unit goes on with the checkpoint that it finds
    names = config.variants or tuple(variants.TABLE)
    models = {name: variants.make_model(name, config.d_model, config.num_layers) for name in names}
    todo = {name: tasks.make_task(name, config) for name in config.tasks}
    progress = logging.console(len(todo) * len(models), title="mfa_quality")
    found: dict[tuple[str, str], Outcome] = {}
    for task_name, task in todo.items():
        for name, model in models.items():
            folder = out / task_name / name
            found[task_name, name] = outcome = _unit(config, model, task, folder)
            progress(
                len(found),
                {
                    f"{task_name}/{name}/loss": float(outcome.loss.mean()),
                    f"{task_name}/{name}/error": float(outcome.error.mean()),
                },
            )
    getattr(progress, "close", lambda: None)()
    titles = {name: task.title for name, task in todo.items()}
    return Result(
        experiment="mfa_quality",
        title="Attention with a small cache: quality at equal parameters",
        summary=_summary(found),
        paper=PAPER,
        interval_label="95 % t-interval of the paired difference to the baseline, around ours",
        rows=_rows(found, config),
        tables=tuple(_table(found, name, title) for name, title in titles.items()),
        figures=figures.draw(found, titles, out),
        limits=LIMITS,
    )


def _unit(config: Config, model: Model, task: tasks.Task, folder: pathlib.Path) -> Outcome:
    """Tunes the learning rate on a run of its own each, then trains the seeds."""
    common = {
        "num_steps": config.num_steps,
        "eval_batches": config.eval_batches,
        "config": dataclasses.asdict(config),
        "log": [],
    }
    root = jax.random.key(config.seed)
    rates = jnp.asarray(config.learning_rates, jnp.float32)
    # The same key for every rate: they differ in the rate alone.
    same = jnp.broadcast_to(jax.random.fold_in(root, 0), rates.shape)
    tuning = np.zeros(1)
    if rates.size > 1:
        tuning, _ = training.train(
            model, task, same, rates, directory=folder / "tuning", held_out="tune", **common
        )
    best = config.learning_rates[int(np.argmin(tuning))]
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        root, jnp.arange(1, config.num_seeds + 1)
    )
    loss, error = training.train(
        model,
        task,
        keys,
        jnp.full(keys.shape, best, jnp.float32),
        directory=folder / "seeds",
        **common,
    )
    curve = training.read_curves(folder / "seeds", "loss")
    return Outcome(model, best, tuple(map(float, tuning)), loss, error, curve)


def _rows(found: dict[tuple[str, str], Outcome], config: Config) -> tuple[Row, ...]:
    rows = []
    for ours, rival, claim in CLAIMS:
        for task in config.tasks:
            if (task, ours) in found and (task, rival) in found:
                rows.append(_row(found, task, ours, rival, claim))
    cached = {name: outcome.model.cached for (_, name), outcome in found.items()}
    for name, paper in (("MFA", 12.5), ("MFA-KR", 6.3)):
        if name in cached and REFERENCE in cached:
            rows.append(
                Row(
                    "The cache of MFA is a fraction of MHA's",
                    f"Cache of {name}, share of MHA's",
                    100.0 * cached[name] / cached[REFERENCE],
                    unit="%",
                    paper=paper,
                    note="The paper's 7-billion model: 24.6 and 12.3 KB a token of 196.6. Ours is "
                    "narrower, and its heads are not made smaller in proportion.",
                )
            )
    return tuple(rows)


def _row(
    found: dict[tuple[str, str], Outcome], task: str, ours: str, rival: str, claim: str
) -> Row:
    """Difference of two losses on the same seeds, in bits; below zero ours is better."""
    a, b = found[task, ours], found[task, rival]
    loss, other = float(a.loss.mean()), float(b.loss.mean())
    half = _half_width(a.loss - b.loss)
    low, high = loss - other - half, loss - other + half
    verdict = "better" if high < 0.0 else "worse" if low > 0.0 else "no clear difference"
    recalled = (
        f" Recalled: {100 * (1 - a.error.mean()):.1f} % against {100 * (1 - b.error.mean()):.1f} %."
        if task == "recall"
        else ""
    )
    return Row(
        claim,
        f"Loss of {ours}, {task}",
        loss,
        interval=(loss - half, loss + half),
        baseline=(rival, other),
        verdict=verdict,
        unit="bits" if task == "recall" else "bits per byte",
        note=f"Less that of {rival}: {loss - other:+.4f} ({low:+.4f} to {high:+.4f}), over "
        f"{a.loss.size} seeds. Cache: {100 * a.model.cached / b.model.cached:.0f} % of {rival}'s."
        + recalled,
    )


def _half_width(x: np.ndarray) -> float:
    """Half of Student's 95 % interval of a mean: a bootstrap of so few seeds would be too short."""
    quantile = scipy.stats.t.ppf(0.975, x.size - 1)
    return float(quantile * x.std(ddof=1) / np.sqrt(x.size))


def _table(found: dict[tuple[str, str], Outcome], task: str, title: str) -> Table:
    rows = []
    for (name_task, name), one in found.items():
        if name_task == task:
            half = _half_width(one.loss)
            rows.append(
                (
                    name,
                    one.model.cached,
                    one.model.num_parameters,
                    one.model.hidden,
                    f"{one.learning_rate:g}",
                    float(one.loss.mean()),
                    f"± {half:.3f}",
                    100.0 * float(one.error.mean()),
                )
            )
    columns = (
        "Attention",
        "Cache",
        "Parameters",
        "FFN width",
        "Rate",
        "Loss (bits)",
        "95 % interval",
        "Wrong (%)",
    )
    return Table(
        title,
        columns,
        tuple(rows),
        "Cache: elements a token and layer. Parameters: those of the blocks. Loss and wrong "
        "predictions: means over seeds, of what is held out.",
    )


def _summary(found: dict[tuple[str, str], Outcome]) -> str:
    parts = []
    for task, what in (("recall", "associative recall"), ("bytes", "Python sources as bytes")):
        losses = {
            name: float(one.loss.mean())
            for (name_task, name), one in found.items()
            if name_task == task and name in ("MHA", "MFA", "MQA", "MFA-KR")
        }
        if losses:
            listed = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            parts.append(f"{what}: {listed}")
    return "Held-out loss in bits at equal parameters; " + "; ".join(parts) + "."

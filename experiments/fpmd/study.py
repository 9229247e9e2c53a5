"""The comparison: every method on every task, the ways of acting, and the theory of one step."""

import pathlib

import jax
import numpy as np

from experiments.fpmd import Config, figures, methods, theory, training
from experiments.fpmd.training import Outcome
from experiments.result import Result, Row, Table
from jaxlab import envs, rl
from jaxlab.core import logging, stats

PAPER = (
    "Chen et al.: One-Step Flow Policy Mirror Descent, arXiv:2507.23675; Ma et al.: Efficient "
    "Online Reinforcement Learning for Diffusion Policy, arXiv:2502.00361"
)
LIMITS = (
    "Pendulum and the multi-goal task are ours: the paper reports MuJoCo (preset gpu) and pixels.",
    "Every method has the same networks, replay, critics and budget; learning rates are common, "
    "and no method is tuned to a task.",
    "Returns are of the last evaluation; the best one so far stands beside them, and is biased up.",
)
BASELINES = ("SAC", "SAC, best of K", "TD3", "TD3, best of K", "DPMD", "SDAC", "QVPO", "DIPO",
             "QSM", "DACER", "DIME")  # fmt: skip
PUBLISHED = {
    "half_cheetah": 11924.0, "humanoid": 6959.0, "ant": 5683.0, "hopper": 3275.0,
    "walker2d": 4365.0, "swimmer": 79.3, "reacher": -3.1, "pusher": -30.4,
    "inverted_pendulum": 1000.0,
}  # fmt: skip
"""Of DPMD after 200,000 updates, arXiv:2502.00361; FPMD's own table is not at hand."""


def run(config: Config, out: pathlib.Path) -> Result:
    """Trains or resumes every unit, then compares."""
    names = config.methods or tuple(methods.TABLE)
    tasks = {name: envs.make_task(name, config.backend) for name in config.tasks}
    for name in names:  # so that a wrong name costs no run
        methods.make_method(name, envs.make_env(tasks[config.tasks[0]], 1), config)
    found: dict[tuple[str, str], Outcome] = {}
    if "returns" in config.parts:
        progress = logging.console(len(tasks) * len(names), title="fpmd")
        for task_name, task in tasks.items():
            for name in names:
                method = methods.make_method(name, envs.make_env(task, 1), config)
                folder = out / task_name / _slug(name)
                found[task_name, name] = one = training.train(task, method, config, folder)
                progress(len(found), {f"{task_name}/{name}/return": float(one.final.mean())})
        getattr(progress, "close", lambda: None)()
    course = theory.run(config) if "theory" in config.parts else None
    rows = (*_return_rows(found, config), *_mode_rows(found), *_theory_rows(course))
    return Result(
        experiment="fpmd",
        title="One-step flow policies by mirror descent",
        summary=_summary(found, course),
        paper=PAPER,
        interval_label="95 % bootstrap interval over seeds",
        rows=rows,
        tables=_tables(found, config),
        figures=figures.draw(found, course, out),
        limits=LIMITS,
    )


def _return_rows(found: dict[tuple[str, str], Outcome], config: Config) -> list[Row]:
    rows = []
    for task in config.tasks:
        rivals = {n: found[task, n] for n in BASELINES if (task, n) in found}
        for name in methods.OURS:
            if (task, name) not in found:
                continue
            ours = found[task, name].final
            interval = _interval(ours)
            if not rivals:
                rows.append(
                    Row("Flow policies match the best baselines", f"Return of {name}, {task}",
                        float(ours.mean()), interval=interval)
                )  # fmt: skip
                continue
            best = max(rivals, key=lambda n: rivals[n].final.mean())
            other = rivals[best].final
            rows.append(
                Row(
                    "Flow policies match the best baselines", f"Return of {name}, {task}",
                    float(ours.mean()), interval=interval, baseline=(best, float(other.mean())),
                    paper=None, verdict=_verdict(ours, other),
                    note=f"Mean of {ours.size} seeds, IQM {float(stats.iqm(ours)):.4g}; best so "
                    f"far {found[task, name].best.mean():.4g}. The baseline is the best of "
                    f"{len(rivals)} by its mean, chosen afterwards."
                    + (f" DPMD's paper: {PUBLISHED[task]:g}." if task in PUBLISHED else ""),
                )
            )  # fmt: skip
    return rows


def _mode_rows(found: dict[tuple[str, str], Outcome]) -> list[Row]:
    rows = []
    for (task, name), one in found.items():
        if name in methods.OURS and "one_step" in one.modes:
            single, whole = one.modes["one_step"], one.modes["bon"]
            rows.append(
                Row(
                    "One step acts as well as many", f"Return of {name} in one step, {task}",
                    float(single.mean()), interval=_interval(single),
                    baseline=("its best of K", float(whole.mean())),
                    verdict=_verdict(single, whole),
                    note=f"One evaluation of the network, against "
                    f"{'K N' if name == 'FPMD-R' else 'K'} and 2 K of the critics'.",
                )
            )  # fmt: skip
    return rows


def _theory_rows(course: theory.Course | None) -> list[Row]:
    if course is None:
        return []
    held = bool(np.all(course.distance <= course.bound))
    rows = [
        Row(
            "The error of one Euler step is bounded by a variance",
            "W2 over its bound at the end of training", float(ratio.mean()),
            interval=_interval(ratio), verdict="reproduced" if held else "not reproduced",
            note=f"One step from t = 1/2; the bound holds at {'all' if held else 'not all'} "
            f"{course.step.size} points of all seeds.",
        )
        for ratio in [course.distance[-1] / course.bound[-1]]
    ]  # fmt: skip
    for name, share in course.modes.items():
        averaged = name == "FPMD-R, 1 step"
        right = bool(np.all(share < 0.1) if averaged else np.all(share > 0.8))
        rows.append(
            Row(
                "One step of a flow is the mean of its modes, one of MeanFlow is not",
                f"Samples near either mode, {name}", 100.0 * float(share.mean()),
                interval=tuple(100.0 * x for x in _interval(share)), unit="%",
                verdict="reproduced" if right else "not reproduced",
                note="Two good actions, -0.7 and 0.7, of equal weight; nearer than 0.3.",
            )
        )  # fmt: skip
    return rows


def _tables(found: dict[tuple[str, str], Outcome], config: Config) -> tuple[Table, ...]:
    tables = []
    for task in config.tasks:
        ones = {name: one for (which, name), one in found.items() if which == task}
        if not ones:
            continue
        tables.append(
            Table(
                f"Returns on {task}",
                ("Method", "Final", "95 % interval", "IQM", "Best so far", "Seconds per update"),
                tuple(
                    (name, float(one.final.mean()), _range(one.final), float(stats.iqm(one.final)),
                     float(one.best.mean()), one.seconds_per_update)
                    for name, one in ones.items()
                ),
                f"Means of {config.num_seeds} seeds, {config.updates:,} updates each. Seconds are "
                "of all seeds in one program, environment included.",
            )
        )  # fmt: skip
        acting = {name: one.modes for name, one in ones.items() if one.modes}
        if acting:
            steps = {"FPMD-R": config.flow_steps, "FPMD-M": 1}
            tables.append(
                Table(
                    f"Ways of acting on {task}",
                    ("Method", "Way", "Evaluations of the policy", "Of the critics", "Return"),
                    tuple(
                        (name, mode,
                         *rl.num_evaluations(
                             mode, num_particles=config.num_particles,
                             num_steps=steps.get(name, config.diffusion_steps)),
                         float(returns.mean()))
                        for name, modes in acting.items() if name in (*methods.OURS, "DPMD", "SDAC")
                        for mode, returns in modes.items()
                    ),
                    "bon: the best of K samples by the critics; vanilla: one sample; one_step: one "
                    "sample in one step; zero_noise: one step from zero.",
                )
            )  # fmt: skip
    return tuple(tables)


def _verdict(a: np.ndarray, b: np.ndarray) -> str:
    """By the paired difference over the same seeds."""
    compared = stats.compare_paired(jax.random.key(0), *(jax.numpy.asarray(x) for x in (a, b)))
    if float(compared.difference.low) > 0.0:
        return "better"
    return "worse" if float(compared.difference.high) < 0.0 else "no clear difference"


def _interval(x: np.ndarray) -> tuple[float, float]:
    found = stats.bootstrap_interval(jax.random.key(0), jax.numpy.asarray(x))
    return float(found.low), float(found.high)


def _range(x: np.ndarray) -> str:
    low, high = _interval(x)
    return f"{low:.4g} to {high:.4g}"


def _summary(found: dict[tuple[str, str], Outcome], course: theory.Course | None) -> str:
    parts = []
    for task in dict.fromkeys(task for task, _ in found):
        best = {n: o.final.mean() for (t, n), o in found.items() if t == task}
        listed = ", ".join(f"{n} {best[n]:.4g}" for n in (*methods.OURS, "SAC") if n in best)
        parts.append(f"{task}: {listed}")
    if course is not None:
        modes = {name: 100 * share.mean() for name, share in course.modes.items()}
        parts.append("near a mode: " + ", ".join(f"{n} {x:.0f} %" for n, x in modes.items()))
    return "Returns, " + "; ".join(parts) + "."


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c == "-" else "_" for c in name)

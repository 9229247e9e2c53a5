"""The comparison: every method on every task, the ways of acting, and the theory of one step."""

import dataclasses
import pathlib

import jax
import numpy as np

from experiments.fpmd import Config, figures, latency, methods, theory, training
from experiments.fpmd.latency import Latency
from experiments.fpmd.training import Outcome
from experiments.result import Result, Row, Table
from jaxlab import envs, rl
from jaxlab.core import logging, stats

PAPER = (
    "Chen et al.: One-Step Flow Policy Mirror Descent, arXiv:2507.23675; Ma et al.: Efficient "
    "Online Reinforcement Learning for Diffusion Policy, arXiv:2502.00361"
)
LIMITS = (
    "Pendulum and the multi-goal task are ours: the papers report MuJoCo (preset gpu) and pixels.",
    "Every method has the same networks, replay, critics, transitions and seeds. The learning rate "
    "of SAC, TD3 and PPO is the best of several on seeds of their own; the others have the one "
    "that mirror descent was given beforehand.",
    "Returns are of the last evaluation; the best one so far stands beside them, and is biased up.",
    "DIPO, QVPO, SDAC and diffusions take as many steps and samples as the preset says, fewer than "
    "in their papers.",
)
BASELINES = (*methods.TUNED, "DPMD", "SDAC", "QVPO", "DIPO", "QSM", "DACER", "DIME")
ABLATIONS = tuple(name for name in methods.TABLE if name.startswith("FPMD-R,"))
SHORTER = {"multi_goal": 3}
"""Tasks that take this share of the updates."""
TARGETS = {"pendulum": -200.0, "multi_goal": 6.0}
"""Returns to which time is measured."""
PUBLISHED = {
    "half_cheetah": 11924.0, "humanoid": 6959.0, "ant": 5683.0, "hopper": 3275.0,
    "walker2d": 4365.0, "swimmer": 79.3, "reacher": -3.1, "pusher": -30.4,
    "inverted_pendulum": 1000.0,
}  # fmt: skip
"""Of DPMD after 200,000 updates, arXiv:2502.00361; FPMD's own table is not at hand."""
Found = dict[tuple[str, str], Outcome]


def run(config: Config, out: pathlib.Path) -> Result:
    """Trains or resumes every unit, then compares."""
    names = config.methods or methods.NAMES
    for name in names:  # so that a wrong name costs no run
        if name not in methods.NAMES:
            raise ValueError(f"methods must be among {', '.join(methods.NAMES)}, got {name!r}")
    tasks = {name: envs.make_task(name, config.backend) for name in config.tasks}
    found: Found = {}
    rates: dict[tuple[str, str], float] = {}
    if "returns" in config.parts:
        progress = logging.console(len(tasks) * len(names), title="fpmd")
        for which, task in tasks.items():
            for name in names:
                folder = out / which / _slug(name)
                of_task = dataclasses.replace(
                    config, updates=config.updates // SHORTER.get(which, 1)
                )
                if name in methods.TUNED and len(config.tuning_rates) > 1:
                    rate = rates[which, name] = _tune(task, name, of_task, folder)
                    of_task = dataclasses.replace(of_task, learning_rate=rate)
                found[which, name] = one = _train(task, name, of_task, folder)
                progress(len(found), {f"{which}/{name}/return": float(one.final.mean())})
        getattr(progress, "close", lambda: None)()
    times = latency.run() if "latency" in config.parts else ()
    course = theory.run(config) if "theory" in config.parts else None
    return Result(
        experiment="fpmd",
        title="One-step flow policies by mirror descent",
        summary=_summary(found, course),
        paper=PAPER,
        interval_label="95 % bootstrap interval over seeds",
        rows=(
            *_return_rows(found), *_mode_rows(found), *_latency_rows(times),
            *_ablation_rows(found), *_goal_rows(found), *_mechanism_rows(found),
            *_theory_rows(course),
        ),
        tables=(*_tables(found, rates, config), *_latency_tables(times)),
        figures=figures.draw(found, course, out),
        limits=LIMITS,
    )  # fmt: skip


def _train(task: envs.Task, name: str, config: Config, folder: pathlib.Path) -> Outcome:
    method = methods.make_method(name, envs.make_env(task, config.num_envs), config)
    return training.train(task, name, method, config, folder)


def _tune(task: envs.Task, name: str, config: Config, folder: pathlib.Path) -> float:
    """Returns the learning rate with the best final return, on seeds of its own."""
    returns = {}
    for rate in config.tuning_rates:
        apart = dataclasses.replace(
            config, learning_rate=rate, seed=config.seed + 1000, num_seeds=config.tuning_seeds
        )
        one = _train(task, name, apart, folder.with_name(f"{folder.name}-tuning") / f"{rate:g}")
        returns[rate] = one.final.mean()
    return max(returns, key=lambda rate: returns[rate])


def _return_rows(found: Found) -> list[Row]:
    rows = []
    for task in _tasks(found):
        rivals = {n: found[task, n] for n in BASELINES if (task, n) in found}
        for name in methods.OURS:
            if (task, name) not in found:
                continue
            one = found[task, name]
            claim, metric = "Flow policies match the best baselines", f"Return of {name}, {task}"
            note = (
                f"Mean of {one.final.size} seeds, IQM {float(stats.iqm(one.final)):.4g}; best so "
                f"far {one.best.mean():.4g}."
                + (f" DPMD's paper: {PUBLISHED[task]:g}." if task in PUBLISHED else "")
            )
            value, interval = float(one.final.mean()), _interval(one.final)
            if not rivals:
                rows.append(Row(claim, metric, value, interval=interval, note=note))
                continue
            best = max(rivals, key=lambda n: rivals[n].final.mean())
            other = rivals[best].final
            rows.append(
                Row(
                    claim, metric, value, interval=interval,
                    baseline=(best, float(other.mean())), verdict=_verdict(one.final, other),
                    note=f"{note} The baseline is the best of {len(rivals)} by its mean, chosen "
                    "afterwards.",
                )
            )  # fmt: skip
    return rows


def _mode_rows(found: Found) -> list[Row]:
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


def _latency_rows(times: tuple[Latency, ...]) -> list[Row]:
    rows = []
    for batch in latency.BATCHES if times else ():
        of_batch = {(x.method, x.mode): x for x in times if x.batch == batch}
        rival = of_batch["DPMD", "bon"]
        for name in methods.OURS:
            one = of_batch[name, "one_step"]
            rows.append(
                Row(
                    "An action costs a small part of a diffusion policy's",
                    f"Time of an action of {name} in one step, batch {batch:,}", one.p50,
                    baseline=("DPMD, best of 32", rival.p50), unit="ms",
                    verdict="better" if one.p95 < rival.p50 else "no clear difference",
                    note=f"{rival.p50 / one.p50:.3g} times as fast; median of calls from the host, "
                    "three layers of 256.",
                )
            )  # fmt: skip
    return rows


def _ablation_rows(found: Found) -> list[Row]:
    rows = []
    for (task, name), other in found.items():
        if name in ABLATIONS and (task, "FPMD-R") in found:
            ours = found[task, "FPMD-R"].final
            rows.append(
                Row(
                    "Weights, noise of std 1 and the best of K are what makes it work",
                    f"Return of FPMD-R, {task}", float(ours.mean()), interval=_interval(ours),
                    baseline=(name.removeprefix("FPMD-R, "), float(other.final.mean())),
                    verdict=_verdict(ours, other.final),
                )
            )  # fmt: skip
    return rows


def _goal_rows(found: Found) -> list[Row]:
    rows = []
    for (task, name), one in found.items():
        if one.goals is None or name not in methods.OURS:
            continue
        rival = found.get((task, "SAC"))
        other = None if rival is None or rival.goals is None else rival.goals
        rows.append(
            Row(
                "Samples keep several good actions", f"Goals that {name} comes to, {task}",
                float(one.goals.mean()), interval=_interval(one.goals),
                baseline=None if other is None else ("SAC", float(other.mean())),
                verdict="measured" if other is None else _verdict(one.goals, other),
                note="Exponential of the entropy over four equally good ones, with exploration.",
            )
        )  # fmt: skip
    return rows


def _mechanism_rows(found: Found) -> list[Row]:
    rows = []
    for (task, name), one in found.items():
        if name != "FPMD-R" or "eval/gap" not in one.course:
            continue
        spread, gap = one.course["eval/spread"], one.course["eval/gap"]
        fell = bool(gap[-1] < gap[0] and spread[-1] < spread[0])
        rows.append(
            Row(
                "One step comes closer as the policy narrows",
                f"Correlation of spread and gap over training, {task}",
                float(np.corrcoef(spread, gap)[0, 1]),
                verdict="reproduced" if fell else "not reproduced",
                note=f"Spread of samples {spread[0]:.3g} to {spread[-1]:.3g}, distance of one step "
                f"from all steps {gap[0]:.3g} to {gap[-1]:.3g}, first to last of "
                f"{gap.size} evaluations.",
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


def _tables(
    found: Found, rates: dict[tuple[str, str], float], config: Config
) -> tuple[Table, ...]:  # fmt: skip
    tables = []
    for task in _tasks(found):
        ones = {name: one for (which, name), one in found.items() if which == task}
        tables.append(
            Table(
                f"Returns on {task}",
                ("Method", "Final", "95 % interval", "IQM", "Best so far", "Learning rate",
                 "ms per step", f"Seconds to {TARGETS.get(task, 0.0):g}"),
                tuple(
                    (name, float(one.final.mean()), _range(one.final), float(stats.iqm(one.final)),
                     float(one.best.mean()), rates.get((task, name), config.learning_rate),
                     1e3 * one.seconds_per_step, _seconds_to(TARGETS.get(task), one, config))
                    for name, one in ones.items()
                ),
                f"Means of {config.num_seeds} seeds, "
                f"{config.updates // SHORTER.get(task, 1):,} steps of {config.num_envs} "
                "environments, a gradient step of the critics for each (PPO has its own number). "
                "Times are of all seeds in one program, without compilation and evaluation.",
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


def _latency_tables(times: tuple[Latency, ...]) -> tuple[Table, ...]:
    if not times:
        return ()
    columns = ("Method", "Way", "Evaluations of the policy", "Of the critics", "Batch", "p50, ms",
               "p95, ms")  # fmt: skip
    note = (
        f"Calls from the host, {latency.OBS} observations and {latency.ACTION} actions, three "
        "layers of 256, K = 32, N = 20."
    )
    return (Table("Time of an action", columns, tuple(times), note),)


def _seconds_to(target: float | None, one: Outcome, config: Config) -> float | str:
    """Seconds of training until the mean return over seeds first reached the target."""
    steps, returns = one.curve
    reached = np.flatnonzero(returns.mean(axis=1) >= target) if target is not None else ()
    if not len(reached):
        return "–"
    return float(steps[reached[0]] / config.num_envs * one.seconds_per_step)


def _tasks(found: Found) -> tuple[str, ...]:
    return tuple(dict.fromkeys(task for task, _ in found))


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


def _summary(found: Found, course: theory.Course | None) -> str:
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

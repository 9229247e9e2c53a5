"""The comparison: every method on every task, the ways of acting, and the theory of one step."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments.fpmd import Config, figures, latency, methods, theory, training
from experiments.fpmd.latency import Latency
from experiments.fpmd.training import Outcome
from experiments.harness.result import Result, Row, Table
from jaxlab import envs, rl
from jaxlab.core import logging, stats

PAPER = (
    "Chen et al.: One-Step Flow Policy Mirror Descent, arXiv:2507.23675; Ma et al.: Efficient "
    "Online Reinforcement Learning for Diffusion Policy, arXiv:2502.00361"
)
BASELINES = (*methods.TUNED, "DPMD", "SDAC", "QVPO", "DIPO", "QSM", "DACER", "DIME")
ABLATIONS = tuple(name for name in methods.TABLE if name.startswith("FPMD-R,"))
OPTIONS: dict[str, dict[str, float]] = {"multi_goal": {"start_std": 2.5}}
"""Of tasks: from the middle alone narrow policies never see the corners, and get lost there."""
SHORTER = {"multi_goal": 3}
"""Tasks that take this share of the updates."""
TARGETS = {"pendulum": -200.0, "multi_goal": 8.0}
"""Returns to which time is measured."""
PUBLISHED = {
    "PPO": (4852, 952, 3442, 3227, 4114, 84.5, -8.7, -25.5, 1000),
    "TD3": (8149, 5816, 3733, 1934, 2476, 71.9, -3.1, -25.1, 1000),
    "SAC": (8981, 2858, 2500, 3197, 3233, 63.5, -65, -31.2, 1000),
    "QSM": (10740, 5652, 938, 2804, 2523, 57.0, -4.2, -80.8, 1000),
    "DIPO": (9063, 4880, 965, 1191, 1961, 46.7, -3.3, -32.9, 1000),
    "DACER": (11203, 2755, 4301, 3212, 3194, 103, -3.3, -30.8, 801),
    "QVPO": (7321, 421, 718, 2873, 2337, 53.4, -30.6, -129, 1000),
    "DPMD": (11924, 6959, 5683, 3275, 4365, 79.3, -3.1, -30.4, 1000),
}
"""Returns after 200,000 updates by arXiv:2502.00361, at second hand; FPMD's own are not at hand."""
PUBLISHED_TASKS = (
    "half_cheetah",
    "humanoid",
    "ant",
    "hopper",
    "walker2d",
    "swimmer",
    "reacher",
    "pusher",
    "inverted_pendulum",
)
"""In the order of the table."""
Found = dict[tuple[str, str], Outcome]


def run(config: Config, out: pathlib.Path) -> Result:
    """Trains or resumes every unit, then compares."""
    names = config.methods or methods.NAMES
    for name in names:  # so that a wrong name costs no run
        if name not in methods.NAMES:
            raise ValueError(f"methods must be among {', '.join(methods.NAMES)}, got {name!r}")
    tasks = {
        name: envs.make_task(name, config.backend, **OPTIONS.get(name, {})) for name in config.tasks
    }
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
            *_return_rows(found),
            *_published_rows(found),
            *_mode_rows(found),
            *_latency_rows(times),
            *_ablation_rows(found),
            *_goal_rows(found),
            *_mechanism_rows(found),
            *_theory_rows(course),
        ),
        tables=(*_tables(found, rates, config), *_latency_tables(times)),
        figures=figures.draw(found, course, out),
        limits=_limits(found, config),
    )


def _limits(found: Found, config: Config) -> tuple[str, ...]:
    tuned = (
        "The learning rate of SAC, TD3 and PPO is the best of "
        f"{', '.join(f'{rate:g}' for rate in config.tuning_rates)}, on {config.tuning_seeds} seeds "
        f"of their own; all others have {config.learning_rate:g}."
        if len(config.tuning_rates) > 1
        else f"All methods have the learning rate {config.learning_rate:g}, none is tuned."
    )
    dipo = ", DIPO 100" if config.diffusion_steps >= 20 else ""
    limits = [
        "Widths of the networks, replay, transitions and seeds are common. DACER and DIME have "
        "critics of distributions, SAC has GELU, PPO learns from its rollouts alone.",
        tuned,
        f"Diffusions take {config.diffusion_steps} steps (DIME 16, QSM 20{dipo}) and choose among "
        f"{config.num_particles} samples; QVPO and SDAC improve with twice as many. Their papers "
        "have more.",
        "Verdicts against a baseline are by a paired t-interval of 95 % over seeds, and are "
        "given from five seeds on.",
        "Returns are of the last evaluation; the best one so far stands beside them, and is "
        "biased up.",
    ]
    if not set(_tasks(found)) & set(PUBLISHED_TASKS):
        limits.insert(0, "These tasks are ours: the papers report MuJoCo (preset gpu) and pixels.")
    return tuple(limits)


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
            )
            value, interval = float(one.final.mean()), _interval(one.final)
            if not rivals:
                rows.append(Row(claim, metric, value, interval=interval, note=note))
                continue
            best = max(rivals, key=lambda n: rivals[n].final.mean())
            other = rivals[best].final
            rows.append(
                Row(
                    claim,
                    metric,
                    value,
                    interval=interval,
                    baseline=(best, float(other.mean())),
                    verdict=_verdict(one.final, other),
                    note=f"{note} The baseline is the best of {len(rivals)} by its mean, chosen "
                    "afterwards.",
                )
            )
    return rows


def _published_rows(found: Found) -> list[Row]:
    return [
        Row(
            "Returns of the papers",
            f"Return of {name}, {task}",
            float(one.final.mean()),
            interval=_interval(one.final),
            paper=PUBLISHED[name][PUBLISHED_TASKS.index(task)],
            note="After 200,000 updates there; figures at second hand.",
        )
        for (task, name), one in found.items()
        if name in PUBLISHED and task in PUBLISHED_TASKS
    ]


def _mode_rows(found: Found) -> list[Row]:
    rows = []
    for (task, name), one in found.items():
        if name in methods.OURS and "one_step" in one.modes:
            single, whole = one.modes["one_step"], one.modes["bon"]
            rows.append(
                Row(
                    "One step acts as well as many",
                    f"Return of {name} in one step, {task}",
                    float(single.mean()),
                    interval=_interval(single),
                    baseline=("its best of K", float(whole.mean())),
                    verdict=_verdict(single, whole),
                    note=f"One evaluation of the network, against "
                    f"{'K N' if name == 'FPMD-R' else 'K'} and 2 K of the critics'.",
                )
            )
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
                    f"Time of an action of {name} in one step, batch {batch:,}",
                    one.p50,
                    baseline=("DPMD, best of 32", rival.p50),
                    unit="ms",
                    verdict="better" if one.p95 < rival.p50 else "no clear difference",
                    note=f"{rival.p50 / one.p50:.3g} times as fast; median of calls from the host, "
                    "three layers of 256.",
                )
            )
    return rows


def _ablation_rows(found: Found) -> list[Row]:
    rows = []
    for (task, name), other in found.items():
        if name in ABLATIONS and (task, "FPMD-R") in found:
            ours = found[task, "FPMD-R"].final
            rows.append(
                Row(
                    "What FPMD-R rests on: weights, noise of std 1, several steps, the best of K",
                    f"Return of FPMD-R, {task}",
                    float(ours.mean()),
                    interval=_interval(ours),
                    baseline=(name.removeprefix("FPMD-R, "), float(other.final.mean())),
                    verdict=_verdict(ours, other.final),
                )
            )
    return rows


def _goal_rows(found: Found) -> list[Row]:
    rows = []
    for (task, name), one in found.items():
        number, arrived = one.goals
        if not number.size or name not in methods.OURS:
            continue
        rival = found.get((task, "SAC"))
        rows.append(
            Row(
                "Samples keep several good actions",
                f"Goals that {name} comes to, {task}",
                float(number.mean()),
                interval=_interval(number),
                baseline=None if rival is None else ("SAC", float(rival.goals[0].mean())),
                verdict="measured" if rival is None else _verdict(number, rival.goals[0]),
                note="Exponential of the entropy over four equally good ones, from their middle, "
                f"with exploration; {100 * arrived.mean():.0f} % of episodes come to one.",
            )
        )
    return rows


def _mechanism_rows(found: Found) -> list[Row]:
    """From the largest gap on: before, the flow has hardly learned to move its noise."""
    rows = []
    for (task, name), one in found.items():
        if name != "FPMD-R" or "eval/gap" not in one.course:
            continue
        spread, gap = one.course["eval/spread"], one.course["eval/gap"]
        first = int(np.argmax(gap))
        claim = "One step comes closer as the policy narrows"
        if gap.size - first > 2:
            correlation = float(np.corrcoef(spread[first:], gap[first:])[0, 1])
            rows.append(
                Row(
                    claim,
                    f"Correlation of spread and gap, {task}",
                    correlation,
                    verdict="reproduced" if correlation > 0.5 else "not reproduced",
                    note=f"Over the last {gap.size - first} of {gap.size} evaluations, in which "
                    f"samples spread {spread[first]:.3g} to {spread[-1]:.3g}, and one step is "
                    f"{gap[first]:.3g} to {gap[-1]:.3g} from all steps out of the same noise.",
                )
            )
        ratio = float(gap[-1] / spread[-1])
        rows.append(
            Row(
                claim,
                f"Gap over spread at the end, {task}",
                ratio,
                paper="1 for an exact flow",
                verdict="reproduced" if 0.8 <= ratio <= 1.25 else "not reproduced",
                note="One step of an exact flow is the mean of its samples.",
            )
        )
    return rows


def _theory_rows(course: theory.Course | None) -> list[Row]:
    if course is None:
        return []
    held = bool(np.all(course.distance <= course.bound))
    rows = [
        Row(
            "The error of one Euler step is bounded by a variance",
            "W2 over its bound at the end of training",
            float(ratio.mean()),
            interval=_interval(ratio),
            verdict="reproduced" if held else "not reproduced",
            note=f"One step from t = 1/2; the bound holds at {'all' if held else 'not all'} "
            f"{course.step.size} points of all seeds.",
        )
        for ratio in [course.distance[-1] / course.bound[-1]]
    ]
    for name, share in course.modes.items():
        averaged = name == "FPMD-R, 1 step"
        right = bool(np.all(share < 0.1) if averaged else np.all(share > 0.8))
        rows.append(
            Row(
                "One step of a flow is the mean of its modes, one of MeanFlow is not",
                f"Samples near either mode, {name}",
                100.0 * float(share.mean()),
                interval=tuple(100.0 * x for x in _interval(share)),
                unit="%",
                verdict="reproduced" if right else "not reproduced",
                note="Two good actions, -0.7 and 0.7, of equal weight; nearer than 0.3.",
            )
        )
    return rows


def _tables(found: Found, rates: dict[tuple[str, str], float], config: Config) -> tuple[Table, ...]:
    tables = []
    for task in _tasks(found):
        ones = {name: one for (which, name), one in found.items() if which == task}
        target = TARGETS.get(task)
        tables.append(
            Table(
                f"Returns on {task}",
                (
                    "Method",
                    "Final",
                    "95 % interval",
                    "IQM",
                    "Its interval",
                    "Best so far",
                    "Its interval",
                    "Learning rate",
                    "ms per step",
                    *([f"Seconds to {target:g}"] if target is not None else []),
                ),
                tuple(
                    (
                        name,
                        float(one.final.mean()),
                        _range(one.final),
                        float(stats.iqm(one.final)),
                        _range(one.final, stats.iqm),
                        float(one.best.mean()),
                        _range(one.best),
                        rates.get((task, name), config.learning_rate),
                        1e3 * one.seconds_per_step,
                        *([_seconds_to(target, one, config)] if target is not None else []),
                    )
                    for name, one in ones.items()
                ),
                f"Means of {config.num_seeds} seeds, "
                f"{config.updates // SHORTER.get(task, 1):,} steps of {config.num_envs} "
                "environments, a gradient step of the critics for each (PPO has its own number). "
                "Times are of all seeds in one program, without compilation and evaluation.",
            )
        )
        acting = {name: one.modes for name, one in ones.items() if one.modes}
        if acting:
            steps = {"FPMD-R": config.flow_steps, "FPMD-M": 1}
            tables.append(
                Table(
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
                            float(returns.mean()),
                        )
                        for name, modes in acting.items()
                        if name in (*methods.OURS, "DPMD", "SDAC")
                        for mode, returns in modes.items()
                    ),
                    "bon: the best of K samples by the critics; vanilla: one sample; one_step: one "
                    "sample in one step; zero_noise: one step from zero.",
                )
            )
    return tuple(tables)


def _latency_tables(times: tuple[Latency, ...]) -> tuple[Table, ...]:
    if not times:
        return ()
    columns = (
        "Method",
        "Way",
        "Evaluations of the policy",
        "Of the critics",
        "Batch",
        "p50, ms",
        "p95, ms",
    )
    note = (
        f"Calls from the host, {latency.OBS} observations and {latency.ACTION} actions, three "
        "layers of 256, K = 32, N = 20 (FPMD-M: 1); at least "
        f"{latency.FEWEST} calls, for {latency.SECONDS:g} s."
    )
    return (Table("Time of an action", columns, tuple(times), note),)


def _seconds_to(target: float, one: Outcome, config: Config) -> float | str:
    """Seconds of training until the mean return over seeds first reached the target."""
    steps, returns = one.curve
    reached = np.flatnonzero(returns.mean(axis=1) >= target)
    if not reached.size:
        return "–"
    return float(steps[reached[0]] / config.num_envs * one.seconds_per_step)


def _tasks(found: Found) -> tuple[str, ...]:
    return tuple(dict.fromkeys(task for task, _ in found))


def _verdict(a: np.ndarray, b: np.ndarray) -> str:
    """By a t-interval of the paired differences over the same seeds; none below five."""
    if a.size < 5:
        return "measured"
    difference = a - b
    error = difference.std(ddof=1) / np.sqrt(a.size)
    reach = scipy.stats.t.ppf(0.975, a.size - 1) * error
    if abs(difference.mean()) <= reach:
        return "no clear difference"
    return "better" if difference.mean() > 0.0 else "worse"


def _interval(x: np.ndarray, statistic: Callable = jnp.mean) -> tuple[float, float]:
    found = stats.bootstrap_interval(jax.random.key(0), jnp.asarray(x), statistic=statistic)
    return float(found.low), float(found.high)


def _range(x: np.ndarray, statistic: Callable = jnp.mean) -> str:
    low, high = _interval(x, statistic)
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

"""What is said of the methods, and of the values that guidance takes."""

from typing import Any

import numpy as np

from experiments.harness import verdicts
from experiments.harness.result import Row, Table
from experiments.pirf import Config, methods
from experiments.pirf.judging import SIGNS, Outcome, trained_steps
from experiments.pirf.methods import BASE, FIRMER, LOOSE, OURS, PUBLISHED
from experiments.pirf.tasks import Task
from experiments.pirf.values import LEVELS, Values

Found = dict[str, list[Outcome]]
"""Outcomes of each method of one law, by seed; what is not tuned has one."""
Looked = dict[tuple[str, str], Values]
"""Values by law, and by where fields came from: "data" or "model"."""
ZERO = 1e-6
"""Mean square of a residual that is zero to rounding."""
INSIDE = "Mean square of the residual, interior"
VALUES_LIMIT = (
    "The values of data take 512 fields for the whole law, so that both sides are exact; where "
    "noise is small, a state comes from one field alone."
)


def of_data(task: Task) -> tuple[Row, ...]:
    """Whether one's own fields obey their law."""
    if task.check is None:
        return ()
    finite = task.check.shuffled if np.isfinite(task.check.shuffled) else None
    if np.isnan(task.check.ratio):
        told = "That of fields put together from several is zero or not finite: no comparison."
    else:
        told = f"Their ratio is {task.check.ratio:.3g}; below 0.1 is near zero."
        if not task.check.obeys:
            told += " A reward by this residual is earned by leaving the data."
    return (
        Row(
            "The residual of the data is near zero",
            "Mean square of the residual of the data",
            task.check.mean_square,
            baseline=("fields put together from several", finite),
            note=told,
        ),
    )


def at(found: Found, name: str, field: str, config: Config, which: int | None = None) -> np.ndarray:
    """Returns figures by seed, at the judged number of steps nearest to that of training."""
    index = trained_steps(config) if which is None else which
    return np.stack([getattr(one, field)[index] for one in found[name]])


def rows(found: Found, task: Task, config: Config) -> tuple[Row, ...]:
    """All that is said of one law, the most telling first."""
    law, made = task.law.name, []
    for name in (OURS, FIRMER):
        if name in found:
            made += _against_base(found, name, task, config)
    made += _detected(found, task, config)
    if OURS in found:
        made += _against_others(found, law, config)
        made += _elsewhere(found, law, config)
        made += _seconds(found, law, config)
        made += _sensors(found, law)
    return tuple(made)


def best(found: Found, kind: str, config: Config) -> str | None:
    """Returns the length of step of a guidance whose residual is the least, chosen afterwards."""
    names = [name for name in found if name.startswith(kind)]
    finite = [n for n in names if np.isfinite(at(found, n, "interior", config)[0])]
    return min(finite, key=lambda n: float(at(found, n, "interior", config)[0]), default=None)


def tables(found: Found, task: Task, config: Config) -> tuple[Table, ...]:
    """All figures, and the residual by the number of steps."""
    return (
        _table(found, task, config),
        _by_steps(found, task, config),
        *_sensor_table(found, task),
    )


def limits(found: Found, task: Task, config: Config) -> tuple[str, ...]:
    """What the figures do not show."""
    height, width, _ = task.shape
    told = [
        f"One small base model of {task.law.name} on {height} x {width} points; the seeds share it,"
        " and the noise that they are judged by: their spread is that of the fine-tuning.",
        "The paper's tables were not at hand: no figure here is compared with one of its own.",
    ]
    if lengths := len({methods.GUIDED[name]["zeta"] for name in found if name in methods.GUIDED}):
        told.append(
            f"Guidance has the step's length that is best of {lengths} on the fields that are "
            "judged, chosen afterwards."
            if lengths > 1
            else "The length of guidance's steps is not tuned."
        )
    if any(name in found for name in methods.ON_DATA):
        told.append("PIDM, PBFM and the reward of D(x_t) make as many passes through the network.")
    return tuple(told)


def summary(found: Found, task: Task, config: Config) -> str:
    """One sentence for the first screen."""
    told = []
    for name in (BASE, OURS, LOOSE, PUBLISHED):
        if name in found:
            value = verdicts.average(at(found, name, "interior", config))
            flagged = int(np.sum(np.any(at(found, name, "flags", config), axis=1)))
            of = f", flagged in {flagged} of {len(found[name])} runs" if name != BASE else ""
            told.append(f"{name} {value:.2g}{of}")
    return f"Mean square of the residual inside, {task.law.name}: {'; '.join(told)}."


def values(looked: Looked) -> tuple[Row, ...]:
    """What guidance takes for the residual, over what it is, where the two differ most."""
    made = []
    for (law, source), one in looked.items():
        taken, true = (np.mean(x, axis=1) for x in one)
        if np.max(true) < ZERO:  # nothing to be told apart
            note = "Both are zero to rounding: the law is linear, and the data obey it."
            made.append(_value_row(law, source, int(np.argmax(taken)), taken, true, note))
            continue
        off = np.abs(np.log(np.maximum(taken, 1e-12) / np.maximum(true, 1e-12)))
        made.append(_value_row(law, source, int(np.argmax(off)), taken, true, ""))
    return tuple(made)


def values_table(looked: Looked) -> Table:
    """Both values by law and level of noise."""
    lines = []
    for (law, source), one in looked.items():
        for what, x in (("of D(x_t)", one.taken), ("mean over x_0", one.true)):
            lines.append((law, source, what, *(_shown(np.mean(v)) for v in x)))
    return Table(
        "Mean square of the residual that a noisy state is worth",
        ("Law", "Fields of", "What", *(f"{level:g}" for level in LEVELS)),
        tuple(lines),
        "By the level of noise. Guidance and residual losses take the first line for the second.",
    )


def _against_base(found: Found, name: str, task: Task, config: Config) -> list[Row]:
    law, made = task.law.name, []
    count = len(found[name])
    for field, words in (
        ("interior", INSIDE),
        ("solution_error", "Solution error"),
        ("frechet", "Fréchet distance of low cosine coefficients"),
    ):
        ours = at(found, name, field, config)
        theirs = np.repeat(at(found, BASE, field, config), count)
        if not np.isfinite(theirs).all():
            continue
        times = float(np.mean(theirs)) / max(float(np.nanmean(ours)), 1e-30)
        made.append(
            verdicts.row(
                "The residual falls, and the fields stay what they were",
                f"{words}, {name}, {law}",
                ours,
                (BASE, theirs),
                larger_is_better=False,
                note=f"{times:.3g} times lower." if times >= 1.0 else "",
            )
        )
    std = np.mean(at(found, name, "std", config), axis=0)
    base = np.mean(at(found, BASE, "std", config), axis=0)
    for channel, ours, theirs in zip(task.law.channels, std, base, strict=True):
        made.append(
            Row(
                "The residual falls, and the fields stay what they were",
                f"Standard deviation of {channel} over the data's, {name}, {law}",
                _shown(ours),
                baseline=(BASE, _shown(theirs)),
                verdict="not measured" if _shown(ours) is None else "measured",
                note="1 is the data's.",
            )
        )
    return made


def _detected(found: Found, task: Task, config: Config) -> list[Row]:
    made = []
    for name in found:
        if name not in (*methods.TUNED, *methods.ON_DATA):
            continue
        flags = at(found, name, "flags", config)
        made.append(
            Row(
                "A hacked reward is told from a physical one",
                f"Share of runs that the detector flags, {name}, {task.law.name}",
                100.0 * float(np.mean(np.any(flags, axis=1))),
                unit="%",
                note=f"{_named(flags)} {_amplitudes(found, name, task, config)}",
            )
        )
    return made


def _against_others(found: Found, law: str, config: Config) -> list[Row]:
    guided = [best(found, kind, config) for kind in ("DiffusionPDE", "CoCoGen")]
    ours = at(found, OURS, "interior", config)
    made = []
    for name in found:
        if name in (OURS, BASE, methods.DATA) or (name in methods.GUIDED and name not in guided):
            continue
        theirs = at(found, name, "interior", config)
        if len(theirs) == 1:
            theirs = np.repeat(theirs, len(ours))
        error = verdicts.average(at(found, name, "solution_error", config))
        mine = verdicts.average(at(found, OURS, "solution_error", config))
        errors = f"Solution error {error:.3g}, {OURS} {mine:.3g}. " if np.isfinite(error) else ""
        ablation = name in methods.TUNED
        made.append(
            verdicts.row(
                "What each part of it is for" if ablation else "It is compared with its rivals",
                f"{INSIDE}, {OURS} beside {name}, {law}",
                ours,
                (name, theirs),
                larger_is_better=False,
                note=f"{errors}{name}: {_named(at(found, name, 'flags', config)).lower()}",
            )
        )
    return made


def _elsewhere(found: Found, law: str, config: Config) -> list[Row]:
    """At other numbers of steps than those of training."""
    made = []
    for which, num in enumerate(config.judged_steps):
        if which == trained_steps(config):
            continue
        for name in (OURS, methods.RANDOM):
            if name not in found:
                continue
            ours = at(found, name, "interior", config, which)
            made.append(
                verdicts.row(
                    "It works at other numbers of steps",
                    f"{INSIDE}, {name}, {num} steps, {law}",
                    ours,
                    (BASE, np.repeat(at(found, BASE, "interior", config, which), len(ours))),
                    larger_is_better=False,
                )
            )
    return made


def _seconds(found: Found, law: str, config: Config) -> list[Row]:
    """What a field costs that is as physical as guidance's best."""
    made = []
    for kind in ("DiffusionPDE", "CoCoGen"):
        name = best(found, kind, config)
        if name is None:
            continue
        rival = found[name][0]
        aim = float(np.nanmin(rival.interior))
        theirs = float(rival.seconds[int(np.nanargmin(rival.interior))])
        ours = [
            min((s for s, r in zip(x.seconds, x.interior, strict=True) if r <= aim), default=np.nan)
            for x in found[OURS]
        ]
        made.append(
            verdicts.row(
                "A physical field costs less",
                f"Time of a field with the residual of {name}, {law}",
                1e3 * np.asarray(ours),
                (name, 1e3 * np.full(len(ours), theirs)),
                larger_is_better=False,
                unit="ms",
                note=f"Of one core; the residual is {aim:.3g}, the least of guidance over numbers "
                "of steps, and ours at most that; a run that does not come there is lost. The "
                "tuning is not counted.",
            )
        )
    return made


def _sensors(found: Found, law: str) -> list[Row]:
    if not (BASE in found and len(found[BASE][0].sensor_error)):
        return []
    base = found[BASE][0]
    which = int(np.nanargmin(base.sensor_error))
    zeta = methods.SENSOR_ZETAS[which]
    made = []
    for field, words in (
        ("sensor_error", "Error between sensors"),
        ("sensor_interior", f"{INSIDE}, guided by sensors"),
    ):
        ours = np.stack([getattr(one, field)[which] for one in found[OURS]])
        made.append(
            verdicts.row(
                "Guidance by sensors goes together with it",
                f"{words}, {OURS}, {law}",
                ours,
                (BASE, np.repeat(getattr(base, field)[which], len(ours))),
                larger_is_better=False,
                note=f"Steps of length {zeta:g}, the best of {len(methods.SENSOR_ZETAS)} for the "
                "base. Errors are over the data's standard deviation.",
            )
        )
    return made


def _table(found: Found, task: Task, config: Config) -> Table:
    lines, two_valued = [], task.name == "darcy"
    for name in found:
        flags = at(found, name, "flags", config)
        figures = [
            *(np.mean(at(found, name, f, config)) for f in ("interior", "absolute", "every")),
            *np.mean(at(found, name, "std", config), axis=0),
            np.mean(at(found, name, "solution_error", config)),
            np.max(np.mean(at(found, name, "spectrum", config), axis=0)),
            np.mean(at(found, name, "frechet", config)),
            np.mean(at(found, name, "sliced", config)),
            np.mean(at(found, name, "diversity", config)),
            np.mean(at(found, name, "nearest", config)),
        ]
        inclusion = np.mean(at(found, name, "inclusion", config))
        figures += [inclusion] if two_valued else []
        named = ", ".join(n for n, f in zip(SIGNS, np.any(flags, axis=0), strict=True) if f)
        lines.append((name, *map(_shown, figures), named or "none"))
    stds = (f"Std {channel}" for channel in task.law.channels)
    columns = ("Inside", "|R| inside", "Everywhere", *stds, "Solution", "Spectrum", "Fréchet")
    more = ("Slices", "Diversity", "Nearest", *(["Share of a = 12"] if two_valued else []))
    return Table(
        f"What was tuned, and what it became: {task.law.name}",
        ("Method", *columns, *more, "Flags"),
        tuple(lines),
        f"{config.judged_steps[trained_steps(config)]} steps, {config.fields} fields from the same "
        "noise, means over seeds. Residual: mean square and mean size inside, mean square (as "
        "released) everywhere; standard deviations over the data's; median error of the solution; "
        "distance of log spectra; distances of low coefficients and of slices; distance of two "
        "fields over the data's; distance to the nearest field of training over that of new "
        "fields; what the detector says of any seed.",
    )


def _by_steps(found: Found, task: Task, config: Config) -> Table:
    lines = tuple(
        (
            name,
            *(
                _shown(np.mean(at(found, name, "interior", config, i)))
                for i in range(len(config.judged_steps))
            ),
            *(
                _shown(1e3 * np.mean(at(found, name, "seconds", config, i)))
                for i in range(len(config.judged_steps))
            ),
        )
        for name in found
        if name != methods.DATA
    )
    return Table(
        f"Residual inside, and milliseconds of a field, by the sampler's steps: {task.law.name}",
        (
            "Method",
            *(f"N = {num}" for num in config.judged_steps),
            *(f"ms, N = {num}" for num in config.judged_steps),
        ),
        lines,
        "Means over seeds; milliseconds are of one core.",
    )


def _sensor_table(found: Found, task: Task) -> tuple[Table, ...]:
    lines = [
        (name, what, *(_shown(x) for x in np.mean([getattr(one, field) for one in seeds], axis=0)))
        for name, seeds in found.items()
        if len(seeds[0].sensor_error)
        for what, field in (("error", "sensor_error"), ("residual", "sensor_interior"))
    ]
    if not lines:
        return ()
    return (
        Table(
            f"Guided by sensors: {task.law.name}",
            ("Method", "What", *(f"{zeta:g}" for zeta in methods.SENSOR_ZETAS)),
            tuple(lines),
            "By the length of a step; means over seeds.",
        ),
    )


def _value_row(
    law: str, source: str, which: int, taken: np.ndarray, true: np.ndarray, note: str
) -> Row:
    return Row(
        "What guidance takes for a state's value is another number",
        f"Residual of D(x_t), fields of the {source}, noise {LEVELS[which]:g}, {law}",
        float(taken[which]),
        baseline=("mean over the fields it may become", float(true[which])),
        note=note or "At the level where the two differ most; mean squares, inside.",
    )


def _named(flags: np.ndarray) -> str:
    """What runs are flagged for, as a sentence."""
    count = np.sum(flags, axis=0)
    told = [f"{name} ({n})" for name, n in zip(SIGNS, count, strict=True) if n]
    return f"Flagged of {len(flags)}: {', '.join(told)}." if told else "Nothing is flagged."


def _amplitudes(found: Found, name: str, task: Task, config: Config) -> str:
    std = np.mean(at(found, name, "std", config), axis=0)
    told = [f"{c} {s:.3g}" for c, s in zip(task.law.channels, std, strict=True)]
    return f"Standard deviations over the data's: {', '.join(told)}."


def _shown(x: Any) -> float | None:
    return float(f"{float(x):.3g}") if np.isfinite(x) else None

"""How many beds the rule adds where rate and law never change."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import units, verdicts
from experiments.harness.result import Figure, Part, Table
from experiments.harness.units import Unit
from experiments.icu_occupancy import Config, figures
from experiments.icu_occupancy.parts.published_tables import PAPER_QUEUE
from jaxlab import queueing as q

OURS, RIVAL = "STL trend (the paper)", "constant rate"


def run(config: Config, out: pathlib.Path) -> Part:
    """Plans for units whose rate and law never change, by the paper's estimator and its rivals."""
    unit = Unit(
        "null calibration",
        {"seed": config.seed, "repeats": config.null_repeats},
        functools.partial(_calibrate, config.seed, config.null_repeats),
        kind=q.NullCalibration,
    )
    outcome = units.run([unit], out, title="null")[unit.name]
    estimators = {
        OURS: outcome.pipeline,
        "Poisson regression": outcome.regression,
        RIVAL: outcome.constant,
    }
    rows = []
    for a, alpha in enumerate(q.ALPHAS):
        bias = {name: beds[:, a] - outcome.true[a] for name, beds in estimators.items()}
        ours, rival = (bias[name].mean(axis=1) for name in (OURS, RIVAL))
        rows.append(
            verdicts.row(
                "Surge beds are due to real change over time",
                f"Beds above the true need at {alpha:.0%} risk when nothing changes, per site",
                ours,
                ("constant-rate estimator", rival),
                larger_is_better=False,
                unit="beds",
                note="A trend of 15 days follows Poisson noise, which the rule then adds again. "
                "Constant units alone give surge margins of the published size.",
            )
        )
    names = [site.name for site in q.CALGARY_SITES]
    stacked = np.stack([beds[:, 0] for beds in estimators.values()])  # [estimator, R, I]
    figures.bed_counts(
        out / "null.png",
        names,
        list(estimators),
        stacked.mean(axis=1),
        np.quantile(stacked, 0.025, axis=1),
        np.quantile(stacked, 0.975, axis=1),
        marks=np.broadcast_to(outcome.true[0], stacked[:, 0].shape),
        mark_label="true need",
        xlabel="beds, 5 % risk",
    )
    caption = (
        "Beds for a 5 % risk at units whose rate and law never change: mean and 95 % range of "
        f"{config.null_repeats} draws by estimator, and the true need."
    )
    table = Table(
        "Null calibration: beds above the true need",
        ("Site", "Risk", "True need", *estimators),
        tuple(
            (
                names[i],
                f"{alpha:.0%}",
                int(outcome.true[a, i]),
                *(
                    f"{(beds[:, a, i] - outcome.true[a, i]).mean():+.2f}"
                    for beds in estimators.values()
                ),
            )
            for i in range(len(names))
            for a, alpha in enumerate(q.ALPHAS)
        ),
        f"Mean over {config.null_repeats} draws of 8 years. The regression has a linear trend, two "
        "annual harmonics and the day of the week; both rivals take the Kaplan–Meier curve as "
        "the law.",
    )
    return Part(tuple(rows), (Figure("null.png", caption, caption),), (table,))


def _calibrate(seed: int, num_repeats: int, folder: pathlib.Path) -> q.NullCalibration:
    sites, num_days, u_max = q.CALGARY_SITES, q.tasks.NUM_DAYS, 384
    with jax.enable_x64(True):
        truth = q.Truth(
            lam=jnp.asarray(np.repeat([[site.lam] for site in sites], num_days, axis=1)),
            family=jnp.asarray([q.FAMILIES.index(site.family) for site in sites], jnp.int32),
            params=q.LOSParams(
                jnp.asarray([site.shape for site in sites]),
                jnp.asarray([site.scale for site in sites]),
            ),
            longest=jnp.asarray([min(site.los_cap, float(u_max)) for site in sites]),
        )
        outcome = jax.device_get(
            jax.jit(
                functools.partial(
                    q.null_calibration,
                    pipeline=functools.partial(
                        q.plan, num_days=num_days, u_max=u_max, queue=PAPER_QUEUE
                    ),
                    num_repeats=num_repeats,
                    room=q.patient_room(np.asarray(truth.lam)),
                    u_max=u_max,
                    start_weekday=q.tasks.ORIGIN.weekday(),
                )
            )(jax.random.key(seed), truth)
        )
    if outcome.padding_overflow.any():
        raise RuntimeError("more patients were drawn than there is room for; enlarge `room`")
    return outcome

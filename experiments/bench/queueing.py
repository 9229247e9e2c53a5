"""Timings of ICU bed planning: the whole pipeline, and patients simulated a second."""

import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing
from jaxlab import queueing as q

SUMMARY = "ICU bed planning: the whole pipeline and the Monte Carlo, against their rivals"
BEDS = (26, 46, 34, 34, 21)
"""Published B_0.05 of the five units: the thresholds whose overflow the simulation counts."""


def run(out: pathlib.Path) -> list[timing.Measurement]:
    """Times both on this machine, rivals in the same process."""
    return [*pipeline(), *monte_carlo()]


def pipeline() -> list[timing.Measurement]:
    """Stays to beds, 5 sites x 8 years, against statsmodels and scipy."""
    from experiments.rivals import pipeline  # here: the accelerator suite has no statsmodels

    (ours,) = pipeline_gpu()
    stays = q.calgary_like(0)
    rival = _timed(functools.partial(pipeline.plan, stays), repeats=1)
    note = (
        "The rival of the pipeline runs once. 54 of the 72 configurations repeat others (degree 2 "
        "means 1 there), so neither side computes them."
    )
    return [dataclasses.replace(ours, rival_name="statsmodels, scipy", rival=rival, note=note)]


def pipeline_gpu() -> list[timing.Measurement]:
    """Times the pipeline alone, an entry of the accelerator suite; all parts compile."""
    stays = q.calgary_like(0)
    u_max = 64 * -(-int(np.ceil(stays.los.max())) // 64)
    with jax.enable_x64(True):
        patients = jax.tree.map(jnp.asarray, q.pooled_by_site(stays))
        start = time.perf_counter()
        plan = q.compile_plan(patients, stays.num_days, u_max=u_max)
        compile_s = time.perf_counter() - start
        timed = dataclasses.replace(timing.measure(plan, patients, repeats=5), compile_s=compile_s)
    shape = f"{stays.num_sites} sites x {stays.num_days:,} days, 72 configurations, float64"
    return [timing.Measurement("stays to beds", shape, timed, work=1.0, work_unit="plans")]


def monte_carlo() -> list[timing.Measurement]:
    """Patients a second against vectorized numpy on the same core; simpy and ciw for scale."""
    from experiments.rivals import queueing as rivals

    replications = 1024
    (ours,) = monte_carlo_gpu(replications)
    inputs = jax.tree.map(np.asarray, _units())
    families = [q.FAMILIES[code] for code in inputs.family]
    site = 2  # exponential stays; the event simulators take one site
    one = (float(inputs.lam[site, 0]), float(inputs.mu[site, 0]), int(inputs.smax[site]))
    num_days, expected = inputs.lam.shape[1], float(inputs.lam.sum())
    runs = {
        "numpy, one core": lambda: rivals.numpy_free_model(
            0,
            inputs.lam,
            inputs.mu,
            inputs.sig2,
            inputs.kappa,
            families,
            inputs.smax,
            num_replications=256,
        ),
        "simpy": lambda: rivals.simpy_free_model(0, *one, num_days=num_days, num_replications=20),
        "ciw": lambda: rivals.ciw_free_model(0, *one, num_days=num_days, num_replications=5),
    }
    found = []
    for name, rival in runs.items():
        patients = rival().num_patients  # a first call, which also warms up
        timed = _timed(rival, repeats=3)
        scale = replications * expected / patients
        scaled = timing.Timing(0.0, timed.median_s * scale, timed.iqr_s * scale, timed.n)
        found.append(
            dataclasses.replace(
                ours,
                rival_name=name,
                rival=scaled,
                note="Rivals simulate fewer replications; their times are scaled to ours by the "
                "number of patients. One CPU device of JAX uses one core here.",
            )
        )
    return found


def monte_carlo_gpu(replications: int = 8192) -> list[timing.Measurement]:
    """Times the simulation alone, accumulators included; an entry of the accelerator suite."""
    inputs = _units()
    algorithm = q.make_monte_carlo(
        inputs, beds=jnp.asarray(BEDS, jnp.int32)[:, None], replications_per_step=replications
    )
    state = algorithm.init(jax.random.key(0))
    timed = timing.measure(jax.jit(algorithm.step), state, repeats=5)
    num_sites, num_days = inputs.lam.shape
    patients = replications * float(inputs.lam.sum())
    shape = f"{replications:,} replications x {num_sites} sites x {num_days:,} days"
    return [
        timing.Measurement(
            "free-model Monte Carlo", shape, timed, work=patients, work_unit="patients"
        )
    ]


def _units() -> q.QueueInputs:
    """Returns the five published units with constant rates and their published laws."""
    units, num_days = q.CALGARY_SITES, q.tasks.NUM_DAYS
    mean = [q.tasks.mean_los(unit) for unit in units]

    def daily(values: Any) -> jax.Array:
        return jnp.repeat(jnp.asarray(values, jnp.float32)[:, None], num_days, axis=1)

    return q.QueueInputs(
        lam=daily([unit.lam for unit in units]),
        mu=daily(mean),
        sig2=daily(np.square(mean)),
        kappa=jnp.asarray([unit.kappa for unit in units], jnp.float32),
        family=jnp.asarray([q.FAMILIES.index(unit.family) for unit in units], jnp.int32),
        smax=jnp.asarray([unit.smax for unit in units], jnp.int32),
    )


def _timed(fn, *, repeats: int) -> timing.Timing:
    """Times a rival that is not jitted."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - start)
    spread = float(np.subtract(*np.quantile(seconds, [0.75, 0.25])))
    return timing.Timing(0.0, float(np.median(seconds)), spread, repeats)

"""The whole pipeline against statsmodels and scipy, bed by bed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals import pipeline
from jaxlab import queueing as q

UNITS = q.CALGARY_SITES[2:5:2]  # an exponential and a Weibull unit
WARM = q.QueueModel(warmup="drop")


@pytest.fixture(scope="module")
def planner():
    return jax.jit(functools.partial(q.plan, num_days=730, u_max=192, queue=WARM))


def draw(seed):
    stays = q.calgary_like(seed, num_days=730, sites=UNITS, annual=0.3)
    return stays, q.pooled_by_site(stays)


def test_beds_equal_statsmodels_and_scipy(planner):
    stays, patients = draw(3)
    with jax.enable_x64(True):
        plan = jax.device_get(planner(jax.tree.map(jnp.asarray, patients)))
    expected = pipeline.plan(stays)
    found = np.stack([plan.beds.average, *plan.beds.risk, plan.beds.peak])
    np.testing.assert_array_equal(found, expected)
    counts = np.bincount(stays.day[stays.site == 0], minlength=730)
    np.testing.assert_array_equal(plan.series.daily.counts[0], counts)
    np.testing.assert_allclose(plan.laws.mean_los[1], stays.los[stays.site == 1].mean())


def test_new_stays_do_not_recompile(planner):
    with jax.enable_x64(True):
        for seed in (3, 4):
            planner(jax.tree.map(jnp.asarray, draw(seed)[1]))
        assert planner._cache_size() == 1


@pytest.mark.slow
def test_three_programs_compiled_side_by_side_equal_one():
    _, patients = draw(7)
    with jax.enable_x64(True):
        patients = jax.tree.map(lambda x: jnp.asarray(x[:1]), patients)
        options = {
            "u_max": 192,
            "queue": q.QueueModel(variant="fisk_mean", convention="midnight"),
            "rules": q.BedRules(alphas=(0.1,), gamma=0.9, rule="max"),
            "series_options": q.SeriesOptions(grid=q.GRID[:2]),
            "law_options": q.LawOptions(families=("weibull", "exponential")),
        }
        together = jax.jit(functools.partial(q.plan, num_days=730, **options))(patients)
        apart = q.compile_plan(patients, 730, **options)(patients)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_a_site_without_a_law_is_marked_and_spares_its_neighbor(planner):
    _, patients = draw(3)
    with jax.enable_x64(True):
        whole = jax.device_get(planner(jax.tree.map(jnp.asarray, patients)))
        event = patients.event.copy()
        event[0] = False  # nobody has left: no law can be fitted
        broken = jax.device_get(planner(jax.tree.map(jnp.asarray, patients._replace(event=event))))
    assert broken.laws.choice[0] == -1
    assert np.isnan(broken.rho[0]).all()
    assert (broken.beds.risk[:, 0] == -1).all()
    np.testing.assert_array_equal(broken.rho[1], whole.rho[1])
    np.testing.assert_array_equal(broken.beds.risk[:, 1], whole.beds.risk[:, 1])


def test_options_change_what_they_say():
    _, patients = draw(5)
    patients = jax.tree.map(lambda x: jnp.asarray(x[:1]), patients)
    options = q.SeriesOptions(grid=q.GRID[:1])
    run = functools.partial(q.estimate_series, patients, 730)
    plain, kept, pooled = jax.jit(
        lambda: (
            run(options),
            run(options._replace(keep_seasonal=True)),
            run(options._replace(spread="individual")),
        )
    )()
    seasonal = plain.arrivals.result.seasonal
    expected = np.maximum(plain.arrivals.result.trend + seasonal, 0)
    np.testing.assert_allclose(kept.lam, expected, atol=1e-6)
    # Exponential stays: single stays vary by about mean^2, daily means by less.
    mean = 12.5
    assert float(pooled.sig2.mean()) == pytest.approx(mean**2, rel=0.2)
    assert float(plain.sig2.mean()) < 0.8 * mean**2
    with pytest.raises(ValueError, match="spread must be"):
        run(options._replace(spread="pooled"))  # pyright: ignore[reportArgumentType]


def test_mean_occupancy_is_differentiable_in_every_stay():
    _, patients = draw(6)
    patients = jax.tree.map(lambda x: jnp.asarray(x[:1]), patients)
    with jax.enable_x64(True):
        patients = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, patients
        )

        def mean_rho(los):
            plan = q.plan(
                patients._replace(los=los),
                730,
                u_max=192,
                series_options=q.SeriesOptions(grid=q.GRID[:1]),
                law_options=q.LawOptions(families=("weibull",)),
            )
            return jnp.mean(plan.rho)

        value = jax.jit(jax.value_and_grad(mean_rho))
        _, grad = value(patients.los)
        direction = patients.weight * np.sin(1.7 * np.arange(patients.los.shape[1]))[None]
        step = 1e-5
        ahead, behind = (value(patients.los + s * direction)[0] for s in (step, -step))
        slope = float((ahead - behind) / (2 * step))
    assert np.isfinite(np.asarray(grad)).all()
    along = float(np.sum(np.asarray(grad) * np.asarray(direction)))
    assert along == pytest.approx(slope, rel=1e-4)


def test_a_law_without_a_mean_is_not_planned_with():
    rng = np.random.default_rng(1)
    day = np.sort(rng.integers(0, 200, 600)).astype(np.int32)[None]
    stay = 6.0 * (1 / rng.random((1, 600)) - 1) ** (1 / 0.6)  # log-logistic, kappa 0.6: no mean
    one = np.ones((1, 600))
    with jax.enable_x64(True):
        patients = q.Patients(*map(jnp.asarray, (day, np.minimum(stay, 400.0), one, one)))
        plan = jax.device_get(
            jax.jit(
                lambda p: q.plan(
                    p,
                    200,
                    u_max=512,
                    queue=q.QueueModel(variant="fisk_mean"),
                    series_options=q.SeriesOptions(grid=q.GRID[:1]),
                    law_options=q.LawOptions(families=("fisk",)),
                )
            )(patients)
        )
    assert plan.laws.kappa[0] < 1
    assert np.isnan(plan.rho[:, 1:]).all() and (plan.beds.risk == -1).all()

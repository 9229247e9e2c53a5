"""Null calibration and parametric bootstrap: known units in, known answers out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab import queueing as q


def truth_of(units, num_days):
    return q.Truth(
        lam=jnp.repeat(jnp.asarray([[unit.lam] for unit in units]), num_days, axis=1),
        family=jnp.asarray([q.FAMILIES.index(unit.family) for unit in units], jnp.int32),
        params=q.LOSParams(
            jnp.asarray([unit.shape for unit in units]), jnp.asarray([unit.scale for unit in units])
        ),
        longest=jnp.asarray([unit.los_cap for unit in units]),
    )


def test_true_beds_are_the_poisson_quantiles_of_the_units(x64):
    beds = jax.jit(q.true_beds)(truth_of(q.CALGARY_SITES, 10))
    expected = []
    for unit in q.CALGARY_SITES:
        days = np.arange(1025)
        rho = unit.lam * np.sum(1 - q.tasks.los_cdf(unit, days))
        expected.append(scipy.stats.poisson.ppf([0.95, 0.99], rho))
    np.testing.assert_array_equal(beds, np.transpose(expected))
    np.testing.assert_array_equal(beds[0], [23, 44, 31, 32, 19])


@pytest.mark.parametrize("family", q.FAMILIES)
def test_true_beds_of_every_family_without_a_longest_stay(family, x64):
    truth = q.Truth(
        jnp.full((1, 3), 2.0),
        jnp.asarray([q.FAMILIES.index(family)], jnp.int32),
        q.LOSParams(jnp.asarray([3.0]), jnp.asarray([4.0])),
        jnp.asarray([jnp.inf]),
    )
    laws = {
        "exponential": scipy.stats.expon(scale=4.0),
        "weibull": scipy.stats.weibull_min(3.0, scale=4.0),
        "lognormal": scipy.stats.lognorm(3.0, scale=4.0),
        "gamma": scipy.stats.gamma(3.0, scale=4.0),
        "fisk": scipy.stats.fisk(3.0, scale=4.0),
        "burr": scipy.stats.lomax(3.0, scale=4.0),
    }
    rho = 2.0 * laws[family].sf(np.arange(1025)).sum()
    expected = scipy.stats.poisson.ppf([0.95, 0.99], rho)
    np.testing.assert_array_equal(jax.jit(q.true_beds)(truth)[:, 0], expected)


def test_calibration_needs_more_days_than_lags(key):
    truth = truth_of(q.CALGARY_SITES[:1], 100)
    with pytest.raises(ValueError, match=r"u_max must lie in \[1, 100\)"):
        q.null_calibration(key, truth, lambda p: None, num_repeats=2, room=512, u_max=100)


def test_sampled_stays_follow_rates_and_laws(key):
    units = (q.CALGARY_SITES[0], q.CALGARY_SITES[4])
    truth = truth_of(units, 400)
    day = jnp.arange(400)
    truth = truth._replace(lam=truth.lam * (1 + 0.5 * jnp.sin(day / 30))[None])
    sample = jax.jit(jax.vmap(lambda k: q.sample_stays(k, truth, room=1024)))
    patients, overflow = jax.device_get(sample(jax.random.split(key, 60)))
    assert not overflow.any()
    totals = patients.weight.sum(axis=2)
    mean = np.asarray(truth.lam.sum(axis=1))
    # Poisson counts: mean within 5 SE, variance within 5 SE of the mean (60 draws).
    assert (np.abs(totals.mean(axis=0) - mean) < 5 * np.sqrt(mean / 60)).all()
    assert (np.abs(totals.var(axis=0, ddof=1) / mean - 1) < 5 * np.sqrt(2 / 59)).all()
    for i, unit in enumerate(units):
        keep = patients.weight[:, i] > 0
        stays = patients.los[:, i][keep]
        law = scipy.stats.kstest(stays, lambda x, unit=unit: q.tasks.los_cdf(unit, x))
        assert law.pvalue > 1e-6
        rate = np.bincount(patients.day[:, i][keep], minlength=400) / 60
        expected = np.asarray(truth.lam[i])
        chi2 = np.sum((rate - expected) ** 2 / (expected / 60))
        assert scipy.stats.chi2.sf(chi2, 400) > 1e-6
        assert stays.max() <= unit.los_cap


def test_too_little_room_is_reported(key):
    truth = truth_of(q.CALGARY_SITES[:2], 200)  # about 142 and 530 patients
    _, overflow = jax.jit(lambda k: q.sample_stays(k, truth, room=256))(key)
    np.testing.assert_array_equal(overflow, [False, True])
    assert q.patient_room(truth.lam) == 1024


def calibrate(key, units, num_days, num_repeats, u_max):
    pipeline = functools.partial(
        q.plan, num_days=num_days, u_max=u_max, queue=q.QueueModel(warmup="drop")
    )
    with jax.enable_x64(True):
        truth = truth_of(units, num_days)
        run = jax.jit(
            functools.partial(
                q.null_calibration,
                pipeline=pipeline,
                num_repeats=num_repeats,
                room=q.patient_room(truth.lam),
                u_max=u_max,
            )
        )
        return jax.device_get(run(key, truth))


@pytest.mark.slow
def test_the_trend_counts_poisson_noise_twice_and_the_others_do_not(key):
    outcome = calibrate(key, q.CALGARY_SITES[2:4], 2922, 12, 256)
    for beds, low, high in (
        (outcome.pipeline, 1.0, 3.5),  # one to two and a half beds at 5 %, more at 1 %
        (outcome.constant, -1.0, 1.0),
        (outcome.regression, -1.0, 1.2),
    ):
        bias = (beds[:, 0] - outcome.true[0]).mean()
        assert low < bias < high
    extra = (outcome.pipeline - outcome.constant).mean(axis=(0, 2))
    error = (outcome.pipeline - outcome.constant).mean(axis=2).std(axis=0) / np.sqrt(12)
    assert (extra > 3 * error).all()
    assert extra[1] > extra[0]  # the rarer the overflow, the larger the bias
    assert (np.abs(outcome.dispersion.mean(axis=0) - 1) < 0.05).all()
    assert not outcome.padding_overflow.any()


def test_bootstrap_draws_the_sites_own_stays_by_the_given_rate(key):
    rng = np.random.default_rng(0)
    los = np.where(np.arange(64) < 40, np.round(rng.gamma(2.0, 3.0, (2, 64)), 2) + 0.01, 1e6)
    weight = np.broadcast_to((np.arange(64) < 40).astype(float), (2, 64))
    event = (rng.random((2, 64)) < 0.8).astype(float)
    patients = q.Patients(
        *(jnp.asarray(x, jnp.float32) for x in (np.zeros((2, 64)), los, event, weight))
    )
    lam = jnp.stack([jnp.full(300, 4.0), jnp.linspace(0.0, 2.0, 300)])
    sample = jax.jit(jax.vmap(lambda k: q.resample_stays(k, lam, patients, room=2048)))
    drawn, overflow = jax.device_get(sample(jax.random.split(key, 50)))
    assert not overflow.any()
    for i in range(2):
        keep = drawn.weight[:, i] > 0
        stays, marks = drawn.los[:, i][keep], drawn.event[:, i][keep]
        source = {
            (a, b)
            for a, b in np.asarray(jnp.stack([patients.los, patients.event], -1))[i][:40].tolist()
        }
        assert set(zip(stays.tolist(), marks.tolist(), strict=True)) == source
        mean = los[i][:40].mean()
        assert abs(stays.mean() - mean) < 5 * los[i][:40].std() / np.sqrt(keep.sum())
        rate = np.bincount(drawn.day[:, i][keep], minlength=300) / 50
        expected = np.asarray(lam[i])
        z = (rate - expected)[1:] / np.sqrt(np.maximum(expected[1:], 1e-3) / 50)
        assert scipy.stats.chi2.sf(np.sum(z**2), 299) > 1e-6


def test_bootstrap_interval_has_the_spread_of_fresh_draws(key):
    pipeline = functools.partial(
        q.plan,
        num_days=365,
        u_max=128,
        queue=q.QueueModel(warmup="drop"),
        series_options=q.SeriesOptions(grid=q.GRID[:1]),
        law_options=q.LawOptions(families=("exponential",)),
    )
    unit = q.CALGARY_SITES[4]
    with jax.enable_x64(True):
        patients = jax.tree.map(
            jnp.asarray, q.pooled_by_site(q.calgary_like(1, num_days=365, sites=(unit,)))
        )
        lam = jnp.full((1, 365), unit.lam)

        def repeat(key):
            drawn, overflow = q.resample_stays(key, lam, patients, room=1024)
            return pipeline(drawn).beds, overflow

        keys = jax.random.split(key, 40)
        beds, overflow = jax.device_get(jax.jit(lambda k: jax.lax.map(repeat, k))(keys))
    assert not overflow.any()
    weight, los = np.asarray(patients.weight), np.asarray(patients.los)
    load = unit.lam * (weight * los).sum() / weight.sum()
    # Admissions and stays of a year each have about 5 % error: the load varies by about 7 %, that
    # is by 0.9 of 12.2 beds.
    assert abs(beds.average.mean() - (load + np.sqrt(load) + 0.5)) < 0.6
    assert 0.5 < beds.average.std() < 1.7
    assert (beds.risk[:, 1] >= beds.risk[:, 0]).all()

"""Oracles for patients already in bed: enumeration, memoryless stays, quadrature, simulation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from jaxlab.queueing.census import initial
from jaxlab.queueing.stays import conditional

AGES = np.array([0.5, 4.0, 9.0, 30.0, 0.0])
MASK = np.array([True, True, True, True, False])
T = np.array([0.0, 1.0, 6.0])
RHO_NEW = np.array([0.0, 2.4, 9.1])
LOGNORMAL = stats.lognorm(0.8, scale=10 * np.exp(-0.32))


def lognormal_survival():
    return conditional.law("lognormal", 10.0, 100 * np.expm1(0.64), 1.0)


def test_survivors_and_moments(x64):
    got = initial.initial_survivors(AGES, MASK, T, lognormal_survival())
    want = LOGNORMAL.sf(AGES + T[:, None]) / LOGNORMAL.sf(AGES) * MASK
    np.testing.assert_allclose(got, want, rtol=1e-11)
    mean, variance = initial.initial_moments(got, RHO_NEW)
    np.testing.assert_allclose(mean, want.sum(1) + RHO_NEW, rtol=1e-11)
    np.testing.assert_allclose(variance, (want * (1 - want)).sum(1) + RHO_NEW, rtol=1e-11)
    assert np.all(np.asarray(variance)[1:] < np.asarray(mean)[1:])


def test_pmf_equals_enumeration(x64):
    """Every subset of the four patients, plus Poisson newcomers; padding counts for nothing."""
    compute = jax.jit(
        lambda mask: initial.initial_occupancy_pmf(AGES, mask, T, lognormal_survival(), RHO_NEW, 40)
    )
    got = np.asarray(compute(MASK))
    p = LOGNORMAL.sf(AGES + T[:, None]) / LOGNORMAL.sf(AGES)
    want = np.zeros((3, 41))
    for stays in itertools.product([0, 1], repeat=4):
        prob = np.prod(np.where(stays, p[:, :4], 1 - p[:, :4]), axis=1)
        new = stats.poisson.pmf(np.arange(41) - sum(stays), RHO_NEW[:, None])
        want += prob[:, None] * new
    np.testing.assert_allclose(got, want, atol=1e-14)
    mean, variance = initial.initial_moments(p * MASK, RHO_NEW)
    n = np.arange(41)
    np.testing.assert_allclose(got @ n, mean, rtol=1e-9)
    np.testing.assert_allclose(got @ n**2 - (got @ n) ** 2, variance, rtol=1e-7, atol=1e-12)


def test_whole_day_ages_may_be_integers():
    surv = conditional.law("exponential", 7.0, 1.0, 1.0)
    got = initial.initial_survivors(np.arange(3), np.ones(3, bool), jnp.arange(4), surv)
    np.testing.assert_allclose(got, np.tile(np.exp(-np.arange(4) / 7)[:, None], 3), rtol=1e-6)


def test_mass_beyond_n_max_is_left_out_not_lumped(x64):
    surv = lognormal_survival()
    full = initial.initial_occupancy_pmf(AGES, MASK, T, surv, RHO_NEW, 60)
    short = initial.initial_occupancy_pmf(AGES, MASK, T, surv, RHO_NEW, 2)
    np.testing.assert_allclose(short, full[:, :3], atol=1e-15)
    beyond = 1 - np.asarray(short).sum(axis=1)
    np.testing.assert_allclose(beyond, np.asarray(full)[:, 3:].sum(axis=1), atol=1e-12)
    assert beyond[0] > 0.99  # four patients at time 0


def test_memoryless_stays_forget_their_age(x64):
    surv = conditional.law("exponential", 7.0, 1.0, 1.0)
    np.testing.assert_allclose(
        initial.initial_survivors(AGES, np.ones(5, bool), T, surv),
        np.tile(np.exp(-T / 7.0)[:, None], (1, 5)),
        rtol=1e-13,
    )
    for convention in ("ceil", "midnight"):
        residual = initial.residual_survival(T, surv, 400, convention=convention)
        np.testing.assert_allclose(residual, np.exp(-T / 7.0), rtol=1e-10)


def test_unknown_ages_follow_the_stationary_excess(x64):
    """int_t^inf S / E[stay]; longer than a fresh stay of this over-dispersed law."""
    t = np.array([1.0, 5.0, 20.0])
    got = initial.residual_survival(t, lognormal_survival(), 900, convention="midnight")
    want = [integrate.quad(LOGNORMAL.sf, x, np.inf, epsabs=1e-12)[0] / 10.0 for x in t]
    np.testing.assert_allclose(got, want, rtol=1e-7)
    lattice = initial.residual_survival(t, lognormal_survival(), 900)
    s = LOGNORMAL.sf(np.arange(2000))
    np.testing.assert_allclose(lattice, [s[int(x) :].sum() / s.sum() for x in t], rtol=1e-7)


def test_unknown_ages_after_a_varying_history(x64):
    """Simulated patients found in bed on day 0, admitted at rates that rose towards it."""
    rng = np.random.default_rng(8)
    history = np.linspace(4.0, 0.5, 41)  # days 0, -1, ...
    age = np.repeat(np.arange(41), rng.poisson(20_000 * history))
    stay = LOGNORMAL.rvs(size=age.size, random_state=rng)
    in_bed = stay > age
    t = np.array([2.0, 10.0])
    got = initial.residual_survival(t, lognormal_survival(), 40, history=history)
    for p, x in zip(np.asarray(got), t, strict=True):
        observed = np.mean(stay[in_bed] > age[in_bed] + x)
        assert abs(p - observed) < 4 * np.sqrt(p * (1 - p) / in_bed.sum())
    with pytest.raises(ValueError, match="num_lags"):
        initial.residual_survival(t, lognormal_survival(), 10, history=history)


def test_an_impossible_patient_is_reported():
    """S(a) underflows: the patient cannot be there; padding with the same age is fine."""
    surv = conditional.law("exponential", 1.0, 1.0, 1.0)
    ages = jnp.array([2.0, 500.0])
    got = initial.initial_survivors(ages, jnp.array([True, True]), jnp.array([1.0]), surv)
    np.testing.assert_array_equal(np.isnan(got[0]), [False, True])
    padded = initial.initial_survivors(ages, jnp.array([True, False]), jnp.array([1.0]), surv)
    np.testing.assert_allclose(padded[0], [np.exp(-1.0), 0.0], rtol=1e-6)

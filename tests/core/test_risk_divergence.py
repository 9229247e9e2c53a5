"""Measures of one's own divergences: closed forms, linear programs, differences, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxlab.core import risk


def kl(p, q):
    return jnp.sum(p * jnp.log(p / q))


def pearson(p, q):
    return 0.5 * jnp.sum((p - q) ** 2 / q)


def variation(p, q):
    return 0.5 * jnp.sum(jnp.abs(p - q))


def hellinger(p, q):
    return jnp.sum((jnp.sqrt(p) - jnp.sqrt(q)) ** 2)


def draws(count=4, size=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 2.0, (count, size)), rng.dirichlet(np.ones(size), count)


@pytest.mark.parametrize(
    ("divergence", "known"), [(kl, risk.entropic), (pearson, risk.chi2)], ids=["kl", "pearson"]
)
def test_known_divergences_give_known_measures(divergence, known, x64):
    """Either sign, the mean at 0, mass taken away from all but the best, and the penalty."""
    x, probs = map(jnp.asarray, draws())
    measure = risk.penalized(divergence)

    @jax.jit
    @jax.vmap
    def both(beta):
        return [
            (one.value(x, probs), one.tilt(x, probs), one.weight(x, probs))
            for one in (measure(beta), known(beta))
        ]

    ours, theirs = both(jnp.asarray([-0.8, -0.05, 0.0, 0.3, 2.0]))
    for got, want, atol in zip(ours, theirs, (1e-10, 1e-7, 1e-5), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-7, atol=atol)
    p = known(0.7).tilt(x, probs)
    np.testing.assert_allclose(measure(0.7).penalty(p, probs), known(0.7).penalty(p, probs))


def test_kinks_do_not_stop_it(x64):
    """Total variation, whose tilt leaves most outcomes where they are, against linear programs."""
    x, probs = draws(seed=1)
    size, found = x.shape[1], risk.penalized(variation)
    one, none = np.eye(size), np.zeros(size)
    for beta in (0.1, 0.3, 1.0):
        best = [
            scipy.optimize.linprog(
                np.concatenate([-row, np.full(size, 0.5 / beta)]),
                np.block([[one, -one], [-one, -one]]),
                np.concatenate([q, -q]),
                np.concatenate([np.ones(size), none])[None],
                [1.0],
                bounds=[(0, None)] * (2 * size),
            ).fun
            for row, q in zip(x, probs, strict=True)
        ]
        value = found(beta).value(jnp.asarray(x), jnp.asarray(probs))
        np.testing.assert_allclose(value, np.negative(best), rtol=0, atol=1e-12)


@pytest.mark.parametrize("divergence", [variation, hellinger])
def test_derivatives_are_differences_of_the_value(divergence, x64):
    x, probs = (jnp.asarray(part[0]) for part in draws(seed=2))
    measure, h = risk.penalized(divergence), 1e-5
    rng = np.random.default_rng(3)
    along_x, along = jnp.asarray(rng.normal(size=(2, 6)))
    along = 0.1 * (along - jnp.mean(along))

    def value(x, probs, beta):
        return measure(beta).value(x, probs)

    @jax.jit
    def slopes(beta):
        ends = [
            (
                value(x + sign * h * along_x, probs, beta),
                value(x, probs + sign * h * along, beta),
                value(x, probs, beta + sign * h),
            )
            for sign in (1.0, -1.0)
        ]
        dx, dprobs, dbeta = jax.grad(value, argnums=(0, 1, 2))(x, probs, beta)
        ours = jnp.sum(dx * along_x), jnp.sum(dprobs * along), dbeta
        return ours, [(a - b) / (2.0 * h) for a, b in zip(*ends, strict=True)]

    for beta in (-0.4, 0.1, 0.5):
        ours, theirs = slopes(beta)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_has_no_probability_stays_without(x64):
    x = jnp.asarray([1.0, 50.0, -1.0, 2.0])
    probs = jnp.asarray([0.5, 0.0, 0.2, 0.3])

    def finite_kl(p, q):
        on = q > 0.0
        ratio = jnp.where(on, p, 1.0) / jnp.where(on, q, 1.0)
        return jnp.sum(jnp.where(on, p * jnp.log(ratio), 0.0))

    measure = jax.jit(lambda one: (one.value(x, probs), one.tilt(x, probs)), static_argnums=0)
    (value, tilt), known = measure(risk.penalized(finite_kl)(1.0)), risk.entropic(1.0)
    np.testing.assert_allclose(value, known.value(x, probs), rtol=1e-10)
    np.testing.assert_allclose(tilt, known.tilt(x, probs), atol=1e-7)
    assert tilt[1] == 0.0


@pytest.mark.parametrize(
    ("divergence", "message"),
    [
        (lambda p, q: jnp.sum(p * q), "must be 0 of equal distributions, got"),
        (lambda p, q: jnp.sum(p - q) - jnp.sum(jnp.abs(p - q)), "must not be negative, got -"),
        (lambda p, q: jnp.sum(jnp.log(p - 1.0)), "must be finite for probabilities above 0, got"),
        (lambda p, q: jnp.abs(p - q), r"must give one number of two distributions \[A\], got"),
        (lambda p, q: jnp.sqrt(jnp.sum(jnp.abs(p - q))), "must be convex in its first argument"),
        (lambda p: jnp.sum(p), "must be a function of two distributions"),
        (3.0, "divergence must be a function of two distributions"),
    ],
    ids=[
        "not 0",
        "negative",
        "not finite",
        "no number",
        "not convex",
        "one argument",
        "no function",
    ],
)
def test_what_is_no_divergence(divergence, message):
    with pytest.raises(ValueError, match=message) as caught:
        risk.penalized(divergence)
    assert "\n" not in str(caught.value)

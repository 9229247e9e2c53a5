"""Mixtures by expectation-maximization against the scipy likelihood and simulated truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlab.queueing.stays import fit, los, mixture

N = 2000
TRUTH = {  # (weights, shapes, scales)
    "exponential": ([0.3, 0.7], [1.0, 1.0], [2.0, 20.0]),
    "weibull": ([0.3, 0.7], [1.5, 2.5], [2.0, 20.0]),
    "lognormal": ([0.4, 0.6], [0.4, 0.5], [2.0, 16.0]),
    "gamma": ([0.3, 0.7], [2.0, 5.0], [1.0, 4.0]),
}


def scipy_law(family, shape, scale):
    return {
        "exponential": lambda: stats.expon(scale=scale),
        "weibull": lambda: stats.weibull_min(shape, scale=scale),
        "lognormal": lambda: stats.lognorm(shape, scale=scale),
        "gamma": lambda: stats.gamma(shape, scale=scale),
    }[family]()


def stays(family, seed=0, n=N):
    rng = np.random.default_rng(seed)
    weights, shapes, scales = TRUTH[family]
    x = [scipy_law(family, *p).rvs(n, random_state=rng) for p in zip(shapes, scales, strict=True)]
    x = np.where(rng.random(n) < weights[0], *x)
    limit = rng.exponential(60, n)
    return np.minimum(x, limit), x <= limit


def loglik(family, x, event, weights, shapes, scales):
    density = sum(
        w * np.where(event, law.pdf(x), law.sf(x))
        for w, law in (
            (w, scipy_law(family, k, s)) for w, k, s in zip(weights, shapes, scales, strict=True)
        )
    )
    return np.log(density).sum()


@pytest.mark.parametrize("family", mixture.MIXTURE_FAMILIES)
def test_recovers_the_mixture_and_its_likelihood_is_stationary(family, key, x64):
    x, event = stays(family)
    fitted = jax.device_get(
        jax.jit(lambda k, x, e: mixture.fit_mixture(k, x, e, family, num_starts=4))(key, x, event)
    )
    assert fitted.converged
    weights, shapes, scales = TRUTH[family]
    # About three standard errors: 600 stays in the small component, an eighth censored.
    np.testing.assert_allclose(fitted.weights, weights, atol=0.06)
    np.testing.assert_allclose(fitted.params.shape, shapes, rtol=0.2)
    np.testing.assert_allclose(fitted.params.scale, scales, rtol=0.25)

    best = loglik(family, x, event, fitted.weights, *fitted.params)
    assert fitted.loglik == pytest.approx(best, rel=1e-12)
    num_params = 3 if family == "exponential" else 5
    assert fitted.bic == pytest.approx(num_params * np.log(N) - 2 * best)
    assert best >= loglik(family, x, event, weights, shapes, scales)

    # Stationary: EM stops at steps of 1e-8 in ln L, which leaves about 1e-3 standard errors.
    def moved(i, step):
        w, k, s = fitted.weights.copy(), *(leaf.copy() for leaf in fitted.params)
        if i == 0:
            w += np.array([step, -step])
        else:
            (k if i < 3 else s)[i % 2] *= np.exp(step)
        return loglik(family, x, event, w, k, s)

    for i in (0, 3, 4) if family == "exponential" else range(5):
        low, high = moved(i, -1e-3), moved(i, 1e-3)
        newton = 1e-3 * 0.5 * (high - low) / (2 * best - low - high)
        assert abs(newton) < 1e-3, (i, newton)


@pytest.mark.parametrize("family", ["exponential", "weibull", "lognormal", "gamma"])
def test_log_likelihood_never_falls(family, key, x64):
    x, event = stays("lognormal", seed=1, n=300)
    event, weight = event.astype(float), np.ones(300)

    @jax.jit
    def climb(key):
        log_time = jnp.log(x) - jnp.mean(jnp.log(x))
        starts = mixture._random_starts(key, family, log_time, jnp.asarray(weight), 3, 3)

        def one_more(state, _):
            state = mixture._expectation_maximization(
                family, jnp.exp(log_time), event, weight, 0.0, state, max_iters=state.num_iters + 1
            )
            return state, state.loglik

        return jax.vmap(lambda start: jax.lax.scan(one_more, start, None, length=25)[1])(starts)

    steps = np.diff(climb(key), axis=1)
    assert (steps > -1e-9).all()
    assert (steps[:, 0] > 0).all()


def test_one_component_is_the_plain_fit(key, x64):
    x, event = stays("gamma", seed=2, n=400)
    single = jax.jit(lambda x, e: fit.fit_los(x, e, "weibull", u_max=100))(x, event)
    fitted = jax.jit(
        lambda k, x, e: mixture.fit_mixture(k, x, e, "weibull", num_components=1, num_starts=1)
    )(key, x, event)
    np.testing.assert_allclose(fitted.params.shape[0], single.kappa, rtol=1e-6)
    np.testing.assert_allclose(fitted.params.scale[0], single.params.scale, rtol=1e-6)
    np.testing.assert_allclose((fitted.loglik, fitted.bic), (single.loglik, single.bic))


def test_bic_chooses_the_number_of_components(key, x64):
    @jax.jit
    def choose(key, x, event):
        fits = [fit.fit_los(x, event, "lognormal", u_max=100)]
        for k in (2, 3):
            fits.append(
                mixture.fit_mixture(
                    key, x, event, "lognormal", num_components=k, num_starts=3, max_iters=3000
                )
            )
        return mixture.select_components(fits)

    x, event = stays("lognormal", seed=3, n=600)
    assert choose(key, x, event) == 1  # two components
    x = np.random.default_rng(3).lognormal(2, 0.8, 600)
    assert choose(key, x, np.ones(600, bool)) == 0


def test_select_components_skips_failures():
    def scored(bic, converged):
        single = fit.LOSFit(*([None] * len(fit.LOSFit._fields)))
        return single._replace(bic=jnp.float32(bic), converged=jnp.asarray(converged))

    assert mixture.select_components([scored(1, False), scored(3, True), scored(2, True)]) == 2
    assert mixture.select_components([scored(jnp.nan, True), scored(3, True)]) == 1
    assert mixture.select_components([scored(1, False)]) == -1


def test_weights_padding_and_vmap(key, x64):
    """Weights repeat patients, padding is ignored, and a batch of sites equals each site alone."""
    x, event = (
        np.stack([a, b])
        for a, b in zip(*(stays("exponential", s, 200) for s in (4, 5)), strict=True)
    )
    weight = np.random.default_rng(4).integers(0, 3, x.shape).astype(float)

    @jax.jit
    @jax.vmap
    def fit_sites(x, event, weight):
        fitted = mixture.fit_mixture(key, x, event, "exponential", weight=weight)
        return fitted._replace(num_iters=jnp.zeros((), jnp.int32))  # depends on the start

    both = fit_sites(np.where(weight == 0, np.nan, x), event, weight)
    for i in range(2):
        count = weight[i].astype(int)
        longer = np.zeros(400), np.zeros(400), np.zeros(400)
        for padded, values in zip(longer, (x[i], event[i], np.ones(200)), strict=True):
            repeated = np.repeat(values, count)
            padded[: repeated.size] = repeated
        alone = fit_sites(*(v[None] for v in longer))
        # Other random starts, the same maximum.
        for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b[0], rtol=1e-3)


def test_degenerate_samples_are_flagged(key):
    rng = np.random.default_rng(6)
    x = np.repeat(rng.lognormal(2, 1, (1, 200)), 5, 0).astype(np.float32)
    event, weight = np.ones((5, 200), bool), np.ones((5, 200), np.float32)
    event[1] = False
    weight[2] = 0.0
    x[3, 5] = -2.0
    x[4, :80] = 1.0  # a tie on which a component collapses
    fitted = jax.jit(
        jax.vmap(lambda x, e, w: mixture.fit_mixture(key, x, e, "lognormal", weight=w))
    )(x, event, weight)
    assert fitted.converged.tolist() == [True, False, False, False, True]
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(fitted))
    assert fitted.params.shape[4].min() == pytest.approx(0.05)
    np.testing.assert_allclose(fitted.weights[4, 0], 0.4, atol=0.05)
    assert fitted.weights.min() >= 0.00099


def test_survival_mean_and_quantile(x64):
    for family, (weights, shapes, scales) in TRUTH.items():
        mix = mixture.MixtureFit(
            jnp.asarray(weights),
            los.LOSParams(jnp.asarray(shapes), jnp.asarray(scales)),
            *[None] * 4,
        )
        laws = [scipy_law(family, *p) for p in zip(shapes, scales, strict=True)]
        u = np.array([0.0, 0.7, 5.0, 33.0])
        surv, q, mean = jax.jit(
            lambda u, mix=mix, family=family: (
                mixture.mixture_survival(family, u, mix),
                mixture.mixture_quantile(family, jnp.asarray([0.0, 0.1, 0.5, 0.99, 1.0]), mix),
                mixture.mixture_mean(family, mix),
            )
        )(u)
        np.testing.assert_allclose(
            surv, sum(w * law.sf(u) for w, law in zip(weights, laws, strict=True)), rtol=1e-12
        )
        assert float(mean) == pytest.approx(
            sum(w * law.mean() for w, law in zip(weights, laws, strict=True))
        )
        cdf = sum(w * law.cdf(q) for w, law in zip(weights, laws, strict=True))
        np.testing.assert_allclose(cdf, [0.0, 0.1, 0.5, 0.99, 1.0], atol=1e-12)


def test_bad_arguments(key):
    x = np.ones(5)
    with pytest.raises(ValueError, match="unknown mixture family 'fisk'"):
        mixture.fit_mixture(key, x, x, "fisk")
    with pytest.raises(ValueError, match="at least 1, got 0, 8 and"):
        mixture.fit_mixture(key, x, x, "gamma", num_components=0)

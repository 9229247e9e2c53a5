"""Oracles for the conditional length-of-stay laws: scipy distributions, moments by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import integrate, optimize, special, stats

from jaxlab.queueing.settings import VARIANTS
from jaxlab.queueing.stays import conditional
from jaxlab.queueing.stays.conditional import FAMILIES, has_mean, survival, weibull_shape

MU, SIG2 = 9.5, 60.0
LAWS = FAMILIES + VARIANTS


def scipy_law(name, mu, sig2, kappa):
    """The same law from scipy.stats, parametrized from the definitions."""
    match name:
        case "exponential":
            return stats.expon(scale=mu)
        case "weibull":
            return stats.weibull_min(kappa, scale=mu / special.gamma(1 + 1 / kappa))
        case "lognormal":
            tau2 = np.log(1 + sig2 / mu**2)
            return stats.lognorm(np.sqrt(tau2), scale=np.exp(np.log(mu) - tau2 / 2))
        case "gamma":
            return stats.gamma(kappa, scale=mu / kappa)
        case "fisk" | "fisk_paper":
            return stats.fisk(kappa, scale=mu / (np.pi / kappa))
        case "fisk_mean":
            return stats.fisk(kappa, scale=mu * np.sin(np.pi / kappa) / (np.pi / kappa))
        case "burr_tool":
            return stats.lomax(kappa, scale=mu / (np.pi / kappa))
        case "burr":
            return stats.lomax(kappa, scale=mu * (kappa - 1))


@pytest.mark.parametrize("kappa", [1.2, 3.7])
@pytest.mark.parametrize("name", LAWS)
def test_matches_scipy(x64, name, kappa):
    u = np.array([0.0, 1e-3, 0.4, 1.0, 7.3, 30.0, 200.0])
    mu = MU * np.array([0.2, 1.0, 3.0])
    got = jax.jit(lambda u, m: survival(name, u, m, SIG2, kappa))(u[:, None], mu)
    want = np.stack([scipy_law(name, m, SIG2, kappa).sf(u) for m in mu], axis=1)
    # scipy computes some of its far tails as 1 - cdf, hence the absolute term.
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=3e-16)


@pytest.mark.parametrize("name", LAWS)
def test_float32_is_close_to_scipy(name):
    u = np.arange(60, dtype=np.float32)
    got = survival(name, u, np.float32(MU), np.float32(SIG2), np.float32(1.5))
    assert got.dtype == jnp.float32
    # Absolute: a survival is a probability, rounded at 6e-8 and amplified by k ln u < 10.
    np.testing.assert_allclose(got, scipy_law(name, MU, SIG2, 1.5).sf(u), atol=2e-6)


@pytest.mark.parametrize(
    ("name", "moments", "mean", "variance"),
    [
        ("exponential", "one", MU, MU**2),
        ("weibull", "one", MU, None),
        ("lognormal", "one", MU, SIG2),
        ("gamma", "one", MU, MU**2 / 4.0),
        ("fisk_mean", "one", MU, None),
        ("burr", "one", MU, MU**2 * 4.0 / 2.0),
        ("weibull", "two", MU, SIG2),
        ("gamma", "two", MU, SIG2),
        ("fisk_paper", "one", MU / np.sin(np.pi / 4.0), None),
        ("burr_tool", "one", MU * (4.0 / np.pi) / 3.0, None),
    ],
)
def test_mean_and_variance(x64, name, moments, mean, variance):
    """E[X] = int S, E[X^2] = 2 int u S, by Gauss-Legendre on a graded grid (kappa = 4)."""
    edges = np.concatenate([[0.0], np.geomspace(1e-4, 1e6, 400)])
    x, w = np.polynomial.legendre.leggauss(12)
    u = (edges[:-1, None] + np.diff(edges)[:, None] * (x + 1) / 2).ravel()
    w = (np.diff(edges)[:, None] * w / 2).ravel()
    surv = np.asarray(survival(name, u, MU, SIG2, 4.0, moments=moments))
    np.testing.assert_allclose(w @ surv, mean, rtol=1e-8)
    if variance is not None:
        # Lomax with kappa = 4: the second moment beyond 1e6 is of order 1e-8 of the whole.
        np.testing.assert_allclose(2 * w @ (u * surv) - mean**2, variance, rtol=1e-6)


@pytest.mark.parametrize("moments", ["one", "two"])
def test_at_zero_value_one_gradient_zero_in_every_branch(moments):
    """Under vmap every branch of the switch is evaluated; none may poison the chosen one."""

    def surv(u, mu, sig2, kappa, code):
        return survival(code, u, mu, sig2, kappa, moments=moments)

    u, kappa, code = (
        jnp.asarray(x.ravel())
        for x in np.meshgrid([0.0, 1e-6, 3.0], [0.5, 1.0, 1.5], np.arange(6), indexing="ij")
    )
    grad = jax.value_and_grad(surv, (0, 1, 2, 3))
    value, grads = jax.jit(jax.vmap(grad, (0, None, None, 0, 0)))(u, MU, SIG2, kappa, code)
    grads = np.stack(grads)
    no_law = np.asarray((code == FAMILIES.index("burr")) & (kappa <= 1.0) & (u > 0.0))
    np.testing.assert_array_equal(np.isnan(value), no_law)
    assert np.all(np.isfinite(grads))
    np.testing.assert_array_equal(value[u == 0.0], 1.0)
    np.testing.assert_array_equal(grads[:, u == 0.0], 0.0)
    assert np.all(np.abs(grads[1][(u == 3.0) & (kappa == 1.5)]) > 0)  # d/dmu, each law


@pytest.mark.parametrize("moments", ["one", "two"])
def test_index_equals_name(x64, moments):
    u = np.array([0.0, 0.7, 12.0])
    codes = jnp.arange(-1, len(FAMILIES) + 1)
    kwargs = {"variant": "burr_tool", "moments": moments}
    by_code = jax.jit(jax.vmap(lambda c: survival(c, u, MU, SIG2, 1.4, **kwargs)))(codes)
    for i, name in enumerate(FAMILIES):
        by_name = survival(name, u, MU, SIG2, 1.4, **kwargs)
        np.testing.assert_allclose(by_code[i + 1], by_name, rtol=1e-14)
        static = survival(i, u, MU, SIG2, 1.4, **kwargs)
        np.testing.assert_array_equal(static, by_name)
    assert np.all(np.isnan(by_code[0])) and np.all(np.isnan(by_code[-1]))


def test_parameters_of_other_laws_are_not_looked_at():
    """Sites whose law has no shape or variance may carry NaN there."""

    def surv(mu, sig2, kappa, code):
        return survival(code, 3.0, mu, sig2, kappa)

    codes = jnp.array([0, 1, 2])
    sig2, kappa = jnp.array([jnp.nan, jnp.nan, 60.0]), jnp.array([jnp.nan, 0.9, jnp.nan])
    both = jax.jit(jax.vmap(jax.value_and_grad(surv), (None, 0, 0, 0)))
    value, grad = both(MU, sig2, kappa, codes)
    want = [scipy_law(FAMILIES[i], MU, 60.0, 0.9).sf(3.0) for i in range(3)]
    np.testing.assert_allclose(value, want, rtol=1e-6)
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize(
    ("name", "moments"), [(name, "one") for name in LAWS] + [("weibull", "two"), ("gamma", "two")]
)
def test_gradients_by_finite_differences(x64, name, moments):
    def surv(u, mu, sig2, kappa):
        return survival(name, u, mu, sig2, kappa, moments=moments)

    args = (np.array([0.3, 4.0, 40.0]), np.float64(MU), np.float64(SIG2), np.float64(1.3))
    check_grads(jax.jit(surv), args, order=1, modes=["rev"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(
    ("name", "moments"), [("lognormal", "one"), ("gamma", "two"), ("weibull", "two")]
)
def test_vanishing_variance_is_a_step_at_the_mean(x64, name, moments, dtype):
    u = np.array([0.0, 5.0, 9.99, 10.01, 30.0], dtype)
    sig2 = np.array([0.0, 1e-30, 1e-12, 1e-6], dtype)

    def surv(mu, sig2):
        return survival(name, u[:, None], mu, sig2, dtype(2.0), moments=moments)

    mu = np.full(4, 10.0, dtype)
    value, vjp = jax.vjp(surv, mu, sig2)
    np.testing.assert_allclose(value, np.repeat([[1.0], [1], [1], [0], [0]], 4, 1), atol=2e-6)
    assert all(np.all(np.isfinite(g)) for g in vjp(jnp.ones_like(value)))


@pytest.mark.parametrize(("dtype", "atol"), [(np.float32, 3e-4), (np.float64, 1e-8)])
def test_two_moment_gamma_with_a_large_shape(x64, dtype, atol):
    """Across the switch to Wilson-Hilferty; float32's band is that of its Q(k, x) at k = 300."""
    k = np.array([10.0, 290.0, 310.0, 5e3, 9e5, 1.1e6, 1e8])
    z = np.array([-3.0, -1.0, 0.0, 0.5, 2.0])
    u = 10.0 * (1.0 + z[:, None] / np.sqrt(k))
    got = survival(
        "gamma", u.astype(dtype), dtype(10.0), (100.0 / k).astype(dtype), dtype(1.0), moments="two"
    )
    # float32 cannot place u within the width of the law for the largest shapes.
    keep = np.float64(10.0) * np.finfo(dtype).eps * np.sqrt(k) < atol
    np.testing.assert_allclose(got[:, keep], special.gammaincc(k, u * k / 10)[:, keep], atol=atol)


@pytest.mark.parametrize("cv", [1e-4, 0.01, 0.06, 0.3, 1.0, 3.0, 30.0], ids=str)
def test_weibull_shape_solves_its_equation(x64, cv):
    def excess(log_k):
        x = np.exp(-log_k)
        return special.gammaln(1 + 2 * x) - 2 * special.gammaln(1 + x) - np.log1p(cv**2)

    want = np.exp(optimize.brentq(excess, -3.0, 12.0, xtol=1e-14))
    # At cv = 1e-4 the reference, not the series, loses digits: eps / cv^2.
    np.testing.assert_allclose(weibull_shape(cv**2), want, rtol=1e-12 + 1e-15 / cv**2)
    h = 1e-5 * cv**2
    difference = (weibull_shape(cv**2 + h) - weibull_shape(cv**2 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(weibull_shape)(cv**2), difference, rtol=1e-5)


def test_without_a_mean():
    kappa = jnp.array([0.4, 0.8, 1.0, 1.01, 2.0])
    np.testing.assert_array_equal(has_mean("fisk_mean", kappa), kappa > 1)
    np.testing.assert_array_equal(has_mean("weibull", kappa), True)
    np.testing.assert_array_equal(has_mean(jnp.arange(6), jnp.full(6, 0.9)), [1, 1, 1, 1, 0, 0])
    for law in ("fisk_mean", "burr"):
        with pytest.raises(ValueError, match="kappa > 1"):
            survival(law, 1.0, MU, SIG2, 1.0)
        # No law of that mean: NaN where kappa is traced, and finite gradients elsewhere.
        value, grad = jax.vmap(
            jax.value_and_grad(lambda k, law=law: survival(law, 1.0, MU, SIG2, k))
        )(kappa)
        assert np.isnan(value[:3]).all()
        assert (value[3:] > 0).all() and np.isfinite(grad[3:]).all()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"family": "pareto"}, "family must be one of"),
        ({"family": 6}, "family index"),
        ({"family": "fisk", "variant": "mean"}, "variant must be one of"),
        ({"family": "gamma", "moments": "three"}, "moments must be"),
        ({"family": "exponential", "mu": 0.0}, "mu > 0"),
        ({"family": "lognormal", "sig2": -1.0}, "sig2 >= 0"),
        ({"family": "weibull", "kappa": 0.0}, "kappa > 0"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_errors(kwargs, match):
    args = {"mu": MU, "sig2": SIG2, "kappa": 1.5} | kwargs
    with pytest.raises(ValueError, match=match):
        survival(u=1.0, **args)


def test_traced_nonpositive_mean_is_nan():
    value = jax.vmap(lambda mu: survival("exponential", 1.0, mu, 1.0, 1.0))(
        jnp.array([-1.0, 0.0, 2.0])
    )
    np.testing.assert_array_equal(np.isnan(value), [True, True, False])


def test_residual_stays_integrate_to_the_mean(x64):
    """scipy.quad of the library's own S for a heavy tail: int_0^inf S = mu for `fisk_mean`."""
    law = conditional.law("fisk_mean", MU, SIG2, 3.0)
    fast = jax.jit(law)
    total, _ = integrate.quad(lambda u: float(fast(u)), 0, np.inf, limit=200, epsrel=1e-7)
    np.testing.assert_allclose(total, MU, rtol=1e-6)

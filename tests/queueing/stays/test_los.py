"""Length-of-stay laws against scipy.stats, closed forms and finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from jaxlab.queueing.stays import conditional, los

FAMILIES = conditional.FAMILIES
SHAPES = np.array([0.3, 0.8, 1.0, 1.34, 2.5, 6.0])
SCALE = 7.3


def scipy_law(family, shape, scale):
    return {
        "exponential": lambda: stats.expon(scale=scale),
        "weibull": lambda: stats.weibull_min(shape, scale=scale),
        "lognormal": lambda: stats.lognorm(shape, scale=scale),
        "gamma": lambda: stats.gamma(shape, scale=scale),
        "fisk": lambda: stats.fisk(shape, scale=scale),
        "burr": lambda: stats.lomax(shape, scale=scale),
    }[family]()


def evaluate(family, x, p):
    """All functions of the module for every shape at once."""

    def one(shape):
        params = los.LOSParams(shape, jnp.asarray(SCALE, x.dtype))
        return (
            los.log_pdf(family, x, params),
            los.log_survival(family, x, params),
            los.quantile(family, p, params),
            los.mean(family, params),
            los.variance(family, params),
            los.q99(family, params),
        )

    return jax.jit(jax.vmap(one))(jnp.asarray(SHAPES, x.dtype))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_laws_match_scipy(family, dtype):
    with jax.enable_x64(dtype == "float64"):
        x = np.geomspace(1e-3, 150, 60).astype(dtype)
        # scipy itself inverts the Fisk law to 1e-10 at 1 - 1e-6 only.
        p = np.concatenate([np.geomspace(1e-4, 0.5, 20), 1 - np.geomspace(1e-4, 0.5, 20)])
        p = p.astype(dtype)
        got = [np.asarray(leaf, np.float64) for leaf in evaluate(family, jnp.asarray(x), p)]
    # float32: the largest |k ln(x/scale)| is about 50, so exponentials carry 50 ulp.
    rtol = 1e-10 if dtype == "float64" else 3e-5
    x, p = x.astype(np.float64), p.astype(np.float64)
    for i, shape in enumerate(SHAPES.astype(dtype).astype(np.float64)):
        law = scipy_law(family, shape, float(np.asarray(SCALE, dtype)))
        log_sf = law.logsf(x)
        if family == "fisk":  # scipy's logsf of the Fisk law cancels in the tail
            log_sf = -np.logaddexp(0, shape * np.log(x / law.kwds["scale"]))
        want = [law.logpdf(x), log_sf, law.ppf(p), law.mean(), law.var(), law.ppf(0.99)]
        for name, a, b in zip(
            ("log_pdf", "log_sf", "quantile", "mean", "var", "q99"), got, want, strict=True
        ):
            b = np.where(np.isnan(b), np.inf, b)  # scipy: no variance
            tol = 5 * rtol if dtype == "float32" and name in ("quantile", "var") else rtol
            np.testing.assert_allclose(a[i], b, rtol=tol, atol=rtol, err_msg=f"{name} {shape}")


def test_published_truncation_points(x64):
    published = (
        ("exponential", 1.0, 12.5, 57),
        ("exponential", 1.0, 13.35, 61),
        ("weibull", 0.97, 10.95, 52),
    )
    for family, shape, scale, days in published:
        assert int(los.q99(family, los.LOSParams(shape, scale))) == days
    assert float(los.q99("fisk", los.LOSParams(1.34, 10.534))) == pytest.approx(325, abs=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_match_finite_differences(family, x64):
    x = jnp.asarray([0.02, 1.5, 6.0, 11.0, 40.0])
    p = jnp.asarray([0.01, 0.4, 0.9, 0.995])

    @jax.jit
    def outputs(shape, scale, x, p):
        params = los.LOSParams(shape, scale)
        return (
            los.log_pdf(family, x, params),
            los.log_survival(family, x, params),
            los.quantile(family, p, params),
            los.mean(family, params),
            los.q99(family, params),
        )

    args = (jnp.asarray(1.7), jnp.asarray(5.0), x, p)
    check_grads(outputs, args, order=1, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5)


def test_gamma_second_derivatives(x64):
    """A Newton step needs d^2/dk^2 of ln Q, which rests on hand-written derivative rules."""

    def log_sf(args):
        return los.log_survival("gamma", args[2], los.LOSParams(args[0], args[1]))

    args = np.array([[0.4, 5.0, 0.3], [1.7, 5.0, 20.0], [30.0, 5.0, 140.0]])
    grad = jax.jit(jax.vmap(jax.grad(log_sf)))
    hessian = jax.jit(jax.vmap(jax.hessian(log_sf)))(args)
    for j in range(3):
        step = np.eye(3)[j] * 1e-5 * args
        slope = (grad(args + step) - grad(args - step)) / (2 * step.sum(1, keepdims=True))
        np.testing.assert_allclose(hessian[:, j], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [0.7, 1.0, 2.0])
def test_zero_stay(family, shape):
    params = los.LOSParams(jnp.float32(shape), jnp.float32(5.0))
    x = jnp.asarray([-1.0, 0.0, 2.0, 1e-30])
    surv, log_pdf = jax.jit(lambda x: (los.sf(family, x, params), los.log_pdf(family, x, params)))(
        x
    )
    assert surv[:2].tolist() == [1.0, 1.0]
    assert log_pdf[0] == -np.inf
    near = float(log_pdf[3])  # the limit from the right
    limit = math.copysign(math.inf, near) if abs(near) > 10 else near
    assert float(log_pdf[1]) == pytest.approx(limit, rel=1e-5)

    def total(x, params):
        at_zero = jnp.where(x > 0, los.log_pdf(family, x, params), 0.0)
        return jnp.sum(los.log_survival(family, x, params) + at_zero)

    grads = jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1)))(x, params))
    assert all(np.isfinite(g).all() for g in grads)
    assert grads[0][0] == grads[0][1] == 0.0


def test_log_survival_where_the_probability_underflows():
    """ln S keeps its digits at S = 1e-120, far below the smallest float32."""
    x = 277.0
    assert float(los.log_survival("gamma", x, los.LOSParams(1.3, 1.0))) == pytest.approx(
        math.log(stats.gamma(1.3).sf(x)), rel=1e-6
    )
    assert float(los.log_survival("weibull", x, los.LOSParams(1.1, 1.0))) == pytest.approx(
        -(x**1.1), rel=1e-5
    )


def test_quantile_ends_and_round_trip(x64):
    p = jnp.asarray([-0.1, 0.0, 1e-9, 0.3, 0.99, 1 - 1e-9, 1.0, 1.1])
    params = los.LOSParams(jnp.asarray(0.6), jnp.asarray(4.0))

    @jax.jit
    def there_and_back(p):
        q = [los.quantile(family, p, params) for family in FAMILIES]
        return q, [los.sf(family, x[2:6], params) for family, x in zip(FAMILIES, q, strict=True)]

    for q, surv in zip(*there_and_back(p), strict=True):
        q = np.asarray(q)
        assert np.isnan(q[[0, -1]]).all() and q[1] == 0 and q[-2] == np.inf
        np.testing.assert_allclose(surv, 1 - np.asarray(p[2:6]), rtol=1e-6)


def test_lognormal_from_users_descriptions(x64):
    a = los.lognormal_from_quantiles(4.0, 19.0)
    q = los.quantile("lognormal", jnp.asarray([0.5, 0.95]), a)
    np.testing.assert_allclose(q, [4.0, 19.0], rtol=1e-12)
    assert float(a.shape) == pytest.approx(math.log(19 / 4) / 1.644854, rel=1e-6)
    b = los.lognormal_from_moments(12.0, 9.0)
    assert float(los.mean("lognormal", b)) == pytest.approx(12)
    assert float(los.variance("lognormal", b)) == pytest.approx(81)


def test_infinite_moments_are_reported_without_nan_gradients():
    for family in ("fisk", "burr"):
        heavy = los.LOSParams(jnp.float32(0.9), jnp.float32(3.0))
        assert los.mean(family, heavy) == jnp.inf
        assert los.variance(family, heavy._replace(shape=jnp.float32(2.0))) == jnp.inf
        grads = jax.grad(lambda p, f=family: los.mean(f, p))(heavy)
        assert not any(bool(jnp.isnan(g)) for g in grads)


def test_integer_days_python_numbers_and_one_trace():
    days = jnp.arange(4)
    np.testing.assert_allclose(
        los.sf("exponential", days, los.LOSParams(1.0, 2.0)), np.exp(-np.arange(4) / 2), rtol=1e-6
    )
    traces = []

    @jax.jit
    def sf(u, params):
        traces.append(1)
        return los.sf("gamma", u, params)

    for scale in (2.0, 3.0):
        sf(days, los.LOSParams(jnp.float32(1.5), jnp.float32(scale)))
    assert len(traces) == 1


@pytest.mark.parametrize("function", [los.log_pdf, los.log_survival, los.sf, los.quantile])
def test_unknown_family(function):
    with pytest.raises(ValueError, match="unknown family 'pareto'"):
        function("pareto", 0.5, los.LOSParams(1.0, 1.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_stays_forever(family):
    params = los.LOSParams(jnp.float32(2.0), jnp.float32(5.0))
    log_sf, slope = jax.value_and_grad(
        lambda k: los.sf(family, jnp.inf, los.LOSParams(k, jnp.float32(5.0)))
    )(params.shape)
    assert log_sf == 0.0 and slope == 0.0
    assert los.log_survival(family, jnp.inf, params) == -jnp.inf
    assert los.log_pdf(family, jnp.inf, params) == -jnp.inf

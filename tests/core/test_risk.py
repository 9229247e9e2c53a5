"""Risk measures against float64 references, linear programs and optimizers of the dual."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxlab.core import risk

MAKERS = {
    "entropic": risk.entropic,
    "chi2": risk.chi2,
    "cvar": risk.cvar,
    "expectile": risk.expectile,
}
PARAMETERS = {
    "entropic": (-3.0, -0.4, 1e-3, 0.7, 5.0),
    "chi2": (-2.0, -0.1, 1e-3, 0.3, 4.0),
    "cvar": (-0.3, -1.0, 1.0, 0.45, 0.05),
    "expectile": (0.05, 0.3, 0.5, 0.8, 0.99),
}
"""Of both signs, near the mean, and such that some tilted probabilities are zero."""
CASES = [(name, parameter) for name in MAKERS for parameter in PARAMETERS[name]]


def draws(count=5, size=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 2.0, (count, size)), rng.dirichlet(np.ones(size), count)


def reference(name, parameter, x, probs):
    """The value in float64, by other means: sums, a root, a scan over the quantile."""
    if name == "entropic":
        return scipy.special.logsumexp(parameter * x, b=probs) / parameter
    if name == "expectile":

        def gap(v):
            above, below = np.maximum(x - v, 0.0) @ probs, np.maximum(v - x, 0.0) @ probs
            return parameter * above - (1.0 - parameter) * below

        return scipy.optimize.brentq(gap, x.min() - 1.0, x.max() + 1.0, xtol=1e-14)
    if parameter < 0.0:
        return -reference(name, -parameter, -x, probs)
    if name == "cvar":
        return min(nu + np.maximum(x - nu, 0.0) @ probs / parameter for nu in x)

    def mass(nu):
        return np.maximum(1.0 + parameter * (x - nu), 0.0) @ probs - 1.0

    nu = scipy.optimize.brentq(mass, x.min() - 1.0, x.max() + 1.0, xtol=1e-14)
    p = probs * np.maximum(1.0 + parameter * (x - nu), 0.0)
    return p @ x - np.sum((p - probs) ** 2 / probs) / (2.0 * parameter)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", MAKERS)
def test_values_against_references(name, dtype):
    x, probs = draws()
    with jax.enable_x64(dtype == np.float64):
        both = jax.jit(
            jax.vmap(lambda parameter, x, p: MAKERS[name](parameter).value(x, p), (0, None, None))
        )
        parameters = np.array(PARAMETERS[name], dtype)
        ours = jax.device_get(both(parameters, x.astype(dtype), 7.0 * probs.astype(dtype)))
    assert ours.dtype == dtype
    theirs = [
        [reference(name, t, *pair) for pair in zip(x, probs, strict=True)] for t in PARAMETERS[name]
    ]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_the_tilt_solves_the_dual(name, parameter, x64):
    """Programs that know only the penalty find the same best probabilities."""
    x, probs = (part[0] for part in draws(seed=1))
    measure = MAKERS[name](parameter)
    value, tilt = measure.value(x, probs), np.asarray(measure.tilt(x, probs))
    np.testing.assert_allclose(tilt.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(tilt @ x - measure.penalty(tilt, probs), value, rtol=1e-10)
    sign = -1.0 if parameter < (0.5 if name == "expectile" else 0.0) else 1.0
    simplex = {"A_eq": np.ones((1, 6)), "b_eq": [1.0]}
    if name == "cvar":
        bounds = [(0.0, p / abs(parameter)) for p in probs]
        best = scipy.optimize.linprog(-sign * x, bounds=bounds, **simplex).x
    elif name == "expectile":
        odds = max(parameter, 1 - parameter) / min(parameter, 1 - parameter)
        pairs = [
            np.eye(6)[a] / probs[a] - odds * np.eye(6)[b] / probs[b]
            for a in range(6)
            for b in range(6)
        ]
        program = {"A_ub": np.array(pairs), "b_ub": np.zeros(36)} | simplex
        best = scipy.optimize.linprog(-sign * x, **program).x
    else:
        cost = jax.jit(lambda p: -sign * (p @ x - measure.penalty(p, probs)))
        best = scipy.optimize.minimize(
            lambda p: np.asarray(cost(p)),
            probs,
            jac=lambda p: np.asarray(jax.grad(cost)(p)),
            bounds=[(1e-300, 1.0)] * 6,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1.0},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        ).x
    np.testing.assert_allclose(tilt, best, atol=1e-9 if name in ("cvar", "expectile") else 2e-5)
    # And no other distribution beats it.
    others = np.random.default_rng(0).dirichlet(np.ones(6), 200)
    worth = np.array([p @ x - measure.penalty(p, probs) for p in jnp.asarray(others)])
    assert np.all(sign * worth <= sign * float(value) + 1e-12)


@pytest.mark.parametrize("name", MAKERS)
def test_derivatives_against_differences_of_references(name, x64):
    x, probs = (part[0] for part in draws(seed=2))
    value = functools.partial(reference, name)

    @jax.jit
    def ours(parameter):
        value = lambda t, x, p: MAKERS[name](t).value(x, p)  # noqa: E731
        grads = jax.grad(value, argnums=(0, 1, 2))(parameter, jnp.asarray(x), jnp.asarray(probs))
        measure = MAKERS[name](parameter)
        return grads, measure.tilt(x, probs), measure.weight(x, probs)

    def slope(f, e):
        return (f(1e-5 * e) - f(-1e-5 * e)) / 2e-5

    def check(parameter):
        (by_parameter, by_x, by_probs), tilt, weight = ours(parameter)
        found = [slope(lambda h: value(parameter, x + h, probs), e) for e in np.eye(6)]
        np.testing.assert_allclose(tilt, found, atol=1e-6)
        np.testing.assert_allclose(by_x, found, atol=1e-6)

        def along(h):  # probabilities that stay normalized
            return value(parameter, x, (probs + h) / (1.0 + h.sum()))

        found = [slope(along, e) for e in np.eye(6)]
        np.testing.assert_allclose(weight, found, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(by_probs, found, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(probs @ np.asarray(weight), 0.0, atol=1e-12)
        if 0.01 < abs(parameter) < 1.0 or name == "chi2":  # inside, where differences are clean
            found = slope(lambda h: value(parameter + h, x, probs), 1.0)
            np.testing.assert_allclose(by_parameter, found, rtol=1e-5)

    for parameter in PARAMETERS[name]:
        check(parameter)


def test_second_derivatives(x64):
    x, probs = (jnp.asarray(part[0]) for part in draws(seed=3))
    for name, parameters in (("entropic", (0.0, -0.8, 1e-3)), ("chi2", (0.1, 0.0))):
        value = lambda t, x, p, make=MAKERS[name]: make(t).value(x, p)  # noqa: E731
        first = jax.jit(jax.grad(value, argnums=(0, 1, 2)))
        second = jax.jit(jax.jacfwd(jax.grad(value, argnums=(0, 1, 2)), argnums=(0, 1, 2)))
        for t in parameters:
            at = jnp.asarray(t), x, probs
            found = second(*at)
            moves = [(0, np.ones(()))] + [(i, e) for i in (1, 2) for e in np.eye(6)[:3]]
            for i, e in moves:
                sides = [first(*at[:i], at[i] + h * e, *at[i + 1 :]) for h in (1e-5, -1e-5)]
                for j in range(3):
                    along = np.tensordot(found[j][i], e, e.ndim)
                    difference = (sides[0][j] - sides[1][j]) / 2e-5
                    np.testing.assert_allclose(along, difference, rtol=1e-4, atol=1e-6)


def test_weights_have_the_forms_of_the_paper(x64):
    x, probs = (part[0] for part in draws(seed=4))
    v = risk.log_mean_exp(x, 0.7, probs)
    np.testing.assert_allclose(
        risk.entropic(0.7).weight(x, probs), np.expm1(0.7 * (x - v)) / 0.7, rtol=1e-12
    )
    np.testing.assert_allclose(
        risk.entropic(0.7).tilt(x, probs), probs * np.exp(0.7 * (x - v)), rtol=1e-12
    )
    measure = risk.chi2(0.9)
    ratio = np.asarray(measure.tilt(x, probs)) / probs
    before = (ratio**2 - 1.0) / 1.8  # before the baseline
    np.testing.assert_allclose(measure.weight(x, probs), before - before @ probs, rtol=1e-9)
    small = risk.chi2(0.01)
    mean, variance = probs @ x, probs @ (x - probs @ x) ** 2
    np.testing.assert_allclose(small.value(x, probs), mean + 0.005 * variance, rtol=1e-12)


@pytest.mark.parametrize("name", ["entropic", "chi2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_the_mean_is_approached_without_noise(name, dtype):
    """Value, slope and weight near 0 agree with their series, however small the parameter."""
    x, probs = (part[0] for part in draws(seed=5))
    mean = probs @ x
    second, third = (probs @ (x - mean) ** k for k in (2, 3))
    parameters = np.array([0.0, 1e-30, -1e-12, 1e-7, -1e-4, 1e-3], dtype)
    with jax.enable_x64(dtype == np.float64):
        x_, probs_ = x.astype(dtype), probs.astype(dtype)
        value = lambda t: MAKERS[name](t).value(x_, probs_)  # noqa: E731
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(value)))(parameters)
        weights = jax.vmap(lambda t: MAKERS[name](t).weight(x_, probs_))(parameters)
    t = parameters.astype(float)
    order3 = third / 6.0 if name == "entropic" else 0.0
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(values, mean + t * second / 2 + t**2 * order3, atol=8 * eps + 1e-8)
    np.testing.assert_allclose(slopes, second / 2 + 2 * t * order3, rtol=8 * eps + 1e-5)
    away = np.abs(np.asarray(weights) - (x - mean))  # of order t, and of rounding
    assert np.all(away <= 40.0 * np.abs(t[:, None]) + 64 * eps)


def test_far_from_the_mean_they_are_the_ends():
    x = jnp.array([3.0, -1.0, 7.5, 7.25, 100.0])
    probs = jnp.array([0.3, 0.4, 1e-6, 0.3, 0.0])
    huge = jnp.array([1e12, 1e30, 3e38, -1e12, -1e30, -3e38])
    for make in (risk.entropic, risk.chi2):
        ends = jax.jit(
            jax.vmap(jax.value_and_grad(lambda x, t, m=make: m(t).value(x, probs)), (None, 0))
        )
        values, tilts = ends(x, huge)
        np.testing.assert_allclose(values, [7.5] * 3 + [-1.0] * 3, rtol=1e-6)
        np.testing.assert_allclose(tilts[:3], [[0, 0, 1, 0, 0]] * 3, atol=1e-6)
        np.testing.assert_allclose(tilts[3:], [[0, 1, 0, 0, 0]] * 3, atol=1e-6)
    assert float(risk.log_mean_exp(x, jnp.inf, probs)) == 7.5
    assert float(risk.log_mean_exp(x, -jnp.inf, probs)) == -1.0
    # Exponents of thousands.
    far = risk.log_mean_exp(jnp.array([1e4, -1e4]), 30.0)
    np.testing.assert_allclose(far, 1e4 - np.log(2.0) / 30.0, rtol=1e-7)


def test_masked_actions_are_exact():
    """Minus infinity and zero weights: values, tilts, weights and gradients without NaN."""
    x = jnp.array([2.0, -jnp.inf, 1.0, -jnp.inf, jnp.nan])
    probs = jnp.array([0.25, 0.25, 0.5, 0.0, 0.0])
    beta = 1.5
    exact = np.log(0.25 * np.exp(3.0) + 0.5 * np.exp(1.5)) / beta
    measure = risk.entropic(beta)
    np.testing.assert_allclose(measure.value(x, probs), exact, rtol=1e-6)
    np.testing.assert_allclose(measure.weight(x, probs)[1], -1.0 / beta)  # the worst there is
    grads = jax.grad(measure.value, argnums=(0, 1))(x, probs)
    assert np.all(np.isfinite(grads[0])) and np.all(np.isfinite(grads[1][:4]))
    np.testing.assert_allclose(grads[0][jnp.array([1, 3, 4])], 0.0)
    slope = jax.grad(lambda b: risk.log_mean_exp(x[:4], b, probs[:4]))(beta)
    h = 1e-3
    tilted = lambda b: np.log(0.25 * np.exp(2 * b) + 0.5 * np.exp(b)) / b  # noqa: E731
    np.testing.assert_allclose(slope, (tilted(beta + h) - tilted(beta - h)) / (2 * h), rtol=1e-4)
    # The best quarter, the tilt of chi2 that leaves the masked one out.
    assert float(risk.cvar(0.25).value(x, probs)) == 2.0
    p = risk.chi2(0.5).tilt(x, probs)
    assert float(p[1]) == 0.0 and np.isfinite(risk.chi2(0.5).value(x, probs))
    # Who has a share in it sinks: the mean, the pessimists, an expectile.
    for sinks in (
        risk.neutral(),
        risk.entropic(0.0),
        risk.entropic(-1.0),
        risk.chi2(0.0),
        risk.chi2(-1.0),
        risk.cvar(-0.5),
        risk.cvar(0.9),
        risk.expectile(0.9),
    ):
        assert float(sinks.value(x, probs)) == -np.inf
        assert not np.any(np.isnan(sinks.tilt(x, probs)))
    all_masked = jnp.full(3, -jnp.inf)
    assert float(risk.log_mean_exp(all_masked, 2.0)) == -np.inf


@pytest.mark.parametrize("name", MAKERS)
def test_what_has_no_probability_has_a_weight_for_a_step_towards_it(name, x64):
    """As projected gradients need it, which could never leave a face of the simplex otherwise."""
    x = jnp.array([1.0, 2.5, 3.0, -2.0, 0.5])
    probs = np.array([0.5, 0.0, 0.3, 0.0, 0.2])
    both = jax.jit(
        lambda t, p: (MAKERS[name](t).weight(x, p), jax.grad(MAKERS[name](t).value, 1)(x, p))
    )

    def slope(t, e, h):  # towards e, where nothing lies behind
        here, ahead = (
            reference(name, t, np.asarray(x)[p > 0.0], p[p > 0.0])
            for p in (probs, (probs + h * e) / (1.0 + h))
        )
        return (ahead - here) / h

    for t in PARAMETERS[name]:
        found = [2.0 * slope(t, e, 1e-7) - slope(t, e, 2e-7) for e in np.eye(5)]
        for weight in both(t, jnp.asarray(probs)):
            np.testing.assert_allclose(weight, found, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_through_a_masked_softmax_are_finite(name):
    """Masked actions at minus infinity without a probability, and a state that is masked whole."""
    logits = jnp.array([[0.3, -jnp.inf, 1.0, -200.0], [-jnp.inf, 0.0, -jnp.inf, 0.2]])
    x = jnp.array([[2.0, -jnp.inf, 1.0, 3e4], [-jnp.inf] * 4])

    @jax.jit
    @jax.vmap
    def both(t):
        def value(logits, x):
            found = MAKERS[name](t).value(x, jax.nn.softmax(logits))
            return jnp.sum(jnp.where(found == -jnp.inf, 0.0, found))

        return jax.grad(value, argnums=(0, 1))(logits, x), MAKERS[name](t).value(x)

    grads, _ = both(
        jnp.array((*PARAMETERS[name], 0.5, -3e38 if name in ("entropic", "chi2") else 0.9))
    )
    for part in grads:
        assert np.all(np.isfinite(part))
    np.testing.assert_array_equal(grads[0][:, :, 1], 0.0)
    assert np.all(np.abs(np.sum(grads[1][:, 0], axis=-1) - 1.0) < 1e-5)


@pytest.mark.parametrize("name", ["neutral", *MAKERS])
def test_nan_is_never_hidden(name):
    """Of a value that has a probability, of a probability, and of one below zero."""
    make = MAKERS.get(name, lambda _: risk.neutral())
    x, probs = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.2, 0.3, 0.5])
    cases = [
        (x.at[1].set(jnp.nan), probs),
        (x, probs.at[1].set(jnp.nan)),
        (x, probs.at[1].set(-0.1)),
        (x, jnp.zeros(3)),
    ]
    xs, weights = (jnp.stack(part) for part in zip(*cases, strict=True))

    @jax.jit
    @jax.vmap
    def parts(t):
        m = make(t)
        hidden = m.value(x.at[1].set(jnp.nan), probs.at[1].set(0.0))
        return (m.value(xs, weights), m.tilt(xs, weights), m.weight(xs, weights)), hidden

    found, hidden = parts(jnp.array(PARAMETERS.get(name, (0.0,))))
    assert all(np.all(np.isnan(part)) for part in found)
    assert np.all(np.isfinite(hidden))


def test_a_traced_parameter_outside_makes_nan():
    x = jnp.array([1.0, 2.0, 5.0])
    for make, parameters in (
        (risk.cvar, [0.0, 1.5, -1.1, np.nan, 0.4, -0.4]),
        (risk.expectile, [0.0, 1.0, -0.3, np.nan, 0.4, 0.6]),
    ):
        both = jax.jit(jax.vmap(lambda t, make=make: (make(t).value(x), make(t).tilt(x))))
        value, tilt = both(jnp.array(parameters))
        assert np.isnan(value[:4]).all() and np.isnan(tilt[:4]).all()
        assert np.isfinite(value[4:]).all() and np.isfinite(tilt[4:]).all()


def test_infinities_are_ends_of_values_and_of_parameters():
    x, probs = jnp.array([1.0, jnp.inf, 3.0]), jnp.array([0.2, 0.3, 0.5])
    ends = jnp.array([1.0, -4.0, 3.0])
    for make in (risk.entropic, risk.chi2):
        assert float(make(0.7).value(x, probs)) == np.inf
        np.testing.assert_array_equal(make(0.7).tilt(x, probs), [0.0, 1.0, 0.0])
        np.testing.assert_allclose(
            make(-0.7).value(x, probs), -make(0.7).value(-x, probs), rtol=1e-6
        )
        assert np.isfinite(make(-0.7).value(x, probs))
        np.testing.assert_array_equal(make(0.0).tilt(-x, probs), probs)
        for parameter, end, best in ((jnp.inf, 3.0, 2), (-jnp.inf, -4.0, 1)):
            np.testing.assert_allclose(make(parameter).value(ends, probs), end)
            tilt = make(parameter).tilt(ends, probs)
            np.testing.assert_allclose(tilt, np.eye(3)[best], atol=1e-6)
            assert float(make(parameter).value(jnp.full(3, -jnp.inf))) == -np.inf
        p = jnp.array([1.0, 0.0, 0.0])
        assert float(make(jnp.inf).penalty(p, probs)) < 1e-30
        assert float(make(jnp.inf).penalty(p, jnp.array([0.0, 0.5, 0.5]))) == np.inf


@pytest.mark.parametrize("name", MAKERS)
def test_a_weight_of_zero_hides_what_it_belongs_to(name):
    some, bare = jnp.array([0.2, 5.0, 9.0, 3.0]), jnp.array([0.2, 9.0, 3.0])
    weights = jnp.array([0.5, 0.0, 0.25, 0.25])
    kept = jnp.array([0, 2, 3])
    both = jax.jit(
        jax.vmap(
            lambda t: (
                MAKERS[name](t).value(some, weights),
                MAKERS[name](t).value(bare, weights[kept]),
            )
        )
    )
    np.testing.assert_allclose(*both(jnp.array(PARAMETERS[name])), rtol=1e-6)


def test_cvar_splits_the_atom_among_equals():
    x = jnp.array([1.0, 4.0, 4.0, 9.0])
    probs = jnp.array([0.2, 0.3, 0.1, 0.4])
    tilt = risk.cvar(0.6).tilt(x, probs)
    np.testing.assert_allclose(tilt, [0.0, 0.3 / 1.2, 0.1 / 1.2, 0.4 / 0.6], rtol=1e-6)
    worst = risk.cvar(-0.4).tilt(x, probs)
    np.testing.assert_allclose(worst, [0.5, 0.3 / 0.8, 0.1 / 0.8, 0.0], rtol=1e-6)
    equal = jnp.arange(10.0)
    np.testing.assert_allclose(risk.cvar(0.3).value(equal), 8.0, rtol=1e-6)  # mean of the best 3
    np.testing.assert_allclose(risk.cvar(-0.3).value(equal), 1.0, rtol=1e-6)
    np.testing.assert_allclose(risk.cvar(1e-6).value(equal), 9.0)


@pytest.mark.parametrize("name", MAKERS)
def test_what_all_of_them_share(name, x64):
    """Between the ends, monotone, moved by a shift, turned around by the sign."""
    x, probs = draws(count=40, seed=6)
    value = lambda t, x: np.asarray(MAKERS[name](t).value(x, probs))  # noqa: E731
    up, down = {
        "entropic": (2.0, -2.0),
        "chi2": (1.0, -1.0),
        "cvar": (0.3, -0.3),
        "expectile": (0.8, 0.2),
    }[name]
    mean = np.sum(probs * x, axis=1)
    assert np.all((value(up, x) > mean) & (value(up, x) <= x.max(axis=1)))
    assert np.all((value(down, x) < mean) & (value(down, x) >= x.min(axis=1)))
    np.testing.assert_allclose(value(down, x), -value(up, -x), rtol=1e-10)
    np.testing.assert_allclose(value(up, x + 3.0), value(up, x) + 3.0, rtol=1e-10)
    more = x + np.random.default_rng(7).uniform(0.0, 1.0, x.shape)
    assert np.all(value(up, more) >= value(up, x))
    unit = 10.0 if name in ("entropic", "chi2") else 1.0
    np.testing.assert_allclose(value(up / unit, 10.0 * x), 10.0 * value(up, x), rtol=1e-10)


def test_shapes_axes_and_equal_probabilities():
    x = jnp.asarray(draws(count=3, size=4)[0], jnp.float32)
    last = risk.log_mean_exp(x, 0.5)
    np.testing.assert_allclose(risk.log_mean_exp(x.T, 0.5, axis=0), last, rtol=1e-6)
    np.testing.assert_allclose(risk.log_mean_exp(x, 0.5, jnp.ones((3, 4))), last, rtol=1e-6)
    probs = jnp.array([0.1, 0.2, 0.3, 0.4])
    tilt = risk.entropic(0.5).tilt(x.T, probs, axis=0)
    np.testing.assert_allclose(tilt, risk.entropic(0.5).tilt(x, probs).T, rtol=1e-6)
    assert risk.log_mean_exp(x.astype(jnp.bfloat16), 0.5).dtype == jnp.float32
    np.testing.assert_allclose(risk.neutral().value(x, probs), x @ probs, rtol=1e-6)
    np.testing.assert_allclose(risk.neutral().tilt(x, probs)[0], probs, rtol=1e-6)


def test_one_program_for_every_parameter():
    traces = []

    @jax.jit
    def sweep(betas, x):
        traces.append(1)
        return jax.vmap(lambda b: risk.log_mean_exp(x, b))(betas)

    x = jnp.array([0.0, 1.0, 2.0])
    values = sweep(jnp.array([-1.0, 0.0, 1.0]), x)
    assert np.all(np.diff(values) > 0.0)
    sweep(jnp.array([0.0, 2.0, 9.0]), x)
    assert len(traces) == 1


def test_penalties_forbid():
    p, probs = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.5, 0.0, 0.5])
    for measure in (risk.entropic(1.0), risk.chi2(1.0), risk.cvar(0.5), risk.expectile(0.9)):
        assert float(measure.penalty(p, probs)) == np.inf
    assert float(risk.neutral().penalty(p, p)) == 0.0
    assert float(risk.neutral().penalty(p, probs)) == np.inf
    assert float(risk.cvar(-0.5).penalty(p, probs)) == -np.inf
    assert float(risk.entropic(0.0).penalty(p, p)) == 0.0


def test_bad_input_is_named():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"alpha must lie in \[-1, 1\] and not be 0, got 0.0"):
        risk.cvar(0.0)
    with pytest.raises(ValueError, match=r"alpha must lie .* got 2.0"):
        risk.cvar(jnp.float32(2.0))
    for name, make in zip(("beta", "kappa", "alpha", "tau"), MAKERS.values(), strict=True):
        with pytest.raises(
            ValueError, match=rf"{name} must be a scalar, got shape \(2,\); map over"
        ):
            make(jnp.array([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"tau must lie in \(0, 1\), got 1"):
        risk.expectile(1)
    with pytest.raises(ValueError, match=r"one probability for each of its 3 values.*\(2,\)"):
        risk.neutral().value(x, jnp.ones(2))
    with pytest.raises(ValueError, match="must have values along axis -1"):
        risk.log_mean_exp(jnp.ones(()), 1.0)

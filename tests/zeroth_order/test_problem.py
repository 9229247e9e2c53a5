"""Problems over pytrees, their transformations, host code, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.zeroth_order import ask_tell, method, problem, zofl
from jaxlab.zeroth_order.problems import hock_schittkowski
from jaxlab.zeroth_order.settings import ZOFLConfig


def test_any_pytree_can_be_optimized(key):
    """The optimum of |W - 1|^2 + |b|^2 under sum(W) = 2 has W = 1/2 and b = 0."""
    x0 = {"W": jnp.zeros((2, 2)), "b": jnp.ones(3)}

    def fun(x):
        return jnp.sum((x["W"] - 1.0) ** 2) + jnp.sum(x["b"] ** 2), jnp.sum(x["W"])[None] - 2.0

    p = problem.make_problem(fun, x0, m_eq=1, lower={"W": -1.0, "b": jnp.zeros(3)})
    assert (p.n, p.m_eq, p.m_ineq) == (7, 1, 0)
    np.testing.assert_array_equal(p.lb, [-1, -1, -1, -1, 0, 0, 0])
    state, _ = jax.jit(lambda k: method.run(zofl.make_zofl(p), k, num_steps=300))(key)
    found = p.unravel(state.x)
    np.testing.assert_allclose(found["W"], 0.5, atol=2e-3)
    np.testing.assert_allclose(found["b"], 0.0, atol=2e-3)


def test_equalities_as_pairs_of_inequalities(x64):
    p = hock_schittkowski.hs("HS71")
    split = problem.as_inequalities(p)
    assert (split.m_eq, split.m_ineq) == (0, 3)
    x = p.x0 + 0.1
    h = p.exact(x)[1]
    np.testing.assert_allclose(split.exact(x)[1], [h[0], -h[0], h[1]])
    np.testing.assert_allclose(split.q(x, jax.random.key(0))[1], split.exact(x)[1])


def test_scaling_divides_by_the_values_at_the_start(x64):
    p = hock_schittkowski.hs("HS71")
    _f0, h0 = p.exact(p.x0)
    s = problem.scaled(p)
    x = p.x0 + 0.3
    f, h = p.exact(x)
    np.testing.assert_allclose(s.exact(x)[0], f / 16.0)  # f(1, 5, 5, 1) = 16
    np.testing.assert_allclose(s.exact(x)[1], h / np.maximum(1.0, np.abs(h0)))
    assert float(s.f_star) == pytest.approx(p.f_star / 16.0)


def test_host_code_behind_the_same_oracle(key):
    """A NumPy simulator, called point by point, gives the path of the JAX function."""

    def simulator(x):
        return float(((x - 1.0) ** 2).sum()), [float(x.sum() - 1.0)]

    def in_jax(x):
        return jnp.sum((x - 1.0) ** 2), jnp.sum(x)[None] - 1.0

    ends = []
    for fun in (problem.from_host(simulator, 1), in_jax):
        p = problem.make_problem(fun, jnp.zeros(3), m_eq=1)
        run = lambda k, p=p: method.run(zofl.make_zofl(p, ZOFLConfig(eta=0.2)), k, num_steps=20)  # noqa: E731
        ends.append(jax.jit(run)(key)[0].x)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-4)
    np.testing.assert_allclose(ends[0], 1.0 / 3.0, atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        ZOFLConfig(),
        ZOFLConfig(scheme="midpoint", eta=0.1),
        ZOFLConfig(scheme="mid_reuse"),
        ZOFLConfig(eta=0.1, armijo=3),
        ZOFLConfig(ineq="slack", eta=0.1),
    ],
    ids=["euler", "midpoint", "mid_reuse", "armijo", "slack"],
)
def test_ask_and_tell_follow_the_same_path(key, x64, config):
    p = problem.make_problem(
        lambda x: (jnp.sum((x - 1.0) ** 2) + x[0] ** 3, jnp.stack([x[0] * x[1] - 2.0, 3.0 - x[1]])),
        jnp.array([1.5, 2.0]),
        m_eq=1,
        lower=jnp.array([1.0, -jnp.inf]),
    )
    outside = ask_tell.external_problem(
        p.x0, m_eq=1, m_ineq=1, lower=jnp.array([1.0, -jnp.inf]), max_queries=1000
    )
    loop = ask_tell.make_ask_tell(outside, config)
    state = loop.init(key)
    measure = jax.jit(jax.vmap(p.exact))
    while state.state is None or state.told or int(state.state.t) < 4:
        points = loop.ask(state)
        np.testing.assert_array_equal(points, loop.ask(state))
        state = loop.tell(state, *measure(points))
    inside = zofl.make_zofl(p, config)
    expected, _ = jax.jit(lambda k: method.run(inside, k, num_steps=4))(key)
    np.testing.assert_allclose(state.state.x, expected.x, atol=1e-9)
    assert int(state.state.queries) == int(expected.queries)


def test_ask_and_tell_check_what_they_are_told(key):
    outside = ask_tell.external_problem(jnp.ones(3), m_eq=1)
    loop = ask_tell.make_ask_tell(outside, ZOFLConfig(eta=0.1))
    with pytest.raises(ValueError, match=r"f \[7\] and h \[7, 1\]"):
        loop.tell(loop.init(key), jnp.zeros(6), jnp.zeros((6, 1)))
    with pytest.raises(ValueError, match="without chunk"):
        ask_tell.make_ask_tell(outside, ZOFLConfig(kind="exact"))
    with pytest.raises(ValueError, match="measured outside"):
        outside.q(jnp.ones(3), key)
    with pytest.raises(ValueError, match="at least 0"):
        ask_tell.external_problem(jnp.ones(3), m_eq=-1)


def _fun(x):
    return jnp.sum(x**2), x[:2]


@pytest.mark.parametrize(
    ("x0", "settings", "message"),
    [
        (jnp.array([1.0, jnp.nan, 0.0]), {}, r"must be finite, got \[nan\] at \[1\]"),
        (jnp.arange(3), {}, "floating"),
        (jnp.ones(3), {"m_eq": 3}, "between 0 and the 2"),
        (jnp.ones(3), {"m_eq": 1.0}, "an integer between 0 and the 2"),
        (jnp.ones(3), {"lower": 2.0}, "within its bounds"),
        (jnp.ones(3), {"lower": 2.0, "upper": 0.0}, "must not exceed"),
        (jnp.ones(3), {"sigma": -1.0}, "sigma must be at least 0"),
        (jnp.ones(3), {"lower": {"a": 1.0}}, "structure of x0"),
    ],
)
def test_bad_problems_are_refused(x0, settings, message):
    with pytest.raises(ValueError, match=message):
        problem.make_problem(_fun, x0, **settings)


def test_oracles_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="f a scalar and h a vector"):
        problem.make_problem(lambda x: (x, x), jnp.ones(3))


def test_what_is_not_known_of_a_problem_is_asked_for_by_name():
    known = problem.make_problem(lambda x: jnp.sum(x**2), jnp.ones(2), f_star=0.0, name="bowl")
    assert float(problem.exact_of(known)(jnp.full(2, 3.0))[0]) == 18.0
    assert problem.f_star_of(known) == 0.0
    with pytest.raises(ValueError, match="'bowl' is a black box, its `exact` is None"):
        problem.exact_of(known._replace(exact=None))
    with pytest.raises(ValueError, match="'bowl' has no known optimum, its `f_star` is None"):
        problem.f_star_of(known._replace(f_star=None))

"""The control of the step: its rule by hand, and problems that a step without it loses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import zeroth_order as zo
from jaxlab.zeroth_order import control


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_rule_by_hand(precision):
    """min x^2 / 2 + 2 |h| from f = 8, h = 1: the merit is 10, and 4 of it is to go."""
    with jax.enable_x64(precision == "float64"):
        start = control.start(jnp.asarray([4.0]), 1)._replace(
            q=jnp.asarray([8.0, 1.0]),
            known=jnp.asarray(True),
            expected=jnp.asarray([5.0, 0.5]),
            weights=jnp.asarray([2.0]),
            scale=jnp.asarray(0.8),
            reach=jnp.asarray(1.0),
        )

        def judge(f, h, known=start, **changed):
            options = {"sigma": 0.0, "most": np.inf, "friction": 1.0} | changed
            kept, after = control.judge(known, jnp.asarray([f, h]), 1, **options)
            return bool(kept), float(after.scale), float(after.reach), after

        assert judge(5.0, 0.5)[:3] == (True, 1.0, 1.0)  # all of what was expected: grow by 1.25
        assert judge(5.0, 0.5, most=0.9)[1] == pytest.approx(0.9)
        assert judge(7.0, 0.5)[:2] == (True, pytest.approx(0.8))  # half of it: keep the step
        assert judge(8.0, 0.75)[:2] == (True, pytest.approx(0.4))  # an eighth: shorten
        kept, scale, reach, after = judge(9.0, 0.75)  # 10.5: turned down
        assert (kept, scale, reach) == (False, pytest.approx(0.4), 0.5)
        np.testing.assert_allclose(after.expected, [6.5, 0.75])  # of the point halfway
        np.testing.assert_array_equal(after.q, start.q)
        assert float(after.pull) == 1.0
        # From h = 3 most of 4 is to come of less violation: what is adapted is the pull.
        pulled = start._replace(q=jnp.asarray([2.0, 3.0]), expected=jnp.asarray([2.0, 1.0]))
        _, scale, _, after = judge(2.0, 2.75, pulled)
        assert (scale, float(after.pull)) == (pytest.approx(0.8), 0.5)
        # Noise of 0.1 on f and on h, whose price is 2, leaves 6 * 0.1 * sqrt(5) = 1.34 in doubt.
        assert judge(9.0, 0.75, sigma=0.1)[0] and not judge(10.0, 0.75, sigma=0.1)[0]
        # What momentum has gained may be climbed: 4 - 0.2 * 4 = 3.2.
        budget = judge(5.0, 0.5, friction=0.2)[3].budget
        assert float(budget) == pytest.approx(3.2)
        climbing = start._replace(budget=budget)
        assert judge(11.0, 1.05, climbing, friction=0.2)[0]
        assert not judge(11.0, 1.15, climbing, friction=0.2)[0]
        # In the end the old point is measured again, and taken as it is.
        tired = start._replace(failures=jnp.asarray(control.MOST_FAILURES, jnp.int32))
        assert judge(9.0, 0.75, tired)[0] and int(judge(9.0, 0.75, tired)[3].failures) == 0
        far = jnp.asarray([8.0])
        for failures, back in ((control.MOST_FAILURES - 1, 6.0), (control.MOST_FAILURES, 4.0)):
            known = start._replace(failures=jnp.asarray(failures, jnp.int32))
            assert float(control.step_back(known, far)[0]) == back
        nothing = control.start(jnp.asarray([4.0]), 1)
        assert judge(9.0, 0.75, nothing)[:3] == (True, 1.0, 1.0)


def test_a_price_for_every_constraint(x64):
    """1.1 |lam|, or the slope of f over that of h; of a flat one over a thousandth of |h| / |x|."""
    moved = control.follow(
        control.start(jnp.zeros(2), 3),
        jnp.asarray([0.0, 5.0]),
        jnp.asarray([1.0, 0.0, -2.0, 0.0]),
        jnp.zeros(4),
        jnp.asarray([-7.0, 0.0, 0.0]),
        jnp.asarray([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
        1,
    )
    assert bool(moved.known)
    np.testing.assert_allclose(moved.weights, [7.7, 5.0 / (1e-3 * 2.0 / 5.0), 0.0])


def _solve(problem, key, num_steps, log_every=None, **settings):
    algorithm = zo.make_zofl(problem, zo.ZOFLConfig(**settings))
    log_every = num_steps if log_every is None else log_every
    return zo.run(algorithm, key, num_steps=num_steps, log_every=log_every)


@pytest.mark.parametrize("precision", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_few_directions_for_many_variables(key, precision):
    """16 directions: a step of eta c = 1/2 along them keeps 1 - 3/4 * 16 / n of f a step."""
    with jax.enable_x64(precision == "float64"):
        for n, num_steps in ((200, 400), (10_000, 400)):
            bowl = zo.make_problem(lambda x: 0.5 * jnp.sum(x**2), jnp.ones(n))
            state, _ = _solve(bowl, key, num_steps)
            rate = -np.log(float(state.f) / (n / 2)) / num_steps / (16 / n)
            assert 0.4 < rate < 1.0, (n, float(state.f))


def test_the_step_of_the_theory_knows_them_too(key):
    """Without control: at most a quarter of the step that stands still, whatever the directions."""
    bowl = zo.make_problem(lambda x: 0.5 * jnp.sum(x**2), jnp.ones(200))
    for kind in ("orthonormal", "gaussian"):
        algorithm = zo.make_zofl(bowl, zo.ZOFLConfig(control=False, kind=kind))
        _, f = zo.run(algorithm, key, num_steps=60, observe=lambda s: s.f)
        assert f[-1] < 0.5 * f[0], kind


def test_the_first_step_under_noise_does_not_lead_uphill(key):
    """Noise of 1 in values that differ by 0.1 s'x: the measured gradient is noise, 50 to 1."""
    bowl = zo.make_problem(lambda x: 0.5 * jnp.sum(x**2), jnp.ones(200))
    algorithm = zo.make_zofl(zo.noise.with_noise(bowl, 1.0), zo.ZOFLConfig(control=False))
    solve = jax.jit(jax.vmap(lambda k: zo.run(algorithm, k, num_steps=400, log_every=400)[0]))
    x = solve(jax.random.split(key, 4)).x
    assert (0.5 * jnp.sum(x**2, axis=1) < 110.0).all()  # the start has 100
    # With little noise it is the step without: nothing is given away.
    eta = [
        jax.jit(zo.make_zofl(zo.noise.with_noise(zo.hs("HS71"), sigma)).init)(key).inner.eta
        for sigma in (0.0, 1e-6)
    ]
    np.testing.assert_allclose(eta[1], eta[0], rtol=0.1)


@pytest.mark.parametrize(
    ("precision", "scheme"),
    [("float32", "euler"), ("float64", "euler"), ("float64", "midpoint"), ("float64", "momentum")],
)
def test_a_cliff_beyond_a_slope(key, precision, scheme):
    """exp(5x) - 20x from -2: a step measured on the slope leads to f = 1800, the next to -900.

    From 2 the curvature is 10^4 times what it is at the optimum.
    """
    with jax.enable_x64(precision == "float64"):
        problem = zo.make_problem(lambda x: jnp.exp(5.0 * x[0]) - 20.0 * x[0], jnp.asarray([-2.0]))

        def solve(x0):
            config = zo.ZOFLConfig(scheme=scheme)
            algorithm = zo.make_zofl(problem._replace(x0=x0), config)
            return zo.run(algorithm, key, num_steps=400, observe=lambda s: s.f)

        state, f = jax.jit(jax.vmap(solve))(jnp.asarray([[-2.0], [2.0]]))
        # With momentum the step does not grow, and from the steep side it stays a short one.
        off = [2e-3, 1e-2 if scheme == "momentum" else 2e-3]
        assert (np.abs(state.x[:, 0] - np.log(4.0) / 5.0) < off).all()
        assert int(state.status[0]) == zo.CONVERGED
        if scheme != "momentum":  # the iterate only ever descends
            assert np.diff(f, axis=1).max() < 1e-4 and int(state.status[1]) == zo.CONVERGED


FLAT = {
    "constant": lambda x: -jnp.ones_like(x[0]),
    "saturated": lambda x: jnp.tanh(50.0 * (x[0] - 30.0)),
    "clipped": lambda x: jnp.clip(x[0] - 20.0, -1.0, 1.0),
    "binary": lambda x: jnp.where(x[1] > 10.0, 1.0, -1.0).astype(x.dtype),
}


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_flat_constraint_leaves_the_others_alone(key, precision):
    """HS12 with one more constraint, which holds everywhere near and has no slope."""
    with jax.enable_x64(precision == "float64"):
        hs12 = zo.hs("HS12")

        def solve(which):
            def fun(x):
                f, h = hs12.exact(x)
                return f, jnp.append(h, jnp.stack([flat(x) for flat in FLAT.values()])[which])

            algorithm = zo.make_zofl(zo.make_problem(fun, hs12.x0))
            return zo.run(algorithm, key, num_steps=1000, log_every=1000)[0]

        state = jax.jit(jax.vmap(solve))(jnp.arange(len(FLAT)))
        np.testing.assert_allclose(state.x, np.tile([2.0, 3.0], (len(FLAT), 1)), atol=5e-3)
        np.testing.assert_allclose(state.f, -30.0, atol=2e-2)
        assert float(state.h[:, 0].max()) < 1e-3
        np.testing.assert_array_equal(state.status, zo.CONVERGED)


def test_a_violated_constraint_that_has_no_slope_does_not_take_the_step(key, x64):
    """min |x - 3|^2 with x_0 <= 1 and a saturated constraint that nothing near can mend."""

    def fun(x):
        flat = jnp.tanh(x[1] + 20.0) - 0.5  # a slope of 1e-17
        return jnp.sum((x - 3.0) ** 2), jnp.stack([x[0] - 1.0, flat])

    state, _ = _solve(zo.make_problem(fun, jnp.zeros(3)), key, 400)
    assert int(state.status) == zo.INFEASIBLE and float(state.best_violation) == pytest.approx(0.5)
    assert float(state.x[0]) == pytest.approx(1.0, abs=1e-5)
    assert float(state.x[2]) == pytest.approx(3.0, abs=1e-5)


def test_a_curved_constraint_from_far_away_with_few_directions(key):
    """The unit sphere from twice its radius: along 16 of 1000 directions the way there is long."""
    problem = zo.sphere(1000, key)
    far = problem._replace(x0=2.0 * problem.x0)
    state, _ = _solve(far, key, 1500)
    assert int(state.status) == zo.FEASIBLE or int(state.status) == zo.CONVERGED
    f_start = problem.exact(problem.x0)[0]
    assert float(state.f) - problem.f_star < 0.1 * (f_start - problem.f_star)


def test_control_goes_with_velocities_that_descend():
    assert zo.resolve(zo.hs("HS71"), zo.ZOFLConfig()).control is True
    for changes in (
        {"form": "plugin", "kind": "sphere"},
        {"scheme": "adam"},
        {"ineq": "slack"},
        {"ineq": "clip"},
        {"feedback": "diagonal"},
        {"bounds": "clip"},
        {"armijo": 3},
    ):
        assert zo.resolve(zo.hs("HS71"), zo.ZOFLConfig(**changes)).control is False
        with pytest.raises(ValueError, match="control needs a velocity that descends"):
            zo.make_zofl(zo.hs("HS71"), zo.ZOFLConfig(control=True, **changes))

"""Guidance, residual losses, projection and the value's estimate, against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import physics
from jaxlab.diffusion import edm
from jaxlab.physics.baselines import guidance, projection, residual_losses, value

LAW = physics.poisson()


def linear(theta):
    return lambda x, sigma: theta * x


def test_guided_steps_by_hand(x64):
    """D = theta x and the norm of x: a guided step's gradient is its factor times a unit vector."""
    theta, zeta, levels = 0.8, 0.3, edm.sigmas(5).astype(np.float64)
    noise = np.random.default_rng(0).normal(size=(2, 2, 2, 1))

    def norm(x):
        return jnp.sqrt(jnp.sum(x**2, axis=(1, 2, 3)))

    found = guidance.guided_sample(
        linear(theta), jnp.asarray(noise), norm, zeta=zeta, num_steps=5, start=0.4, post_steps=2
    )
    x = levels[0] * noise
    unit = lambda z: z / np.sqrt(np.sum(z**2, axis=(1, 2, 3), keepdims=True))  # noqa: E731
    for i in range(5):
        s, t = levels[i], levels[i + 1]
        euler = 1.0 + (t - s) / s * (1.0 - theta)
        if i == 4:
            factor, clean = theta, theta
        else:
            factor = 1.0 + 0.5 * (t - s) * ((1.0 - theta) / s + euler * (1.0 - theta) / t)
            clean = theta * euler
        push = np.abs(clean) * unit(x) if i > 2 else 0.0
        x = factor * x - zeta * push
    for _ in range(2):
        x = x - zeta * unit(x)
    np.testing.assert_allclose(found, x, rtol=2e-6)


def test_norms_of_the_residual_and_of_sensors():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 6, 2)), jnp.float32)
    left = np.asarray(physics.residual(LAW, x), np.float64)
    each = np.sqrt(np.sum(left**2, axis=(1, 2)))
    np.testing.assert_allclose(guidance.residual_norm(LAW)(x), each, rtol=1e-5)
    batch = guidance.residual_norm(LAW, norm="batch")(x)
    np.testing.assert_allclose(batch, np.sqrt(np.sum(each**2)), rtol=1e-5)
    mask = np.zeros((6, 6, 2), bool)
    mask[1, 2, 0] = mask[4, 4, 1] = True
    sensors = guidance.sensor_norm(mask, x[0])
    gaps = np.asarray(x - x[:1])[:, mask]
    np.testing.assert_allclose(sensors(x), np.linalg.norm(gaps, axis=1), rtol=1e-5, atol=1e-7)
    slope = jax.grad(lambda z: jnp.sum(sensors(z)))(x)
    assert np.all(np.isfinite(slope)) and not np.any(slope[0])  # at its target: 0, not NaN
    with pytest.raises(ValueError, match="mask must keep a sensor"):
        guidance.sensor_norm(0 * mask, x[0])
    with pytest.raises(ValueError, match="norm must be one of field, batch, got 'l2'"):
        guidance.residual_norm(LAW, norm="l2")
    with pytest.raises(ValueError, match="zeta must be finite and not negative, got -1"):
        guidance.guided_sample(linear(1.0), x, sensors, zeta=-1.0)
    with pytest.raises(ValueError, match="post_steps must be an integer of at least 0, got 1.5"):
        guidance.guided_sample(linear(1.0), x, sensors, zeta=1.0, post_steps=1.5)


def test_gradients_without_conflict_are_those_of_config():
    rng = np.random.default_rng(2)
    for a, b in [rng.normal(size=(2, 5)) for _ in range(5)] + [np.array([[1.0, 0], [-0.9, 0.1]])]:
        split = [{"x": jnp.asarray(z[:2]), "y": jnp.asarray(z[2:])} for z in (a, b)]
        found = residual_losses.conflict_free(split)
        found = np.concatenate([found["x"], found["y"]])
        unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
        ortho = lambda v, w: w - (v @ w) / (v @ v) * v  # noqa: E731
        direction = unit(unit(ortho(a, b)) + unit(ortho(b, a)))
        np.testing.assert_allclose(found, (a @ direction + b @ direction) * direction, rtol=2e-4)
        assert a @ found > 0 and b @ found > 0
        assert a @ found / np.linalg.norm(a) == pytest.approx(
            b @ found / np.linalg.norm(b), rel=1e-3
        )
    zero = {"x": jnp.zeros(2)}
    one = {"x": jnp.asarray([1.0, 2.0])}
    np.testing.assert_array_equal(residual_losses.conflict_free([zero, one])["x"], one["x"])
    opposite = {"x": jnp.asarray([-1.0, -2.0])}
    np.testing.assert_array_equal(residual_losses.conflict_free([opposite, one])["x"], [0.0, 0.0])


def apply(params, x, noise):
    """A network that is linear, so that D is (c_skip + c_out c_in theta) x."""
    return params * x


@pytest.mark.parametrize("kind", ["pidm_mean", "pidm_sample", "pbfm", "value"])
def test_losses_by_hand(kind):
    data = physics.make_dataset(LAW, jax.random.key(0), 8, 8)
    objective = residual_losses.residual_objective(
        kind, LAW, apply, data, weight=0.01, unroll=3, batch_size=4
    )
    key, theta = jax.random.key(4), 0.7
    losses, _ = jax.jit(objective)(key, jnp.asarray(theta), None)
    key_rows, key_noise, key_sigma = jax.random.split(key, 3)
    y = data[np.asarray(jax.random.randint(key_rows, (4,), 0, 8))].astype(np.float64)
    noise = np.asarray(jax.random.normal(key_noise, y.shape), np.float64)
    sigma = np.asarray(edm.draw_sigma(key_sigma, (4,)), np.float64)

    def d(x, s):
        total = s**2 + 0.25
        factor = 0.25 / total + s * 0.5 / total * theta
        return factor[:, None, None, None] * x

    x = y + sigma[:, None, None, None] * noise
    weight = ((sigma**2 + 0.25) / (0.5 * sigma) ** 2)[:, None, None, None]
    fit = np.mean(weight * (d(x, sigma) - y) ** 2)
    num = {"pidm_mean": 1, "pidm_sample": 2, "pbfm": 3, "value": 1}[kind]
    low = np.minimum(sigma, 0.002)
    path = sigma * (low / sigma) ** (np.arange(num) / max(num - 1, 1))[:, None]
    for now, then in itertools.pairwise(path):
        x = x + ((then - now) / now)[:, None, None, None] * (x - d(x, now))
    clean = d(x, path[-1])
    with jax.enable_x64(True):
        left = np.asarray(physics.residual(LAW, jnp.asarray(clean)))
        reward = np.asarray(physics.reward(LAW, jnp.asarray(clean)))
    if kind == "value":
        np.testing.assert_allclose(losses[0], -np.mean(reward), rtol=1e-4)
        return
    np.testing.assert_allclose(losses[0], fit, rtol=1e-4)
    if kind == "pbfm":
        np.testing.assert_allclose(losses[1], np.mean(left**2), rtol=1e-3)
    else:
        each = np.sum(left**2, axis=(1, 2)) / (2.0 * sigma)
        np.testing.assert_allclose(losses[1], 0.01 * np.mean(each) / 128, rtol=1e-3)


@pytest.mark.usefixtures("optax_promotes")
def test_rivals_are_tuned_by_the_same_step():
    """One step of PBFM moves against both gradients; that of PIDM is Adam's on the sum."""
    data = physics.make_dataset(LAW, jax.random.key(0), 8, 8)
    for kind, combine in [("pbfm", residual_losses.conflict_free), ("pidm_mean", None)]:
        objective = residual_losses.residual_objective(kind, LAW, apply, data, batch_size=4)
        tune = physics.make_tuning(
            {"scale": jnp.ones(2)},
            lambda key, p, a, objective=objective: objective(key, p["scale"], a["scale"]),
            layers="none",
            regularizer="off",
            combine=combine,
        )
        new, metrics = jax.jit(lambda key, tune=tune: tune.step(tune.init(key)))(jax.random.key(3))
        key = jax.random.split(jax.random.key(3))[1]
        losses = lambda p, key=key, o=objective: jnp.stack(o(key, p, p)[0])  # noqa: E731
        jacobian = jax.jit(jax.jacobian(losses))(jnp.ones(2))
        expected = jnp.sum(jacobian, axis=0)
        if combine:
            expected = combine([{"x": jacobian[0]}, {"x": jacobian[1]}])["x"]
        np.testing.assert_allclose(new.opt_state[0].mu["scale"], 0.1 * expected, rtol=1e-3)
        assert np.isfinite(metrics["tune/loss"])


def test_projection_is_orthogonal_and_lands_on_the_law(x64):
    """Against the pseudo-inverse of the dense constraints; the solver's projection has no error."""
    x = np.random.default_rng(0).normal(size=(6, 6, 2))

    def constraint(z):
        z = jnp.asarray(z)
        fields = physics.post(LAW, z)
        return jnp.concatenate([physics.residual(LAW, z).ravel(), LAW.boundary(fields).ravel()])

    jacobian = np.asarray(
        jax.jit(jax.jacobian(lambda z: constraint(z.reshape(6, 6, 2))))(jnp.asarray(x).ravel())
    )
    expected = x.ravel() - np.linalg.pinv(jacobian) @ np.asarray(constraint(x))
    found = jax.jit(
        lambda z: projection.gauss_newton(LAW, z, num_iterations=2, num_products=400, damping=0.0)
    )(jnp.asarray(x))
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-5)
    assert np.max(np.abs(constraint(found))) < 1e-5
    solved = projection.solved(LAW, jnp.asarray(x)[None])
    assert float(physics.solution_error(LAW, solved)[0]) < 1e-10
    np.testing.assert_allclose(solved[0, ..., 0], x[..., 0], atol=1e-12)
    with pytest.raises(ValueError, match="has no solver to project with"):
        projection.solved(LAW._replace(solve=None), jnp.asarray(x)[None])


def test_value_of_a_square_is_too_high_by_the_posterior_variance():
    """x_0 ~ N(0, v): r = -x_0^2 has value -(m^2 + v s^2 / (v + s^2)), and r(D) is -m^2."""
    v, s = 0.5, 0.8
    x = jnp.asarray([[0.3], [-1.1], [2.0]])
    found = jax.jit(
        lambda key: value.value_error(
            key,
            lambda x, sigma: v / (v + sigma**2) * x,
            lambda x: -jnp.sum(x**2, axis=-1),
            x,
            s,
            num_samples=2000,
            num_steps=60,
        )
    )(jax.random.key(0))
    mean = v / (v + s**2) * np.asarray(x[:, 0])
    np.testing.assert_allclose(found.approximate, -(mean**2), rtol=1e-5)
    exact = -(mean**2) - v * s**2 / (v + s**2)
    # Five standard errors, and 2 % of the variance for 60 steps.
    assert np.all(np.abs(found.mean - exact) < 5 * found.std_error + 0.02 * v * s**2 / (v + s**2))


def test_a_linear_law_has_no_gap():
    """Poisson: all that the exact denoiser can become obeys the equation, and so does its mean."""
    exact = physics.gaussian_law(LAW, 8)
    x = 0.5 * jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
    found = jax.jit(
        lambda key: value.value_error(
            key, exact.denoiser, lambda z: physics.reward(LAW, z), x, 0.5, num_samples=8
        )
    )(jax.random.key(0))
    assert np.max(np.abs(found.approximate)) < 1e-6 and np.max(np.abs(found.mean)) < 1e-6
    with pytest.raises(ValueError, match="sigma must be above 0.002 and finite, got 0.001"):
        value.value_error(jax.random.key(0), exact.denoiser, None, x, 1e-3)


@pytest.mark.parametrize("kind", ["pidm_mean", "pidm_sample", "pbfm"])
def test_losses_without_an_edge_take_no_weight_of_it(kind):
    data = np.zeros((2, 8, 8, 2), np.float32)
    with pytest.raises(ValueError, match="bc_weight is of the kind 'value' alone, got 2.0"):
        residual_losses.residual_objective(kind, LAW, apply, data, bc_weight=2.0)

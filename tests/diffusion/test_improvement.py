"""One improvement of a Gaussian policy by the library's own loss and sampler, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxlab.diffusion import closed_form, rectified_flow


@pytest.mark.parametrize(
    "t, want", [(0.3, (0.578, -1.325)), (0.7, (0.832, -1.445)), (0.95, (0.186, 0.580))]
)
def test_weighted_loss_is_least_at_the_tilted_velocity(x64, t, want):
    """The published coefficients of pi_old = N(0, 0.5^2), Q = -3 (a - 0.8)^2 / 2, lambda = 0.7."""
    count = 1500  # quantiles of the actions times quantiles of the noise: no sampling error
    quantile = scipy.stats.norm.ppf((np.arange(count) + 0.5) / count)
    action, noise = (jnp.asarray(x.ravel()) for x in np.meshgrid(0.5 * quantile, quantile))
    weight = jnp.exp(-1.5 * (action - 0.8) ** 2 / 0.7)
    time = jnp.full(action.shape, t)

    def loss(line):
        def velocity(x, t):
            return line[0] + line[1] * x

        return rectified_flow.loss(velocity, action[:, None], noise[:, None], time, weight)

    zero = jnp.zeros(2)
    best = jnp.linalg.solve(jax.hessian(loss)(zero), -jax.grad(loss)(zero))
    np.testing.assert_allclose(best, want, atol=2e-3)
    tilted = closed_form.gaussian_tilt(
        closed_form.Gaussian(jnp.zeros(()), jnp.asarray(0.5)),
        curvature=3.0,
        peak=0.8,
        temperature=0.7,
    )
    at = jnp.asarray([0.0, 1.0])
    exact = closed_form.flow_velocity(tilted, at, jnp.full(2, t))
    np.testing.assert_allclose(best, [exact[0], exact[1] - exact[0]], atol=2e-3)


def test_a_policy_without_weights_is_its_own_refresh(x64):
    """Out of noise of std 1 it stays; out of noise of half that, each refresh halves its spread."""
    quantile = scipy.stats.norm.ppf((np.arange(2000) + 0.5) / 2000)

    def refresh(policy, scale):
        def velocity(x, t):
            return closed_form.flow_velocity(policy, x, t[..., None])

        start = jnp.asarray(scale * quantile)[:, None]
        drawn = rectified_flow.sample(velocity, start, num_steps=1000)
        return closed_form.Gaussian(jnp.mean(drawn), jnp.std(drawn))

    for scale in (1.0, 0.5):
        policy = closed_form.Gaussian(jnp.asarray(0.4), jnp.asarray(0.3))
        for k in range(1, 4):
            policy = refresh(policy, scale)
            np.testing.assert_allclose(policy.mean, 0.4, atol=1e-9)
            np.testing.assert_allclose(policy.std, 0.3 * scale**k, rtol=0.015 * k)

"""Fields of NumPy and SciPy, and ours from the same random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rivals import physics as rivals
from jaxlab import physics
from jaxlab.physics import random_fields


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_static_fields_are_ours(x64):
    white = np.random.default_rng(0).normal(size=(2, 12, 12))
    f = random_fields.grf2d_of_white(jnp.asarray(white))
    found = rivals.poisson_fields(white)
    np.testing.assert_allclose(found[..., 0], f, atol=1e-12)
    np.testing.assert_allclose(found[..., 1], physics.poisson_solve(f), atol=1e-14)
    a = jnp.where(f >= 0.0, 12.0, 3.0)
    found = rivals.darcy_fields(white)
    np.testing.assert_allclose(found[..., 0], a)
    # Conjugate gradients stop at 1e-10 of the solution, of order 0.02.
    np.testing.assert_allclose(found[..., 1], physics.darcy_solve_cells(a), atol=1e-10)


def test_evolving_fields_are_ours(x64):
    u0 = np.sin(2.0 * np.pi * np.arange(32) / 32)[None] * np.array([[1.0], [0.5]])
    found = rivals.burgers_fields(u0, num_times=9)
    np.testing.assert_allclose(
        found, physics.burgers_solve(jnp.asarray(u0), num_times=9), atol=1e-12
    )
    w0 = np.random.default_rng(0).normal(size=(2, 16, 16))
    found = rivals.kolmogorov_frames(w0, reynolds=100.0, num_frames=3)
    ours = physics.kolmogorov_rollout(jnp.asarray(w0), reynolds=100.0, num_frames=3)
    np.testing.assert_allclose(found, ours, atol=1e-9)

"""Solvers and random fields against manufactured solutions, NumPy and SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.special

from jaxlab import physics
from jaxlab.physics import elliptic, evolution, random_fields, smooth_darcy, spectral


def nodes(size):
    x = np.linspace(0.0, 1.0, size)
    return np.meshgrid(x, x, indexing="ij")


@pytest.fixture
def no_x64():
    with jax.enable_x64(False):
        yield


def test_sine_transform_is_that_of_scipy(x64):
    x = np.random.default_rng(0).normal(size=(3, 7, 10))
    found = spectral.dst1_2d(jnp.asarray(x))
    np.testing.assert_allclose(found, scipy.fft.dstn(x, type=1, axes=(1, 2)), rtol=0, atol=1e-12)
    along = spectral.dst1(jnp.asarray(x), axis=1)
    np.testing.assert_allclose(along, scipy.fft.dst(x, type=1, axis=1), rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("k2", "errors"),
    [(0.0, [1.10e-2, 2.73e-3, 6.83e-4, 1.71e-4]), (1.0, [1.12e-2, 2.79e-3, 6.97e-4, 1.74e-4])],
    ids=["Poisson", "Helmholtz"],
)
def test_error_of_a_sine(k2, errors, x64):
    for size, error in zip((17, 33, 65, 129), errors, strict=True):
        x, y = nodes(size)
        u = np.sin(np.pi * x) * np.sin(2.0 * np.pi * y)
        found = physics.poisson_solve(jnp.asarray((k2 - 5.0 * np.pi**2) * u), k2)
        # Digits as printed.
        assert np.max(np.abs(found - u)) == pytest.approx(error, rel=5e-3)


def test_darcy_of_a_manufactured_solution_and_of_a_constant(x64):
    pi = np.pi
    for size, error in [(17, 3.32e-3), (33, 8.26e-4), (65, 2.07e-4)]:
        x, y = nodes(size)
        a = 2.0 + np.sin(2 * pi * x) * np.cos(pi * y)
        a_x = 2 * pi * np.cos(2 * pi * x) * np.cos(pi * y)
        a_y = -pi * np.sin(2 * pi * x) * np.sin(pi * y)
        u = np.sin(pi * x) * np.sin(pi * y)
        u_x, u_y = pi * np.cos(pi * x) * np.sin(pi * y), pi * np.sin(pi * x) * np.cos(pi * y)
        f = 2 * pi**2 * a * u - a_x * u_x - a_y * u_y
        found = jax.jit(physics.darcy_solve)(jnp.asarray(a), jnp.asarray(f))
        assert np.max(np.abs(found - u)) == pytest.approx(error, rel=5e-3)
    flat = jax.jit(physics.darcy_solve)(jnp.full((129, 129), 3.0), jnp.ones((129, 129)))
    assert float(flat[64, 64]) == pytest.approx(0.0245571, abs=2e-6)  # error 3e-7 h^2-small


def test_darcy_of_cells_against_a_sparse_direct_solve(x64):
    """Two-valued coefficients, splines included; a coefficient that is not positive is NaN."""
    with jax.enable_x64(True):
        field = random_fields.grf2d(jax.random.split(jax.random.key(1), 2), 16)
    a = np.where(np.asarray(field) > 0.0, 12.0, 3.0)
    both = jnp.asarray(np.concatenate([a, 0.0 * a[:1]]))
    found = jax.jit(physics.darcy_solve_cells)(both)
    to_nodes, to_cells = elliptic.splines(16)
    for i in range(2):
        c = np.clip(to_nodes @ a[i] @ to_nodes.T, 3.0, 12.0)
        matrix = np.zeros((14, 14, 14, 14))
        for r in range(1, 15):
            for s in range(1, 15):
                for dr, ds in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                    face = 0.5 * (c[r, s] + c[r + dr, s + ds]) * 15.0**2
                    matrix[r - 1, s - 1, r - 1, s - 1] += face
                    if 1 <= r + dr <= 14 and 1 <= s + ds <= 14:
                        matrix[r - 1, s - 1, r + dr - 1, s + ds - 1] -= face
        u = np.pad(np.linalg.solve(matrix.reshape(196, 196), np.ones(196)).reshape(14, 14), 1)
        np.testing.assert_allclose(found[i], to_cells @ u @ to_cells.T, rtol=0, atol=1e-11)
    assert np.all(np.isnan(found[2]))
    negative = jax.jit(physics.darcy_solve)(jnp.full((2, 8, 8), -1.0), jnp.ones((2, 8, 8)))
    assert np.all(np.isnan(negative))


def test_darcy_has_a_solution_for_every_draw():
    """512 of them, of which splines alone make a negative coefficient in nearly all."""
    x = physics.make_dataset(physics.darcy(), jax.random.key(7), 512, 16)
    assert np.all(np.isfinite(x)) and x[..., 1].max() < 4.0
    to_nodes, _ = elliptic.splines(16)
    a = (x[..., 0] + 1.5) / 0.2
    wild = np.einsum("ik,nkl,jl->nij", to_nodes, a, to_nodes)
    assert np.mean(np.min(wild, axis=(1, 2)) < 0.0) > 0.9


def test_darcy_in_single_precision(no_x64):
    """Rounding in the stencil is 1e-3 of f on 64 nodes, that of the solution is 1e-5."""
    with jax.enable_x64(True):
        field = random_fields.grf2d(jax.random.split(jax.random.key(2), 2), 64)
        a = np.where(np.asarray(field) > 0.0, 12.0, 3.0)
        exact = np.asarray(jax.jit(physics.darcy_solve_cells)(jnp.asarray(a)))
    single = jax.jit(physics.darcy_solve_cells)(jnp.asarray(a, jnp.float32))
    assert np.max(np.abs(single - exact)) < 2e-4 * np.max(exact)


def cole_hopf(x, t, nu=0.01):
    """u of u_0 = sin 2 pi x: -2 nu phi_x / phi, phi a series of Bessel functions, rescaled."""
    n = np.arange(1, 80)[:, None]
    z = 1.0 / (4.0 * np.pi * nu)
    decay = scipy.special.ive(n, z) * np.exp(-nu * (2 * np.pi * n) ** 2 * t)
    phi = scipy.special.ive(0, z) + 2.0 * np.sum(decay * np.cos(2 * np.pi * n * x), axis=0)
    return 4.0 * nu * np.sum(decay * 2 * np.pi * n * np.sin(2 * np.pi * n * x), axis=0) / phi


def test_burgers_against_cole_and_hopf(x64):
    found = cole_hopf(np.array([0.1, 0.25, 0.4]), 0.5)
    np.testing.assert_allclose(found, [0.14964337, 0.37160712, 0.58443457], atol=5e-9)
    for num, bound in [(32, 2.6e-3), (64, 2.0e-5), (128, 1.3e-9)]:
        x = np.arange(num) / num
        u = physics.burgers_solve(jnp.asarray(np.sin(2 * np.pi * x)), num_times=129)
        assert np.max(np.abs(u[-1] - cole_hopf(x, 1.0))) < bound
    np.testing.assert_allclose(u[64], cole_hopf(x, 0.5), atol=1e-7)  # the steepest time


def test_trigonometric_interpolation_goes_through_the_points(x64):
    x = np.arange(16) / 16.0
    u = np.sin(2 * np.pi * x) + 0.3 * np.cos(2 * np.pi * 8 * x)
    fine = evolution.refine(jnp.asarray(u), 4)
    np.testing.assert_allclose(fine[::4], u, atol=1e-14)
    z = np.arange(64) / 64.0
    np.testing.assert_allclose(
        fine, np.sin(2 * np.pi * z) + 0.3 * np.cos(2 * np.pi * 8 * z), atol=1e-14
    )


def test_flow_rolls_like_a_loop_of_small_steps(x64):
    """Runge-Kutta with loops over modes; and a laminar flow stays where it is."""
    size, reynolds = 8, 20.0
    rng = np.random.default_rng(0)
    w = rng.normal(size=(size, size))
    found = physics.kolmogorov_rollout(jnp.asarray(w), reynolds=reynolds, num_frames=2)[1]
    k = np.fft.fftfreq(size, 1 / size)
    kx, ky = k[:, None], k[None, :]
    square = kx**2 + ky**2
    odd = np.where(np.abs(k) == 4, 0.0, k)
    keep = (np.abs(kx) < size / 3) & (np.abs(ky) < size / 3)
    y = 2 * np.pi * np.arange(size) / size

    def slope(w):
        v = np.fft.fft2(w)
        psi = np.where(square > 0, v / np.where(square > 0, square, 1.0), 0.0)

        def back(z):
            return np.fft.ifft2(z).real

        advected = back(1j * odd[None, :] * psi) * back(1j * odd[:, None] * v)
        advected += back(-1j * odd[:, None] * psi) * back(1j * odd[None, :] * v)
        advected = back(keep * np.fft.fft2(advected))
        return back(-square * v) / reynolds - 0.1 * w - advected - 4.0 * np.cos(4 * y)[None]

    h = 1.0 / 32.0 / 400
    for _ in range(400):
        a = slope(w)
        b = slope(w + h / 2 * a)
        c = slope(w + h / 2 * b)
        w = w + h / 6 * (a + 2 * b + 2 * c + slope(w + h * c))
    np.testing.assert_allclose(found, w, atol=1e-8)
    laminar = np.broadcast_to(
        -4.0 / (0.1 + 16.0 / reynolds) * np.cos(4 * 2 * np.pi * np.arange(16) / 16), (16, 16)
    )
    still = physics.kolmogorov_rollout(jnp.asarray(laminar), reynolds=reynolds, num_frames=3)
    np.testing.assert_allclose(still[2], laminar, atol=1e-12)


def test_random_fields_have_their_spectra(x64):
    for size, rms in [(32, 0.29198), (64, 0.29206), (128, 0.29208)]:
        std = random_fields.grf2d_std(size)
        assert np.sqrt(np.sum(std**2)) / size == pytest.approx(rms, abs=5e-6)
    assert np.sqrt(np.sum(random_fields.burgers_std() ** 2)) == pytest.approx(0.2741, abs=5e-5)
    keys = jax.random.split(jax.random.key(3), 2000)
    fields = np.asarray(jax.jit(functools.partial(random_fields.grf2d, size=8))(keys))
    std = random_fields.grf2d_std(8)
    spectrum = scipy.fft.dctn(fields, axes=(1, 2), norm="ortho")
    ratio = np.mean(spectrum**2, axis=0)[std > 0] / std[std > 0] ** 2
    assert np.max(np.abs(ratio - 1.0)) < 5.0 * np.sqrt(2.0 / 2000)  # 63 chi-squares
    np.testing.assert_allclose(spectrum[:, 0, 0], 0.0, atol=1e-12)
    u0 = np.asarray(random_fields.burgers_start(keys, 128))
    power = np.mean(np.abs(np.fft.rfft(u0)[:, 1:5] / 64) ** 2, axis=0)
    np.testing.assert_allclose(power, 2.0 * random_fields.burgers_std()[:4] ** 2, rtol=0.12)
    # A field depends on its key and not on its neighbors.
    np.testing.assert_allclose(random_fields.grf2d(keys[5:7], 8), fields[5:7], atol=1e-12)


def test_modes_are_eigenvectors_of_the_covariance():
    modes = random_fields.expansion(9, num_modes=12)
    x, y = (z.ravel() for z in nodes(9))
    covariance = np.exp(-np.hypot(x[:, None] - x, y[:, None] - y) / 0.1)
    values, vectors = np.linalg.eigh(covariance)
    flat = modes.reshape(12, 81)
    best = (vectors[:, -12:] * values[-12:]) @ vectors[:, -12:].T
    assert np.sum(flat**2) == pytest.approx(np.sum(values[-12:]), rel=1e-10)
    np.testing.assert_allclose(covariance @ flat.T, flat.T * np.sum(flat**2, axis=1), atol=1e-9)
    assert np.linalg.norm(covariance - flat.T @ flat) < 1.0001 * np.linalg.norm(covariance - best)


def test_pressure_is_the_least_squares_solution_of_all_equations():
    """Against a dense solve that has a row for the mean."""
    size = 9
    x, y = nodes(size)
    a = np.exp(0.3 * np.sin(5 * x) - 0.4 * x * y)
    found = smooth_darcy.pressure(a)
    d1, d2 = (m.toarray() for m in smooth_darcy.difference_matrices(size, 1.0 / (size - 1)))
    cubic = np.linspace(0, 1, size) ** 3
    np.testing.assert_allclose(d2 @ cubic, 6 * np.linspace(0, 1, size), atol=1e-11)
    np.testing.assert_allclose(d1 @ cubic ** (2 / 3), 2 * np.linspace(0, 1, size), atol=1e-12)
    one = np.eye(size)
    rows = []
    for i in range(size):
        for j in range(size):
            unit = np.zeros((size, size))
            unit[i, j] = 1.0
            down, across = d1 @ unit, unit @ d1.T
            law = -a * (d2 @ unit + unit @ d2.T) - (d1 @ a) * down - (a @ d1.T) * across
            walls = [
                (a * z * (size - 1))[at]
                for z, at in (
                    (down, np.s_[0]),
                    (down, np.s_[-1]),
                    (across, np.s_[:, 0]),
                    (across, np.s_[:, -1]),
                )
            ]
            w = np.outer(*(np.r_[0.5, one.sum(0)[2:], 0.5],) * 2) / (size - 1) ** 2
            rows.append(np.concatenate([law.ravel(), *walls, [np.sum(w * unit)]]))
    right = np.concatenate([smooth_darcy.source(size).ravel(), np.zeros(4 * size + 1)])
    dense = np.linalg.lstsq(np.array(rows).T, right, rcond=None)[0].reshape(size, size)
    np.testing.assert_allclose(found, dense, atol=1e-9)
    assert np.all(np.isnan(smooth_darcy.pressure(a - 2.0)))


def test_single_precision_makes_no_data(no_x64):
    keys = jax.random.split(jax.random.key(0), 2)
    for draw in (random_fields.grf2d, random_fields.periodic_field, random_fields.burgers_start):
        with pytest.raises(
            ValueError, match=r"data in float64, got JAX in float32; call it within"
        ):
            draw(keys, 128)


def test_solvers_refuse_what_they_cannot_solve():
    f = jnp.ones((8, 8))
    with pytest.raises(ValueError, match=r"f must be float32 or float64, got bfloat16"):
        physics.poisson_solve(f.astype(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"f must be \[..., S, S\], got \(8, 7\)"):
        physics.poisson_solve(f[:, :7])
    with pytest.raises(ValueError, match="eigenvalue"):
        physics.poisson_solve(f, -float(spectral.laplacian_eigenvalues(6, 1 / 7)[2, 3]))
    with pytest.raises(ValueError, match="k2 must be finite"):
        physics.poisson_solve(f, float("nan"))
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        physics.darcy_solve(f, f, tolerance=0.0)
    with pytest.raises(ValueError, match="substeps must be positive, got 0"):
        physics.burgers_solve(f, substeps=0)
    with pytest.raises(ValueError, match="substeps must be an integer of at least 1, got 1.5"):
        physics.burgers_solve(f, substeps=1.5)
    with pytest.raises(ValueError, match="num_outputs must be an integer of at least 1, got 9.5"):
        physics.burgers_solve(f, num_times=9.5)
    with pytest.raises(ValueError, match="num_runs must be an integer of at least 1, got 2.5"):
        physics.kolmogorov(num_runs=2.5)
    with pytest.raises(ValueError, match="max_step must be positive, got 0"):
        physics.kolmogorov_rollout(f, reynolds=1.0, num_frames=2, max_step=0.0)
    with pytest.raises(ValueError, match="one shape and dtype"):
        physics.darcy_solve(f, f[None])
    with pytest.raises(ValueError, match="even number of points, got 7"):
        physics.burgers_solve(f[0, :7])
    with pytest.raises(ValueError, match="reynolds must be positive"):
        physics.kolmogorov_rollout(f, reynolds=0.0, num_frames=2)

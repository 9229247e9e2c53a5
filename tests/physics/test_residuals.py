"""Residuals: exact data, published digits, convergence, symmetries, gradients, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import physics
from jaxlab.physics import pde as pde_lib

LAWS = {
    "poisson": physics.poisson(),
    "helmholtz": physics.helmholtz(),
    "darcy": physics.darcy(),
    "burgers": physics.burgers(),
    "kolmogorov": physics.kolmogorov(100.0, num_runs=3, burn_in=0.5),
    "darcy64": physics.darcy64(),
}


@functools.cache
def data(name, num=64, size=32):
    return physics.make_dataset(LAWS[name], jax.random.key(5), num, size)


@functools.cache
def compiled(name, given):
    return jax.jit(functools.partial(physics.residual, LAWS[name], **dict(given)))


def double(name, x, **given):
    with jax.enable_x64(True):
        return np.asarray(compiled(name, tuple(given.items()))(np.asarray(x, np.float64)))


@pytest.mark.parametrize("name", ["poisson", "helmholtz"])
def test_exact_data_obey_the_law_inside_and_not_at_a_padded_edge(name):
    """The floor of the published operator: 0.27 and 0.18 at 32 points, heavy-tailed over fields."""
    with jax.enable_x64(True):
        fields = LAWS[name].generate(jax.random.key(2), 256, 32)
        every = np.asarray(LAWS[name].residual(fields, region="all", repo_exact=True))
        inside = np.asarray(LAWS[name].residual(fields, region="interior", repo_exact=True))
    assert np.max(np.abs(inside)) < 1e-12
    floor, per_field = {"poisson": 0.27, "helmholtz": 0.18}[name], np.mean(every**2, axis=(1, 2))
    assert np.mean(per_field) == pytest.approx(floor, abs=5 * np.std(per_field) / 16)
    np.testing.assert_array_equal(inside, every[:, 1:-1, 1:-1])


def test_floors_of_the_nonlinear_laws():
    """Published digits at 32 points, to the spread over 64 fields."""
    for name, floor, inside in [("darcy", 1.2, None), ("burgers", 0.013, 1.1e-2)]:
        left = double(name, data(name), region="all", repo_exact=True)
        each = np.mean(left**2, axis=(1, 2))
        assert np.mean(each) == pytest.approx(floor, abs=5 * np.std(each) / 8), name
        left = double(name, data(name), region="interior", repo_exact=True)
        if inside is None:
            assert np.median(np.abs(left)) < 0.05
        else:
            each = np.mean(left**2, axis=(1, 2))
            assert np.mean(each) == pytest.approx(inside, abs=5 * np.std(each) / 8), name


def test_laminar_flow_has_no_residual_and_a_mirrored_one_has(x64):
    laminar = -4.0 / (0.1 + 16.0 / 1000.0)
    assert laminar == pytest.approx(-34.48276, abs=5e-6)
    y = 2 * np.pi * np.arange(32) / 32
    w = jnp.broadcast_to(jnp.asarray(laminar * np.cos(4 * y)), (32, 32))
    law = physics.kolmogorov(1000.0)
    frames = jnp.stack([w] * 3, axis=-1)
    assert np.max(np.abs(law.residual(frames, region="all", repo_exact=False))) < 1e-12
    x = data("kolmogorov", 3, 32)
    mirrored = np.roll(np.flip(x, axis=1), 1, axis=1)  # the other sign of advection
    left = [np.mean(double("kolmogorov", z) ** 2) for z in (x, mirrored)]
    assert left[0] < 1e-3 * left[1]


def test_smooth_pressure_obeys_its_own_stencils():
    left = double("darcy64", data("darcy64", 1, 24), region="interior")
    assert np.mean(left**2) < 1e-2 * 10.0**2


def manufactured(name, size):
    """Smooth fields, and what the operator tends to: [S, S, C] and [S, S]."""
    pi = np.pi
    if name in ("poisson", "helmholtz"):
        x, y = np.meshgrid(*(np.linspace(0, 1, size),) * 2, indexing="ij")
        u = np.sin(pi * x) * np.sin(2 * pi * y)
        return np.stack([0 * u + x, u], -1), (-5 * pi**2 + (name == "helmholtz")) * u - x
    if name == "darcy":
        x, y = np.meshgrid(*((np.arange(size) + 0.5) / size,) * 2, indexing="ij")
        a, u = 5 + x * y, np.sin(pi * x) * np.cos(y)
        grad = y * pi * np.cos(pi * x) * np.cos(y) - x * np.sin(pi * x) * np.sin(y)
        return np.stack([a, u], -1), a * (pi**2 + 1) * u - grad - 1.0
    t, x = np.meshgrid(np.linspace(0, 1, size), np.arange(size) / size, indexing="ij")
    u = np.sin(2 * pi * (x - t))
    u_x = 2 * pi * np.cos(2 * pi * (x - t))
    return u[..., None], -u_x + u * u_x + 0.01 * 4 * pi**2 * u


@pytest.mark.parametrize("name", ["poisson", "helmholtz", "darcy", "burgers"])
def test_operators_converge_with_the_square_of_the_step(name, x64):
    errors = []
    for size in (32, 64):
        fields, limit = manufactured(name, size)
        found = LAWS[name].residual(jnp.asarray(fields), region="all", repo_exact=False)
        errors.append(
            np.max(np.abs(found - limit)[1:-1])
            if name == "burgers"
            else np.max(np.abs(found - limit)[1:-1, 1:-1])
        )
    assert 3.5 < errors[0] / errors[1] < 4.6


def test_a_flow_of_one_wave_has_its_residual_by_hand(x64):
    """Three frames of w = t sin x cos 2 y: psi = w / 5 gives u . grad w = 0."""
    x, y = np.meshgrid(*(2 * np.pi * np.arange(16) / 16,) * 2, indexing="ij")
    wave = np.sin(x) * np.cos(2 * y)
    frames = np.stack([0.9 * wave, wave, 1.2 * wave], -1)
    law = physics.kolmogorov(50.0)
    expected = 0.3 * 16 * wave + 5 * wave / 50 + 0.1 * wave + 4 * np.cos(4 * y)
    found = law.residual(jnp.asarray(frames), region="all", repo_exact=False)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    # Two waves: advection by hand.
    w = np.sin(x) + np.cos(y)  # psi = w: u = -sin y, v = -cos x
    advected = -np.sin(y) * np.cos(x) + np.cos(x) * np.sin(y)
    w2 = np.sin(x) + np.cos(2 * y)  # psi = sin x + cos 2 y / 4: u = -sin 2y / 2, v = -cos x
    advected2 = -0.5 * np.sin(2 * y) * np.cos(x) + np.cos(x) * 2 * np.sin(2 * y)
    for field, product, diffused in [
        (w, advected, -w),
        (w2, advected2, -np.sin(x) - 4 * np.cos(2 * y)),
    ]:
        still = jnp.asarray(np.stack([field] * 3, -1))
        expected = product - diffused / 50 + 0.1 * field + 4 * np.cos(4 * y)
        found = law.residual(still, region="all", repo_exact=False)
        np.testing.assert_allclose(found, expected, atol=1e-12)
    shifted = jnp.asarray(frames + 2.0)
    released, right = (law.residual(shifted, region="all", repo_exact=e) for e in (True, False))
    np.testing.assert_allclose(released - right, 2.0 / 50, atol=1e-12)


def test_periodic_laws_move_with_their_fields():
    u = data("burgers")[:4]
    here = double("burgers", np.roll(u, 5, axis=2))
    np.testing.assert_allclose(here, np.roll(double("burgers", u), 5, axis=2), atol=1e-12)
    released = double("burgers", np.roll(u, 5, axis=2), region="all", repo_exact=True)
    still = double("burgers", u, region="all", repo_exact=True)
    assert (
        np.max(np.abs(released - np.roll(still, 5, axis=2))) > 1e-2
    )  # it pads where it should wrap
    w = data("kolmogorov", 3, 32)
    moved = np.roll(w, (3, 8), axis=(1, 2))  # 8 points of 32: a period of the force
    np.testing.assert_allclose(
        double("kolmogorov", moved),
        np.roll(double("kolmogorov", w), (3, 8), axis=(1, 2)),
        atol=1e-9,
    )


@pytest.mark.parametrize("name", ["poisson", "darcy", "burgers", "kolmogorov"])
def test_gradient_of_the_reward_against_differences(name):
    x = data(name, 3, 16)[:2]
    with jax.enable_x64(True):
        value = jax.jit(lambda z: jnp.sum(physics.reward(LAWS[name], z)))
        x = jnp.asarray(x, jnp.float64) + 0.1 * jax.random.normal(jax.random.key(0), x.shape)
        direction = jax.random.normal(jax.random.key(1), x.shape, jnp.float64)
        slope = jnp.sum(jax.jit(jax.grad(value))(x) * direction)
        numeric = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(slope, numeric, rtol=1e-6)


def test_a_thresholded_coefficient_has_no_gradient():
    x = jnp.asarray(data("darcy")[:2])
    given = {"region": "all", "bc_weight": 0.0}
    slope = {
        exact: jax.jit(
            jax.grad(
                lambda z, exact=exact: jnp.sum(
                    physics.reward(LAWS["darcy"], z, repo_exact=exact, **given)
                )
            )
        )(x)
        for exact in (True, False)
    }
    assert not np.any(slope[True][..., 0]) and np.any(slope[True][..., 1])
    assert np.any(slope[False][..., 0])


def test_reward_is_minus_the_mean_squares_of_inside_and_edge():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 2)).astype(np.float32)
    f, u = 2.5 * x[..., 0].astype(np.float64), x[..., 1].astype(np.float64) / 36.5
    for i in range(2):
        total, edge = [], []
        for r in range(6):
            for c in range(6):
                if 0 < r < 5 and 0 < c < 5:
                    near = u[i, r + 1, c] + u[i, r - 1, c] + u[i, r, c + 1] + u[i, r, c - 1]
                    total.append((near - 4 * u[i, r, c]) * 25 - f[i, r, c])
                else:
                    edge.append(u[i, r, c] * 5)
        expected = -np.mean(np.square(total)) - 0.7 * np.mean(np.square(edge))
        found = physics.reward(LAWS["poisson"], jnp.asarray(x), bc_weight=0.7)[i]
        np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("name", ["poisson", "helmholtz", "darcy", "burgers", "kolmogorov"])
def test_solution_error_of_data_and_of_data_times_two(name):
    """Of data zero up to rounding, and Burgers' undersampled start; of a doubled solution one."""
    x = data(name, 3, 32) if name == "kolmogorov" else data(name)[:3]
    with jax.enable_x64(True):
        fields = np.array(pde_lib.post(LAWS[name], jnp.asarray(x, jnp.float64)))
        error = jax.jit(functools.partial(physics.solution_error, LAWS[name]))
        found = error(jnp.asarray(x, jnp.float64))
        assert np.max(found) < (1e-2 if name == "burgers" else 1e-5)
        if name in ("poisson", "helmholtz", "darcy"):
            fields[..., 1] *= 2.0
            doubled = error(physics.normalize(LAWS[name], jnp.asarray(fields)))
            np.testing.assert_allclose(doubled, 1.0, atol=1e-5)


def test_single_precision_is_enough_and_half_is_not():
    """Rounding of u by 2^-11 is multiplied by 4 / h^2."""
    x = data("poisson")[:4]
    single, half = double("poisson", x), double("poisson", x.astype(np.float16))
    assert np.std(single) < 1e-5 and np.std(half) > 1e3 * np.std(single)
    for dtype in (jnp.float16, jnp.bfloat16):
        with pytest.raises(ValueError, match="fields must be float32 or float64"):
            physics.residual(LAWS["poisson"], jnp.zeros((8, 8, 2), dtype))


def test_own_law_in_ten_lines_and_its_check():
    with jax.enable_x64(True):
        fields = np.asarray(LAWS["poisson"].generate(jax.random.key(0), 16, 12), np.float32)

    def law(fields):
        return physics.laplacian(fields[..., 1], 1 / 11, edges="replicate") - fields[..., 0]

    mine = physics.own_pde("mine", law, fields, channels=("f", "u"))
    x = physics.normalize(mine, jnp.asarray(fields))
    assert float(jnp.min(x)) == pytest.approx(-1.0, abs=1e-5)
    assert float(jnp.max(x)) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(pde_lib.post(mine, x), fields, atol=1e-6)
    check = physics.check_data(mine, x)
    assert check.obeys and check.ratio < 1e-6
    wrong = physics.own_pde("wrong", lambda z: law(z) + 2.0 * z[..., 0], fields)
    assert not physics.check_data(wrong, x).obeys
    assert physics.check_data(wrong, x).ratio > 0.5
    every = physics.check_data(mine, x, region="all")  # the padded edge
    assert not every.obeys
    assert physics.check_data(LAWS["burgers"], data("burgers")).obeys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], r"data must be \[N, H, W, C\], got \(12, 12, 2\)"),
        (
            lambda x: x * np.where(np.arange(x.size).reshape(x.shape) == 3, np.nan, 1.0),
            "got 1 values",
        ),
        (lambda x: x * np.array([1.0, 0.0], np.float32), "got a constant '1'"),
    ],
    ids=["shape", "nan", "constant"],
)
def test_own_data_are_looked_at(change, message):
    x = np.random.default_rng(0).normal(size=(3, 12, 12, 2)).astype(np.float32)
    with pytest.raises(ValueError, match=message):
        physics.own_pde("mine", lambda z: z[..., 0], change(x))
    with pytest.raises(ValueError, match="residual of the data must be finite"):
        physics.own_pde("mine", lambda z: jnp.log(z[..., 0]), x)


def own(law=lambda z: z[..., 0], num=3, **given):
    x = np.random.default_rng(0).normal(size=(num, 12, 12, 2)).astype(np.float32)
    return physics.own_pde("mine", law, x, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"law": lambda z: z}, r"law must return \[N, h, w\]"),
        ({"law": lambda z: z[0], "margin": 0}, r"got \(12, 12, 2\) for two fields"),
        ({"law": lambda z: (z, z)}, r"law must return \[N, h, w\]"),
        ({"law": lambda z: np.sin(np.asarray(z[..., 0]))}, "law must be written in jax.numpy"),
        ({"margin": -1}, "margin must be an integer of at least 0, got -1"),
        ({"solve": lambda z: z}, "a solver needs the channels it replaces, got solve alone"),
        ({"solution": (1,)}, "got solution alone; give both"),
        ({"solve": lambda z: z, "solution": (2,)}, r"channels 0 to 1, got \(2,\)"),
    ],
)
def test_own_laws_are_looked_at(given, message):
    with pytest.raises(ValueError, match=message):
        own(**given)


def test_own_functions_see_batches():
    """One field, or two leading axes, are a batch to what a user writes; so are solvers' fields."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 12, 12, 2))
    mine = own(
        lambda z: z[:, :, :, 0] * jnp.arange(12.0)[None, :, None],
        boundary=lambda z: z[:, 0, :, 1],
        solve=lambda z: z.at[:, :, :, 1].set(0.0),
        solution=(1,),
    )
    flat = x.reshape(6, 12, 12, 2)
    for fields in (x, x[0, 0]):
        found = physics.reward(mine, fields)
        wanted = physics.reward(mine, flat)[: found.size].reshape(found.shape)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not np.any(mine.solve(x)[..., 1]) and np.any(mine.solve(x)[..., 0])
    wrong = own(solve=lambda z: z[..., 0], solution=(1,))
    with pytest.raises(ValueError, match=r"\(6, 12, 12, 2\), got \(6, 12, 12\)"):
        physics.solution_error(wrong, flat)


def test_neighbors_in_time_are_no_strangers():
    """Windows of one wave that differ little from the next: u = 2 f, up to 1 %."""
    rng = np.random.default_rng(0)
    phase = np.linspace(0.0, 3.0, 64)[:, None, None] + np.arange(12)[:, None] + np.arange(12)
    f = np.sin(phase)
    u = 2.0 * f + 0.02 * rng.normal(size=f.shape)
    fields = np.stack([f, u], axis=-1).astype(np.float32)
    mine = physics.own_pde("mine", lambda z: z[..., 1] - 2.0 * z[..., 0], fields)
    check = physics.check_data(mine, physics.normalize(mine, jnp.asarray(fields)))
    assert check.obeys and check.ratio < 1e-3


def test_what_strangers_obey_too_says_nothing():
    """A residual that is zero, or undefined, for fields put together from several."""
    rng = np.random.default_rng(0)
    f = 1.0 + rng.uniform(size=(8, 12, 12)).astype(np.float32)
    fields = np.stack([f, 2.0 * f], axis=-1)
    zero = physics.own_pde("zero", lambda z: 0.0 * z[..., 0], fields)
    check = physics.check_data(zero, physics.normalize(zero, jnp.asarray(fields)))
    assert check.mean_square == 0.0 and np.isnan(check.ratio) and not check.obeys
    twice = lambda z: jnp.log(jnp.where(z[..., 1] - 2.0 * z[..., 0] < 0.1, 9.0, -1.0))  # noqa: E731
    torn = physics.own_pde("torn", twice, fields)
    check = physics.check_data(torn, physics.normalize(torn, jnp.asarray(fields)))
    assert np.isnan(check.shuffled) and not check.obeys


def test_symmetric_laws_and_channels_that_a_law_ignores_are_judged():
    """Harmonic fields, which any flip leaves harmonic; and Poisson's with a channel before it."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(*2 * [np.linspace(0.0, 1.0, 12)], indexing="ij")
    parts = np.stack([x * x - y * y, x * y, x, y])  # second differences of these are exact
    fields = np.einsum("nk,kij->nij", rng.normal(size=(16, 4)), parts)[..., None]
    fields = fields.astype(np.float32)

    def harmonic(z):
        return physics.laplacian(z[..., 0], 1 / 11, edges="replicate")

    mine = physics.own_pde("harmonic", harmonic, fields)
    assert physics.check_data(mine, physics.normalize(mine, fields)).ratio < 1e-3
    noise = rng.normal(size=fields.shape).astype(np.float32)
    mine = physics.own_pde("harmonic", harmonic, noise)
    assert physics.check_data(mine, physics.normalize(mine, noise)).ratio > 0.5
    with jax.enable_x64(True):
        pair = np.asarray(LAWS["poisson"].generate(jax.random.key(0), 16, 12), np.float32)
    three = np.concatenate([noise, pair], axis=-1)

    def last(z):
        return physics.laplacian(z[..., 2], 1 / 11, edges="replicate") - z[..., 1]

    mine = physics.own_pde("third", last, three)
    assert physics.check_data(mine, physics.normalize(mine, three)).ratio < 1e-3


def test_a_law_without_a_slope_on_the_data_is_refused():
    f = np.random.default_rng(0).normal(size=(3, 12, 12)).astype(np.float32)
    fields = np.stack([f, np.sqrt(np.maximum(f, 0.0))], axis=-1)
    with pytest.raises(ValueError, match="gradient of the data's residual must be finite"):
        physics.own_pde("root", lambda z: jnp.sqrt(jnp.maximum(z[..., 0], 0.0)) - z[..., 1], fields)


def test_wrong_calls_are_named():
    law, x = LAWS["poisson"], jnp.zeros((2, 8, 8, 2))
    with pytest.raises(
        ValueError, match=r"2 channels \(f, u\) on its last axis, got \(2, 8, 8, 3\)"
    ):
        physics.residual(law, jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="the grid must be square, got 8 by 9 points"):
        physics.residual(law, jnp.zeros((8, 9, 2)))
    with pytest.raises(ValueError, match=r"4 points or more a side, got \(8, 8\)"):
        physics.residual(law, jnp.zeros((8, 8)))
    with pytest.raises(ValueError, match="region must be one of all, interior, got 'edge'"):
        physics.residual(law, x, region="edge")
    with pytest.raises(ValueError, match="bc_weight must be finite and not negative, got -1"):
        physics.reward(law, x, bc_weight=-1.0)
    with pytest.raises(ValueError, match="num must be an integer of at least 1, got 0"):
        physics.make_dataset(law, jax.random.key(0), 0, 8)
    for size in (43, 129):
        with pytest.raises(ValueError, match=f"size must be even for Burgers' .*, got {size}"):
            physics.make_dataset(LAWS["burgers"], jax.random.key(0), 1, size)
    for make, message in (
        (lambda: physics.kolmogorov(-1.0), "reynolds must be positive, got -1"),
        (
            lambda: physics.kolmogorov(1.0, num_runs=0),
            "num_runs must be an integer of at least 1, got 0",
        ),
        (lambda: physics.burgers(0.0), "viscosity must be positive, got 0"),
        (lambda: physics.helmholtz(np.nan), "k must be finite, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="size must be an integer of at least 4, got 3"):
        physics.make_dataset(law, jax.random.key(0), 1, 3)

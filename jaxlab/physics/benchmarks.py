"""The paper's five equations: Poisson, Helmholtz, Darcy, Burgers and the Kolmogorov flow.

Each is a `Pde`: normalization, residual, edge, solver and generator. Normalizations, the released
residual and Kolmogorov windows are those of the code of arXiv:2509.20570, the generators those of
DiffusionPDE, arXiv:2406.17763.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.learning import settings as settings_lib
from jaxlab.physics import elliptic, evolution, random_fields, spectral, stencils
from jaxlab.physics.pde import Pde, in_pieces
from jaxlab.physics.stencils import Region, first_difference, second_difference

LOW, HIGH, MIDDLE = 3.0, 12.0, 7.5
"""The two values of Darcy's coefficient, and where the published reward sets it to one of them."""
FINE = 128
"""Points in space that Burgers' equation is solved on, at least."""


def poisson() -> Pde:
    """Makes Delta u = f on the unit square, u = 0 on its edge; channels f and u."""
    return _linear("Poisson", 0.0, scale=(1.0 / 2.5, 36.5), edge_source=True)


def helmholtz(k: float = 1.0) -> Pde:
    """Makes Delta u + k^2 u = f, u = f = 0 on the edge; channels f and u.

    Raises:
        ValueError: if k is not finite.
    """
    if not math.isfinite(k):
        raise ValueError(f"k must be finite, got {k}")
    return _linear("Helmholtz", k**2, scale=(1.0 / 2.15, 1.0 / 0.028), edge_source=False)


def darcy() -> Pde:
    """Makes -div(a grad u) = 1 with a = 3 or 12, u = 0 on the edge; channels a and u.

    Values are at centers of cells, half a cell from the edge; the edge's value is extrapolated.
    The residual is by the product rule, a Delta u + grad a . grad u, and large where a jumps.
    """

    def residual(fields: jax.Array, *, region: Region, repo_exact: bool) -> jax.Array:
        a, u = fields[..., 0], fields[..., 1]
        left = product_rule(two_valued(a) if repo_exact else a, u, 1.0 / stencils.side(a))
        return stencils.crop(left - 1.0, region, rows=1, columns=1)

    def boundary(fields: jax.Array) -> jax.Array:
        u = fields[..., 1]
        outer, inner = stencils.ring(u), _second_ring(u)
        return (1.5 * outer - 0.5 * inner) * u.shape[-1]

    def solve(fields: jax.Array) -> jax.Array:
        u = elliptic.darcy_solve_cells(two_valued(fields[..., 0]))
        return jnp.stack([fields[..., 0], u], axis=-1)

    def generate(key: jax.Array, num: int, size: int) -> jax.Array:
        def draw(keys: jax.Array) -> jax.Array:
            a = jnp.where(random_fields.grf2d(keys, size) >= 0.0, HIGH, LOW)
            return jnp.stack([a, elliptic.darcy_solve_cells(a)], axis=-1)

        return in_pieces(draw, key, num)

    return Pde(
        name="Darcy",
        channels=("a", "u"),
        scale=(0.2, 115.0),
        offset=(-1.5, -0.9),
        residual=residual,
        boundary=boundary,
        solve=solve,
        solution=(1,),
        generate=generate,
    )


def burgers(viscosity: float = 0.01) -> Pde:
    """Makes u_t + u u_x = nu u_xx, periodic in x; rows are times 0 to 1, columns are space.

    The second derivative is the first one's first, over four cells. "interior" leaves out the first
    and the last row; with the released operator, which pads by the edge's value, two columns at
    each side too. Nothing is prescribed at an edge: space is a ring.

    Raises:
        ValueError: if the viscosity is not positive.
    """
    settings_lib.check({"viscosity": viscosity}, {"viscosity": settings_lib.POSITIVE})

    def residual(fields: jax.Array, *, region: Region, repo_exact: bool) -> jax.Array:
        u = fields[..., 0]
        times, size = u.shape[-2:]
        space = "replicate" if repo_exact else "wrap"
        time_step = 1.0 / times if repo_exact else 1.0 / (times - 1)
        u_t = first_difference(u, time_step, axis=-2, edges="replicate")
        u_x = first_difference(u, 1.0 / size, axis=-1, edges=space)
        u_xx = first_difference(u_x, 1.0 / size, axis=-1, edges=space)
        left = u_t + u * u_x - viscosity * u_xx
        return stencils.crop(left, region, rows=1, columns=2 if repo_exact else 0)

    def solve_fine(u0: jax.Array, times: int) -> jax.Array:
        substeps = math.ceil(4 * (FINE - 1) / (times - 1))
        return evolution.burgers_solve(u0, viscosity=viscosity, num_times=times, substeps=substeps)

    def solve(fields: jax.Array) -> jax.Array:
        times, size = fields.shape[-3:-1]
        factor = math.ceil(FINE / size)
        u0 = evolution.refine(fields[..., 0, :, 0], factor)
        return solve_fine(u0, times)[..., ::factor, None]

    def generate(key: jax.Array, num: int, size: int) -> jax.Array:
        factor = math.ceil(FINE / size)
        if factor * size % 2:
            raise ValueError(f"size must be even for Burgers' equation, got {size}")

        def draw(keys: jax.Array) -> jax.Array:
            u0 = random_fields.burgers_start(keys, factor * size)
            return solve_fine(u0, size)[..., ::factor, None]

        return in_pieces(draw, key, num)

    return Pde(
        name="Burgers",
        channels=("u",),
        scale=(1.0 / 1.415,),
        offset=(0.0,),
        residual=residual,
        solve=solve,
        solution=(0,),
        generate=generate,
    )


def kolmogorov(reynolds: float = 1000.0, *, num_runs: int = 40, burn_in: float = 5.0) -> Pde:
    """Makes the flow forced by -4 cos(4 y); channels are the vorticity of three frames in turn.

    Data are windows of three consecutive frames, 1/32 apart, of runs from random starts.

    Args:
        reynolds: Re, 1000 in the paper on grids of 256; a grid of 64 resolves 100.
        num_runs: runs that the data are cut from.
        burn_in: time of each run before its first frame.

    Raises:
        ValueError: if a number is not positive.
    """
    numbers = {"reynolds": reynolds, "burn_in": burn_in}
    settings_lib.check(numbers, dict.fromkeys(numbers, settings_lib.POSITIVE))
    settings_lib.check_count(num_runs, "num_runs")

    def residual(fields: jax.Array, *, region: Region, repo_exact: bool) -> jax.Array:
        before, w, after = (fields[..., i] for i in range(3))
        left = (after - before) / (2.0 * evolution.FRAME_STEP) + _flow_terms(
            w, reynolds, mean_diffuses=repo_exact
        )
        return stencils.crop(left, region, rows=0, columns=0)

    def solve(fields: jax.Array) -> jax.Array:
        frames = evolution.kolmogorov_rollout(fields[..., 0], reynolds=reynolds, num_frames=3)
        return jnp.moveaxis(frames, -3, -1)

    def generate(key: jax.Array, num: int, size: int) -> jax.Array:
        runs = min(num_runs, num)
        windows = math.ceil(num / runs)

        @jax.jit
        def run(keys: jax.Array) -> jax.Array:
            start = random_fields.periodic_field(keys, size)
            settled = evolution.kolmogorov_rollout(
                start, reynolds=reynolds, num_frames=2, frame_step=burn_in
            )[:, 1]
            return evolution.kolmogorov_rollout(settled, reynolds=reynolds, num_frames=windows + 2)

        w = run(jax.random.split(key, runs))
        cut = jnp.stack([w[:, i : i + windows] for i in range(3)], axis=-1)
        return cut.reshape(runs * windows, size, size, 3)[:num]

    return Pde(
        name="Kolmogorov",
        channels=("w0", "w1", "w2"),
        scale=(1.0 / 12.0,) * 3,
        offset=(0.0,) * 3,
        residual=residual,
        solve=solve,
        solution=(1, 2),
        generate=generate,
    )


def two_valued(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns 12 where a exceeds 7.5 and 3 elsewhere; no gradient passes."""
    return jnp.where(a > MIDDLE, jnp.full_like(a, HIGH), jnp.full_like(a, LOW))


def product_rule(
    a: Float[Array, "... S S"], u: Float[Array, "... S S"], step: float
) -> Float[Array, "... S S"]:
    """Returns -a (u_xx + u_yy) - a_x u_x - a_y u_y, one-sided at the edge."""
    total = jnp.zeros_like(u)
    for axis in (-2, -1):
        a_x, u_x = (first_difference(z, step, axis=axis, edges="one_sided") for z in (a, u))
        total -= a * second_difference(u, step, axis=axis, edges="one_sided") + a_x * u_x
    return total


def _linear(name: str, k2: float, *, scale: tuple[float, float], edge_source: bool) -> Pde:
    def residual(fields: jax.Array, *, region: Region, repo_exact: bool) -> jax.Array:
        f, u = fields[..., 0], fields[..., 1]
        left = stencils.laplacian(u, 1.0 / (stencils.side(u) - 1), edges="replicate") + k2 * u - f
        return stencils.crop(left, region, rows=1, columns=1)

    def boundary(fields: jax.Array) -> jax.Array:
        return stencils.ring(fields[..., 1]) * (fields.shape[-2] - 1)

    def solve(fields: jax.Array) -> jax.Array:
        f = fields[..., 0]
        return jnp.stack([f, elliptic.poisson_solve(f, k2)], axis=-1)

    def generate(key: jax.Array, num: int, size: int) -> jax.Array:
        return in_pieces(lambda keys: from_source(random_fields.grf2d(keys, size)), key, num)

    def from_source(f: jax.Array) -> jax.Array:
        if not edge_source:
            f = jnp.pad(f[..., 1:-1, 1:-1], [(0, 0)] * (f.ndim - 2) + [(1, 1), (1, 1)])
        return jnp.stack([f, elliptic.poisson_solve(f, k2)], axis=-1)

    def of_white(white: jax.Array) -> jax.Array:
        return from_source(random_fields.grf2d_of_white(white))

    return Pde(
        name=name,
        channels=("f", "u"),
        scale=scale,
        offset=(0.0, 0.0),
        residual=residual,
        boundary=boundary,
        solve=solve,
        solution=(1,),
        generate=generate,
        of_white=of_white,
    )


def _flow_terms(
    w: Float[Array, "... S S"], reynolds: float, *, mean_diffuses: bool
) -> Float[Array, "... S S"]:
    """Returns u . grad w - Delta w / Re + 0.1 w + 4 cos(4 y)."""
    size = stencils.side(w)
    spectrum = jnp.fft.rfft2(w)
    square = spectral.wavenumbers(size).square.copy()
    square[0, 0] = 1.0 if mean_diffuses else 0.0
    square = jnp.asarray(square.reshape((1,) * (w.ndim - 2) + square.shape), spectrum.dtype)
    diffused = jnp.fft.irfft2(-square * spectrum, (size, size))
    y = 2.0 * math.pi * jnp.arange(size, dtype=w.dtype) / size
    force = evolution.FORCING * jnp.cos(evolution.FORCED_MODE * y).reshape(
        (1,) * (w.ndim - 1) + (-1,)
    )
    return evolution.advection(spectrum, size) - diffused / reynolds + evolution.DRAG * w + force


def _second_ring(x: Float[Array, "... H W"]) -> Float[Array, "... P"]:
    """Returns the neighbors, one node further in, of what `stencils.ring` returns."""
    sides = (x[..., 1, :], x[..., -2, :], x[..., 1:-1, 1], x[..., 1:-1, -2])
    return jnp.concatenate(sides, axis=-1)

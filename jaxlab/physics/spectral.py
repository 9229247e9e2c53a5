"""What the solvers are made of: sine transforms, wavenumbers, exponential integrators."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.learning import settings as settings_lib

CONTOUR_POINTS = 32
"""Points on the half circle over which the coefficients of the integrator are averaged."""


def dst1(x: Float[Array, "... N"], *, axis: int = -1) -> Float[Array, "... N"]:
    """Returns the sine transform of type 1, y_k = 2 sum_j x_j sin(pi (j + 1) (k + 1) / (N + 1)).

    It is the imaginary part of the Fourier transform of the odd extension. Applied twice it is
    2 (N + 1) times the identity.
    """
    x = jnp.moveaxis(x, axis, -1)
    zero = jnp.zeros_like(x[..., :1])
    odd = jnp.concatenate([zero, x, zero, -jnp.flip(x, -1)], axis=-1)
    y = -jnp.imag(jnp.fft.rfft(odd, axis=-1))[..., 1 : x.shape[-1] + 1]
    return jnp.moveaxis(y, -1, axis)


def dst1_2d(x: Float[Array, "... M N"]) -> Float[Array, "... M N"]:
    """Returns the sine transform of type 1 along the last two axes."""
    return dst1(dst1(x, axis=-1), axis=-2)


def laplacian_eigenvalues(num: int, step: float) -> np.ndarray:
    """Returns `[num, num]` eigenvalues of the 5-point Laplacian with zeros around it.

    Sine transforms diagonalize it: minus (4 - 2 cos(pi m / (num + 1)) - 2 cos(...)) / step^2.

    Args:
        num: interior nodes along an axis.
        step: distance of two nodes.
    """
    m = np.arange(1, num + 1)
    one = -4.0 * np.sin(0.5 * np.pi * m / (num + 1)) ** 2 / step**2
    return one[:, None] + one[None, :]


class Wavenumbers(NamedTuple):
    """Integer wavenumbers of `jnp.fft.rfft2` on a square grid of S points; axis 0 is x, axis 1 y.

    Attributes:
        x: `[S, 1]`, for derivatives along x: 0 at the Nyquist mode of an even grid, whose odd
            derivatives a grid cannot hold.
        y: `[1, S // 2 + 1]`, likewise along y.
        square: `[S, S // 2 + 1]`, |k|^2, the Nyquist mode included.
    """

    x: np.ndarray
    y: np.ndarray
    square: np.ndarray


def wavenumbers(size: int) -> Wavenumbers:
    """Returns the wavenumbers of a grid of `size` points a side."""
    kx = np.fft.fftfreq(size, 1.0 / size)[:, None]
    ky = np.fft.rfftfreq(size, 1.0 / size)[None, :]
    x, y = (np.where(np.abs(k) == size / 2.0, 0.0, k) for k in (kx, ky))
    return Wavenumbers(x, y, kx**2 + ky**2)


class Integrator(NamedTuple):
    """Coefficients of one ETDRK4 step of dv/dt = L v + N(v), L diagonal; each has L's shape.

    Attributes:
        whole: exp(h L).
        half: exp(h L / 2).
        stage: h (exp(h L / 2) - 1) / (h L).
        first, middle, last: weights of the four stages, in the order N(v), N(a) + N(b), N(c).
    """

    whole: np.ndarray
    half: np.ndarray
    stage: np.ndarray
    first: np.ndarray
    middle: np.ndarray
    last: np.ndarray


def make_integrator(linear: np.ndarray, step: float) -> Integrator:
    """Computes the coefficients as means over a circle around h L, which no cancellation spoils.

    Args:
        linear: real diagonal of L.
        step: h, the time step.

    Source: Kassam and Trefethen 2005, Fourth-order time-stepping for stiff PDEs.
    """
    if not step > 0.0:
        raise ValueError(f"step must be positive, got {step}")
    z = step * np.asarray(linear, np.float64)
    angle = np.pi * (np.arange(1, CONTOUR_POINTS + 1) - 0.5) / CONTOUR_POINTS
    r = z[..., None] + np.exp(1j * angle)

    def mean(values: np.ndarray) -> np.ndarray:
        return step * np.mean(values, axis=-1).real

    e = np.exp(r)
    return Integrator(
        whole=np.exp(z),
        half=np.exp(z / 2.0),
        stage=mean((np.exp(r / 2.0) - 1.0) / r),
        first=mean((-4.0 - r + e * (4.0 - 3.0 * r + r**2)) / r**3),
        middle=mean(2.0 * (2.0 + r + e * (r - 2.0)) / r**3),
        last=mean((-4.0 - 3.0 * r - r**2 + e * (4.0 - r)) / r**3),
    )


def integrate(
    integrator: Integrator,
    nonlinear: Callable[[jax.Array], jax.Array],
    start: Complex[Array, "..."],
    *,
    num_outputs: int,
    substeps: int,
) -> Complex[Array, "T ..."]:
    """Returns the start and what follows it, `num_outputs` states `substeps` steps apart.

    Args:
        integrator: coefficients, whose shape is that of the last axes of `start`.
        nonlinear: N, in Fourier space.
        start: `[..., *L]`, the state in Fourier space.
        num_outputs: T, the start included, at least 1.
        substeps: steps between two outputs, at least 1.

    Raises:
        ValueError: if a count is no whole number of at least 1.
    """
    settings_lib.check_count(num_outputs, "num_outputs")
    settings_lib.check_count(substeps, "substeps")
    lead = (1,) * (start.ndim - integrator.whole.ndim)
    whole, half, stage, first, middle, last = (
        jnp.asarray(c.reshape(lead + c.shape), start.dtype) for c in integrator
    )

    def step(v: jax.Array, _: None) -> tuple[jax.Array, None]:
        n_v = nonlinear(v)
        a = half * v + stage * n_v
        n_a = nonlinear(a)
        b = half * v + stage * n_a
        n_b = nonlinear(b)
        c = half * a + stage * (2.0 * n_b - n_v)
        return whole * v + first * n_v + middle * (n_a + n_b) + last * nonlinear(c), None

    def output(v: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        v, _ = jax.lax.scan(step, v, length=substeps)
        return v, v

    _, rest = jax.lax.scan(output, start, length=num_outputs - 1)
    return jnp.concatenate([start[None], rest])


@functools.cache
def dealiasing(size: int) -> np.ndarray:
    """Returns the `[S, S // 2 + 1]` mask of modes below two thirds of the largest on each axis."""
    kx = np.abs(np.fft.fftfreq(size, 1.0 / size))[:, None]
    ky = np.fft.rfftfreq(size, 1.0 / size)[None, :]
    return (kx < size / 3.0) & (ky < size / 3.0)

"""Burgers' equation and two-dimensional turbulence forced by a wave, by exponential integrators."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlab.learning import settings as settings_lib
from jaxlab.physics import spectral

DRAG = 0.1
"""Linear friction of the Kolmogorov flow."""
FORCING, FORCED_MODE = 4.0, 4
"""Its vorticity is forced by -4 cos(4 y)."""
FRAME_STEP = 1.0 / 32.0
"""Time between two of its frames."""


def burgers_solve(
    u0: Float[Array, "... N"],
    *,
    viscosity: float = 0.01,
    num_times: int = 128,
    substeps: int = 4,
    horizon: float = 1.0,
) -> Float[Array, "... T N"]:
    """Solves u_t + u u_x = viscosity u_xx on [0, 1], periodic, from t = 0 to the horizon.

    Args:
        u0: `[..., N]`, the start at x = 0, 1/N, ...; an even number of points.
        viscosity: nu.
        num_times: T, times with equal gaps, both ends included; at least 2.
        substeps: steps of the integrator between two of them.
        horizon: last time.

    Returns:
        `[..., T, N]`, a row for each time.

    Raises:
        ValueError: if N is odd, a number is out of range, or the dtype is narrower than float32.

    Source: ETDRK4 in Fourier space, Kassam and Trefethen 2005.
    """
    num = u0.shape[-1]
    if num % 2:
        raise ValueError(f"u0 must have an even number of points, got {num}")
    if num_times < 2:
        raise ValueError(f"num_times must be at least 2, got {num_times}")
    numbers = {"viscosity": viscosity, "substeps": substeps, "horizon": horizon}
    rules = dict.fromkeys(numbers, settings_lib.POSITIVE) | {"viscosity": settings_lib.NOT_NEGATIVE}
    settings_lib.check(numbers, rules)
    _check_dtype(u0, "u0")
    k = 2.0 * np.pi * np.arange(num // 2 + 1)
    integrator = spectral.make_integrator(-viscosity * k**2, horizon / ((num_times - 1) * substeps))
    slope = np.where(np.arange(num // 2 + 1) < num // 2, k, 0.0)

    def nonlinear(v: jax.Array) -> jax.Array:
        square = jnp.fft.rfft(jnp.fft.irfft(v, num) ** 2)
        factor = jnp.asarray(-0.5j * slope, v.dtype)
        return factor.reshape((1,) * (v.ndim - 1) + factor.shape) * square

    states = spectral.integrate(
        integrator, nonlinear, jnp.fft.rfft(u0), num_outputs=num_times, substeps=substeps
    )
    return jnp.moveaxis(jnp.fft.irfft(states, num), 0, -2)


def kolmogorov_rollout(
    w0: Float[Array, "... S S"],
    *,
    reynolds: float,
    num_frames: int,
    frame_step: float = FRAME_STEP,
    max_step: float = 1.0 / 256.0,
) -> Float[Array, "... F S S"]:
    """Solves w_t + u . grad w = Delta w / Re - 0.1 w - 4 cos(4 y) on [0, 2 pi]^2, periodic.

    The velocity is u = d psi / dy, v = -d psi / dx with -Delta psi = w.

    Args:
        w0: `[..., S, S]`, vorticity of the start; axis 0 is x, axis 1 is y.
        reynolds: Re; a grid of 64 resolves 100.
        num_frames: F, the start included.
        frame_step: time between two frames.
        max_step: longest step of the integrator.

    Returns:
        `[..., F, S, S]`, vorticity. Of products the modes above two thirds of the largest are left
        out, so that they alias no others.

    Raises:
        ValueError: if a number is out of range, or the dtype is narrower than float32.
    """
    numbers = {"reynolds": reynolds, "frame_step": frame_step, "max_step": max_step}
    settings_lib.check(numbers, dict.fromkeys(numbers, settings_lib.POSITIVE))
    _check_dtype(w0, "w0")
    size = w0.shape[-1]
    if w0.ndim < 2 or w0.shape[-2] != size:
        raise ValueError(f"w0 must be [..., S, S], got {w0.shape}")
    substeps = math.ceil(frame_step / max_step - 1e-9)
    k, kept = spectral.wavenumbers(size), spectral.dealiasing(size)
    integrator = spectral.make_integrator(-k.square / reynolds - DRAG, frame_step / substeps)
    y = 2.0 * np.pi * np.arange(size) / size
    force = np.fft.rfft2(np.broadcast_to(-FORCING * np.cos(FORCED_MODE * y), (size, size)))

    def nonlinear(v: jax.Array) -> jax.Array:
        product = jnp.fft.rfft2(advection(v, size))
        lead = (1,) * (v.ndim - 2)
        mask = jnp.asarray(kept, v.dtype).reshape(lead + kept.shape)
        return jnp.asarray(force, v.dtype).reshape(lead + force.shape) - mask * product

    states = spectral.integrate(
        integrator, nonlinear, jnp.fft.rfft2(w0), num_outputs=num_frames, substeps=substeps
    )
    return jnp.moveaxis(jnp.fft.irfft2(states, (size, size)), 0, -3)


def advection(w: Complex[Array, "... S K"], size: int) -> Float[Array, "... S S"]:
    """Returns u . grad w on the grid, of a vorticity in Fourier space (`rfft2`)."""
    k = spectral.wavenumbers(size)
    inverse = np.divide(1.0, k.square, out=np.zeros_like(k.square), where=k.square > 0.0)

    def on_grid(factor: np.ndarray) -> jax.Array:
        factor = np.broadcast_to(factor, (1,) * (w.ndim - 2) + k.square.shape)
        return jnp.fft.irfft2(w * jnp.asarray(1j * factor, w.dtype), (size, size))

    u, v = on_grid(k.y * inverse), on_grid(-k.x * inverse)  # d psi / dy and -d psi / dx
    return u * on_grid(k.x) + v * on_grid(k.y)


def refine(u: Float[Array, "... N"], factor: int) -> Float[Array, "... M"]:
    """Returns the trigonometric interpolant of periodic values at `factor` times as many points."""
    num = u.shape[-1]
    v = jnp.fft.rfft(u)
    if num % 2 == 0 and factor > 1:  # half of the Nyquist mode belongs to the negative frequency
        v = v.at[..., -1].multiply(0.5)
    return factor * jnp.fft.irfft(v, factor * num)


def _check_dtype(x: jax.Array, name: str) -> None:
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"{name} must be float32 or float64, got {x.dtype}")

"""Fields that obey a law, made as NumPy and SciPy make them: batches where they have batches."""

from collections.abc import Callable

import numpy as np
import scipy.fft
import scipy.sparse
import scipy.sparse.linalg

from jaxlab.physics import elliptic, random_fields, spectral


def poisson_fields(white: np.ndarray) -> np.ndarray:
    """Returns `[N, S, S, 2]` sources and solutions of `[N, S, S]` normal numbers, by fast sines."""
    size = white.shape[-1]
    f = _random_fields(white)
    m = np.arange(1, size - 1)
    one = -4.0 * (size - 1) ** 2 * np.sin(0.5 * np.pi * m / (size - 1)) ** 2
    along = np.asarray(scipy.fft.dstn(f[:, 1:-1, 1:-1], type=1, axes=(-2, -1)))
    u = np.asarray(scipy.fft.idstn(along / (one[:, None] + one), type=1, axes=(-2, -1)))
    u = np.pad(u, ((0, 0), (1, 1), (1, 1)))
    return np.stack([f, u], axis=-1)


def darcy_fields(white: np.ndarray) -> np.ndarray:
    """Returns `[N, S, S, 2]` coefficients and solutions, a sparse factorization for each."""
    size = white.shape[-1]
    g = _random_fields(white)
    to_nodes, to_cells = elliptic.splines(size)
    made = []
    for a in np.where(g >= 0.0, 12.0, 3.0):
        u = np.zeros((size, size))
        u[1:-1, 1:-1] = _darcy_inner(np.clip(to_nodes @ a @ to_nodes.T, a.min(), a.max()))
        made.append(np.stack([a, to_cells @ u @ to_cells.T], axis=-1))
    return np.stack(made)


def burgers_fields(u0: np.ndarray, *, num_times: int, substeps: int = 4) -> np.ndarray:
    """Returns `[N, T, S]` solutions of Burgers' equation from `[N, S]` starts, by ETDRK4."""
    size = u0.shape[-1]
    k = 2.0 * np.pi * np.arange(size // 2 + 1)
    slope = np.where(np.arange(size // 2 + 1) < size // 2, -0.5j * k, 0.0)

    def nonlinear(v: np.ndarray) -> np.ndarray:
        return slope * np.fft.rfft(np.fft.irfft(v, size) ** 2)

    states = _integrate(
        -0.01 * k**2, nonlinear, np.fft.rfft(u0), num_times, substeps, 1.0 / (num_times - 1)
    )
    return np.moveaxis(np.fft.irfft(states, size), 0, -2)


def kolmogorov_frames(
    w0: np.ndarray, *, reynolds: float, num_frames: int, substeps: int = 8
) -> np.ndarray:
    """Returns `[N, F, S, S]` frames of the forced flow, 1/32 apart, by ETDRK4."""
    size = w0.shape[-1]
    kx = np.fft.fftfreq(size, 1.0 / size)[:, None]
    ky = np.fft.rfftfreq(size, 1.0 / size)[None, :]
    square = kx**2 + ky**2
    x, y = (1j * np.where(np.abs(k) < size / 2.0, k, 0.0) for k in (kx, ky))  # odd derivatives
    inverse = 1.0 / np.where(square > 0.0, square, np.inf)
    kept = (np.abs(kx) < size / 3.0) & (ky < size / 3.0)
    force = np.fft.rfft2(
        np.broadcast_to(-4.0 * np.cos(8.0 * np.pi * np.arange(size) / size), (size, size))
    )

    def back(v: np.ndarray) -> np.ndarray:
        return np.fft.irfft2(v, (size, size))

    def nonlinear(v: np.ndarray) -> np.ndarray:
        psi = inverse * v
        carried = back(y * psi) * back(x * v) - back(x * psi) * back(y * v)
        return force - kept * np.fft.rfft2(carried)

    linear = -square / reynolds - 0.1
    states = _integrate(linear, nonlinear, np.fft.rfft2(w0), num_frames, substeps, 1.0 / 32.0)
    return np.moveaxis(back(states), 0, -3)


def _random_fields(white: np.ndarray) -> np.ndarray:
    std = random_fields.grf2d_std(white.shape[-1])
    return np.asarray(scipy.fft.idctn(std * white, axes=(-2, -1), norm="ortho"))


def _darcy_inner(a: np.ndarray) -> np.ndarray:
    """Solves -div(a grad u) = 1 at the interior nodes, by fluxes between nodes."""
    size = a.shape[0]
    num, rows = size - 2, np.arange((size - 2) ** 2).reshape(size - 2, size - 2)
    steps = (size - 1) ** 2
    faces = {
        (1, 0): 0.5 * (a[1:-1, 1:-1] + a[2:, 1:-1]) * steps,
        (-1, 0): 0.5 * (a[1:-1, 1:-1] + a[:-2, 1:-1]) * steps,
        (0, 1): 0.5 * (a[1:-1, 1:-1] + a[1:-1, 2:]) * steps,
        (0, -1): 0.5 * (a[1:-1, 1:-1] + a[1:-1, :-2]) * steps,
    }
    i, j, x = [rows.ravel()], [rows.ravel()], [np.sum(list(faces.values()), axis=0).ravel()]
    for (down, across), face in faces.items():
        here = (
            slice(max(-down, 0), num - max(down, 0)),
            slice(max(-across, 0), num - max(across, 0)),
        )
        there = (
            slice(max(down, 0), num + min(down, 0)),
            slice(max(across, 0), num + min(across, 0)),
        )
        i.append(rows[here].ravel())
        j.append(rows[there].ravel())
        x.append(-face[here].ravel())
    matrix = scipy.sparse.csc_array(
        (np.concatenate(x), (np.concatenate(i), np.concatenate(j))), shape=(num**2, num**2)
    )
    return np.asarray(scipy.sparse.linalg.spsolve(matrix, np.ones(num**2))).reshape(num, num)


def _integrate(
    linear: np.ndarray,
    nonlinear: Callable[[np.ndarray], np.ndarray],
    v: np.ndarray,
    num_outputs: int,
    substeps: int,
    gap: float,
) -> np.ndarray:
    """Returns `num_outputs` states of dv/dt = L v + N(v), `gap` apart, the start included."""
    c = spectral.make_integrator(linear, gap / substeps)
    states = [v]
    for _ in range(num_outputs - 1):
        for _ in range(substeps):
            n_v = nonlinear(v)
            a = c.half * v + c.stage * n_v
            n_a = nonlinear(a)
            b = c.half * v + c.stage * n_a
            n_b = nonlinear(b)
            last = nonlinear(c.half * a + c.stage * (2.0 * n_b - n_v))
            v = c.whole * v + c.first * n_v + c.middle * (n_a + n_b) + c.last * last
        states.append(v)
    return np.stack(states)

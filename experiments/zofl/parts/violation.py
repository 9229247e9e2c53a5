"""How far from feasible the iterates are: the floor under noise, and the bound over time.

The predictions are derived: a transient (1 - a)^t, a floor sigma sqrt(a / (2 - a)) from value
noise, and a drift eta^2 L ||F||^2 / (2 a) from curvature. With z the error of the measured
derivatives, Var z = sigma^2 / (2 u^2) per direction for central differences along unit vectors, the
velocity misses J F = -K h by about ||F|| z.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.drawing import COLORS, INK
from experiments.harness.result import Figure, Part, Row, Table
from experiments.zofl import Config, published
from jaxlab.zeroth_order import kkt, method, noise, problem, profiles, zofl
from jaxlab.zeroth_order.problem import Problem, exact_of
from jaxlab.zeroth_order.problems import high_dimensional
from jaxlab.zeroth_order.settings import ZOFLConfig

A_GRID = (0.05, 0.1, 0.2, 0.5, 1.0, 1.5)
DEVIATIONS = 4.0
"""Standard deviations of noise that the envelope allows for."""
MOST_BELOW = 0.999
"""Share of points below an envelope that counts as all: errors of derivatives are multiplied by a
velocity that they are part of, so that their tails are longer than those of a normal."""
CLOSE = 0.05


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures the floor under noise, and the violation of many runs below its bound."""
    with jax.enable_x64(True):
        floor, envelope = floor_part(config), envelope_part(config, out)
    return Part(floor.rows + envelope.rows, envelope.figures, floor.tables)


class Floor(NamedTuple):
    """Standard deviation of the constraints of stationary chains, `[len(A_GRID)]` each.

    Attributes:
        measured: of h_i at the iterates, noise free.
        predicted: sigma sqrt(a / (2 - a)), and the errors of derivatives added.
    """

    measured: np.ndarray
    predicted: np.ndarray


def affine_problem(key: jax.Array, *, n: int = 8, m: int = 2) -> Problem:
    """Builds min ||x - z||^2 / 2 subject to A x = A z, which starts at its solution z."""
    key_A, key_z = jax.random.split(key)
    A = jax.random.normal(key_A, (m, n)) / n**0.5
    z = jax.random.normal(key_z, (n,))

    def fun(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return 0.5 * jnp.sum((x - z) ** 2), A @ (x - z)

    return problem.make_problem(fun, z, m_eq=m, name="affine")


def noise_floor(
    key: jax.Array,
    *,
    sigma: float,
    u: float,
    eta: float = 0.1,
    num_chains: int = 64,
    num_steps: int = 800,
) -> Floor:
    """Measures the floor under value noise `sigma` for every a of `A_GRID`."""
    key_problem, key = jax.random.split(key)
    plain = affine_problem(key_problem)
    noisy = noise.with_noise(plain, sigma)

    def follow(key: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
        algorithm = zofl.make_zofl(
            noisy, ZOFLConfig(eta=eta, gain=a, u=u, kind="coordinate", control=False)
        )
        h, speed = method.run(
            algorithm,
            key,
            num_steps=num_steps,
            observe=lambda state: (exact_of(plain)(state.next_x)[1], state.extras["zo/velocity"]),
        )[1]
        late = num_steps // 4
        return jnp.mean(h[late:] ** 2), jnp.mean(speed[late:] ** 2)

    over_a = jax.vmap(follow, in_axes=(None, 0))
    keys = jax.random.split(key, num_chains)
    squares, speeds = jax.device_get(
        jax.jit(jax.vmap(over_a, in_axes=(0, None)))(keys, jnp.asarray(A_GRID))
    )
    a = np.asarray(A_GRID)
    derivative = eta**2 * speeds.mean(axis=0) * sigma**2 / (2.0 * u**2)
    values = np.array([profiles.noise_floor(sigma, gain) for gain in A_GRID])
    predicted = np.sqrt(values**2 + derivative / (a * (2.0 - a)))
    return Floor(np.sqrt(squares.mean(axis=0)), predicted)


def floor_part(config: Config) -> Part:
    """Measures the noise floor of affine constraints against its formula."""
    key, sigma = jax.random.key(config.seed), 1e-2
    # A radius so large that derivatives are exact (everything here is affine or quadratic).
    values = noise_floor(key, sigma=sigma, u=100.0)
    both = noise_floor(key, sigma=sigma, u=0.1)
    a = np.asarray(A_GRID)
    formula = sigma * np.sqrt(a / (2.0 - a))
    off = float(np.max(np.abs(values.measured / formula - 1.0)))
    off_both = float(np.max(np.abs(both.measured / both.predicted - 1.0)))
    claim = "Noise floor of a constraint: std(h) = sigma sqrt(a / (2 - a))"
    ratio = float(values.measured[3] / values.measured[1])
    rows = (
        Row(
            claim,
            "Largest relative deviation over a = 0.05 to 1.5, exact derivatives",
            off,
            verdict="reproduced" if off < CLOSE else "not reproduced",
            note=f"Affine constraints, sigma = {sigma}, 64 chains x 600 steps.",
        ),
        Row(
            claim,
            "Floor at a = 0.5 over that at a = 0.1",
            ratio,
            paper=published.FLOOR_RATIO,
            verdict="reproduced"
            if abs(ratio / published.FLOOR_RATIO - 1.0) < CLOSE
            else "not reproduced",
        ),
        Row(
            "Noise floor with measured derivatives: eta^2 sigma^2 E||F||^2 / (2 u^2) adds to the "
            "variance",
            "Largest relative deviation over a = 0.05 to 1.5, u = 0.1",
            off_both,
            verdict="reproduced" if off_both < 2.0 * CLOSE else "not reproduced",
            note="eta = 0.1. The second term is the e of the violation bound, made explicit here.",
        ),
    )
    table = Table(
        "Noise floor of affine constraints, in units of sigma",
        (
            "a",
            "sqrt(a / (2 - a))",
            "Measured, exact derivatives",
            "Predicted, u = 0.1",
            "Measured, u = 0.1",
        ),
        tuple(
            tuple(float(f"{value:.4g}") for value in row)
            for row in zip(
                a,
                formula / sigma,
                values.measured / sigma,
                both.predicted / sigma,
                both.measured / sigma,
                strict=True,
            )
        ),
        f"sigma = {sigma}, eta = 0.1, n = 8, two constraints, differences along the axes.",
    )
    return Part(rows, tables=(table,))


def envelope_part(config: Config, out: pathlib.Path) -> Part:
    """Measures violation over time under its bound: transient, curvature drift and noise floor."""
    n, eta, a, u, num_steps = 10, 0.05, 0.2, 0.1, 120
    key_problem, key = jax.random.split(jax.random.key(config.seed))
    sphere = high_dimensional.sphere(n, key_problem)
    away = sphere._replace(x0=1.5 * sphere.x0)
    num_seeds = max(16, config.num_seeds)

    def follow(key: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        noisy = noise.with_noise(away, sigma)
        algorithm = zofl.make_zofl(noisy, ZOFLConfig(eta=eta, gain=a, u=u, B=5, control=False))
        return method.run(
            algorithm,
            key,
            num_steps=num_steps,
            observe=lambda state: (
                kkt.max_violation(exact_of(away)(state.next_x)[1], 1),
                state.extras["zo/velocity"],
            ),
        )[1]

    sigmas = np.asarray([0.0, 1e-3, 1e-2])
    over_seeds = jax.vmap(follow, in_axes=(0, None))
    found, speed = jax.device_get(
        jax.jit(jax.vmap(over_seeds, in_axes=(None, 0)))(
            jax.random.split(key, num_seeds), jnp.asarray(sigmas)
        )
    )  # [sigma, seed, T]
    start = float(kkt.max_violation(exact_of(away)(away.x0)[1], 1))
    found = np.concatenate([np.full((*found.shape[:2], 1), start), found], axis=2)
    transient = np.asarray(profiles.violation_envelope(jnp.asarray([start]), a, num_steps))[:, 0]
    panels, held, tight = {}, [], []
    for sigma, violation, velocity in zip(sigmas, found, speed, strict=True):
        fastest = velocity.max(axis=0) ** 2  # of any seed, at every step
        # The Hessian of ||x||^2 - 1 is 2 I: a step drifts by eta^2 ||F||^2.
        drift = _fading(eta**2 * fastest, 1.0 - a)
        noise_power = a**2 * sigma**2 + eta**2 * fastest * sigma**2 / (2.0 * u**2)
        floor = drift + DEVIATIONS * np.sqrt(_fading(noise_power, (1.0 - a) ** 2))
        bound = transient + floor
        panels[f"σ = {sigma:g}"] = (violation, bound, transient)
        held.append(float((violation <= bound[None] * (1.0 + 1e-6) + 1e-12).mean()))
        tight.append(float(np.max(violation[:, 1:] / bound[None, 1:])))
    draw_envelopes(
        out / "envelope.png",
        panels,
        xlabel="step",
        ylabel="|h(x)|",
        title="Violation of the sphere constraint and its bound",
    )
    caption = (
        "Violation against steps from an infeasible start, sphere in 10 dimensions, 5 random "
        f"directions, a = {a}: median and range over {num_seeds} seeds, the transient (1 - a)^t, "
        "and the bound, which adds the drift of the fastest seed and four standard deviations of "
        "the noise, both forgotten at the rate 1 - a."
    )
    rows = tuple(
        Row(
            "Finite-time violation bound: transient (1 - a)^t, curvature drift, noise floor",
            f"Share of seeds and steps below the bound, sigma = {sigma:g}",
            100.0 * share,
            paper=100.0,
            unit="%",
            verdict="reproduced" if share >= MOST_BELOW else "not reproduced",
            note=f"{num_seeds} seeds x {num_steps} steps; at its tightest the violation is "
            f"{most:.2f} of the bound. The constants are the suite's.",
        )
        for sigma, share, most in zip(sigmas, held, tight, strict=True)
    )
    return Part(rows, (Figure("envelope.png", caption, caption),))


def draw_envelopes(
    path: pathlib.Path,
    panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    *,
    xlabel: str,
    ylabel: str,
    title: str,
) -> None:
    """Draws violation against time, one panel each: median, range over seeds, and the bound.

    Args:
        panels: by title, `(violation [seeds, T], bound [T], transient [T])`.
    """
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(2.7 * len(panels) + 0.6, 3.9),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, (violation, bound, transient)) in zip(
            axes[0], panels.items(), strict=True
        ):
            t = np.arange(violation.shape[1])
            low, middle, high = np.quantile(violation, [0.0, 0.5, 1.0], axis=0)
            axis.fill_between(
                t, low, high, color=COLORS[0], alpha=0.22, lw=0, label="range over seeds"
            )
            axis.plot(t, middle, color=COLORS[0], lw=1.5, label="median")
            axis.plot(t, bound, color=COLORS[1], lw=1.6, label="bound: transient + floor")
            axis.plot(t, transient, color=INK, lw=1.2, ls=(0, (4, 1.5)), label="(1 − a)ᵗ |h(x₀)|")
            axis.set_yscale("log")
            axis.set_title(name)
            axis.set_xlabel(xlabel)
        axes[0, 0].set_ylabel(ylabel)
        axes[0, 0].set_ylim(bottom=1e-6)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        drawing.legend(figure)
        drawing.save(figure, path)


def _fading(added: np.ndarray, factor: float) -> np.ndarray:
    """Returns y `[T + 1]` with y_0 = 0 and y_(t+1) = factor y_t + added_t."""
    total = [0.0]
    for value in added:
        total.append(factor * total[-1] + float(value))
    return np.asarray(total)

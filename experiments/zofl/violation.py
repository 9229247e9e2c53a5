"""How far from feasible the iterates are: noise floor, envelope, and what each estimator leaks.

The predictions are those of the suite: a transient (1 - a)^t, a floor sigma sqrt(a / (2 - a)) from
value noise, a drift eta^2 L ||F||^2 / (2 a) from curvature, and the inflation of plug-in Gram
matrices. With z the error of the measured derivatives, Var z = sigma^2 / (2 u^2) per direction for
central differences along unit vectors, the velocity misses J F = -K h by about ||F|| z.
"""

import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.result import Figure, Row, Table
from experiments.zofl import pictures
from experiments.zofl.published import Part
from jaxlab.zeroth_order import direction_sets, kkt, method, noise, problem, profiles, zofl
from jaxlab.zeroth_order.problem import Problem
from jaxlab.zeroth_order.problems import high_dimensional, hock_schittkowski
from jaxlab.zeroth_order.settings import ZOFLConfig

A_GRID = (0.05, 0.1, 0.2, 0.5, 1.0, 1.5)
LEAKS = ("HS6", "HS40", "HS42", "HS77", "HS78", "HS79", "HS43", "HS113")
DEVIATIONS = 4.0
"""Standard deviations of noise that the envelope allows for."""
MOST_BELOW = 0.999
"""Share of points below an envelope that counts as all: errors of derivatives are multiplied by a
velocity that they are part of, so that their tails are longer than those of a normal."""
CLOSE = 0.05
NEGLIGIBLE = 1e-10
"""Violations below it are rounding: their ratio says nothing."""


def parts(config: Any, out: pathlib.Path) -> tuple[Part, ...]:
    """Everything of this module."""
    return (
        floor_part(config),
        envelope_part(config, out),
        inflation_part(config),
        leakage_part(config),
    )


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
        algorithm = zofl.make_zofl(noisy, ZOFLConfig(eta=eta, gain=a, u=u, kind="coordinate"))
        h, speed = method.run(
            algorithm,
            key,
            num_steps=num_steps,
            observe=lambda state: (plain.exact(state.x)[1], state.extras["zo/velocity"]),
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


def floor_part(config: Any) -> Part:
    """The noise floor of affine constraints against its formula."""
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
            paper=2.5,
            verdict="reproduced" if abs(ratio / 2.5 - 1.0) < CLOSE else "not reproduced",
        ),
        Row(
            "Noise floor with measured derivatives: eta^2 sigma^2 E||F||^2 / (2 u^2) adds to the "
            "variance",
            "Largest relative deviation over a = 0.05 to 1.5, u = 0.1",
            off_both,
            verdict="reproduced" if off_both < 2.0 * CLOSE else "not reproduced",
            note="eta = 0.1. The second term is the card's e of the violation bound, made explicit "
            "here.",
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
    return rows, (table,), ()


def envelope_part(config: Any, out: pathlib.Path) -> Part:
    """Violation against time under the bound of transient, curvature drift and noise floor."""
    n, eta, a, u, num_steps = 10, 0.05, 0.2, 0.1, 120
    key_problem, key = jax.random.split(jax.random.key(config.seed))
    sphere = high_dimensional.sphere(n, key_problem)
    away = sphere._replace(x0=1.5 * sphere.x0)
    num_seeds = max(16, config.num_seeds)

    def follow(key: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        noisy = noise.with_noise(away, sigma)
        algorithm = zofl.make_zofl(noisy, ZOFLConfig(eta=eta, gain=a, u=u, B=5))
        return method.run(
            algorithm,
            key,
            num_steps=num_steps,
            observe=lambda state: (
                kkt.max_violation(away.exact(state.x)[1], 1),
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
    start = float(kkt.max_violation(away.exact(away.x0)[1], 1))
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
    pictures.envelopes(
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
    return rows, (), (Figure("envelope.png", caption, caption),)


def _usual_violation(
    test: Problem, options: ZOFLConfig, keys: jax.Array, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the geometric mean of the violation after a fifth of the run, and if it diverged."""

    def follow(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, violations = method.run(
            zofl.make_zofl(test, options),
            key,
            num_steps=num_steps,
            observe=lambda state: kkt.max_violation(test.exact(state.x)[1], test.m_eq),
        )
        kept = violations[num_steps // 5 :]
        lost = (state.status != method.RUNNING) | ~(jnp.max(kept) < 1e3)
        return jnp.exp(jnp.mean(jnp.log(jnp.maximum(kept, NEGLIGIBLE)))), lost

    return jax.device_get(jax.jit(jax.vmap(follow))(keys))


def _fading(added: np.ndarray, factor: float) -> np.ndarray:
    """Returns y `[T + 1]` with y_0 = 0 and y_(t+1) = factor y_t + added_t."""
    total = [0.0]
    for value in added:
        total.append(factor * total[-1] + float(value))
    return np.asarray(total)


def inflation_part(config: Any) -> Part:
    """Gram inflation of plug-in Jacobians, by Monte Carlo and by formula."""
    n, m, num_draws = 12, 3, 40_000
    key_J, key = jax.random.split(jax.random.key(config.seed))
    J = jax.random.normal(key_J, (m, n))
    gram = J @ J.T
    cells, worst = [], 0.0
    for kind in ("sphere", "gaussian", "orthonormal", "block", "rademacher"):
        for B in (4, n):

            def draw(key: jax.Array, kind: str = kind, B: int = B) -> jax.Array:
                S, c = direction_sets.directions(key, n, B, kind, J.dtype)  # pyright: ignore
                estimated = c * (J @ S) @ S.T
                return estimated @ estimated.T

            draws = jax.jit(jax.vmap(draw))(jax.random.split(key, num_draws))
            factor = np.asarray(jnp.trace(draws, axis1=1, axis2=2) / jnp.trace(gram))
            mean, error = float(factor.mean()), float(factor.std() / math.sqrt(num_draws))
            shape_off = float(jnp.max(jnp.abs(draws.mean(0) / mean - gram)) / jnp.max(gram))
            due = None
            if kind != "rademacher":
                due = direction_sets.gram_inflation(n, B, kind)  # pyright: ignore
                worst = max(worst, abs(mean - due) / max(error, 1e-12 * due))
            cells.append(
                (
                    kind,
                    B,
                    due or "–",
                    float(f"{mean:.4f}"),
                    float(f"{error:.1e}"),
                    float(f"{shape_off:.1e}"),
                )
            )
    row = Row(
        "The plug-in Gram matrix is inflated: (n+B-1)/B, (n+B+1)/B, n/B",
        "Largest deviation from the formula, in standard errors",
        worst,
        verdict="reproduced" if worst < DEVIATIONS else "not reproduced",
        note=f"Monte Carlo, n = {n}, three constraints, {num_draws:,} draws a set.",
    )
    table = Table(
        "Gram inflation of the plug-in Jacobian",
        ("Directions", "B", "Formula", "Measured", "Standard error", "E[G] / factor vs J J'"),
        tuple(cells),
        f"n = {n}. Last column: largest deviation of the mean Gram matrix, divided by the factor, "
        "from J J', over its largest entry. Rademacher sets have no single factor.",
    )
    return (row,), (table,), ()


def leakage_part(config: Any, *, num_steps: int = 100) -> Part:
    """Violation of plug-in sphere against the subspace form on Hock-Schittkowski problems."""
    keys = jax.random.split(jax.random.key(config.seed), max(8, config.num_seeds))
    cells, ratios, broken = [], [], np.zeros(2, int)
    for name in LEAKS:
        test = hock_schittkowski.hs(name)
        values = {}
        for form, kind in (("subspace", "orthonormal"), ("plugin", "sphere")):
            options = ZOFLConfig(form=form, kind=kind)  # pyright: ignore
            values[form] = _usual_violation(test, options, keys, num_steps)
        (ours, ours_lost), (theirs, theirs_lost) = values["subspace"], values["plugin"]
        lost = ours_lost | theirs_lost
        kept = ~lost
        medians = (
            [float(np.median(v[kept])) for v in (ours, theirs)] if kept.any() else [None, None]
        )
        ratio = medians[1] / medians[0] if kept.any() else None
        cells.append(
            (
                name,
                test.n,
                test.m_eq,
                test.m_ineq,
                *medians,
                ratio,
                int(ours_lost.sum()),
                int(theirs_lost.sum()),
            )
        )
        ratios.append(ratio)
        broken += np.array([ours_lost.sum(), theirs_lost.sum()])
    known = np.sort([ratio for ratio in ratios if ratio is not None])
    row = Row(
        "Subspace form: violation 1e2 to 1e7 times smaller than plug-in sphere at equal queries",
        f"Plug-in over subspace, median over {known.size} problems",
        float(np.median(known)),
        interval=(float(known[0]), float(known[-1])),
        paper="1e2 to 1e7",
        verdict="reproduced" if 1e2 <= np.median(known) and not broken[0] else "not reproduced",
        note=f"Steps {num_steps // 5} to {num_steps}, B = n, default settings; the "
        f"interval is the range over problems, {int((known < 1e2).sum())} of them below 1e2; "
        f"runs that diverged, left out: {broken[0]} subspace and {broken[1]} plug-in of "
        f"{len(LEAKS) * keys.size} each.",
    )
    table = Table(
        "What the plug-in form leaks: violation on Hock-Schittkowski problems",
        (
            "Problem",
            "n",
            "m_E",
            "m_I",
            "Subspace",
            "Plug-in, sphere",
            "Ratio",
            "Subspace runs that diverged",
            "Plug-in runs that diverged",
        ),
        tuple(cells),
        f"Geometric mean of the largest violation over steps {num_steps // 5} to {num_steps}, "
        f"where less than {NEGLIGIBLE:g} counts as that; median of {keys.size} seeds, B = n, "
        "default step and gain, no noise.",
    )
    return (row,), (table,), ()

"""What each estimator leaks into the constraints: inflated Gram matrices, plug-in violations."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.result import Part, Row, Table
from experiments.zofl import Config, published
from jaxlab.zeroth_order import direction_sets, kkt, method, zofl
from jaxlab.zeroth_order.problem import Problem, exact_of
from jaxlab.zeroth_order.problems import hock_schittkowski
from jaxlab.zeroth_order.settings import ZOFLConfig

LEAKS = ("HS6", "HS40", "HS42", "HS77", "HS78", "HS79", "HS43", "HS113")
DEVIATIONS = 4.0
"""Standard errors that a measured inflation may be off."""
KINDS = ("sphere", "gaussian", "orthonormal", "block", "rademacher")
NUM_VARIABLES, NUM_ROWS, NUM_DRAWS = 12, 3, 40_000
"""Size of the Jacobian whose plug-in Gram matrix is measured, and how often it is drawn."""
NEGLIGIBLE = 1e-10
"""Violations below it are rounding: their ratio says nothing."""


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures the inflation of plug-in Gram matrices, and what the plug-in form violates."""
    del out  # no pictures
    with jax.enable_x64(True):
        inflation, leakage = inflation_part(config), leakage_part(config)
    return Part(inflation.rows + leakage.rows, tables=inflation.tables + leakage.tables)


class Inflation(NamedTuple):
    """What Monte Carlo says about one set of directions.

    Attributes:
        factor: Mean of trace(J_hat J_hat') / trace(J J').
        error: Its standard error.
        shape_off: Largest deviation of the mean Gram matrix over `factor` from J J', relative to
            the largest entry of that.
    """

    factor: float
    error: float
    shape_off: float


def measure_inflation(key: jax.Array) -> dict[tuple[str, int], Inflation]:
    """Draws plug-in Jacobians J_hat = c J S S' of a random J, by kind and number of directions."""
    key_J, key = jax.random.split(key)
    J = jax.random.normal(key_J, (NUM_ROWS, NUM_VARIABLES))
    gram = J @ J.T
    keys = jax.random.split(key, NUM_DRAWS)
    found = {}
    for kind in KINDS:
        for B in (4, NUM_VARIABLES):

            def measure(keys: jax.Array, kind: Any = kind, B: int = B) -> tuple[jax.Array, ...]:
                def draw(key: jax.Array) -> jax.Array:
                    S, c = direction_sets.directions(key, NUM_VARIABLES, B, kind, J.dtype)
                    estimated = c * (J @ S) @ S.T
                    return estimated @ estimated.T

                draws = jax.vmap(draw)(keys)
                factors = jnp.trace(draws, axis1=1, axis2=2) / jnp.trace(gram)
                factor, error = jnp.mean(factors), jnp.std(factors) / NUM_DRAWS**0.5
                off = jnp.max(jnp.abs(jnp.mean(draws, axis=0) / factor - gram)) / jnp.max(gram)
                return factor, error, off

            found[kind, B] = Inflation(*map(float, jax.jit(measure)(keys)))
    return found


def inflation_part(config: Config) -> Part:
    """Compares the Gram inflation of plug-in Jacobians with its formula."""
    cells, worst = [], 0.0
    for (kind, B), found in measure_inflation(jax.random.key(config.seed)).items():
        due = None
        if kind != "rademacher":
            due = direction_sets.gram_inflation(NUM_VARIABLES, B, kind)  # pyright: ignore
            worst = max(worst, abs(found.factor - due) / max(found.error, 1e-12 * due))
        digits = (f"{found.factor:.4f}", f"{found.error:.1e}", f"{found.shape_off:.1e}")
        cells.append((kind, B, due or "–", *map(float, digits)))
    row = Row(
        "The plug-in Gram matrix is inflated: (n+B-1)/B, (n+B+1)/B, n/B",
        "Largest deviation from the formula, in standard errors",
        worst,
        verdict="reproduced" if worst < DEVIATIONS else "not reproduced",
        note=f"Monte Carlo, n = {NUM_VARIABLES}, three constraints, {NUM_DRAWS:,} draws a set.",
    )
    table = Table(
        "Gram inflation of the plug-in Jacobian",
        ("Directions", "B", "Formula", "Measured", "Standard error", "E[G] / factor vs J J'"),
        tuple(cells),
        f"n = {NUM_VARIABLES}. Last column: largest deviation of the mean Gram matrix, divided by "
        "the factor, from J J', over its largest entry. Rademacher sets have no single factor.",
    )
    return Part((row,), tables=(table,))


def leakage_part(config: Config, *, num_steps: int = 100) -> Part:
    """Compares what plug-in sphere and the subspace form violate on Hock-Schittkowski problems."""
    keys = jax.random.split(jax.random.key(config.seed), max(8, config.num_seeds))
    cells, ratios, broken = [], [], np.zeros(2, int)
    for name in LEAKS:
        test = hock_schittkowski.hs(name)
        values = {}
        for form, kind in (("subspace", "orthonormal"), ("plugin", "sphere")):
            options = ZOFLConfig(form=form, kind=kind, control=False)  # pyright: ignore
            values[form] = _usual_violation(test, options, keys, num_steps)
        (ours, ours_lost), (theirs, theirs_lost) = values["subspace"], values["plugin"]
        lost = ours_lost | theirs_lost
        kept = ~lost
        medians, ratio = (None, None), None
        if kept.any():
            small, large = (float(np.median(v[kept])) for v in (ours, theirs))
            medians, ratio = (small, large), large / small
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
    below = int((known < published.LEAKAGE).sum())
    row = Row(
        "Subspace form: violation 1e2 to 1e7 times smaller than plug-in sphere at equal queries",
        f"Plug-in over subspace, median over {known.size} problems",
        float(np.median(known)) if known.size else None,
        interval=(float(known[0]), float(known[-1])) if known.size else None,
        paper="1e2 to 1e7",
        verdict="not measured"
        if not known.size
        else "reproduced"
        if published.LEAKAGE <= np.median(known) and not broken[0]
        else "not reproduced",
        note=f"Steps {num_steps // 5} to {num_steps}, B = n, default settings; "
        f"{below} problems are below {published.LEAKAGE:g}; "
        f"runs that diverged, left out: {broken[0]} subspace and {broken[1]} plug-in of "
        f"{len(LEAKS) * keys.size} each.",
        interval_label="range over problems",
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
    return Part((row,), tables=(table,))


def _usual_violation(
    test: Problem, options: ZOFLConfig, keys: jax.Array, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the geometric mean of the violation after a fifth of the run, and if it diverged."""

    def follow(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        state, violations = method.run(
            zofl.make_zofl(test, options),
            key,
            num_steps=num_steps,
            observe=lambda state: kkt.max_violation(exact_of(test)(state.next_x)[1], test.m_eq),
        )
        kept = violations[num_steps // 5 :]
        lost = (state.status >= method.DIVERGED) | ~(jnp.max(kept) < 1e3)
        return jnp.exp(jnp.mean(jnp.log(jnp.maximum(kept, NEGLIGIBLE)))), lost

    return jax.device_get(jax.jit(jax.vmap(follow))(keys))

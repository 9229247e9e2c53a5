"""Control of the step by an l1 merit, at the centers that a probe measures anyway.

With weights mu_i of at least |lam_i| the velocity of feedback linearization descends on

    merit(x) = f(x) + sum_i mu_i violation_i(x),

its Lyapunov function (arXiv:2503.12665, theorems 1 and 4), so a point where the merit is higher
than at the last one says that the step was too long. It is turned down, and the next probe is
taken halfway back: no query is made for the control alone. The ratio of the change of the merit to
the one that the derivatives predict then adapts the step, by the rule of trust regions. With
momentum the merit may rise by what it has fallen before, less a share a step for friction.

Source: the rule of trust regions and its thresholds are those of Nocedal and Wright, Numerical
Optimization, 2nd ed., algorithm 4.1.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.zeroth_order import kkt

GOOD, POOR = 0.75, 0.25
"""Ratios of the change of the merit to the predicted one, above and below which steps adapt."""
GROWTH, SHORTENING = 1.25, 0.5
LEAST = 1e-6
"""Of the two factors."""
MOST_FAILURES = 5
"""Points turned down in a row before the last one that was kept is measured again."""
CONTRADICTION = 1e-2
"""Share of what a step does that may be a violation which it is expected to make worse."""
ROUNDING = 100.0
"""Rounding of a merit, in machine epsilons of its terms."""
FLATTEST = 1e-3
"""Slope of a constraint, in units of |h| / max(1, |x|), below which its price rises no more."""
NOISE = 6.0
"""Rise of a merit, in standard deviations of its noise, that is not taken for one."""


class Control(NamedTuple):
    """What is known of the last point that was kept, and of the step from there.

    Attributes:
        x: `[n]`, the last point that was kept.
        q: `[1 + m]`, stacked values measured there.
        known: bool, whether the next point is judged by them: not before the first, nor where the
            constraints contradict each other, whose compromise is no descent.
        expected: `[1 + m]`, values that its derivatives predict at the point to be measured next.
        weights: `[m]`, mu, the price of a violation there.
        budget: `()`, rise of the merit that is allowed: what momentum has gained.
        scale: `()`, factor on the step eta.  pull: `()`, factor on the decay rates K. They are
            adapted from step to step: the first where most of what a step gains is to be a lower
            f, the second where it is less violation.
        reach: `()`, share of the displacement that is made; it is halved when a point is turned
            down, and doubled again, up to 1, when one is kept.
        failures: int32, points turned down since one was kept. After `MOST_FAILURES` of them the
            next is `x` itself: its values may have been lucky, or its direction uphill.
    """

    x: Float[Array, " n"]
    q: Float[Array, " d"]
    known: Bool[Array, ""]
    expected: Float[Array, " d"]
    weights: Float[Array, " m"]
    budget: Float[Array, ""]
    scale: Float[Array, ""]
    pull: Float[Array, ""]
    reach: Float[Array, ""]
    failures: Int[Array, ""]


def start(x0: Float[Array, " n"], m: int) -> Control:
    """Returns the control of a run whose start is yet to be measured."""
    one, unknown = jnp.ones((), x0.dtype), jnp.zeros((1 + m,), x0.dtype)
    return Control(
        x=x0,
        q=unknown,
        known=jnp.asarray(False),
        expected=unknown,
        weights=jnp.zeros((m,), x0.dtype),
        budget=0.0 * one,
        scale=one,
        pull=one,
        reach=one,
        failures=jnp.asarray(0, jnp.int32),
    )


def judge(
    control: Control,
    q: Float[Array, " d"],
    m_eq: int,
    *,
    sigma: float | Array,
    most: float | Array,
    friction: float | Array,
) -> tuple[Bool[Array, ""], Control]:
    """Says whether a point is kept, and adapts the step.

    Args:
        control: what the last point left.
        q: `[1 + m]`, values measured at the new point.
        m_eq: number of equalities.
        sigma: standard deviation of the noise on every value.
        most: largest factor on the step; 1 forbids that it grows beyond the one given.
        friction: share of the budget that is lost in a step, 1 without momentum.

    Returns:
        `(kept, control)`, the control still of the last point; if the new one is kept, `follow` is
        to move it there.
    """
    last = jnp.where(control.known, control.q, q)
    expected = jnp.where(control.known, control.expected, q)

    def price(q: Array) -> Array:
        return control.weights @ kkt.violation(q[1:], m_eq)

    def merit(q: Array) -> Array:
        return q[0] + price(q)

    eps = float(jnp.finfo(q.dtype).eps)
    terms = jnp.abs(last) + jnp.abs(q)
    rounding = ROUNDING * eps * (terms[0] + control.weights @ terms[1:])
    noise = NOISE * jnp.asarray(sigma, q.dtype) * jnp.sqrt(1.0 + jnp.sum(control.weights**2))
    doubt = rounding + noise
    rise, predicted = merit(q) - merit(last), merit(last) - merit(expected)
    worse = rise > doubt + control.budget
    kept = ~worse | (control.failures >= MOST_FAILURES)

    telling = predicted > doubt
    poor = worse | (telling & (-rise < POOR * predicted))
    good = telling & (-rise > GOOD * predicted) & (control.reach == 1.0)
    factor = jnp.where(poor, SHORTENING, jnp.where(good, GROWTH, 1.0))
    pulled = price(last) - price(expected) > 0.5 * predicted
    return kept, control._replace(
        expected=jnp.where(kept, expected, last + SHORTENING * (expected - last)),
        budget=jnp.where(
            kept, (1.0 - friction) * jnp.maximum(0.0, control.budget - rise), control.budget
        ),
        scale=jnp.clip(jnp.where(pulled, 1.0, factor) * control.scale, LEAST, most),
        pull=jnp.clip(jnp.where(pulled, factor, 1.0) * control.pull, LEAST, 1.0),
        reach=jnp.where(kept, jnp.minimum(1.0, 2.0 * control.reach), 0.5 * control.reach),
        failures=jnp.where(kept, 0, control.failures + 1),
    )


def step_back(control: Control, x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Returns the point to measure after x was turned down: halfway back, in the end all the way.

    Args:
        control: from `judge`.  x: `[n]`, the point that was turned down.
    """
    tired = control.failures >= MOST_FAILURES
    return jnp.where(tired, control.x, control.x + SHORTENING * (x - control.x))


def follow(
    control: Control,
    x: Float[Array, " n"],
    q: Float[Array, " d"],
    change: Float[Array, " d"],
    lam: Float[Array, " m"],
    D: Float[Array, "d B"],
    m_eq: int,
) -> Control:
    """Moves the control to a point that was kept.

    Args:
        control: from `judge`.
        x: `[n]`, the point.  q: `[1 + m]`, values measured there.
        change: `[1 + m]`, change of the values that their derivatives predict for the step.
        lam: `[m]`, multiplier there.
        D: `[1 + m, B]`, derivatives along the directions.  m_eq: number of equalities.
    """
    # A constraint without a multiplier has a price too, its share of the slope of f: a step must
    # not buy a lower f with a violation that nobody has asked about yet.
    slopes = jnp.linalg.norm(D, axis=1)
    flattest = FLATTEST * jnp.abs(q[1:]) / jnp.maximum(1.0, jnp.linalg.norm(x))
    steepness = jnp.maximum(slopes[1:], flattest)
    share = slopes[0] / jnp.where(steepness > 0.0, steepness, jnp.inf)
    weights = jnp.maximum(1.1 * jnp.abs(lam), share)
    expected = q + change
    less = kkt.violation(q[1:], m_eq) - kkt.violation(expected[1:], m_eq)
    # Only constraints that contradict each other make one of them worse to first order.
    harm, good = weights @ jnp.maximum(-less, 0.0), weights @ jnp.maximum(less, 0.0)
    known = harm <= CONTRADICTION * (good + jnp.abs(change[0]))
    return control._replace(x=x, q=q, known=known, expected=expected, weights=weights)

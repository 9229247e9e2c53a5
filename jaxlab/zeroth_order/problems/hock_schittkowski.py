"""Fifteen small constrained test problems of Hock and Schittkowski with their optima.

Source: Hock and Schittkowski, Test Examples for Nonlinear Programming Codes (1981), by its numbers.
Equalities come first; an inequality that the book writes as g(x) >= 0 is here -g(x) <= 0.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.zeroth_order.problem import Problem, make_problem

Value = tuple[Float[Array, ""], Float[Array, " m"]]


def hs(name: str) -> Problem:
    """Returns problem `name` of the collection.

    The start is the book's, feasible or not. `f_star` and `x_star` hold to double precision. HS40
    and HS78 have mirror images of that minimizer, with signs changed, and HS26 has a second one.
    HS26 is degenerate: along the constraint its objective grows with the fourth power only, so that
    a value of 1e-16 leaves an error of 1e-4 in x.

    Args:
        name: one of `HS_NAMES`.

    Raises:
        ValueError: if there is no such problem here.
    """
    if name not in _TABLE:
        raise ValueError(f"name must be one of {', '.join(HS_NAMES)}, got {name!r}")
    entry = _TABLE[name]
    return make_problem(
        entry.fun,
        jnp.asarray(entry.x0, float),
        m_eq=entry.m_eq,
        lower=entry.lower,
        upper=entry.upper,
        f_star=entry.f_star,
        x_star=jnp.asarray(entry.x_star, float),
        name=name,
    )


def _hs6(x: Array) -> Value:
    x1, x2 = x
    return (1 - x1) ** 2, jnp.stack([10 * (x2 - x1**2)])


def _hs7(x: Array) -> Value:
    x1, x2 = x
    return jnp.log1p(x1**2) - x2, jnp.stack([(1 + x1**2) ** 2 + x2**2 - 4])


def _hs12(x: Array) -> Value:
    x1, x2 = x
    f = 0.5 * x1**2 + x2**2 - x1 * x2 - 7 * x1 - 7 * x2
    return f, jnp.stack([4 * x1**2 + x2**2 - 25])


def _hs26(x: Array) -> Value:
    x1, x2, x3 = x
    return (x1 - x2) ** 2 + (x2 - x3) ** 4, jnp.stack([(1 + x2**2) * x1 + x3**4 - 3])


def _hs28(x: Array) -> Value:
    x1, x2, x3 = x
    return (x1 + x2) ** 2 + (x2 + x3) ** 2, jnp.stack([x1 + 2 * x2 + 3 * x3 - 1])


def _hs39(x: Array) -> Value:
    x1, x2, x3, x4 = x
    return -x1, jnp.stack([x2 - x1**3 - x3**2, x1**2 - x2 - x4**2])


def _hs40(x: Array) -> Value:
    x1, x2, x3, x4 = x
    h = jnp.stack([x1**3 + x2**2 - 1, x1**2 * x4 - x3, x4**2 - x2])
    return -x1 * x2 * x3 * x4, h


def _hs42(x: Array) -> Value:
    x1, x2, x3, x4 = x
    f = (x1 - 1) ** 2 + (x2 - 2) ** 2 + (x3 - 3) ** 2 + (x4 - 4) ** 2
    return f, jnp.stack([x1 - 2, x3**2 + x4**2 - 2])


def _hs43(x: Array) -> Value:
    x1, x2, x3, x4 = x
    f = x1**2 + x2**2 + 2 * x3**2 + x4**2 - 5 * x1 - 5 * x2 - 21 * x3 + 7 * x4
    h = [
        x1**2 + x2**2 + x3**2 + x4**2 + x1 - x2 + x3 - x4 - 8,
        x1**2 + 2 * x2**2 + x3**2 + 2 * x4**2 - x1 - x4 - 10,
        2 * x1**2 + x2**2 + x3**2 + 2 * x1 - x2 - x4 - 5,
    ]
    return f, jnp.stack(h)


def _hs71(x: Array) -> Value:
    x1, x2, x3, x4 = x
    h = [x1**2 + x2**2 + x3**2 + x4**2 - 40, 25 - x1 * x2 * x3 * x4]
    return x1 * x4 * (x1 + x2 + x3) + x3, jnp.stack(h)


def _hs77(x: Array) -> Value:
    x1, x2, x3, x4, x5 = x
    f = (x1 - 1) ** 2 + (x1 - x2) ** 2 + (x3 - 1) ** 2 + (x4 - 1) ** 4 + (x5 - 1) ** 6
    h = [x1**2 * x4 + jnp.sin(x4 - x5) - 2 * math.sqrt(2), x2 + x3**4 * x4**2 - 8 - math.sqrt(2)]
    return f, jnp.stack(h)


def _hs78(x: Array) -> Value:
    x1, x2, x3, x4, x5 = x
    h = [x1**2 + x2**2 + x3**2 + x4**2 + x5**2 - 10, x2 * x3 - 5 * x4 * x5, x1**3 + x2**3 + 1]
    return x1 * x2 * x3 * x4 * x5, jnp.stack(h)


def _hs79(x: Array) -> Value:
    x1, x2, x3, x4, x5 = x
    f = (x1 - 1) ** 2 + (x1 - x2) ** 2 + (x2 - x3) ** 2 + (x3 - x4) ** 4 + (x4 - x5) ** 4
    h = [
        x1 + x2**2 + x3**3 - 2 - 3 * math.sqrt(2),
        x2 - x3**2 + x4 + 2 - 2 * math.sqrt(2),
        x1 * x5 - 2,
    ]
    return f, jnp.stack(h)


def _hs100(x: Array) -> Value:
    x1, x2, x3, x4, x5, x6, x7 = x
    f = (
        (x1 - 10) ** 2
        + 5 * (x2 - 12) ** 2
        + x3**4
        + 3 * (x4 - 11) ** 2
        + 10 * x5**6
        + 7 * x6**2
        + x7**4
        - 4 * x6 * x7
        - 10 * x6
        - 8 * x7
    )
    h = [
        2 * x1**2 + 3 * x2**4 + x3 + 4 * x4**2 + 5 * x5 - 127,
        7 * x1 + 3 * x2 + 10 * x3**2 + x4 - x5 - 282,
        23 * x1 + x2**2 + 6 * x6**2 - 8 * x7 - 196,
        4 * x1**2 + x2**2 - 3 * x1 * x2 + 2 * x3**2 + 5 * x6 - 11 * x7,
    ]
    return f, jnp.stack(h)


def _hs113(x: Array) -> Value:
    x1, x2, x3, x4, x5, x6, x7, x8, x9, x10 = x
    f = (
        x1**2
        + x2**2
        + x1 * x2
        - 14 * x1
        - 16 * x2
        + (x3 - 10) ** 2
        + 4 * (x4 - 5) ** 2
        + (x5 - 3) ** 2
        + 2 * (x6 - 1) ** 2
        + 5 * x7**2
        + 7 * (x8 - 11) ** 2
        + 2 * (x9 - 10) ** 2
        + (x10 - 7) ** 2
        + 45
    )
    h = [
        4 * x1 + 5 * x2 - 3 * x7 + 9 * x8 - 105,
        10 * x1 - 8 * x2 - 17 * x7 + 2 * x8,
        -8 * x1 + 2 * x2 + 5 * x9 - 2 * x10 - 12,
        3 * (x1 - 2) ** 2 + 4 * (x2 - 3) ** 2 + 2 * x3**2 - 7 * x4 - 120,
        5 * x1**2 + 8 * x2 + (x3 - 6) ** 2 - 2 * x4 - 40,
        0.5 * (x1 - 8) ** 2 + 2 * (x2 - 4) ** 2 + 3 * x5**2 - x6 - 30,
        x1**2 + 2 * (x2 - 2) ** 2 - 2 * x1 * x2 + 14 * x5 - 6 * x6,
        -3 * x1 + 6 * x2 + 12 * (x9 - 8) ** 2 - 7 * x10,
    ]
    return f, jnp.stack(h)


class _Entry(NamedTuple):
    fun: Callable[[Array], Value]
    m_eq: int
    x0: tuple[float, ...]
    f_star: float
    x_star: tuple[float, ...]
    lower: float | None = None
    upper: float | None = None


# Optima without a closed form: roots of the KKT equations of the active constraints by Newton's
# method in float64, residual below 1e-13.
_TABLE = {
    "HS6": _Entry(_hs6, 1, (-1.2, 1), 0.0, (1, 1)),
    "HS7": _Entry(_hs7, 1, (2, 2), -math.sqrt(3), (0, math.sqrt(3))),
    "HS12": _Entry(_hs12, 0, (0, 0), -30.0, (2, 3)),
    "HS26": _Entry(_hs26, 1, (-2.6, 2, 2), 0.0, (1, 1, 1)),
    "HS28": _Entry(_hs28, 1, (-4, 1, 1), 0.0, (0.5, -0.5, 0.5)),
    "HS39": _Entry(_hs39, 2, (2, 2, 2, 2), -1.0, (1, 1, 0, 0)),
    "HS40": _Entry(
        _hs40,
        3,
        (0.8, 0.8, 0.8, 0.8),
        -0.25,
        (2 ** (-1 / 3), 2 ** (-1 / 2), 2 ** (-11 / 12), 2 ** (-1 / 4)),
    ),
    "HS42": _Entry(
        _hs42,
        2,
        (1, 1, 1, 1),
        28 - 10 * math.sqrt(2),
        (2, 2, 0.6 * math.sqrt(2), 0.8 * math.sqrt(2)),
    ),
    "HS43": _Entry(_hs43, 0, (0, 0, 0, 0), -44.0, (0, 1, 2, -1)),
    "HS71": _Entry(
        _hs71,
        1,
        (1, 5, 5, 1),
        17.014017289156303,
        (1, 4.742999637264417, 3.821149984184874, 1.3794082931726723),
        lower=1.0,
        upper=5.0,
    ),
    "HS77": _Entry(
        _hs77,
        2,
        (2, 2, 2, 2, 2),
        0.24150512879017869,
        (
            1.1661721897092985,
            1.1821113888027044,
            1.3802570431454597,
            1.5060362736230457,
            0.6109201960430908,
        ),
    ),
    "HS78": _Entry(
        _hs78,
        3,
        (-2, 1.5, 2, -1, -1),
        -2.919700408963679,
        (
            -1.7171435703943823,
            1.5957096901835544,
            1.8272457529271946,
            -0.7636430781841304,
            -0.7636430781841304,
        ),
    ),
    "HS79": _Entry(
        _hs79,
        3,
        (2, 2, 2, 2, 2),
        0.07877682087105692,
        (
            1.1911274563110514,
            1.3626031649617423,
            1.4728179315120877,
            1.6350166191679931,
            1.6790814361664075,
        ),
    ),
    "HS100": _Entry(
        _hs100,
        0,
        (1, 2, 0, 4, 0, 1, 1),
        680.630057374402,
        (
            2.33049937287957,
            1.9513723728968888,
            -0.47754139238887167,
            4.365726233655811,
            -0.6244869705268175,
            1.0381310186079584,
            1.5942267116118685,
        ),
    ),
    "HS113": _Entry(
        _hs113,
        0,
        (2, 3, 5, 5, 1, 2, 7, 3, 6, 10),
        24.306209068179804,
        (
            2.1719963712554553,
            2.36368297369728,
            8.77392573847685,
            5.095984487948453,
            0.9906547649638592,
            1.4305739789363159,
            1.3216442081617032,
            9.828725807886322,
            8.280091670098345,
            8.375926663921323,
        ),
    ),
}
HS_NAMES: tuple[str, ...] = tuple(_TABLE)
"""Names of the problems, by their number in the book."""

"""Conditional length-of-stay laws: P(stay > u | admitted on day t).

The shape is frozen at the pooled fit and the scale is solved again from the mean (and, for some
laws, the variance) of the day of admission. Paper: Akbari-Moghaddam et al. 2025, arXiv:2510.02852.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxlab.queueing import settings
from jaxlab.queueing.settings import VARIANTS

FAMILIES = ("exponential", "weibull", "lognormal", "gamma", "fisk", "burr")
"""Length-of-stay families, in the order of their integer codes."""

Survival = Callable[[Float[Array, "..."]], Float[Array, "..."]]

# Shape, by bytes per float, above which Wilson-Hilferty replaces Q(k, x); its error is 0.005 / k.
_GAMMA_LARGE_SHAPE = {2: 3e1, 4: 3e2, 8: 1e6}
_MAY_LACK_MEAN = ("fisk_mean", "burr")
_NEWTON_STEPS = 12
# ln Gamma(1+2x) - 2 ln Gamma(1+x) = sum_{j>=2} (-1)^j zeta(j) (2^j - 2) / j x^j, high powers first.
_SERIES = tuple(
    float((-1) ** j * scipy.special.zeta(j) * (2**j - 2) / j) if j > 1 else 0.0
    for j in range(14, -1, -1)
)
_SERIES_SLOPE = tuple(c * j for c, j in zip(_SERIES, range(14, 0, -1), strict=False))


def survival(
    family: str | int | Int[Array, ""],
    u: Float[Array, "..."] | float,
    mu: Float[Array, "..."] | float,
    sig2: Float[Array, "..."] | float,
    kappa: Float[Array, "..."] | float,
    *,
    variant: settings.Variant = "fisk_paper",
    moments: settings.Moments = "one",
) -> Float[Array, "..."]:
    """Returns S(u) = P(stay > u) of the law with the given mean, elementwise.

    | family | S(u) | scale |
    |---|---|---|
    | exponential | exp(-u/theta) | theta = mu |
    | weibull | exp(-(u/theta)^kappa) | theta = mu / Gamma(1 + 1/kappa) |
    | lognormal | 1 - Phi(ln(u/theta) / tau) | tau^2 = ln(1 + sig2/mu^2), theta = mu exp(-tau^2/2) |
    | gamma | Q(kappa, u/theta) | theta = mu / kappa |
    | fisk, `fisk_mean` | 1 / (1 + (u/theta)^kappa) | theta = mu sin(pi/kappa) / (pi/kappa) |
    | fisk, `fisk_paper` | 1 / (1 + (u/theta)^kappa) | theta = mu kappa / pi (published beds) |
    | fisk, `burr_tool` | (theta / (u + theta))^kappa | theta = mu kappa / pi (companion tool) |
    | burr | (theta / (u + theta))^kappa | theta = mu (kappa - 1) |

    S(u) = 1 for u <= 0, with zero gradient there. Where sig2 is so small that the law is a step to
    rounding, S(u) = 1[u < mu], with zero gradient.

    Args:
        family: a name of `FAMILIES` or a variant's, or an int32 scalar, index into `FAMILIES`.
        u: time since admission, days, broadcast with the others.
        mu: mean stay, days, > 0.
        sig2: variance of the stay, days^2, >= 0 (used by lognormal and by `moments="two"`).
        kappa: shape, > 0 (unused by exponential and lognormal, and by `moments="two"`).
        variant: which law the family "fisk" means; the three differ by 10 to 25 % of the beds.
        moments: "one" keeps kappa; "two" solves it from mu and sig2 for gamma
            (kappa = mu^2/sig2) and Weibull; other families do not change.

    Returns:
        S(u), broadcast shape, the float dtype of the inputs. A traced family index outside
        `FAMILIES` or a traced mu <= 0 gives NaN. `fisk_mean` and `burr` have no mean for
        kappa <= 1; there a traced kappa gives the limit kappa -> 1 at fixed mean, S(u > 0) = 0:
        see `has_mean`.

    Raises:
        ValueError: unknown names; or concrete mu <= 0, sig2 < 0, kappa <= 0, or kappa <= 1 for
            `fisk_mean` and `burr`.

    Source: arXiv:2510.02852, conditional survival; Johnson, Kotz and Balakrishnan 1994.
    """
    return law(family, mu, sig2, kappa, variant=variant, moments=moments)(jnp.asarray(u))


def law(
    family: str | int | Int[Array, ""],
    mu: Float[Array, "..."] | float,
    sig2: Float[Array, "..."] | float,
    kappa: Float[Array, "..."] | float,
    *,
    variant: settings.Variant = "fisk_paper",
    moments: settings.Moments = "one",
) -> Survival:
    """Returns the function u -> S(u) with its parameters solved once; see `survival`."""
    if not isinstance(family, Tracer):
        law = law_name(family, variant=variant, moments=moments)
        check_parameters(law, mu, sig2, kappa)
        return _closed(law, *as_floats(mu, sig2, kappa))

    mu, sig2, kappa = as_floats(mu, sig2, kappa)
    code = jnp.asarray(family)
    if code.ndim or not jnp.issubdtype(code.dtype, jnp.integer):
        raise ValueError(
            f"family must be a name or an integer scalar, got {code.dtype}{code.shape}; use vmap"
        )
    laws = [law_name(name, variant=variant, moments=moments) for name in FAMILIES]
    branches = [_closed(law, mu, *only_if(code == i, sig2, kappa)) for i, law in enumerate(laws)]
    known = (code >= 0) & (code < len(FAMILIES))

    def select(u: Float[Array, "..."]) -> Float[Array, "..."]:
        surv = jax.lax.switch(code, branches, jnp.asarray(u))
        return jnp.where(known, surv, jnp.nan)

    return select


def law_name(
    family: str | ArrayLike,
    *,
    variant: settings.Variant = "fisk_paper",
    moments: settings.Moments = "one",
) -> str:
    """Resolves a family, variant and number of moments to the name of one law.

    Raises:
        ValueError: if one of the three is unknown.
    """
    settings.check_name("variant", variant, settings.Variant)
    settings.check_name("moments", moments, settings.Moments)
    if not isinstance(family, str):
        index = np.asarray(family)
        if index.ndim or index.dtype.kind not in "iu" or not 0 <= index < len(FAMILIES):
            raise ValueError(
                f"family index must be an integer scalar in [0, {len(FAMILIES)}), got {family!r}"
            )
        family = FAMILIES[int(index)]
    if family not in FAMILIES + VARIANTS:
        raise ValueError(f"family must be one of {FAMILIES + VARIANTS}, got {family!r}")
    if family == "fisk":
        return variant
    if moments == "two" and family in ("weibull", "gamma"):
        return f"{family}_two"
    return family


def scale_shape(
    law: str,
    mu: Float[Array, "..."] | float,
    sig2: Float[Array, "..."] | float,
    kappa: Float[Array, "..."] | float,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns (theta, shape) of a law of `law_name`: what an inverse-CDF sampler needs.

    The shape is kappa, except tau for the lognormal. A law that is a step to rounding has theta =
    mu and tau = 0 or kappa = inf.
    """
    mu, sig2, kappa = jnp.broadcast_arrays(*as_floats(mu, sig2, kappa))
    mu = jnp.where(mu > 0.0, mu, jnp.nan)
    cv2 = sig2 / mu**2
    is_step = cv2 <= jnp.finfo(mu.dtype).eps ** 2
    cv2 = jnp.where(is_step, 1.0, cv2)
    match law:
        case "exponential":
            return mu, kappa
        case "weibull":
            return mu * jnp.exp(-_gammaln(1.0 + 1.0 / kappa)), kappa
        case "weibull_two":
            k = weibull_shape(cv2)
            theta = mu * jnp.exp(-_gammaln(1.0 + 1.0 / k))
            return jnp.where(is_step, mu, theta), jnp.where(is_step, jnp.inf, k)
        case "lognormal":
            tau2 = jnp.log1p(cv2)
            theta = mu * jnp.exp(-0.5 * tau2)
            return jnp.where(is_step, mu, theta), jnp.where(is_step, 0.0, jnp.sqrt(tau2))
        case "gamma":
            return mu / kappa, kappa
        case "gamma_two":
            return jnp.where(is_step, mu, mu * cv2), jnp.where(is_step, jnp.inf, 1.0 / cv2)
        case "fisk_mean":
            safe = jnp.where(kappa > 1.0, kappa, 2.0)
            return jnp.where(kappa > 1.0, mu * jnp.sinc(1.0 / safe), 0.0), kappa
        case "fisk_paper" | "burr_tool":
            return mu * kappa / math.pi, kappa
        case "burr":
            return jnp.where(kappa > 1.0, mu * (kappa - 1.0), 0.0), kappa
    raise ValueError(f"unknown law {law!r}; use law_name(family, variant=..., moments=...)")


def has_mean(
    family: str | int | Int[Array, "..."], kappa: Float[Array, "..."] | float
) -> Bool[Array, "..."]:
    """Says whether a law has a finite mean: kappa > 1 for Fisk and Burr, always for the others."""
    (kappa,) = as_floats(kappa)
    if isinstance(family, str):
        law = law_name(family)
        return (kappa > 1.0) | (law not in (*VARIANTS, "burr"))
    return (kappa > 1.0) | (jnp.asarray(family) < FAMILIES.index("fisk"))


def check_parameters(law: str, mu: ArrayLike, sig2: ArrayLike, kappa: ArrayLike) -> None:
    """Raises where a law of `law_name` does not exist; traced values are not looked at.

    Raises:
        ValueError: naming the parameter, its bound and the least value found.
    """
    checks = [("mu", mu, 0.0, True)]
    if law in ("lognormal", "weibull_two", "gamma_two"):
        checks.append(("sig2", sig2, 0.0, False))
    elif law in _MAY_LACK_MEAN:
        checks.append(("kappa", kappa, 1.0, True))
    elif law != "exponential":
        checks.append(("kappa", kappa, 0.0, True))
    for name, value, bound, strict in checks:
        if isinstance(value, Tracer):
            continue
        values = np.asarray(value)
        if np.any(values <= bound if strict else values < bound):
            sign = ">" if strict else ">="
            raise ValueError(
                f"{law} needs {name} {sign} {bound:g}, got a minimum of {values.min():g}"
            )


@jax.jit
def weibull_shape(cv2: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Solves Gamma(1 + 2/k) / Gamma(1 + 1/k)^2 = 1 + cv2 for the Weibull shape k.

    Newton in ln(1/k), in which the logarithm of the left side is convex and increasing, so that it
    converges from any start. The derivative is that of the solution (implicit function theorem).

    Args:
        cv2: squared coefficient of variation sig2 / mu^2, > 0.
    """
    (cv2,) = as_floats(cv2)
    target = jnp.log1p(cv2)

    def newton(z, target):
        x = jnp.exp(z)
        small = x < 0.05
        away = jnp.where(small, 1.0, x)
        near = jnp.where(small, x, 0.0)
        value = _gammaln(1.0 + 2.0 * away) - 2.0 * _gammaln(1.0 + away)
        slope = 2.0 * (_digamma(1.0 + 2.0 * away) - _digamma(1.0 + away))
        value = jnp.where(small, _polynomial(_SERIES, near), value)
        slope = jnp.where(small, _polynomial(_SERIES_SLOPE, near), slope)
        value, slope = jax.lax.stop_gradient((value, x * slope))
        return z - (value - target) / slope

    fixed = jax.lax.stop_gradient(target)
    start = 0.5 * jnp.log(6.0 * fixed) - math.log(math.pi)
    z = jax.lax.fori_loop(0, _NEWTON_STEPS, lambda _, z: newton(z, fixed), start)
    return jnp.exp(-newton(z, target))


def only_if(
    chosen: Bool[Array, "..."], sig2: Float[Array, "..."], kappa: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Replaces sig2 and kappa by harmless values in the branches that a switch does not choose.

    Under vmap a switch evaluates every branch, and one law's parameters may be another's NaN.
    """
    return jnp.where(chosen, sig2, 1.0), jnp.where(chosen, kappa, 1.5)


def as_floats(*args: ArrayLike) -> tuple[Float[Array, "..."], ...]:
    """Casts to the one float dtype of the arguments that are floats (default if none is)."""
    dtypes = [jnp.result_type(x) if hasattr(x, "dtype") else type(x) for x in args]
    floats = [d for d in dtypes if d is not int and jnp.issubdtype(d, jnp.floating)]
    dtype = jnp.result_type(float, *floats)
    return tuple(jnp.asarray(x).astype(dtype) for x in args)


def _closed(law: str, mu, sig2, kappa) -> Survival:
    """Returns the function u -> S(u) of one law."""
    theta, shape = scale_shape(law, mu, sig2, kappa)
    has_scale = theta != 0.0
    theta = jnp.where(has_scale, theta, 1.0)
    log_theta = jnp.log(theta)

    def surv(u):
        u = jnp.asarray(u).astype(theta.dtype)
        after = u > 0.0
        safe_u = jnp.where(after, u, 1.0)  # log 0 and 0^k would poison the gradient
        after, safe_u, log_u, theta_, log_theta_, shape_, has_scale_ = jnp.broadcast_arrays(
            after, safe_u, jnp.log(safe_u), theta, log_theta, shape, has_scale
        )
        value = _standard(law, safe_u / theta_, log_u - log_theta_, shape_)
        if law in _MAY_LACK_MEAN:
            value = jnp.where(has_scale_, value, jnp.nan)  # there is no law of this mean
        return jnp.where(after, value, 1.0)

    return surv


def _standard(law: str, r, log_r, shape):
    """Computes S of the law with theta = 1 at r = exp(log_r) > 0."""
    match law:
        case "exponential":
            return jnp.exp(-r)
        case "weibull":
            return _weibull(log_r, shape)
        case "weibull_two":
            step = jnp.isinf(shape)
            return jnp.where(step, _below(r), _weibull(log_r, jnp.where(step, 1.0, shape)))
        case "lognormal":
            step = shape == 0.0
            value = jax.scipy.special.ndtr(-log_r / jnp.where(step, 1.0, shape))
            return jnp.where(step, _below(r), value)
        case "gamma":
            return jax.scipy.special.gammaincc(shape, r)
        case "gamma_two":
            step = jnp.isinf(shape)
            value = _gammaincc_any(jnp.where(step, 1.0, shape), jnp.where(step, 1.0, r))
            return jnp.where(step, _below(r), value)
        case "fisk_mean" | "fisk_paper":
            return jax.nn.sigmoid(-shape * log_r)
        case _:  # burr, burr_tool
            return jnp.exp(-shape * jnp.log1p(r))


def _weibull(log_r, shape):
    # exp(-e^7) is already 0 in float64; beyond it the gradient would be 0 * inf.
    return jnp.exp(-jnp.exp(jnp.minimum(shape * log_r, 7.0)))


def _below(r):
    return jnp.where(r < 1.0, jnp.ones_like(r), jnp.zeros_like(r))


def _gammaincc_any(a, x):
    """Computes Q(a, x), by Wilson-Hilferty where a is too large for the series."""
    large = a > _GAMMA_LARGE_SHAPE[a.dtype.itemsize]
    a_small, x_small = jnp.where(large, 1.0, a), jnp.where(large, 1.0, x)
    a_large, x_large = jnp.where(large, a, 1e6), jnp.where(large, x, 1e6)
    root = jnp.exp(jnp.log(x_large / a_large) / 3.0)
    normal = (root - (1.0 - 1.0 / (9.0 * a_large))) * 3.0 * jnp.sqrt(a_large)
    exact = jax.scipy.special.gammaincc(a_small, x_small)
    return jnp.where(large, jax.scipy.special.ndtr(-normal), exact)


def _polynomial(coefficients, x):
    total = jnp.zeros_like(x)
    for c in coefficients:
        total = total * x + c
    return total


def _gammaln(x):
    return jax.scipy.special.gammaln(x)


def _digamma(x):
    return jax.scipy.special.digamma(x)

"""The target of mirror descent as weights of sampled actions, and the temperature behind it.

pi_MD(a) = pi_old(a) exp(A(a) / lambda) / Z: of n actions drawn from pi_old the target gives each
the weight softmax(A / lambda). The temperature lambda is the price of a nat of divergence from
pi_old; k steps at lambda make one at lambda / k, so it is a step size, no final temperature.
Weights with a sign also push away from what is worse than the others.

Ma et al. 2025, arXiv:2509.22963; hard radius as Peters et al. 2010 (REPS).
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

Kind = Literal["softmax", "signed", "z_linear", "z_square", "linear", "square"]
Z_LIMIT = 3.0
"""Largest standardized reward that "z_linear" passes on."""
TEMPERATURES = (1e-6, 1e6)
"""Between which `adapt_temperature` stays."""


def exact_target(
    prior: Float[Array, "*B A"],
    advantage: Float[Array, "*B A"],
    temperature: float | Float[Array, ""],
) -> Float[Array, "*B A"]:
    """Returns prior exp(A / temperature) / Z over all A actions of an enumerable space.

    Raises:
        ValueError: if shapes differ, the temperature is known and not positive, or the prior is
            known and leaves no action.

    Source: arXiv:2509.22963, policy mirror descent.
    """
    check_temperature(temperature)
    _check_shapes(prior=prior, advantage=advantage)
    if not isinstance(prior, Tracer) and not (np.asarray(prior) > 0.0).any(axis=-1).all():
        raise ValueError("prior must give some action a probability, got 0 or less for all")
    safe = jnp.where(prior > 0.0, prior, 1.0)
    logits = jnp.where(prior > 0.0, jnp.log(safe) + advantage / temperature, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def sample_weights(
    advantage: Float[Array, " n *B"],
    temperature: float | Float[Array, "*#B"],
    kind: Kind = "softmax",
    *,
    lower: float = 0.0,
) -> Float[Array, " n *B"]:
    """Returns the weight of each of n actions that were drawn in one state, without gradient.

    * "softmax": softmax(A / lambda), positive and of sum 1.
    * "signed": softmax(A / lambda) - softmax(-A / lambda), of sum 0 (wd1).
    * "linear": max((A - nu) / lambda, lower / n), with nu such that the sum is 1.
    * "square": max((A - nu) / lambda, 0)^2, with nu such that the sum is 1.
    * "z_linear": clip(z, lower, 3) / n of the standardized z = (A - mean) / std.
    * "z_square": z^2 / n where z > 0, clip(z, lower, 0) / n elsewhere.

    A loss with negative weights has no lower bound: keep the step small. What is common to all
    advantages of a state makes no difference to any of them.

    Args:
        advantage: `[n, ...]` advantages, values or rewards of n actions.
        temperature: lambda, positive; the last two kinds do not use it.
        kind: see above.
        lower: least weight times n, in [-1, 0], of "linear", "z_linear" and "z_square".

    Raises:
        ValueError: if there is no such kind, or a number is out of range.

    Source: "signed" arXiv:2507.08838; the others arXiv:2509.22963 and its authors' later code.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    check_temperature(temperature)
    if not -1.0 <= lower <= 0.0:
        raise ValueError(f"lower must lie in [-1, 0], got {lower}")
    advantage = jax.lax.stop_gradient(advantage)
    n = advantage.shape[0]
    if kind.startswith("z_"):
        # From the largest, equal advantages differ by exactly 0.
        shifted = advantage - jnp.max(advantage, axis=0, keepdims=True)
        z = shifted - jnp.mean(shifted, axis=0, keepdims=True)
        std = jnp.sqrt(jnp.mean(z**2, axis=0, keepdims=True))
        z = jnp.where(std > 0.0, z / jnp.where(std > 0.0, std, 1.0), 0.0)
        if kind == "z_linear":
            return jnp.clip(z, lower, Z_LIMIT) / n
        return jnp.where(z > 0.0, z**2, jnp.maximum(z, lower)) / n
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature, advantage.dtype))
    scaled = advantage / jnp.broadcast_to(temperature, advantage.shape)
    scaled -= jnp.max(scaled, axis=0, keepdims=True)
    if kind == "softmax":
        return jax.nn.softmax(scaled, axis=0)
    if kind == "signed":
        return jax.nn.softmax(scaled, axis=0) - jax.nn.softmax(-scaled, axis=0)
    if kind == "linear":
        return jnp.maximum(scaled - _linear_shift(scaled, lower), lower / n)
    return jnp.maximum(scaled - _square_shift(scaled), 0.0) ** 2


def advantage_weights(
    advantage: Float[Array, "*B"],
    temperature: float | Float[Array, ""],
    *,
    largest: float = 20.0,
    log_ratio: Float[Array, "*B"] | None = None,
    largest_ratio: float = 2.0,
) -> Float[Array, "*B"]:
    """Returns min(exp(A / lambda), w_max) over its sum, of samples of many states: F3, and F4.

    Of actions that an older policy drew (replay), the target is that policy's, tilted, unless each
    weight is multiplied by min(pi_old / pi_behavior, rho_max).

    Args:
        advantage: `[*B]` of a critic, in which a state's own value is no part: 0 is average.
        temperature: lambda.
        largest: w_max, infinity for no limit.
        log_ratio: `[*B]` log pi_old - log pi_behavior, of evidence bounds l_behavior - l_old; None
            on policy.
        largest_ratio: rho_max, infinity for no limit.

    Returns:
        Weights of sum 1, without gradient, for `matching.forward_kl`.

    Raises:
        ValueError: if a number is not positive.

    Source: arXiv:2509.22963, advantages of a state critic and replay; the clipped weight is that of
    Peng et al. 2019, arXiv:1910.00177.
    """
    check_temperature(temperature)
    for name, x in (("largest", largest), ("largest_ratio", largest_ratio)):
        if not x > 0.0:
            raise ValueError(f"{name} must be positive, got {x}")
    logs = jnp.minimum(advantage / temperature, math.log(largest))
    if log_ratio is not None:
        logs = logs + jnp.minimum(log_ratio, math.log(largest_ratio))
    return jax.lax.stop_gradient(jax.nn.softmax(logs, axis=None))


def imitation_weights(returns: Float[Array, "*B"], value: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Returns max(R - V, 0) over its sum: what went better than expected is imitated, F4.

    All are 0 where nothing did.

    Args:
        returns: `[*B]` of actions of a replay.
        value: `[*B]` of their states.

    Raises:
        ValueError: if shapes differ.

    Source: Oh et al. 2018, arXiv:1806.05635 (self-imitation), as weights.
    """
    _check_shapes(returns=returns, value=value)
    gain = jax.lax.stop_gradient(jnp.maximum(returns - value, 0.0))
    total = jnp.sum(gain)
    return gain / jnp.where(total > 0.0, total, 1.0)


def effective_size(weight: Float[Array, " n *B"]) -> Float[Array, "*B"]:
    """Returns 1 / sum w^2 of weights that sum to 1: how many of n samples count."""
    return 1.0 / jnp.sum(weight**2, axis=0)


def divergence(weight: Float[Array, " n *B"]) -> Float[Array, "*B"]:
    """Returns log n - H(w), nats, at most log n: what n samples estimate of KL(pi_MD | pi_old)."""
    safe = jnp.where(weight > 0.0, weight, 1.0)
    return math.log(weight.shape[0]) + jnp.sum(weight * jnp.log(safe), axis=0)


def weight_metrics(
    weight: Float[Array, " n *B"], kind: Kind, *, lower: float = 0.0
) -> dict[str, Float[Array, ""]]:
    """Returns the largest weight and, of kinds whose weights are shares, mean size and divergence.

    Arguments as `sample_weights`.
    """
    metrics = {"policy/max_weight": jnp.max(weight)}
    if kind in ("softmax", "linear", "square") and lower == 0.0:
        metrics["policy/ess"] = jnp.mean(effective_size(weight))
        metrics["policy/target_kl"] = jnp.mean(divergence(weight))
    return metrics


def solve_temperature(
    advantage: Float[Array, " n *B"], target_kl: float, *, num_halvings: int = 60
) -> Float[Array, "*B"]:
    """Returns the temperature at which the weights of n actions diverge by `target_kl` nats.

    It is where lambda target_kl + lambda log mean exp(A / lambda) is least (see
    `learning.temperature.kl_dual_loss`, which moves it by gradient instead). The divergence falls
    from log(n / number of best actions) to 0 as the temperature grows; found by bisection in its
    logarithm, between 1e-6 and 1e6 times the spread of the advantages. Where no temperature gives
    the divergence, because too many actions are equally good, it is the least of these; where all
    are, it is 1.

    Args:
        advantage: `[n, ...]` of n actions in each state.
        target_kl: radius in nats, between 0 and log n.
        num_halvings: of the interval.

    Raises:
        ValueError: if the radius is not between 0 and log n, which no weights of n samples pass.

    Source: arXiv:2509.22963, hard constraint on the divergence.
    """
    n = advantage.shape[0]
    if n < 2 or not 0.0 < target_kl < math.log(n):
        raise ValueError(
            f"target_kl must lie between 0 and log n, {math.log(n):.3g} of {n} samples, got "
            f"{target_kl}"
        )
    advantage = jax.lax.stop_gradient(advantage)
    shifted = advantage - jnp.max(advantage, axis=0, keepdims=True)
    spread = -jnp.min(shifted, axis=0)
    flat = spread == 0.0
    shifted = shifted / jnp.where(flat, 1.0, spread)[None]
    ends = jnp.full(spread.shape, math.log(1e6), advantage.dtype)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        too_far = divergence(jax.nn.softmax(shifted / jnp.exp(middle)[None], axis=0)) > target_kl
        return jnp.where(too_far, middle, low), jnp.where(too_far, high, middle)

    low, high = jax.lax.fori_loop(0, num_halvings, halve, (-ends, ends))
    return jnp.where(flat, 1.0, spread * jnp.exp(0.5 * (low + high)))


def adapt_temperature(
    temperature: float | Float[Array, "..."], kl: Float[Array, "..."], target_kl: float
) -> Float[Array, "..."]:
    """Returns lambda times 1.5 after a step 1.5 times too far, over 1.5 after one as much too near.

    It moves between 1e-6 and 1e6, and stays where it is if the divergence is not a number.

    Args:
        temperature: lambda, the price of a nat.
        kl: divergence of the last step, nats.
        target_kl: what it should be.

    Source: Schulman et al. 2017, arXiv:1707.06347, adaptive price of divergence, by smaller steps.
    """
    check_target(target_kl)
    factor = jnp.where(kl > 1.5 * target_kl, 1.5, jnp.where(kl < target_kl / 1.5, 1.0 / 1.5, 1.0))
    return jnp.where(factor == 1.0, temperature, jnp.clip(temperature * factor, *TEMPERATURES))


def check_target(target_kl: float | None) -> None:
    """Refuses a divergence that no step can have, with a ValueError; None stands for no target."""
    if target_kl is not None and not 0.0 < target_kl < math.inf:
        raise ValueError(f"target_kl must be positive and finite, got {target_kl}")


def check_temperature(temperature: float | Float[Array, "..."]) -> None:
    """Refuses a temperature that is known and not positive and finite, with a ValueError."""
    if isinstance(temperature, Tracer):
        return
    values = np.asarray(temperature)
    if not ((values > 0.0) & (values < math.inf)).all():
        raise ValueError(f"temperature must be positive, got {temperature}")


def _check_shapes(**arrays: Array) -> None:
    if len({x.shape for x in arrays.values()}) > 1:
        found = " and ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(f"shapes must be equal, got {found}")


def _linear_shift(scaled: Array, lower: float) -> Array:
    """Returns nu / lambda with sum max(A / lambda - nu / lambda, lower / n) = 1."""
    n = scaled.shape[0]
    falling = -jnp.sort(-scaled, axis=0)
    count = _count(scaled)
    # With the k best above the floor: sum of them - k nu + (n - k) lower / n = 1.
    shift = (jnp.cumsum(falling, axis=0) + (n - count) * lower / n - 1.0) / count
    last = jnp.sum((falling - shift > lower / n).astype(jnp.int32), axis=0, keepdims=True) - 1
    return jnp.take_along_axis(shift, last, axis=0)


def _square_shift(scaled: Array) -> Array:
    """Returns nu / lambda with sum max(A / lambda - nu / lambda, 0)^2 = 1."""
    falling = -jnp.sort(-scaled, axis=0)
    count = _count(scaled)
    mean = jnp.cumsum(falling, axis=0) / count
    spread = jnp.cumsum(falling**2, axis=0) - count * mean**2
    shift = mean - jnp.sqrt(jnp.maximum(1.0 - spread, 0.0) / count)
    last = jnp.sum((shift <= falling).astype(jnp.int32), axis=0, keepdims=True) - 1
    return jnp.take_along_axis(shift, last, axis=0)


def _count(x: Array) -> Array:
    """Returns 1 .. n along the first axis, of the shape and dtype of x."""
    first = (x.shape[0],) + (1,) * (x.ndim - 1)
    return jnp.broadcast_to(jnp.arange(1, x.shape[0] + 1, dtype=x.dtype).reshape(first), x.shape)

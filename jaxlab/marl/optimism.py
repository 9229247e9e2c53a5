"""Optimism from samples: what a critic's error costs, and what an advantage is worth to an actor.

A value that is learned from samples of r + gamma V(s') - V(s) is the root of E weight(error) = 0
for some increasing weight, and minimizes the loss whose derivative the weight is. That covers

    entropic   weight (exp(beta error) - 1) / beta     V = (1 / beta) log E exp(beta (r + gamma V'))
    expectile  weight 2 tau error or 2 (1 - tau) error     hysteretic learning
    neutral    weight error                                the mean

and the same weight is the actor's advantage. The other measures of `core.risk` have values that
no such single error finds: critics of joint actions (`make_tabular`, `make_joint`) take them all,
and `of_measure` makes actors of them whose critics learn the mean.

Zhang et al. 2025, arXiv:2509.24047; Varian 1975 (the exponential loss); Zhao et al. 2024,
arXiv:2311.01953 (the leaky advantage of OptiMAPPO).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxlab.core import risk as risk_lib
from jaxlab.core.risk import Risk
from jaxlab.learning import policy_gradient, settings
from jaxlab.learning.policy_gradient import Loss, Outputs, Samples, Scalars
from jaxlab.learning.settings import Rule, Settings

Function = Callable[[jax.Array, jax.Array], jax.Array]
WITH_INFINITY = settings.ANY._replace(finite=False)
NEUTRAL_AT: dict[Callable, float] = {risk_lib.cvar: 1.0, risk_lib.expectile: 0.5}
"""Where measures are the mean; all others are at 0."""
TAU = Rule("lie in (0, 1)", lambda x: (x > 0.0) & (x < 1.0))


class Optimism(NamedTuple):
    """How samples are judged, with one parameter that may be traced.

    Of advantages and errors whose last axis is that of the agents, the parameter may be one number
    or `[N]`, one for each.

    Attributes:
        weight: `weight(advantage, parameter) -> [...]`, what the actor takes for the advantage.
        loss: `loss(error, parameter) -> [...]` of the critic; its derivative by the error is
            `critic_weight`.
        critic_weight: `critic_weight(error, parameter) -> [...]`, whose mean is 0 at the value.
        excess: `excess(error, parameter) -> [...]` bool, where a weight was held back by a limit.
        measure: `measure(parameter) -> Risk`, the same for probabilities that are known.
        rule: what the parameter must be.
        default: the parameter at which it is the mean.
    """

    weight: Function
    loss: Function
    critic_weight: Function
    excess: Function
    measure: Callable[[Any], Risk]
    rule: Rule
    default: float


def entropic(*, z_max: float = 4.0) -> Optimism:
    """Makes the exponential weight (exp(beta x) - 1) / beta and its loss.

    Args:
        z_max: beta times an error counts as this at most: the weight stays there and the loss goes
            on in a straight line, so that one lucky sample cannot blow up a network. Values come
            out too low where it is often reached.

    Raises:
        ValueError: if `z_max` is not positive or not finite.
    """
    if not 0.0 < z_max < math.inf:
        raise ValueError(f"z_max must be positive and finite, got {z_max}")

    def weight(x: jax.Array, beta: jax.Array) -> jax.Array:
        beta = over_agents(beta, x)
        none = beta == 0.0
        y = jnp.expm1(jnp.minimum(beta * x, z_max)) / jnp.where(none, 1.0, beta)
        return jnp.where(none, x, y)

    def area(x: jax.Array, beta: jax.Array) -> jax.Array:
        beta = over_agents(beta, x)
        none = beta == 0.0
        safe = jnp.where(none, 1.0, beta)
        z = beta * x
        near = jnp.abs(z) < 0.5
        # (e^z - z - 1) / z^2 as a series, where the difference would cancel.
        small = jnp.where(near, z, 0.0)
        series = functools.reduce(
            lambda total, k: total * small + 1.0 / math.factorial(k + 2), range(9, -1, -1), 0.0 * z
        )
        inside = jnp.minimum(z, z_max)
        far = jnp.expm1(inside) - inside + jnp.expm1(inside) * (z - inside)
        return jnp.where(near, x**2 * series, far / safe / safe)

    def excess(x: jax.Array, beta: jax.Array) -> jax.Array:
        return over_agents(beta, x) * x > z_max

    return Optimism(
        weight, _loss(area, weight), weight, excess, risk_lib.entropic, settings.ANY, 0.0
    )


def expectile() -> Optimism:
    """Makes the asymmetric weight: 2 tau x of good news, 2 (1 - tau) x of bad.

    Hysteretic learning with rates a and b is tau = a / (a + b).
    """

    def weight(x: jax.Array, tau: jax.Array) -> jax.Array:
        tau = over_agents(tau, x)
        return 2.0 * jnp.where(x > 0.0, tau, 1.0 - tau) * x

    def area(x: jax.Array, tau: jax.Array) -> jax.Array:
        return 0.5 * x * weight(x, tau)

    return Optimism(weight, _loss(area, weight), weight, _never, risk_lib.expectile, TAU, 0.5)


def neutral() -> Optimism:
    """Makes the mean, whatever the parameter is."""
    return Optimism(
        _itself, _square, _itself, _never, lambda _: risk_lib.neutral(), settings.ANY, 0.0
    )


def leaky() -> Optimism:
    """Makes the rival of OptiMAPPO: negative advantages count eta times, critics stay neutral.

    The parameter is eta: 1 is the mean, 0 forgets all bad news.
    """

    def weight(x: jax.Array, eta: jax.Array) -> jax.Array:
        return jnp.where(x > 0.0, x, over_agents(eta, x) * x)

    return Optimism(
        weight, _square, _itself, _never, lambda _: risk_lib.neutral(), settings.SHARE, 1.0
    )


def of_measure(measure: Callable[[Any], Risk]) -> Optimism:
    """Makes an optimist of any risk measure, one's own included; the critic learns the mean.

    The actor's weight is the derivative of the measure by the probabilities (`Risk.weight`), of the
    law of all advantages that are weighed together. That is the theorem's weight where all states
    have the same law, as in a game of one state, and a heuristic elsewhere. Samples are taken in
    groups, single ones at both ends of the law and twice as many at a time toward its middle.

    Args:
        measure: `measure(parameter) -> Risk`, such as `core.risk.chi2` or `core.risk.cvar`, or what
            `core.risk.penalized` makes of a divergence.

    Example:
        >>> algorithm = make_op_ippo(env, style=of_measure(core.risk.chi2), beta=0.3)
    """

    def weight(x: jax.Array, parameter: jax.Array) -> jax.Array:
        if jnp.ndim(parameter):  # each agent has a law of its own
            return jax.vmap(weight, (-1, 0), -1)(x, parameter)
        sizes = _groups(x.size)
        index = np.repeat(np.arange(len(sizes)), sizes)
        total = jnp.zeros((len(sizes),), x.dtype).at[index].add(jnp.sort(x.reshape(-1)))
        nodes = total / jnp.asarray(sizes, x.dtype)
        found = measure(parameter).weight(nodes, jnp.asarray(sizes / x.size, x.dtype))
        found = jnp.interp(x.reshape(-1), nodes, found).reshape(x.shape)
        return found - jnp.mean(found)

    neutral_at = NEUTRAL_AT.get(measure, 0.0)
    return Optimism(weight, _square, _itself, _never, measure, WITH_INFINITY, neutral_at)


def optimistic_loss(optimism: Optimism) -> Loss:
    """Makes the loss that turns an existing PPO into an optimist.

    Advantages of the minibatch are weighted and divided by their standard deviation; they are not
    centered, since their mean under the policy is 0 already, and what is left of it shows the error
    of the critic. The critic's loss is that of `optimism`.

    Returns:
        A loss for `learning.make_ppo`, which finds "beta" in its settings.

    Example:
        >>> env = envs.make_env(envs.game_task(envs.climbing()), num_envs=64)
        >>> algorithm = learning.make_ppo(
        ...     env, loss=optimistic_loss(entropic()), loss_settings={"beta": 0.5}, reward_scale=1.0
        ... )
    """

    optimism = style_or(optimism)

    def loss(now: Outputs, then: Samples, given: Settings) -> tuple[jax.Array, Scalars]:
        weight = optimism.weight(then.advantage, given["beta"])
        weight = over_std(weight, then.choice_mask)
        return weighted_loss(now, then._replace(advantage=weight), given, optimism)

    return loss


def weighted_loss(
    now: Outputs, then: Samples, given: Settings, optimism: Optimism
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns -surrogate + value_coef loss - entropy_coef entropy, and metrics.

    Args:
        now: what the networks say.
        then: what the rollout says, advantages weighted and scaled already.
        given: "beta", "clip_eps", "value_coef" and "entropy_coef".
        optimism: of the critic.
    """
    clip_eps, mask = given["clip_eps"], then.choice_mask
    gain = policy_gradient.clipped_surrogate(
        now.logp, then.logp_old, then.advantage, clip_eps=clip_eps
    )
    error = jax.lax.stop_gradient(then.target) - now.value
    outside = policy_gradient.outside_clip(now.logp, then.logp_old, clip_eps=clip_eps)
    kl = policy_gradient.approx_kl(now.logp, then.logp_old)
    metrics = {
        "critic/loss": jnp.mean(optimism.loss(error, given["beta"])),
        "policy/entropy": policy_gradient.masked_mean(now.entropy, mask),
        "policy/clipped": policy_gradient.masked_mean(outside.astype(gain.dtype), mask),
        "policy/kl": policy_gradient.masked_mean(kl, mask),
    }
    loss = -policy_gradient.masked_mean(gain, mask)
    loss += given["value_coef"] * metrics["critic/loss"]
    return loss - given["entropy_coef"] * metrics["policy/entropy"], metrics


def style_or(style: Optimism | None, *, z_max: float = 4.0) -> Optimism:
    """Returns the style, or the entropic one.

    Raises:
        ValueError: if it is none.
    """
    if style is None:
        return entropic(z_max=z_max)
    if not isinstance(style, Optimism):
        raise ValueError(f"style must be an Optimism, such as marl.entropic(), got {style!r}")
    return style


def over_agents(parameter: Any, x: jax.Array) -> jax.Array:
    """Returns one number as it is, and one for each agent along the last axis of x."""
    parameter = jnp.asarray(parameter, x.dtype)
    if not parameter.ndim:
        return parameter
    return parameter.reshape((1,) * (x.ndim - parameter.ndim) + parameter.shape)


def check_parameters(measure: Callable[[Any], Risk], given: Mapping[str, Any]) -> None:
    """Refuses what makes no measure, and a "beta" or "beta_end" that it does not take.

    What is being traced is not looked at.
    """
    if not callable(measure):
        raise ValueError(
            "measure must make a risk measure of a number, as core.risk.entropic does, got "
            f"{type(measure).__name__}"
        )
    for name in ("beta", "beta_end"):
        if name in given and not isinstance(given[name], Tracer):
            for one in np.unique(np.asarray(given[name], np.float64)):
                measure(float(one))


def over_std(x: Float[Array, "..."], mask: Bool[Array, "..."] | None) -> Float[Array, "..."]:
    """Returns x / (std + 1e-8) over what the mask keeps, without taking a mean away."""
    away = x - policy_gradient.masked_mean(x, mask)
    return x / (jnp.sqrt(policy_gradient.masked_mean(away**2, mask)) + 1e-8)


def tilt_divergence(
    advantage: Float[Array, "..."], beta: float | jax.Array, mask: Bool[Array, "..."] | None = None
) -> Float[Array, ""]:
    """Estimates KL(tilted policy, policy) from advantages of actions that the policy drew.

    With z = beta A it is E[e^z z] / E[e^z] - log E[e^z]; it grows with |beta|.
    """
    z = over_agents(beta, advantage) * advantage
    kept = jnp.ones_like(z, bool) if mask is None else mask
    z = jnp.where(kept, z, -jnp.inf)
    share = jax.nn.softmax(z.reshape(-1)).reshape(z.shape)
    log_mean = jax.nn.logsumexp(z) - jnp.log(jnp.sum(kept).astype(z.dtype))
    return jnp.sum(share * jnp.where(kept, z, 0.0)) - log_mean


def beta_of_divergence(
    advantage: Float[Array, "..."],
    target: float | jax.Array,
    *,
    beta_max: float | jax.Array,
    mask: Bool[Array, "..."] | None = None,
) -> Float[Array, ""]:
    """Finds the beta in [0, beta_max] at which `tilt_divergence` is the target, by bisection.

    So optimism has no scale: rewards times ten give a tenth of the beta. Where even `beta_max`
    diverges less, it is that.
    """
    advantage = jax.lax.stop_gradient(advantage)

    def halve(_: Any, ends: tuple) -> tuple:
        low, high = ends
        middle = 0.5 * (low + high)
        under = tilt_divergence(advantage, middle, mask) < target
        return jnp.where(under, middle, low), jnp.where(under, high, middle)

    most = jnp.asarray(beta_max, advantage.dtype)
    low, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(most), most))
    return 0.5 * (low + high)


def step_weights(
    advantage: Float[Array, "T ..."],
    beta: float | jax.Array,
    done: Bool[Array, "T ..."],
    *,
    most: float,
) -> Float[Array, "T ..."]:
    """Returns what makes the policy's samples those of the tilt: prod over k < t of e^{beta A_k}.

    The product begins anew after every end. The weights are cut at `most` and divided by their
    mean; uncut, their variance grows exponentially with the horizon.

    Args:
        advantage: `[T, ...]` of the actions, each beta A at least its own one-step error.
        beta: parameter of the entropic measure.
        done: whether the episode ended after step t.
        most: largest weight before the division.
    """
    log_most = math.log(most)
    z = over_agents(beta, advantage) * jax.lax.stop_gradient(advantage)

    def forward(before: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        z, done = inputs
        return jnp.where(done, 0.0, before + z), before

    _, logs = jax.lax.scan(forward, jnp.zeros_like(z[0]), (z, done))
    weights = jnp.exp(jnp.minimum(logs, log_most))
    return weights / jnp.mean(weights)


def _groups(count: int) -> np.ndarray:
    """Sizes of groups of samples in order: 1, 1, 2, 2, 4, 4, ... from both ends to the middle."""
    sizes: list[int] = []
    left = count // 2
    while left:
        sizes.append(min(2 ** (len(sizes) // 2), left))
        left -= sizes[-1]
    return np.array([*sizes, *[1] * (count % 2), *sizes[::-1]])


def _itself(x: jax.Array, _: Any) -> jax.Array:
    return x


def _square(x: jax.Array, _: Any) -> jax.Array:
    return 0.5 * x**2


def _never(x: jax.Array, _: Any) -> jax.Array:
    return jnp.zeros(x.shape, bool)


def _loss(area: Function, weight: Function) -> Function:
    """A loss whose derivative by the error is the weight itself, to the last bit."""

    @jax.custom_jvp
    def loss(error: jax.Array, parameter: jax.Array) -> jax.Array:
        return area(error, parameter)

    @loss.defjvp
    def jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
        error, parameter = primals
        return loss(error, parameter), weight(error, parameter) * tangents[0]

    return loss

"""Policy and value for an environment's spaces, as pure functions of one tree of parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab import envs
from jaxlab.core.types import PyTree
from jaxlab.envs import spaces
from jaxlab.learning import distributions
from jaxlab.learning.distributions import Distribution
from jaxlab.nn import Mlp


class Networks(NamedTuple):
    """What an on-policy method trains.

    Observations are the environment's own, a dict with all its parts where it is one; `mask` is its
    `action_mask`, `()` without one. All functions take any leading axes. A policy that has no
    distribution record, such as one that draws its tokens one after the other, fills in `sample`,
    `evaluate` and `mode` itself.

    Attributes:
        init: `init(key_policy, key_value) -> params`.
        sample: `sample(key, params, obs, mask) -> (action, logp)`. An action of a box may lie
            outside: its log-probability is that of what was drawn, and it is clipped where it
            enters the environment.
        evaluate: `evaluate(params, obs, mask, action) -> (logp, entropy)`; with agents `[..., A]`,
            one for each, or `[...]` of a policy that acts for all of them at once.
        mode: `mode(params, obs, mask) -> action`, without exploration and within bounds.
        value: `value(params, obs) -> [...]`, one number for all; `[..., A]` with one for each
            agent.
    """

    init: Callable[[jax.Array, jax.Array], PyTree]
    sample: Callable[..., tuple[jax.Array, jax.Array]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    mode: Callable[..., jax.Array]
    value: Callable[[PyTree, PyTree], jax.Array]


def make_networks(
    env: envs.Env,
    *,
    hidden: tuple[int, ...] = (256, 256, 256),
    distribution: Distribution | None = None,
    actor: Any = None,
    critic: Any = None,
    critic_part: str | None = None,
    share_parameters: bool = True,
) -> Networks:
    """Makes a policy and a value for the spaces of an environment.

    A box has a Gaussian whose mean depends on the observation and whose standard deviation does
    not; it starts at exp(-0.5). Choices have categoricals, of which masks forbid some; where a mask
    allows nothing at all, as of an agent that is gone, it is left out.

    Args:
        env: the environment; its observations and rewards say what the networks take and give.
        hidden: widths of the hidden layers of both, where they are not given.
        distribution: of the actions, instead of the one above; the actor then puts out all its
            parameters, standard deviations too.
        actor: the policy's network, with `init(key, obs) -> params` and `apply(params, obs)`, as
            `flax.linen` modules have: it takes the actor's part of the observation, `[..., O]`,
            and puts out `[..., D]` means of a box or else `[..., num_params]`.
        critic: likewise the value's network; it puts out `[..., 1]`, or `[..., A]` if it sees one
            state for A agents that have rewards of their own.
        critic_part: part of the observation that the critic sees, of a dict; what the actor sees
            by default. With agents it is one state for all of them, unless its first axis is theirs
            and it has another one.
        share_parameters: all agents have one network, and are told apart by what they observe.
            False: each has its own, of the policy and of a value that sees what one agent sees.

    Raises:
        ValueError: if there is no such part, it needs a critic of its own because it is not flat,
            or parameters are not shared by agents that do not exist.

    Example:
        >>> env = envs.make_env(envs.pendulum(), num_envs=8)
        >>> networks = make_networks(env, hidden=(64, 64))
        >>> params = networks.init(*jax.random.split(jax.random.key(0)))
        >>> networks.mode(params, jnp.zeros((5, 3)), ()).shape
        (5, 1)
    """
    space, num_agents = env.action_space, env.num_agents
    if not share_parameters and num_agents is None:
        raise ValueError("share_parameters=False needs agents, but the environment has none")
    start = jax.eval_shape(env.reset, jax.random.key(0))
    seen = _part(env, start.obs, critic_part).shape[1:]
    agentwise = num_agents is not None and len(seen) > 1 and seen[0] == num_agents
    if critic is None and len(seen) != 1 + agentwise:
        raise ValueError(
            f"{env.name}: the critic would see {seen}, which is not flat; give a critic that takes "
            "it"
        )
    own_value = len(start.reward.shape) > 1 and not agentwise  # a number for each agent's reward
    free_std = distribution is None and isinstance(space, spaces.Box)
    law = distributions.distribution_of(space) if distribution is None else distribution
    if actor is None:
        actor = Mlp(hidden, env.action_size if free_std else law.num_params)
    if critic is None:
        critic = Mlp(hidden, start.reward.shape[1] if own_value else 1)
    lead = () if num_agents is None else (num_agents,)
    own_actor = () if share_parameters else lead
    own_critic = own_actor if agentwise else ()

    def init(key_policy: jax.Array, key_value: jax.Array) -> PyTree:
        example = jnp.zeros((env.obs_size,), jnp.float32)
        params = {"policy": _init(actor, key_policy, example, own_actor)}
        if free_std:
            params["log_std"] = jnp.full((*own_actor, env.action_size), -0.5, jnp.float32)
        example = jnp.zeros(seen[1:] if agentwise else seen, jnp.float32)
        return params | {"value": _init(critic, key_value, example, own_critic)}

    def law_at(params: PyTree, obs: PyTree, mask: PyTree) -> jax.Array:
        out = _apply(actor, params["policy"], envs.actor_obs(env, obs), own_actor)
        if free_std:
            log_std = jnp.broadcast_to(params["log_std"], out.shape)
            return jnp.concatenate([out, log_std], axis=-1)
        if isinstance(mask, tuple):
            return out
        return distributions.mask_logits(out, mask | ~jnp.any(mask, axis=-1, keepdims=True))

    def sample(key: jax.Array, params: PyTree, obs: PyTree, mask: PyTree) -> tuple:
        at = law_at(params, obs, mask)
        action = law.sample(key, at)
        return action, law.log_prob(at, action)

    def evaluate(params: PyTree, obs: PyTree, mask: PyTree, action: jax.Array) -> tuple:
        at = law_at(params, obs, mask)
        return law.log_prob(at, action), law.entropy(at)

    def mode(params: PyTree, obs: PyTree, mask: PyTree) -> jax.Array:
        return to_env(space, law.mode(law_at(params, obs, mask)))

    def value(params: PyTree, obs: PyTree) -> jax.Array:
        out = _apply(critic, params["value"], _part(env, obs, critic_part), own_critic)
        return out if own_value else out[..., 0]

    return Networks(init, sample, evaluate, mode, value)


def to_env(space: spaces.Space, action: jax.Array) -> jax.Array:
    """Returns what the environment is given: an action of a box clipped to [-1, 1]."""
    return jnp.clip(action, -1.0, 1.0) if isinstance(space, spaces.Box) else action


def _part(env: envs.Env, obs: PyTree, part: str | None) -> Any:
    if part is None:
        return envs.actor_obs(env, obs)
    if not isinstance(obs, dict) or part not in obs:
        parts = ", ".join(obs) if isinstance(obs, dict) else "one array"
        raise ValueError(f"{env.name}: critic_part {part!r} is no part of observations: {parts}")
    return obs[part]


def _init(network: Any, key: jax.Array, example: jax.Array, own: tuple[int, ...]) -> PyTree:
    """Parameters for all agents, or stacked ones, for each its own."""
    if not own:
        return network.init(key, example)
    return jax.vmap(lambda k: network.init(k, example))(jax.random.split(key, own))


def _apply(network: Any, params: PyTree, obs: jax.Array, own: tuple[int, ...]) -> jax.Array:
    if not own:
        return network.apply(params, obs)
    return jax.vmap(network.apply, in_axes=(0, -2), out_axes=-2)(params, obs)

"""Recurrent policies and values of agents, for games that one observation does not show.

A GRU carries what each agent has seen; its memory is emptied where an episode begins. It is given
the same flags that the rollout stored, so that learning sees what acting saw.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxlab import envs
from jaxlab.core.types import PyTree
from jaxlab.envs import spaces
from jaxlab.learning import distributions
from jaxlab.learning.actor_critic import Networks
from jaxlab.nn import orthogonal


class Memory(NamedTuple):
    """Networks with a memory of each agent, `[..., N, H]`; without one it has H = 0.

    Attributes:
        size: H, numbers of the memory of one agent.
        init: `init(key_policy, key_value) -> params`.
        step: `step(params, memory, first, obs, mask) -> (memory, outputs, value)`: one step of a
            batch `[E, N, ...]`; `first [E]` says where an episode begins, and empties the memory.
        sample: `sample(key, outputs) -> (action, logp)`.
        evaluate: `evaluate(outputs, action) -> (logp, entropy)`.
        mode: `mode(outputs) -> action`.
    """

    size: int
    init: Callable[[jax.Array, jax.Array], PyTree]
    step: Callable[..., tuple[jax.Array, PyTree, jax.Array]]
    sample: Callable[..., tuple[jax.Array, jax.Array]]
    evaluate: Callable[..., tuple[jax.Array, jax.Array]]
    mode: Callable[..., jax.Array]


class GruTrunk(nn.Module):
    """A layer, a GRU and two heads: parameters of the policy and the value.

    Attributes:
        width: of the layer and the memory.
        out: numbers that the policy needs.
    """

    width: int
    out: int

    @nn.compact
    def __call__(
        self, memory: Float[Array, "... H"], obs: Float[Array, "... O"]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = nn.relu(nn.Dense(self.width, kernel_init=orthogonal(2.0**0.5))(obs))
        memory, x = nn.GRUCell(self.width, recurrent_kernel_init=orthogonal())(memory, x)
        out = nn.Dense(self.out, kernel_init=orthogonal(0.01))(x)
        value = nn.Dense(1, kernel_init=orthogonal(1.0))(x)
        return memory, out, value[..., 0]


def gru_networks(env: envs.Env, *, width: int = 64, share_parameters: bool = True) -> Memory:
    """Makes policies and values over a GRU for agents with choices.

    Args:
        env: environments with agents.
        width: of the layer and the memory.
        share_parameters: one network for all agents; False: each has its own.

    Raises:
        ValueError: if there are no agents, actions are a box, or the width is below 1.
    """
    if env.num_agents is None or isinstance(env.action_space, spaces.Box):
        raise ValueError(
            f"{env.name}: a GRU needs agents with choices, got num_agents {env.num_agents} and "
            f"{env.action_space}"
        )
    if not spaces.is_count(width):
        raise ValueError(f"width must be at least 1, got {width!r}")
    law = distributions.distribution_of(env.action_space)
    trunk, N = GruTrunk(width, law.num_params), env.num_agents

    def init(key_policy: jax.Array, key_value: jax.Array) -> PyTree:
        example = jnp.zeros((width,), jnp.float32), jnp.zeros((env.obs_size,), jnp.float32)
        if share_parameters:
            return trunk.init(key_policy, *example)
        return jax.vmap(lambda k: trunk.init(k, *example))(jax.random.split(key_policy, N))

    def step(params: PyTree, memory: jax.Array, first: jax.Array, obs: PyTree, mask: PyTree) -> Any:
        memory = jnp.where(first[..., None, None], 0.0, memory)
        seen = envs.actor_obs(env, obs)
        apply: Any = trunk.apply
        if not share_parameters:
            apply = jax.vmap(apply, in_axes=(0, -2, -2), out_axes=(-2, -2, -1))
        memory, out, value = apply(params, memory, seen)
        if not isinstance(mask, tuple):
            mask = mask | ~jnp.any(mask, axis=-1, keepdims=True)
            out = distributions.mask_logits(out, mask)
        return memory, out, value

    def sample(key: jax.Array, out: jax.Array) -> tuple[jax.Array, jax.Array]:
        action = law.sample(key, out)
        return action, law.log_prob(out, action)

    def evaluate(out: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        return law.log_prob(out, action), law.entropy(out)

    return Memory(width, init, step, sample, evaluate, law.mode)


def without_memory(env: envs.Env, networks: Networks) -> Memory:
    """Wraps networks that see one observation at a time: a memory of no numbers."""

    def step(
        params: PyTree, memory: jax.Array, first: Bool[Array, " E"], obs: PyTree, mask: PyTree
    ):
        return memory, (params, obs, mask), networks.value(params, obs)

    def sample(key: jax.Array, outputs: tuple) -> tuple[jax.Array, jax.Array]:
        params, obs, mask = outputs
        return networks.sample(key, params, obs, mask)

    def evaluate(outputs: tuple, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        params, obs, mask = outputs
        return networks.evaluate(params, obs, mask, action)

    def mode(outputs: tuple) -> jax.Array:
        return networks.mode(*outputs)

    return Memory(0, networks.init, step, sample, evaluate, mode)


def replay(
    networks: Memory,
    params: PyTree,
    memory: Float[Array, "E N H"],
    first: Bool[Array, "T E"],
    obs: PyTree,
    mask: PyTree,
    action: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Looks again at a rollout: `(logp, entropy, value)`, `[T, E, N]` each.

    Args:
        networks: what acted.
        params: parameters now, with gradient.
        memory: what was remembered before the first step.
        first: where episodes began.
        obs, mask, action: of the rollout, `[T, E, N, ...]`.
    """
    if networks.size == 0:
        _, outputs, value = networks.step(params, memory, first, obs, mask)
        return (*networks.evaluate(outputs, action), value)

    def one(memory: jax.Array, inputs: tuple) -> tuple[jax.Array, tuple]:
        first, obs, mask, action = inputs
        memory, outputs, value = networks.step(params, memory, first, obs, mask)
        return memory, (*networks.evaluate(outputs, action), value)

    return jax.lax.scan(one, memory, (first, obs, mask, action))[1]

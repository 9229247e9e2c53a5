"""JaxMARL environments (Rutherford et al. 2024, arXiv:2311.10090): an axis of agents, and masks."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxlab.core.types import PyTree
from jaxlab.envs import spaces
from jaxlab.envs.adapters import pure
from jaxlab.envs.task import Task


def from_jaxmarl(
    env: Any, *, time_limit: int | None = None, pad: bool = False, world_state: bool = False
) -> Task:
    """Makes a task of a JaxMARL environment; agents stand in the order of `env.agents`.

    Its own step without automatic reset is used. An episode ends when all agents are done, and not
    before. An end by the environment's own clock (`max_steps`) is a truncation: its counter is held
    just below the limit in the last step, so that `done` says whether the game has ended. Rewards
    are `[A]`, each agent's. Masks are those of `get_avail_actions`, where there are any.

    Args:
        env: The environment, as `jaxmarl.make(name)` gives it.
        time_limit: Steps of an episode; by default `env.max_steps`.
        pad: Whether agents may have unequal observations and choices. Shorter observations are
            filled with zeros at the end; choices that an agent does not have are forbidden by the
            mask, and one that is made all the same fails its step.
        world_state: Whether to keep the environment's "world_state" for critics. Observations are
            then a dict of "agents" `[A, O]`, which the actors see, and "world_state" `[S]`.

    Returns:
        A `Task` with `num_agents`, to be run by `make_env`.

    Raises:
        ValueError: If agents are unequal and `pad` is false, if a space has no counterpart here,
            if there is no world state, or if the time limit is unknown.

    Example:
        >>> import jaxmarl
        >>> task = envs.from_jaxmarl(jaxmarl.make("MPE_simple_spread_v3"))
        >>> env = envs.make_env(task, num_envs=16)
    """
    name, agents = str(env.name), tuple(env.agents)
    theirs = {agent: env.action_space(agent) for agent in agents}
    each = {agent: pure.action_space(name, space) for agent, space in theirs.items()}
    obs, state = jax.eval_shape(env.reset, jax.random.key(0))
    sizes = {agent: pure.size(obs[agent]) for agent in agents}
    space = _common(name, each, sizes, pad)
    obs_size = max(sizes.values())
    masked = _has_masks(env, state)
    if world_state and "world_state" not in obs:
        raise ValueError(f"{name}: there is no world_state, got {', '.join(sorted(obs))}")
    own_limit = getattr(env, "max_steps", None)
    limit = own_limit if time_limit is None else time_limit
    if limit is None:
        raise ValueError(f"{name}: the environment has no max_steps; give time_limit")

    def read(obs: dict[str, Array]) -> PyTree:
        rows = [pure.flat(obs[agent]) for agent in agents]
        rows = [jnp.pad(row, (0, obs_size - row.size)) for row in rows]
        joined = jnp.stack(rows)
        if not world_state:
            return joined
        return {"agents": joined, "world_state": pure.flat(obs["world_state"])}

    def start(key: jax.Array) -> tuple[PyTree, PyTree]:
        key_reset, key_steps = jax.random.split(key)
        obs, state = env.reset(key_reset)
        return (state, key_steps), read(obs)

    def step(physics: tuple, action: jax.Array) -> tuple:
        state, key = physics
        key, key_step = jax.random.split(key)
        if own_limit is not None:
            state = _held(state, max(int(own_limit) - 2, 0))
        actions = {
            agent: action[i].reshape(theirs[agent].shape).astype(theirs[agent].dtype)
            for i, agent in enumerate(agents)
        }
        obs, state, reward, done, _ = env.step_env(key_step, state, actions)
        rewards = jnp.stack([jnp.asarray(reward[agent]).reshape(()) for agent in agents])
        if pad and isinstance(space, spaces.Discrete):
            own = jnp.asarray([spaces.num_logits(each[agent]) for agent in agents])
            rewards = jnp.where(action < own, rewards.astype(jnp.result_type(float)), jnp.nan)
        return (state, key), read(obs), rewards, done["__all__"]

    def action_mask(physics: tuple) -> Bool[Array, "A n"]:
        width = spaces.num_logits(space)
        own = [jnp.arange(width) < spaces.num_logits(each[agent]) for agent in agents]
        if not masked:
            return jnp.stack(own)
        allowed = env.get_avail_actions(physics[0])
        rows = [jnp.asarray(allowed[agent]).astype(bool).reshape(-1) for agent in agents]
        return jnp.stack([jnp.pad(row, (0, width - row.size)) for row in rows])

    lead = (len(agents),)
    return Task(
        name,
        obs_size,
        space,
        limit,
        pure.carried(start, step, pure.action_struct(space, lead)),
        step,
        num_agents=len(agents),
        action_mask=action_mask if masked or len(set(each.values())) > 1 else None,
        actor_part="agents" if world_state else None,
    )


def _common(name: str, each: dict[str, Any], sizes: dict[str, int], pad: bool) -> spaces.Space:
    """Returns the space of all agents: their own if it is one, the largest where padding may."""
    different = set(each.values())
    if len(different) == 1 and len(set(sizes.values())) == 1:
        return different.pop()
    if not pad:
        came = ", ".join(f"{agent}: {sizes[agent]} and {space}" for agent, space in each.items())
        raise ValueError(
            f"{name}: agents must observe and act alike, got {came}; pass pad=True to fill up"
        )
    if len(different) == 1:
        return different.pop()
    if not all(isinstance(space, spaces.Discrete) for space in different):
        raise ValueError(f"{name}: only Discrete actions can be filled up, got {each}")
    return max(different, key=spaces.num_logits)


def _has_masks(env: Any, state: Any) -> bool:
    try:
        jax.eval_shape(env.get_avail_actions, state)
    except NotImplementedError:
        return False
    return True


def _held(state: Any, last: int) -> Any:
    """The state with its counter of steps at most `last`; the state itself if it has none."""
    if hasattr(state, "step"):
        return state.replace(step=jnp.minimum(state.step, last))
    if hasattr(state, "state"):
        return state.replace(state=_held(state.state, last))
    return state

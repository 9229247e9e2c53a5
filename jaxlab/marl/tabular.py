"""Optimistic actor-critics with tables, from samples: each agent by itself, or with joint values.

Three critics. "values": each agent learns V(s) by exponential regression; its error is the actor's
advantage. "actions": each learns Q(s, a) of its own actions alone. Both see no partner, and cannot
tell a partner's mistake from bad luck: they are optimistic about both. "joint": one critic learns
the mean of every joint action, and optimism is applied to what the partners do.

Zhang et al. 2025, arXiv:2509.24047; the cap on steps of action values is of this room.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxlab import envs
from jaxlab.core.risk import Risk
from jaxlab.core.types import Algorithm, Metrics
from jaxlab.envs import spaces
from jaxlab.learning import collecting
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.settings import Settings
from jaxlab.marl import gradients, optimism, tables, values
from jaxlab.marl.optimism import Optimism
from jaxlab.marl.tables import Index

TabularCritic = Literal["values", "actions", "joint"]
Acting = Literal["policy", "marginals"]
EACH = ("beta", "beta_end", "policy_rate", "critic_rate")
"""Numbers of which every agent may have its own."""
RULES = {
    "policy_rate": settings_lib.NOT_NEGATIVE,
    "critic_rate": settings_lib.POSITIVE_SHARE,
    "gamma": settings_lib.SHARE,
    "init_scale": settings_lib.NOT_NEGATIVE,
    "entropy_coef": settings_lib.NOT_NEGATIVE,
}


class TabularState(NamedTuple):
    """All that evolves, and the settings.

    Attributes:
        logits: `[N, S, A]` of every agent's policy.
        critic: `[N, S]`, `[N, S, A]`, or `[S, A, ..., A]` of joint actions.
        env: the environments.
        returns: `[E]` rewards of the running episodes, added up.
        updates: steps so far.
        settings: see `Settings`.
        key: PRNG key of all draws to come.
    """

    logits: Float[Array, "N S A"]
    critic: Float[Array, "..."]
    env: envs.State
    returns: Float[Array, " E"]
    updates: Int[Array, ""]
    settings: Settings
    key: Array


def make_tabular(
    env: envs.Env,
    index: Index,
    num_states: int,
    *,
    critic: TabularCritic = "values",
    style: Optimism | None = None,
    measure: Callable[[Any], Risk] | None = None,
    states: Acting = "policy",
    beta: float | Sequence[float] | None = None,
    beta_end: float | Sequence[float] | None = None,
    anneal_steps: int | None = None,
    policy_rate: float | Sequence[float] = 0.02,
    critic_rate: float | Sequence[float] = 0.05,
    gamma: float = 0.95,
    init_scale: float = 0.0,
    entropy_coef: float = 0.0,
) -> Algorithm:
    """Makes a sampled actor-critic; one step is a step of every environment and of all tables.

    What several environments visit at once moves by the mean of what they saw.

    Args:
        env: environments whose agents have one choice each.
        index: which row of the tables a batch of observations is.
        num_states: S, rows of the tables.
        critic: "values", "actions" or "joint", see the module.
        style: optimism of critics that see no partner; `optimism.entropic(z_max=3)` by default,
            and with z_max = 20 for "actions", whose steps up are capped at the sampled target.
        measure: of what partners do, for "joint": any maker of `core.risk`; that of `style` by
            default.
        states: by what the agents act, and so whose states are learned at. "policy": their own
            policies. "marginals", of "joint" alone: those of the tilted policy, whose states the
            theorem's gradient is weighted by; a critic of joint actions learns nothing else by it.
        beta: parameter of either; by default the one at which it is the mean. Agents that learn
            alone may have their own, `[N]`, of this and of the three numbers below.
        beta_end: where `beta` goes to in a straight line over `anneal_steps`, so that what is left
            of a bias for lotteries goes; between `beta` and the mean.
        anneal_steps: steps of that; given together with `beta_end`.
        policy_rate, critic_rate: step sizes of logits and critic; actors should be slower.
        gamma: discount.
        init_scale: standard deviation of the first logits.
        entropy_coef: weight of a bonus for entropy, in units of reward.

    Returns:
        The algorithm; its `init(key, settings)` takes other numbers for `beta`, `beta_end`,
        `policy_rate`, `critic_rate`, `gamma`, `init_scale`, `entropy_coef`. Metrics: `env/return`
        of episodes that ended, `critic/weight`, the mean weight, near 0 where the critic has
        caught up, `critic/excess`, the share of errors held back by a limit, `policy/entropy`.

    Raises:
        ValueError: if the environment has no agents with one choice each, a word is unknown, a
            number is out of range, or a schedule is reversed.

    Example:
        >>> game = envs.climbing()
        >>> env = envs.make_env(envs.game_task(game), num_envs=64)
        >>> learner = make_tabular(env, functools.partial(envs.state_of, game), 1, beta=0.5)
    """
    N, A = tables.check(env, index, num_states)
    E = env.num_envs
    gradients.check_words(critic=(critic, TabularCritic), states=(states, Acting))
    if states == "marginals" and critic != "joint":
        raise ValueError(f"states='marginals' needs the critic 'joint', got {critic!r}")
    style = optimism.style_or(style, z_max=20.0 if critic == "actions" else 3.0)
    if measure is not None and critic != "joint":
        raise ValueError(f"measure is for the critic 'joint', got {critic!r}; give style instead")
    make_risk = style.measure if measure is None else measure
    mean_at = style.default if measure is None else optimism.NEUTRAL_AT.get(measure, 0.0)
    beta = mean_at if beta is None else beta
    numbers = {
        "beta": beta,
        "policy_rate": policy_rate,
        "critic_rate": critic_rate,
        "gamma": gamma,
        "init_scale": init_scale,
        "entropy_coef": entropy_coef,
    } | ({} if beta_end is None else {"beta_end": beta_end})
    own = () if critic == "joint" else EACH
    numbers = {name: each_agent(name, x, N, own) for name, x in numbers.items()}
    rule = style.rule if measure is None else optimism.WITH_INFINITY
    rules = RULES | {"beta": rule, "beta_end": rule}

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, rules)
        given = {**numbers, **settings}
        check_schedule(given, anneal_steps, mean_at)
        optimism.check_parameters(make_risk, given)

    check({})
    settings_lib.fill(None, numbers, rules, arrays=own)
    agent = jnp.arange(N)[None]
    critic_shape = {
        "values": (N, num_states),
        "actions": (N, num_states, A),
        "joint": (num_states, *(A,) * N),
    }[critic]

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> TabularState:
        given = settings_lib.fill(settings, numbers, rules, arrays=own)
        key, key_logits, key_env = jax.random.split(key, 3)
        noise = jax.random.normal(key_logits, (N, num_states, A), jnp.float32)
        return TabularState(
            given["init_scale"] * noise,
            jnp.zeros(critic_shape, jnp.float32),
            env.reset(key_env),
            jnp.zeros((E,), jnp.float32),
            jnp.zeros((), jnp.int32),
            given,
            key,
        )

    def policy_at(logits: jax.Array, state: jax.Array, mask: Any) -> jax.Array:
        row = tables.rows(logits, state)
        return jax.nn.softmax(jnp.where(tables.allowed(env, mask, A), row, -jnp.inf))

    def alone(of: Callable, beta: jax.Array, q: jax.Array, pi: jax.Array) -> jax.Array:
        """`of(risk, q, pi)` of every agent's own actions, `[E, N, A]`."""
        if not beta.ndim:
            return of(make_risk(beta), q, pi)
        return jax.vmap(lambda b, q, p: of(make_risk(b), q, p), (0, 1, 1), 1)(beta, q, pi)

    def together(state: TabularState, at: jax.Array, pi: jax.Array) -> tuple[Array, Array]:
        """Q of all joint actions, and the joint policy, `[E, A, ..., A]`."""
        return state.critic[at], values.joint_policy([pi[:, i] for i in range(N)])

    def value_at(state: TabularState, at: jax.Array, pi: jax.Array, beta: jax.Array) -> jax.Array:
        """Every agent's value, `[E, N]`."""
        if critic == "values":
            return tables.rows(state.critic, at)
        if critic == "actions":
            q = tables.rows(state.critic, at)
            return alone(lambda risk, q, pi: risk.value(q, pi), beta, q, pi)
        value = values.state_values(*together(state, at, pi), make_risk(beta))
        return jnp.broadcast_to(value[:, None], (E, N))

    def step(state: TabularState) -> tuple[TabularState, Metrics]:
        key, key_act = jax.random.split(state.key)
        given = state.settings
        beta = scheduled(given, state.updates, anneal_steps)
        policy_rate = jnp.broadcast_to(given["policy_rate"], (N,)).reshape(1, N, 1)
        critic_rate = jnp.broadcast_to(given["critic_rate"], (N,)).reshape(1, N)
        at = index(state.env.obs)
        pi = policy_at(state.logits, at, state.env.action_mask)
        acting = pi
        if states == "marginals":
            tilt = values.tilted_policy(*together(state, at, pi), make_risk(beta))
            acting = jnp.stack([values.marginal(tilt, i) for i in range(N)], axis=1)
        action = tables.draw(key_act, acting)
        after = env.step(state.env, action)
        reward = jnp.mean(after.reward.astype(jnp.float32).reshape(E, -1), axis=1)
        discount = jnp.where(after.terminated, 0.0, given["gamma"])
        to = index(after.final_obs)
        next_pi = policy_at(state.logits, to, after.final_action_mask)
        target = reward[:, None] + discount[:, None] * value_at(state, to, next_pi, beta)
        chosen = jax.nn.one_hot(action, A, dtype=jnp.float32)
        score = chosen - pi
        failed = after.failed[:, None]  # such a step taught nothing

        if critic == "values":
            error = jnp.where(failed, 0.0, target - tables.rows(state.critic, at))
            weight = style.weight(error, beta)
            change = critic_rate * style.critic_weight(error, beta)
            new_critic = tables.add_means(state.critic, (agent, at[:, None]), change)
            push = weight[..., None] * score
        elif critic == "actions":
            q = tables.rows(state.critic, at)
            error = target - jnp.sum(jnp.where(chosen > 0.0, q, 0.0), axis=-1)
            error = jnp.where(failed, 0.0, error)
            change = capped(critic_rate * style.critic_weight(error, beta), error)
            where = (agent, at[:, None], action)
            new_critic = tables.add_means(state.critic, where, change)
            push = pi * alone(lambda risk, q, pi: risk.weight(q, pi), beta, q, pi)
            weight = jnp.sum(push, axis=-1)
        else:
            joint = tuple(action[:, i] for i in range(N))
            error = target[:, :1] - state.critic[(at, *joint)][:, None]
            error = jnp.where(failed, 0.0, error)
            change = given["critic_rate"] * error[:, 0]
            new_critic = tables.add_means(state.critic, (at, *joint), change)
            mine, risk = [pi[:, i] for i in range(N)], make_risk(beta)
            each = [gradients.agent_weights(state.critic[at], mine, i, risk) for i in range(N)]
            push = pi * jnp.stack(each, axis=1)
            weight = jnp.sum(push, axis=-1)
        log_pi = jnp.log(jnp.where(pi > 0.0, pi, 1.0))
        entropy = -jnp.sum(pi * log_pi, axis=-1)
        push -= given["entropy_coef"] * pi * (log_pi + entropy[..., None])
        push = policy_rate * jnp.where(failed[..., None], 0.0, push)
        logits = tables.add_means(state.logits, (agent, at[:, None]), push)
        returned, ended = collecting.add_rewards(state.returns, after)
        metrics = {
            "env/return": ended,
            "critic/weight": jnp.mean(weight),
            "critic/excess": jnp.mean(style.excess(error, beta).astype(jnp.float32)),
            "policy/entropy": jnp.mean(entropy),
            "policy/beta": jnp.mean(beta),
        }
        state = TabularState(logits, new_critic, after, returned, state.updates + 1, given, key)
        return state, metrics

    return Algorithm(init, step, check=check)


def capped(step: Float[Array, "..."], error: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns a step that does not go beyond its target: at most the error where that is positive.

    An exponential step overshoots else, and whatever maximizes over the values keeps the excess.
    """
    return jnp.where(error > 0.0, jnp.minimum(step, error), step)


def each_agent(name: str, x: Any, num_agents: int, own: Sequence[str]) -> Any:
    """Returns one number as it is, and one for each agent as an array.

    Raises:
        ValueError: if there are several but not one for each, or `name` is not among `own`.
    """
    if not np.ndim(x):
        return x
    if name not in own or np.shape(x) != (num_agents,):
        several = f" or one for each of the {num_agents} agents" if name in own else ""
        raise ValueError(f"{name} must be one number{several}, got shape {np.shape(x)}")
    return np.asarray(x)


def check_schedule(numbers: Mapping[str, Any], anneal_steps: int | None, mean: float) -> None:
    """Refuses half a schedule, and one that does not go towards the mean."""
    if ("beta_end" in numbers) != (anneal_steps is not None):
        raise ValueError(
            "beta_end and anneal_steps must be given together, got "
            f"{numbers.get('beta_end')} and {anneal_steps}"
        )
    if anneal_steps is None:
        return
    if not spaces.is_count(anneal_steps):
        raise ValueError(f"anneal_steps must be at least 1, got {anneal_steps!r}")
    if any(isinstance(numbers[name], Tracer) for name in ("beta", "beta_end")):
        return
    start, end = (np.asarray(numbers[name], np.float64) for name in ("beta", "beta_end"))
    if np.any((end < np.minimum(start, mean)) | (end > np.maximum(start, mean))):
        raise ValueError(
            f"beta_end must lie between beta and the mean at {mean}, got {numbers['beta_end']} "
            f"after {numbers['beta']}; is the schedule reversed?"
        )


def scheduled(
    given: Settings, updates: Int[Array, ""], anneal_steps: int | None
) -> Float[Array, ""]:
    """Returns beta, on its way to `beta_end` where there is a schedule."""
    if anneal_steps is None:
        return given["beta"]
    share = jnp.minimum(updates.astype(jnp.float32) / anneal_steps, 1.0)
    return given["beta"] + share * (given["beta_end"] - given["beta"])

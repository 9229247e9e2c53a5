"""Optimistic IPPO: independent PPO whose advantages and values are tilted to the best case.

Each agent has a value learned by an asymmetric loss, and its generalized advantage A goes through
the weight of the same optimism, (exp(beta A) - 1) / beta say, before the clipped surrogate. At
beta = 0 it is IPPO without the centering of advantages.

Zhang et al. 2025, arXiv:2509.24047 (the actor's weight); de Witt et al. 2020, arXiv:2011.09533
(IPPO). The weight of a lambda-return is a heuristic; it is the theorem's for lambda = 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlab import envs
from jaxlab.core.types import Algorithm, Mean, Metrics, PyTree
from jaxlab.envs import spaces
from jaxlab.learning import actor_critic, collecting, normalization, policy_gradient, returns
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.actor_critic import Networks
from jaxlab.learning.policy_gradient import Outputs, Samples
from jaxlab.learning.settings import Settings
from jaxlab.marl import gradients, networks, optimism, tabular
from jaxlab.marl.networks import Memory
from jaxlab.marl.optimism import Optimism

SampledStates = Literal["policy", "weighted"]
RULES = {
    "learning_rate": settings_lib.POSITIVE,
    "gamma": settings_lib.SHARE,
    "gae_lambda": settings_lib.SHARE,
    "clip_eps": settings_lib.LIMIT,
    "value_coef": settings_lib.NOT_NEGATIVE,
    "entropy_coef": settings_lib.NOT_NEGATIVE,
    "max_grad_norm": settings_lib.LIMIT,
    "reward_scale": settings_lib.POSITIVE,
    "target_kl": settings_lib.POSITIVE,
}
EACH = ("beta", "beta_end", "learning_rate")
"""Numbers of which every agent may have its own."""
MOST_WEIGHT = 10.0
"""Where the weights of states="weighted" are cut."""


class IppoState(NamedTuple):
    """All that evolves, and the settings.

    Attributes:
        params: parameters of policies and values.
        opt_state: state of the optimizer of both.
        env: the environments.
        memory: `[E, N, H]` of recurrent networks; H = 0 without.
        first: `[E]` bool, whether an episode begins with the next step.
        running: `[E]` discounted sums of rewards, of which the scale is found.
        moments: their moments.
        returns: `[E]` rewards of the running episodes, added up; means over agents.
        failures: steps of the environments that have failed so far.
        updates: steps of the algorithm so far.
        settings: see `Settings`.
        key: PRNG key of all draws to come.
    """

    params: PyTree
    opt_state: PyTree
    env: envs.State
    memory: Float[Array, "E N H"]
    first: Bool[Array, " E"]
    running: Float[Array, " E"]
    moments: normalization.ObsStats
    returns: Float[Array, " E"]
    failures: Int[Array, ""]
    updates: Int[Array, ""]
    settings: Settings
    key: Array


class Rollout(NamedTuple):
    """What a rollout stores, `[T, E, ...]`.

    Values are `()` where networks have no memory: all of them are computed at once, later, from
    `obs` and `next_obs`. With a memory it is `next_obs` that is `()`.
    """

    obs: PyTree
    mask: PyTree
    first: Bool[Array, "T E"]
    action: Array
    logp: Float[Array, "T E N"]
    value: PyTree
    next_value: PyTree
    next_obs: PyTree
    reward: Float[Array, "T E N"]
    discount: Float[Array, "T E"]
    done: Bool[Array, "T E"]


def make_op_ippo(
    env: envs.Env,
    nets: Networks | Memory | None = None,
    *,
    style: Optimism | None = None,
    beta: float | Sequence[float] | None = None,
    beta_end: float | Sequence[float] | None = None,
    anneal_steps: int | None = None,
    target_kl: float | None = None,
    states: SampledStates = "policy",
    scale_rewards: bool = True,
    num_steps: int = 128,
    num_epochs: int = 4,
    num_minibatches: int = 4,
    learning_rate: float | Sequence[float] | optax.Schedule = 2.5e-4,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_eps: float = 0.2,
    value_coef: float = 0.5,
    entropy_coef: float = 0.01,
    max_grad_norm: float = 0.5,
    reward_scale: float = 1.0,
) -> Algorithm:
    """Makes Op-IPPO; one step of the algorithm is a rollout of `num_steps` and its epochs.

    A minibatch is some of the environments with all their steps, so that recurrent networks see
    whole sequences.

    Args:
        env: environments with agents.
        nets: policies and values: `learning.make_networks` with an axis of agents (separate
            parameters by its `share_parameters=False`) or `gru_networks`. By default the first,
            with two hidden layers of 64 and one network for all.
        style: how samples are judged: `entropic()` by default, `expectile()`, `leaky()` for
            OptiMAPPO's advantages, `neutral()`, or `of_measure` of any other measure. Swapping it
            swaps the risk measure.
        beta: parameter of `style`, in units of 1 over the scaled reward; by default that of the
            mean. Agents may have their own, `[N]`; weights are then scaled agent by agent.
        beta_end, anneal_steps: where beta goes to, in a straight line over so many updates.
        target_kl: instead of a fixed beta: in every update the beta up to `beta` is taken at which
            the tilted policy diverges this much from the policy, of "entropic" alone.
        states: "policy" takes the states as they come. "weighted": step t counts by the product
            of exp(beta A_k) over the steps k before it, cut and divided by its mean, towards the
            states of the tilted policy.
        scale_rewards: divide rewards by the running standard deviation of discounted sums, so that
            beta means the same in every environment.
        num_steps: steps of each environment in a rollout.
        num_epochs: how often the rollout is learned from.
        num_minibatches: gradient steps of an epoch; they divide the environments.
        learning_rate: of Adam, with epsilon 1e-5; a schedule cannot be swept. Agents with networks
            of their own may have their own, `[N]`: then each has an optimizer and a gradient norm
            of its own, and with own betas besides nothing of what another one learns reaches it.
        gamma, gae_lambda, clip_eps, value_coef, entropy_coef, max_grad_norm: as in PPO.
        reward_scale: factor of rewards, before any scaling.

    Returns:
        The algorithm; its `init(key, settings)` takes other numbers for `beta`, `beta_end`,
        `target_kl` and those from `learning_rate` on. Metrics besides those of PPO: `policy/beta`;
        `critic/weight`, the mean weight before scaling, near 0 where critics have caught up;
        `critic/excess`, the share of weights held back; `policy/tilt`, an estimate of the tilted
        policy's divergence; `critic/scale`, what rewards are multiplied by.

    Raises:
        ValueError: if there are no agents, a number is out of range, the environments do not divide
            into the minibatches, a schedule is reversed, or `target_kl` meets another schedule.

    Example:
        >>> env = envs.make_env(envs.game_task(envs.climbing()), num_envs=64)
        >>> algorithm = make_op_ippo(env, beta=1.0, num_steps=16)
        >>> state, metrics = jax.jit(algorithm.step)(algorithm.init(jax.random.key(0)))
    """
    E, N = env.num_envs, env.num_agents
    if N is None:
        raise ValueError(f"{env.name}: there must be agents; learning.make_ppo is for one")
    if not all(map(spaces.is_count, (num_steps, num_epochs, num_minibatches))):
        raise ValueError(
            "num_steps, num_epochs and num_minibatches must be at least 1, got "
            f"{num_steps}, {num_epochs} and {num_minibatches}; give integers"
        )
    if E % num_minibatches:
        raise ValueError(f"num_minibatches must divide the {E} environments, got {num_minibatches}")
    gradients.check_words(states=(states, SampledStates))
    style = optimism.style_or(style)
    if nets is None:
        nets = actor_critic.make_networks(env, hidden=(64, 64))
    memory_nets = nets if isinstance(nets, Memory) else networks.without_memory(env, nets)
    recurrent = memory_nets.size > 0
    _check_shapes(env, memory_nets)
    numbers: dict[str, Any] = {
        "beta": style.default if beta is None else beta,
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "clip_eps": clip_eps,
        "value_coef": value_coef,
        "entropy_coef": entropy_coef,
        "max_grad_norm": max_grad_norm,
        "reward_scale": reward_scale,
    }
    if not callable(learning_rate):
        numbers["learning_rate"] = learning_rate
    apart = not callable(learning_rate) and np.ndim(learning_rate) > 0
    if beta_end is not None:
        numbers["beta_end"] = beta_end
    if target_kl is not None:
        numbers["target_kl"] = target_kl
        entropic = style.measure is optimism.entropic().measure
        if anneal_steps is not None or not entropic or np.ndim(numbers["beta"]):
            raise ValueError(
                "target_kl finds beta of the entropic style by itself; give neither a schedule nor "
                "another style nor a beta for each agent with it"
            )
    numbers = {name: tabular.each_agent(name, x, N, EACH) for name, x in numbers.items()}
    rules = RULES | {"beta": style.rule, "beta_end": style.rule}

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, rules)
        together = {**numbers, **settings}
        tabular.check_schedule(together, anneal_steps, style.default)
        optimism.check_parameters(style.measure, together)

    check({})
    settings_lib.fill(None, numbers, rules, arrays=EACH)
    if apart:
        _check_own(env, memory_nets)

    def optimizer(given: Settings) -> optax.GradientTransformation:
        def of(rate: Any) -> optax.GradientTransformation:
            return optax.chain(
                optax.clip_by_global_norm(given["max_grad_norm"]), optax.adam(rate, eps=1e-5)
            )

        if not apart:
            return of(learning_rate if callable(learning_rate) else given["learning_rate"])
        rates = given["learning_rate"]

        def begin(params: PyTree) -> PyTree:
            return jax.vmap(lambda rate, p: of(rate).init(p))(rates, params)

        def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple:
            return jax.vmap(lambda rate, *x: of(rate).update(*x))(rates, updates, state, params)

        return optax.GradientTransformation(begin, update)

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> IppoState:
        given = settings_lib.fill(settings, numbers, rules, arrays=EACH)
        key, key_policy, key_value, key_env = jax.random.split(key, 4)
        params = memory_nets.init(key_policy, key_value)
        return IppoState(
            params,
            optimizer(given).init(params),
            env.reset(key_env),
            jnp.zeros((E, N, memory_nets.size), jnp.float32),
            jnp.ones((E,), bool),
            jnp.zeros((E,), jnp.float32),
            normalization.init_obs_stats(1),
            jnp.zeros((E,), jnp.float32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            given,
            key,
        )

    def act(state: IppoState, key: jax.Array) -> tuple[IppoState, tuple[Rollout, jax.Array, Mean]]:
        given, before = state.settings, state.env
        memory, outputs, value = memory_nets.step(
            state.params, state.memory, state.first, before.obs, before.action_mask
        )
        action, logp = memory_nets.sample(key, outputs)
        after = env.step(before, actor_critic.to_env(env.action_space, action))
        done = after.terminated | after.truncated
        next_value, next_obs = (), after.final_obs
        if recurrent:
            # What the same memory thinks of where the step led: the episode goes on there.
            goes_on = jnp.zeros((E,), bool)
            _, _, next_value = memory_nets.step(
                state.params, memory, goes_on, after.final_obs, after.final_action_mask
            )
            next_obs = ()
        reward = given["reward_scale"] * _each(after.reward.astype(jnp.float32), (E, N))
        running = given["gamma"] * state.running + jnp.mean(reward, axis=1)
        data = Rollout(
            before.obs,
            before.action_mask,
            state.first,
            action,
            logp,
            value if recurrent else (),
            next_value,
            next_obs,
            reward,
            # A step that failed led nowhere and took no time: V - V, neither good nor bad.
            jnp.where(after.failed, 1.0, jnp.where(after.terminated, 0.0, given["gamma"])),
            done,
        )
        returned, ended = collecting.add_rewards(state.returns, after)
        state = state._replace(
            env=after,
            memory=memory,
            first=done,
            running=jnp.where(done, 0.0, running),
            returns=returned,
            failures=state.failures + jnp.sum(after.failed, dtype=jnp.int32),
        )
        return state, (data, running, ended)

    def judge(state: IppoState, data: Rollout) -> tuple[Samples, Settings, dict[str, jax.Array]]:
        """Looks back on a rollout: weights, targets, and the beta of this update."""
        given, shape = state.settings, data.reward.shape
        value, next_value = data.value, data.next_value
        if not recurrent:
            value, next_value = (
                memory_nets.step(state.params, state.memory, data.first, obs, data.mask)[2]
                for obs in (data.obs, data.next_obs)
            )
        value, next_value = _each(value, shape), _each(next_value, shape)
        scale = jnp.ones(())
        if scale_rewards:
            # Rewards that have not varied, but for rounding, stay what they are.
            std = jnp.sqrt(state.moments.square[0])
            varied = std > jnp.finfo(std.dtype).eps * jnp.abs(state.moments.mean[0])
            scale = jnp.where(varied, 1.0 / jnp.where(varied, std, 1.0), 1.0)
        advantage, target = returns.gae(
            scale * data.reward,
            value,
            next_value,
            _each(data.discount, shape),
            _each(data.done, shape),
            gae_lambda=given["gae_lambda"],
        )
        choice_mask = None
        if not isinstance(data.mask, tuple):
            choice_mask = jnp.sum(data.mask, axis=-1) > spaces.size(env.action_space)
        beta = tabular.scheduled(given, state.updates, anneal_steps)
        if target_kl is not None:
            beta = optimism.beta_of_divergence(
                advantage, given["target_kl"], beta_max=given["beta"], mask=choice_mask
            )
        weight = style.weight(advantage, beta)
        mean_weight = policy_gradient.masked_mean(weight, choice_mask)
        scaled: Callable = optimism.over_std
        if beta.ndim:  # each agent's by itself
            scaled = jax.vmap(scaled, (-1, None if choice_mask is None else -1), -1)
        weight = scaled(weight, choice_mask)
        if states == "weighted":
            weight *= optimism.step_weights(
                advantage, beta, _each(data.done, shape), most=MOST_WEIGHT
            )
        metrics = {
            "policy/beta": jnp.mean(beta),
            "critic/weight": mean_weight,
            "critic/excess": policy_gradient.masked_mean(
                style.excess(advantage, beta).astype(jnp.float32), choice_mask
            ),
            "policy/tilt": optimism.tilt_divergence(advantage, beta, choice_mask),
            "critic/scale": scale,
        }
        samples = Samples(data.logp, value, target, weight, choice_mask)
        return samples, {**given, "beta": beta}, metrics

    @jax.jit
    def learn(
        state: IppoState, key: jax.Array, memory: jax.Array, data: Rollout
    ) -> tuple[IppoState, dict[str, jax.Array]]:
        """All epochs over one rollout."""
        then, given, looked = judge(state, data)

        def loss_of(params: PyTree, index: jax.Array) -> tuple[jax.Array, dict]:
            seen = data.first, data.obs, data.mask, data.action, then
            first, obs, mask, action, samples = jax.tree.map(lambda x: x[:, index], seen)
            logp, entropy, value = networks.replay(
                memory_nets, params, memory[index], first, obs, mask, action
            )
            now = Outputs(logp, entropy, _each(value, samples.target.shape))
            return optimism.weighted_loss(now, samples, given, style)

        def minibatch(carry: tuple, index: jax.Array) -> tuple[tuple, dict]:
            params, opt_state = carry
            grads, metrics = jax.grad(loss_of, has_aux=True)(params, index)
            updates, opt_state = optimizer(given).update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), metrics

        def epoch(carry: tuple, key: jax.Array) -> tuple[tuple, dict]:
            order = jax.random.permutation(key, E)
            return jax.lax.scan(minibatch, carry, order.reshape(num_minibatches, -1))

        carry = (state.params, state.opt_state)
        (params, opt_state), metrics = jax.lax.scan(epoch, carry, jax.random.split(key, num_epochs))
        metrics = {name: jnp.mean(x) for name, x in metrics.items()}
        return state._replace(params=params, opt_state=opt_state), metrics | looked

    def step(state: IppoState) -> tuple[IppoState, Metrics]:
        key, key_rollout, key_epochs = jax.random.split(state.key, 3)
        memory = state.memory
        keys = jax.random.split(key_rollout, num_steps)
        state, (data, running, ended) = jax.lax.scan(act, state._replace(key=key), keys)
        moments = normalization.update_obs_stats(state.moments, running.reshape(-1, 1))
        state, metrics = learn(state._replace(moments=moments), key_epochs, memory, data)
        metrics["env/failed"] = state.failures.astype(jnp.float32)
        metrics["env/return"] = jax.tree.map(jnp.sum, ended)
        return state._replace(updates=state.updates + 1), metrics

    return Algorithm(init, step, check=check)


def _each(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Gives every agent what is common to them."""
    return jnp.broadcast_to(x.reshape(*x.shape, *(1,) * (len(shape) - x.ndim)), shape)


def _check_own(env: envs.Env, nets: Memory) -> None:
    params = jax.eval_shape(nets.init, jax.random.key(0), jax.random.key(0))
    if any(leaf.shape[:1] != (env.num_agents,) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            f"{env.name}: a learning rate for each agent needs networks of their own; make them "
            "with share_parameters=False"
        )


def _check_shapes(env: envs.Env, nets: Memory) -> None:
    """Compares shapes of what the networks give, without running them."""
    key, E, N = jax.random.key(0), env.num_envs, env.num_agents

    def once(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start, memory = env.reset(key), jnp.zeros((E, N, nets.size), jnp.float32)
        _, outputs, value = nets.step(
            nets.init(key, key), memory, jnp.ones((E,), bool), start.obs, start.action_mask
        )
        return nets.sample(key, outputs)[1], value

    logp, value = jax.eval_shape(once, key)
    if logp.shape != (E, N) or value.shape not in ((E,), (E, N)):
        raise ValueError(
            f"{env.name}: networks must give a logp of {(E, N)} and a value of it or of {(E,)}, "
            f"got {logp.shape} and {value.shape}"
        )

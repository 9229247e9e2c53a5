"""PPO: on-policy, with a clipped ratio and generalized advantages.

Schulman et al. 2017, arXiv:1707.06347; advantages of Schulman et al. 2016, arXiv:1506.02438. With
agents it is IPPO (de Witt et al. 2020, arXiv:2011.09533), and MAPPO (Yu et al. 2022,
arXiv:2103.01955) where the critic sees a state that the actors do not.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxlab import envs
from jaxlab.core.types import Algorithm, Mean, Metrics, PyTree, Transition
from jaxlab.envs import spaces
from jaxlab.learning import actor_critic, collecting, policy_gradient, returns
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.actor_critic import Networks
from jaxlab.learning.policy_gradient import Loss, Outputs, Samples, Scalars
from jaxlab.learning.settings import Settings

MinibatchOf = Literal["transitions", "environments"]
RULES = {
    "learning_rate": settings_lib.POSITIVE,
    "gamma": settings_lib.SHARE,
    "gae_lambda": settings_lib.SHARE,
    "clip_eps": settings_lib.LIMIT,
    "value_clip_eps": settings_lib.LIMIT,
    "value_coef": settings_lib.NOT_NEGATIVE,
    "entropy_coef": settings_lib.NOT_NEGATIVE,
    "max_grad_norm": settings_lib.LIMIT,
    "reward_scale": settings_lib.POSITIVE,
}
"""What the numbers must be that may be swept."""


class PpoState(NamedTuple):
    """All that evolves, and the settings.

    Attributes:
        params: parameters of policy and value, see `Networks`.
        opt_state: state of the optimizer of both.
        env: the environments.
        failures: steps of the environments that have failed so far.
        returns: `[E]` rewards of the running episodes, added up; means over agents.
        settings: see `Settings`.
        key: PRNG key of all draws to come.
    """

    params: PyTree
    opt_state: PyTree
    env: envs.State
    failures: Int[Array, ""]
    returns: Float[Array, " E"]
    settings: Settings
    key: Array


def make_ppo(
    env: envs.Env,
    networks: Networks | None = None,
    *,
    hidden: tuple[int, ...] | None = None,
    critic_part: str | None = None,
    share_parameters: bool | None = None,
    num_steps: int = 400,
    num_epochs: int = 10,
    num_minibatches: int = 32,
    minibatch_of: MinibatchOf = "transitions",
    learning_rate: float | optax.Schedule = 3e-4,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_eps: float = 0.2,
    value_clip_eps: float | None = None,
    value_coef: float = 0.5,
    entropy_coef: float = 0.0,
    max_grad_norm: float = 0.5,
    reward_scale: float = 0.2,
    duration: Callable[[envs.State], Int[Array, " E"]] | None = None,
    loss: Loss = policy_gradient.ppo_loss,
    loss_settings: Mapping[str, float] | None = None,
) -> Algorithm:
    """Makes PPO; one step of the algorithm is a rollout of `num_steps` and its epochs.

    With agents all learn from all: their axis follows that of the environments everywhere, a common
    reward is every agent's, and a minibatch holds all agents of its transitions. The metric
    `env/return` is the mean over agents of the return of episodes that ended in the step, without
    those that a failed step cut off; such a step counts as one that led nowhere and took no time.

    Args:
        env: the environments, of any space.
        networks: policy and value; by default those of `make_networks` with the next three.
        hidden, critic_part, share_parameters: see `make_networks`.
        num_steps: steps of each environment in a rollout.
        num_epochs: how often the rollout is learned from.
        num_minibatches: gradient steps of an epoch.
        minibatch_of: what an epoch shuffles. "transitions": single ones. "environments": whole
            rollouts of some environments, leaves `[num_steps, E / num_minibatches, ...]`.
        learning_rate: of Adam, with epsilon 1e-5; a number, or a schedule over its steps, which
            cannot be swept.
        gamma: discount of one step of the clock.
        gae_lambda: decay of the advantages' sum.
        clip_eps: how far a ratio may be driven from 1.
        value_clip_eps: likewise a value from what it was, in units of `reward_scale` times
            reward; None for no clip.
        value_coef, entropy_coef: weights of both in the loss.
        max_grad_norm: the gradient is shortened to this.
        reward_scale: factor of rewards.
        duration: `duration(state) -> [E]`, steps of the clock that the action before this state
            took: the discount is gamma to this power. By default what the environment says of its
            macro-actions (`State.duration`), or else one.
        loss: `loss(outputs, samples, settings) -> (loss, metrics)`, instead of `ppo_loss`.
        loss_settings: numbers by name that one's own loss finds in its settings besides these.

    Returns:
        The algorithm; its `init(key, settings)` takes other numbers for the arguments from
        `learning_rate` to `reward_scale` and for `loss_settings`, by their names: a sweep is
        `learning.over_seeds(make_ppo(env), 3, settings={"clip_eps": jnp.array([0.1, 0.2, 0.3])})`.

    Raises:
        ValueError: if a number is out of range, the transitions or environments do not divide into
            the minibatches, networks are both given and described, or their shapes do not fit.

    Example:
        >>> env = envs.make_env(envs.pendulum(), num_envs=8)
        >>> algorithm = make_ppo(env, hidden=(64, 64), num_steps=128)
        >>> state, metrics = jax.jit(algorithm.step)(algorithm.init(jax.random.key(0)))
    """
    E = env.num_envs
    if not all(map(spaces.is_count, (num_steps, num_epochs, num_minibatches))):
        raise ValueError(
            "num_steps, num_epochs and num_minibatches must be at least 1, got "
            f"{num_steps}, {num_epochs} and {num_minibatches}; give integers"
        )
    shuffled = {"transitions": num_steps * E, "environments": E}
    if minibatch_of not in shuffled:
        raise ValueError(f"minibatch_of must be one of {', '.join(shuffled)}, got {minibatch_of!r}")
    if shuffled[minibatch_of] % num_minibatches:
        raise ValueError(
            f"{shuffled[minibatch_of]} {minibatch_of} of a rollout ({num_steps} x {E}) must divide "
            f"into num_minibatches, got {num_minibatches}"
        )
    if num_minibatches == num_steps * E and loss is policy_gradient.ppo_loss:
        raise ValueError(
            f"{num_minibatches} minibatches of one transition teach nothing: an advantage less its "
            "own mean is 0; take fewer"
        )
    described: dict[str, Any] = {
        name: x
        for name, x in (
            ("hidden", hidden),
            ("critic_part", critic_part),
            ("share_parameters", share_parameters),
        )
        if x is not None
    }
    if networks is not None and described:
        raise ValueError(
            f"networks are given; give {', '.join(described)} to make_networks instead"
        )
    nets = actor_critic.make_networks(env, **described) if networks is None else networks
    numbers = {
        "learning_rate": learning_rate,
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "clip_eps": clip_eps,
        "value_clip_eps": value_clip_eps,
        "value_coef": value_coef,
        "entropy_coef": entropy_coef,
        "max_grad_norm": max_grad_norm,
        "reward_scale": reward_scale,
    }
    if callable(learning_rate):
        del numbers["learning_rate"]
    if value_clip_eps is None:
        del numbers["value_clip_eps"]
    if taken := RULES.keys() & (loss_settings or {}).keys():
        raise ValueError(
            f"loss_settings must have names of their own, got {', '.join(sorted(taken))}"
        )
    numbers |= loss_settings or {}
    settings_lib.fill(None, numbers, RULES)
    _check_networks(env, nets)

    def optimizer(settings: Settings) -> optax.GradientTransformation:
        rate: Any = learning_rate if callable(learning_rate) else settings["learning_rate"]
        return optax.chain(
            optax.clip_by_global_norm(settings["max_grad_norm"]), optax.adam(rate, eps=1e-5)
        )

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> PpoState:
        values = settings_lib.fill(settings, numbers, RULES)
        key, key_policy, key_value, key_env = jax.random.split(key, 4)
        params = nets.init(key_policy, key_value)
        return PpoState(
            params,
            optimizer(values).init(params),
            env.reset(key_env),
            jnp.zeros((), jnp.int32),
            jnp.zeros((E,), jnp.float32),
            values,
            key,
        )

    def act(state: PpoState, key: jax.Array) -> tuple[PpoState, tuple[Transition, Mean]]:
        obs, mask, settings = state.env.obs, state.env.action_mask, state.settings
        action, logp = nets.sample(key, state.params, obs, mask)
        after = env.step(state.env, actor_critic.to_env(env.action_space, action))
        gamma = settings["gamma"]
        took = after.duration if duration is None else duration(after)
        if not isinstance(took, tuple):
            gamma = gamma ** took.astype(jnp.float32)
        reward = after.reward.astype(jnp.float32)
        discount = jnp.where(after.terminated, 0.0, gamma)
        transition = Transition(
            obs,
            action,
            settings["reward_scale"] * reward,
            after.terminated,
            after.truncated,
            after.final_obs,
            # A step that failed led nowhere and took no time: V - V, neither good nor bad.
            extras=(mask, logp, jnp.where(after.failed, 1.0, discount)),
        )
        returned, ended = collecting.add_rewards(state.returns, after)
        state = state._replace(
            env=after,
            failures=state.failures + jnp.sum(after.failed, dtype=jnp.int32),
            returns=returned,
        )
        return state, (transition, ended)

    def judge(state: PpoState, data: Transition) -> Samples:
        """Looks back on a rollout: values, advantages and targets."""
        mask, logp, discount = data.extras
        value, next_value = (nets.value(state.params, x) for x in (data.obs, data.next_obs))
        done = data.terminated | data.truncated
        advantage, target = returns.gae(
            _over_agents(data.reward, value.shape),
            value,
            next_value,
            _over_agents(discount, value.shape),
            _over_agents(done, value.shape),
            gae_lambda=state.settings["gae_lambda"],
        )
        choice_mask = None
        if not isinstance(mask, tuple):
            choice_mask = jnp.sum(mask, axis=-1) > spaces.size(env.action_space)
            if choice_mask.ndim > logp.ndim:  # one policy acts for all agents
                choice_mask = jnp.any(choice_mask, axis=-1)
        return Samples(logp, value, target, _over_agents(advantage, logp.shape), choice_mask)

    @jax.jit
    def learn(
        state: PpoState, key: jax.Array, data: Transition
    ) -> tuple[PpoState, dict[str, jax.Array]]:
        """All epochs over one rollout."""
        rollout = (data.obs, data.extras[0], data.action, judge(state, data))
        if minibatch_of == "transitions":
            rollout = jax.tree.map(lambda x: x.reshape(num_steps * E, *x.shape[2:]), rollout)

        def loss_of(params: PyTree, batch: tuple) -> tuple[jax.Array, Scalars]:
            obs, mask, action, then = batch
            logp, entropy = nets.evaluate(params, obs, mask, action)
            return loss(Outputs(logp, entropy, nets.value(params, obs)), then, state.settings)

        def minibatch(carry: tuple, index: jax.Array) -> tuple[tuple, Scalars]:
            params, opt_state = carry
            picked = index if minibatch_of == "transitions" else (slice(None), index)
            batch = jax.tree.map(lambda x: x[picked], rollout)
            grads, metrics = jax.grad(loss_of, has_aux=True)(params, batch)
            updates, opt_state = optimizer(state.settings).update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), metrics

        def epoch(carry: tuple, key: jax.Array) -> tuple[tuple, Scalars]:
            order = jax.random.permutation(key, shuffled[minibatch_of])
            return jax.lax.scan(minibatch, carry, order.reshape(num_minibatches, -1))

        carry = (state.params, state.opt_state)
        keys = jax.random.split(key, num_epochs)
        (params, opt_state), metrics = jax.lax.scan(epoch, carry, keys)
        metrics = {name: jnp.mean(x) for name, x in metrics.items()}
        return state._replace(params=params, opt_state=opt_state), metrics

    def step(state: PpoState) -> tuple[PpoState, Metrics]:
        key, key_rollout, key_epochs = jax.random.split(state.key, 3)
        keys = jax.random.split(key_rollout, num_steps)
        state, (data, ended) = jax.lax.scan(act, state._replace(key=key), keys)
        state, metrics = learn(state, key_epochs, data)
        metrics["env/failed"] = state.failures.astype(jnp.float32)
        metrics["env/return"] = jax.tree.map(jnp.sum, ended)
        return state, metrics

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, RULES)

    return Algorithm(init, step, check=check)


def _check_networks(env: envs.Env, networks: Networks) -> None:
    """Compares shapes of what the networks give, without running them."""
    key = jax.random.key(0)
    start = jax.eval_shape(env.reset, key)
    params = jax.eval_shape(networks.init, key, key)
    _, logp = jax.eval_shape(networks.sample, key, params, start.obs, start.action_mask)
    value = jax.eval_shape(networks.value, params, start.obs)
    one = (env.num_envs,)
    each = one if env.num_agents is None else (*one, env.num_agents)
    if logp.shape not in (one, each):
        raise ValueError(f"{env.name}: sample must give a logp of {each}, got {logp.shape}")
    if value.shape not in (one, each) or len(value.shape) < len(start.reward.shape):
        raise ValueError(
            f"{env.name}: value must be {each}, or {one} where the reward is common, got "
            f"{value.shape} for rewards {start.reward.shape}"
        )
    if len(logp.shape) < len(value.shape):
        raise ValueError(
            f"{env.name}: a policy that acts for all agents at once, with a logp of {logp.shape}, "
            f"needs one value of them, got {value.shape}"
        )


def _over_agents(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Gives every agent what is common to them, if the shape has agents."""
    return jnp.broadcast_to(x.reshape(*x.shape, *(1,) * (len(shape) - x.ndim)), shape)

"""Rollouts of macro-actions: what was played, its advantages, and the loop around a loss.

An action of duration k discounts what follows by gamma^k. Schulman et al. 2016, arXiv:1506.02438.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab import envs
from jaxlab.core.types import Algorithm, Mean, Metrics, PyTree
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.learning import PpoState, policy_gradient, ppo, returns
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.settings import Settings
from jaxlab.rl.discrete import bandits
from jaxlab.rl.discrete.matching import Policy
from jaxlab.rl.discrete.state_policies import StatePolicy, at_states


class Played(NamedTuple):
    """Macro-actions of a rollout; `[T, E, ...]`, or `[B, ...]` of a minibatch.

    Attributes:
        obs: `[..., O]` where they were drawn.
        tokens: `[..., K]` what was drawn.
        reveal: `[..., K]` when, see `sampling.Sample`.
        executed: `[..., K]` bool, tokens that were carried out.
        advantage: `[...]`, standardized over the rollout.
        target: `[...]`, what the value should be.
        mask: `[..., K V]` bool, tokens that were allowed, or `()` without action masks.
    """

    obs: Float[Array, "... O"]
    tokens: Int[Array, "... K"]
    reveal: Int[Array, "... K"]
    executed: Bool[Array, "... K"]
    advantage: Float[Array, "..."]
    target: Float[Array, "..."]
    mask: Any = ()


Loss = Callable[
    [jax.Array, Policy, PyTree, PyTree, Played, Settings], tuple[jax.Array, dict[str, jax.Array]]
]
"""`loss(key, policy at the states, params, old_params, played, settings) -> (loss, metrics)`."""
RULES = ppo.RULES | bandits.RULES
"""What the numbers must be that may be swept."""


def check_policy(policy: StatePolicy, env: envs.Env) -> Policy:
    """Returns the policy at some state; refuses one for other actions, with a ValueError.

    So it does one that takes no masks, of an environment that has them.
    """
    want = envs.MultiDiscrete((policy.vocab,) * policy.length)
    if env.action_space != want or env.num_agents is not None or env.actor_part is not None:
        raise ValueError(
            f"{env.name}: the policy is for {want}, one actor and one array to observe, got "
            f"{env.action_space}, {env.num_agents} agents and the part {env.actor_part!r}"
        )
    masked = not isinstance(jax.eval_shape(env.reset, jax.random.key(0)).action_mask, tuple)
    mask = jnp.ones((policy.length * policy.vocab,), bool) if masked else ()
    return at_states(policy, jnp.zeros((env.obs_size,)), mask)


def make_learner(
    env: envs.Env,
    policy: StatePolicy,
    value: Any,
    policy_loss: Loss,
    schedule: Schedule,
    sizes: tuple[int, int, int],
    numbers: Mapping[str, float],
    rules: Mapping[str, settings_lib.Rule],
    name: str,
) -> Algorithm:
    """Makes the loop around a loss of the policy: rollout, advantages, epochs of both networks.

    Args:
        env: environments, for which `check_policy` has found the policy fit.
        policy: what is trained.
        value: network of the value of a state, see `reverse_rollouts`.
        policy_loss: loss of the policy in a minibatch.
        schedule: N steps of sampling.
        sizes: `(rollout, num_epochs, num_minibatches)`.
        numbers: the settings' defaults by name, those of `reverse_rollouts`.
        rules: what each number must be.
        name: what checkpoints call it.

    Raises:
        ValueError: if a number is out of range, or the rollout does not divide into minibatches.
    """
    rollout, num_epochs, num_minibatches = sizes
    bandits.check_counts(rollout=rollout, num_epochs=num_epochs, num_minibatches=num_minibatches)
    E, batch = env.num_envs, rollout * env.num_envs
    bandits.check_minibatches(batch, num_minibatches)
    settings_lib.fill(None, numbers, rules)

    def value_of(params: PyTree, obs: Array) -> Array:
        return value.apply(params["value"], obs)[..., 0]

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> PpoState:
        values = settings_lib.fill(settings, numbers, rules)
        key, key_policy, key_value, key_env = jax.random.split(key, 4)
        params = {
            "policy": policy.init(key_policy),
            "value": value.init(key_value, jnp.zeros((env.obs_size,))),
        }
        return PpoState(
            params,
            bandits.make_optimizer(values).init(params),
            env.reset(key_env),
            jnp.zeros((), jnp.int32),
            jnp.zeros((E,), jnp.float32),
            values,
            key,
        )

    def act(state: PpoState, key: Array) -> tuple[PpoState, tuple]:
        obs, allowed, settings = state.env.obs, state.env.action_mask, state.settings
        here = at_states(policy, obs, allowed)
        drawn = bandits.draw(key, here, state.params["policy"], (E,), schedule)
        after = env.step(state.env, drawn.tokens)
        reward = after.reward.astype(jnp.float32)
        alone = isinstance(after.duration, tuple)
        took = jnp.ones((E,), jnp.int32) if alone else after.duration
        discount = jnp.where(after.terminated, 0.0, settings["gamma"] ** took.astype(jnp.float32))
        # A step that failed led nowhere and took no time: V - V, neither good nor bad.
        discount = jnp.where(after.failed, 1.0, discount)
        mask = jnp.ones(drawn.tokens.shape, bool)
        if not alone:
            mask = envs.executed(took, policy.length) | after.failed[:, None]
        done = after.terminated | after.truncated
        total, whole = state.returns + reward, done & ~after.failed
        ended = Mean(jnp.sum(jnp.where(whole, total, 0.0)), jnp.sum(whole, dtype=jnp.int32))
        state = state._replace(
            env=after,
            failures=state.failures + jnp.sum(after.failed, dtype=jnp.int32),
            returns=jnp.where(done, 0.0, total),
        )
        rewarded = settings["reward_scale"] * reward
        entropy = -jnp.mean(jnp.sum(drawn.logp, axis=0))
        outcome = (rewarded, discount, done, after.final_obs, ended, entropy)
        return state, ((obs, drawn.tokens, drawn.reveal, mask, allowed), outcome)

    def step(state: PpoState) -> tuple[PpoState, Metrics]:
        key, key_rollout, key_epochs = jax.random.split(state.key, 3)
        settings, old = state.settings, state.params
        keys = jax.random.split(key_rollout, rollout)
        state, (moves, outcome) = jax.lax.scan(act, state._replace(key=key), keys)
        obs, tokens, reveal, executed, allowed = moves
        reward, discount, done, final_obs, ended, entropy = outcome
        advantage, target = returns.gae(
            reward,
            value_of(old, obs),
            value_of(old, final_obs),
            discount,
            done,
            gae_lambda=settings["gae_lambda"],
        )
        choice = None  # where there was one to make
        if not isinstance(allowed, tuple):
            choice = jnp.sum(allowed, axis=-1) > policy.length
        advantage = policy_gradient.normalize_advantage(advantage, choice)
        played = Played(obs, tokens, reveal, executed, advantage, target, allowed)
        played = jax.tree.map(lambda x: x.reshape(batch, *x.shape[2:]), played)

        def loss(params: PyTree, key: Array, index: Array) -> tuple[Array, dict[str, Array]]:
            chosen = jax.tree.map(lambda x: x[index], played)
            here = at_states(policy, chosen.obs, chosen.mask)
            total, metrics = policy_loss(
                key, here, params["policy"], old["policy"], chosen, settings
            )
            error = jnp.mean((value_of(params, chosen.obs) - chosen.target) ** 2)
            return total + settings["value_coef"] * error, metrics | {"critic/loss": error}

        params, opt_state, metrics = bandits.descend_epochs(
            key_epochs,
            loss,
            old,
            state.opt_state,
            settings,
            batch=batch,
            num_epochs=num_epochs,
            num_minibatches=num_minibatches,
        )
        state = state._replace(params=params, opt_state=opt_state)
        return state, metrics | {
            "policy/entropy": jnp.mean(entropy),
            "env/failed": state.failures.astype(jnp.float32),
            "env/return": jax.tree.map(jnp.sum, ended),
        }

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, rules)

    return Algorithm(init, step, check=check, name=name)

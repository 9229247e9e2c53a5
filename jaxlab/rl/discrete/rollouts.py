"""Rollouts of macro-actions: what was played, its advantages, and the loop around a loss.

What is learned from is the rollout just played, or what a `Memory` makes of it and earlier ones.

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
from jaxlab.learning import collecting, policy_gradient, ppo, returns
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.settings import Settings
from jaxlab.rl.discrete import bandits
from jaxlab.rl.discrete.matching import Policy
from jaxlab.rl.discrete.policies import RevisingPolicy
from jaxlab.rl.discrete.state_policies import StatePolicy, at_states


class Rollout(NamedTuple):
    """T macro-actions in each of E environments, and what they led to: `[T, E, ...]`.

    Attributes:
        obs: `[..., O]` where they were drawn.
        tokens: `[..., K]` what was drawn.
        reveal: `[..., K]` when, see `sampling.Sample`.
        executed: `[..., K]` bool, tokens that were carried out.
        mask: `[..., K V]` bool, tokens that were allowed, or `()` without action masks.
        reward: `[...]`, scaled.
        discount: `[...]`, gamma^duration (1 - terminated), the factor of what follows.
        done: `[...]` bool, the episode ended in either way.
        final_obs: `[..., O]` what they led to, before any new episode.
    """

    obs: Float[Array, "... O"]
    tokens: Int[Array, "... K"]
    reveal: Int[Array, "... K"]
    executed: Bool[Array, "... K"]
    mask: Any
    reward: Float[Array, "..."]
    discount: Float[Array, "..."]
    done: Bool[Array, "..."]
    final_obs: Float[Array, "... O"]


class Played(NamedTuple):
    """Macro-actions to learn from, `[B, ...]`.

    Attributes:
        obs, tokens, reveal, executed, mask: see `Rollout`.
        advantage: `[...]`, standardized over what is learned from in a step.
        target: `[...]`, what the value should be.
        log_ratio: `[...]` nats, by which the policy that is improved gives them more probability
            than the one that drew them; `()` where that is the same.
    """

    obs: Float[Array, "... O"]
    tokens: Int[Array, "... K"]
    reveal: Int[Array, "... K"]
    executed: Bool[Array, "... K"]
    advantage: Float[Array, "..."]
    target: Float[Array, "..."]
    mask: Any = ()
    log_ratio: Any = ()


class RolloutState(NamedTuple):
    """All that evolves, and the settings.

    Attributes:
        params: Parameters of both networks, `policy` and `value`.
        opt_state: State of the optimizer of both.
        env: State of the environments.
        failures: int32, steps of environments that were not finite, since the start.
        returns: `[E]` sum of rewards of the running episodes.
        settings: Numbers of the run that may be swept.
        key: PRNG key for all random draws of the run.
        kept: What the `Memory` holds; `()` on policy.
    """

    params: PyTree
    opt_state: PyTree
    env: envs.State
    failures: Int[Array, ""]
    returns: Float[Array, " E"]
    settings: Settings
    key: Array
    kept: Any = ()


class Memory(NamedTuple):
    """What is learned from, when a rollout has been played.

    Attributes:
        init: `init(key, example) -> kept`, before the first rollout, of shapes like the example's.
        recall: `recall(key, kept, params, rolled, settings) -> (kept, played)`, with as many rows
            as the rollout has macro-actions; the parameters are those that played it.
    """

    init: Callable[[jax.Array, Rollout], Any]
    recall: Callable[[jax.Array, Any, PyTree, Rollout, Settings], tuple[Any, Played]]


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
    here = at_states(policy, jnp.zeros((env.obs_size,)), mask)
    if isinstance(here, RevisingPolicy):
        raise ValueError("policy must reveal hidden tokens or write; one that revises acts nowhere")
    return here


def judge(
    value: Any, params: PyTree, rolled: Rollout, gae_lambda: float | Float[Array, ""]
) -> tuple[Float[Array, "T E"], Float[Array, "T E"]]:
    """Returns advantages and targets by the values that the parameters give states now.

    Args:
        value: network of the value of a state.
        params: parameters of both networks.
        rolled: what was played.
        gae_lambda: decay of the advantages' sum.
    """
    now, then = (value_of(value, params, x) for x in (rolled.obs, rolled.final_obs))
    return returns.gae(
        rolled.reward, now, then, rolled.discount, rolled.done, gae_lambda=gae_lambda
    )


def value_of(value: Any, params: PyTree, obs: Float[Array, "*B O"]) -> Float[Array, "*B"]:
    """Returns the value of states."""
    return value.apply(params["value"], obs)[..., 0]


def describe(
    key: jax.Array, policy: StatePolicy, params: PyTree, rolled: Rollout
) -> dict[str, Array | Mean]:
    """Returns the share of different actions, and the losses by band of a denoiser.

    Tokens that were not carried out have no part in the losses.
    """
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rolled)
    here = at_states(policy, flat.obs, flat.mask)
    return bandits.describe_tokens(key, here, params, flat.tokens, token_mask=flat.executed)


def standardize(advantage: Float[Array, "..."], mask: Any, length: int) -> Float[Array, "..."]:
    """Standardizes advantages over the states in which there was a choice, 0 in the others.

    Args:
        advantage: `[...]`.
        mask: `[..., K V]` bool, tokens that were allowed, or `()`.
        length: K.
    """
    choice = None if isinstance(mask, tuple) else jnp.sum(mask, axis=-1) > length
    return policy_gradient.normalize_advantage(advantage, choice)


def on_policy(value: Any, length: int) -> Memory:
    """Makes the memory that keeps nothing: what is learned from is what was just played."""

    def recall(
        key: jax.Array, kept: Any, params: PyTree, rolled: Rollout, settings: Settings
    ) -> tuple[Any, Played]:
        del key
        advantage, target = judge(value, params, rolled, settings["gae_lambda"])
        advantage = standardize(advantage, rolled.mask, length)
        played = Played(*rolled[:4], advantage, target, rolled.mask)
        return kept, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), played)

    return Memory(lambda key, example: (), recall)


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
    memory: Memory | None = None,
    *,
    target_kl: float | None = None,
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
        memory: what is learned from; the rollout just played by default.
        target_kl: nats that a step should diverge, of a loss with a price on them.

    Raises:
        ValueError: if a number is out of range, the rollout does not divide into minibatches, or a
            step of a denoiser has fewer than four macro-actions.
    """
    memory = on_policy(value, policy.length) if memory is None else memory
    example = check_policy(policy, env)
    rollout, num_epochs, num_minibatches = sizes
    bandits.check_counts(rollout=rollout, num_epochs=num_epochs, num_minibatches=num_minibatches)
    E, batch = env.num_envs, rollout * env.num_envs
    bandits.check_minibatches(batch, num_minibatches)
    bandits.check_bands(example, batch)
    bandits.check_target(target_kl, num_epochs, num_minibatches)
    settings_lib.fill(None, numbers, rules)

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> RolloutState:
        values = settings_lib.fill(settings, numbers, rules)
        key, key_policy, key_value, key_env, key_kept = jax.random.split(key, 5)
        params = {
            "policy": policy.init(key_policy),
            "value": value.init(key_value, jnp.zeros((env.obs_size,))),
        }
        state = RolloutState(
            params,
            bandits.make_optimizer(values).init(params),
            env.reset(key_env),
            jnp.zeros((), jnp.int32),
            jnp.zeros((E,), jnp.float32),
            values,
            key,
        )
        _, (example, *_) = jax.eval_shape(play, state, key)
        return state._replace(kept=memory.init(key_kept, example))

    def act(state: RolloutState, key: Array) -> tuple[RolloutState, tuple]:
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
        returned, ended = collecting.add_rewards(state.returns, after)
        state = state._replace(
            env=after,
            failures=state.failures + jnp.sum(after.failed, dtype=jnp.int32),
            returns=returned,
        )
        rewarded = settings["reward_scale"] * reward
        entropy = -jnp.mean(jnp.sum(drawn.logp, axis=0))
        moves = (obs, drawn.tokens, drawn.reveal, mask, allowed)
        rolled = Rollout(*moves, rewarded, discount, done, after.final_obs)
        return state, (rolled, ended, entropy)

    def play(state: RolloutState, key: Array) -> tuple[RolloutState, tuple]:
        return jax.lax.scan(act, state, jax.random.split(key, rollout))

    def step(state: RolloutState) -> tuple[RolloutState, Metrics]:
        key, key_rollout, key_recall, key_epochs, key_bands = jax.random.split(state.key, 5)
        settings, old = state.settings, state.params
        state, (rolled, ended, entropy) = play(state._replace(key=key), key_rollout)
        kept, played = memory.recall(key_recall, state.kept, old, rolled, settings)

        def loss(params: PyTree, key: Array, index: Array) -> tuple[Array, dict[str, Array]]:
            chosen = jax.tree.map(lambda x: x[index], played)
            here = at_states(policy, chosen.obs, chosen.mask)
            total, metrics = policy_loss(
                key, here, params["policy"], old["policy"], chosen, settings
            )
            error = jnp.mean((value_of(value, params, chosen.obs) - chosen.target) ** 2)
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
        state = state._replace(params=params, opt_state=opt_state, kept=kept)
        metrics |= describe(key_bands, policy, old["policy"], rolled) | {
            "policy/entropy": jnp.mean(entropy),
            "env/failed": state.failures.astype(jnp.float32),
            "env/return": jax.tree.map(jnp.sum, ended),
        }
        return (state, metrics) if target_kl is None else bandits.adapt(state, metrics, target_kl)

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, rules)

    return Algorithm(init, step, check=check, name=name)

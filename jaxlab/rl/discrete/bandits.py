"""What all learners of one state share: what they draw, remember, measure and how they climb.

One state, one action of K tokens, a reward function: a bandit whose arms are V^K.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import Algorithm, Mean, Metrics, PyTree
from jaxlab.diffusion.discrete import masked, sampling, uniform
from jaxlab.diffusion.discrete.sampling import Sample
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.settings import Settings
from jaxlab.rl.discrete import matching, targets
from jaxlab.rl.discrete.policies import RevisingPolicy, TokenPolicy
from jaxlab.rl.discrete.transformers import WritingPolicy

Policy = matching.Policy | RevisingPolicy
"""One that reveals tokens in any order, writes them from left to right, or revises them all."""
Drawn = Sample | uniform.Path
"""What a policy drew, with its path; that of a writing policy is a `Sample` too."""
Reward = Callable[[jax.Array], jax.Array]
"""`reward(tokens [B, K]) -> [B]`. One that is not finite counts as the least of its batch, and in
the metric `reward/failed`."""
RULES = {
    "learning_rate": settings_lib.POSITIVE,
    "temperature": settings_lib.POSITIVE,
    "max_grad_norm": settings_lib.LIMIT,
    "clip_eps": settings_lib.LIMIT,
}
"""What the numbers must be that may be swept."""
NUM_BANDS = 4
"""Bands of noise whose losses are logged apart."""


class SequenceState(NamedTuple):
    """All that evolves, and the settings.

    Attributes:
        params: parameters of the policy.
        opt_state: state of its optimizer.
        best_tokens: `[K]` best sequence so far.
        best_reward: its reward; -inf before the first.
        num_rewards: calls of the reward function so far.
        settings: numbers of the run.
        key: PRNG key of all draws to come.
    """

    params: PyTree
    opt_state: PyTree
    best_tokens: Int[Array, " K"]
    best_reward: Float[Array, ""]
    num_rewards: Int[Array, ""]
    settings: Settings
    key: Array


def unique_share(tokens: Int[Array, "B K"]) -> Float[Array, ""]:
    """Returns the number of different sequences over B.

    By two random hashes of 32 bits each: two of B sequences are taken for one with a probability
    below B^2 / 2^64.
    """
    batch, length = tokens.shape
    factors = jax.random.bits(jax.random.key(0), (2, length), jnp.uint32) | 1
    mixed = (tokens.astype(jnp.uint32) + 1)[None] * factors[:, None, :]
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x9E3779B1)
    first, second = jax.lax.sort(tuple(jnp.sum(mixed, axis=-1, dtype=jnp.uint32)), num_keys=2)
    changes = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    return (1 + jnp.sum(changes, dtype=jnp.int32)) / batch


def check_steps(policy: Policy, num_steps: int | None) -> int:
    """Returns the number of steps in which a policy draws: K of one that writes.

    Raises:
        ValueError: if a denoiser is given no number, or a writing policy another one.
    """
    if isinstance(policy, WritingPolicy):
        if num_steps not in (None, policy.length):
            raise ValueError(
                f"num_steps of a writing policy is its length, {policy.length}, got {num_steps}"
            )
        return policy.length
    if num_steps is None:
        raise ValueError("num_steps must be given: steps in which the policy's diffusion draws")
    check_counts(num_steps=num_steps)
    return num_steps


@overload
def draw(
    key: jax.Array,
    policy: matching.Policy,
    params: PyTree,
    batch: tuple[int, ...],
    schedule: Schedule,
) -> Sample: ...


@overload
def draw(
    key: jax.Array, policy: Policy, params: PyTree, batch: tuple[int, ...], schedule: Schedule
) -> Drawn: ...


def draw(
    key: jax.Array, policy: Policy, params: PyTree, batch: tuple[int, ...], schedule: Schedule
) -> Drawn:
    """Draws sequences of a policy, with their paths; `logp` is `[1, *B]` of a writing policy."""
    if isinstance(policy, WritingPolicy):
        tokens, logp = policy.sample(key, params, batch)
        order = jnp.arange(policy.length, 0, -1, dtype=jnp.int32)
        return Sample(tokens, jnp.broadcast_to(order, tokens.shape), logp[None])
    sample = uniform.sample if isinstance(policy, RevisingPolicy) else sampling.sample
    return sample(
        key, policy.denoise(params), batch, policy.length, vocab=policy.vocab, schedule=schedule
    )


def take(drawn: Drawn, index: Int[Array, " b"]) -> Drawn:
    """Returns those of `[B, K]` drawn sequences that an index names, with their paths."""
    if isinstance(drawn, uniform.Path):
        return uniform.Path(drawn.states[:, index], drawn.logp[:, index])
    return Sample(drawn.tokens[index], drawn.reveal[index], drawn.logp[:, index])


def rewards_of(reward: Reward, tokens: Int[Array, "*B K"]) -> tuple[Array, Float[Array, ""]]:
    """Returns rewards `[*B]`, those that failed being the least of the others, and their share.

    Raises:
        ValueError: if there is not one reward for each sequence.
    """
    flat = tokens.reshape(-1, tokens.shape[-1])
    rewards = reward(flat)
    check_rewards(rewards, flat)
    rewards, failed = mend(rewards)
    return rewards.reshape(tokens.shape[:-1]), failed


def check_rewards(rewards: Array, given: Array) -> None:
    """Refuses what is not one reward for each sequence, with a ValueError."""
    if rewards.shape != given.shape[:1]:
        raise ValueError(
            f"reward must return {given.shape[:1]} for {given.shape}, got {rewards.shape}"
        )


def mend(rewards: Float[Array, " B"]) -> tuple[Float[Array, " B"], Float[Array, ""]]:
    """Returns rewards of which those that failed are the least of the others, and their share."""
    rewards = rewards.astype(jnp.float32)
    finite = jnp.isfinite(rewards)
    least = jnp.min(rewards, where=finite, initial=jnp.inf)
    rewards = jnp.where(finite, rewards, jnp.where(jnp.isfinite(least), least, 0.0))
    return rewards, 1.0 - jnp.mean(finite.astype(jnp.float32))


def describe(
    key: jax.Array, policy: Policy, params: PyTree, drawn: Drawn, rewards: Float[Array, "*B"]
) -> dict[str, Array | Mean]:
    """Returns metrics of what was drawn and of a policy, its losses by band if it is a denoiser."""
    tokens = drawn.tokens.reshape(-1, policy.length)
    return describe_tokens(key, policy, params, tokens) | {
        "reward/mean": jnp.mean(rewards),
        "reward/max": jnp.max(rewards),
        # Of the tokens along the path; the law of sequences has at most this plus that of places.
        "policy/entropy": -jnp.mean(jnp.sum(drawn.logp, axis=0)),
    }


def describe_tokens(
    key: jax.Array,
    policy: Policy,
    params: PyTree,
    tokens: Int[Array, "B K"],
    *,
    token_mask: Bool[Array, "B K"] | None = None,
) -> dict[str, Array | Mean]:
    """Returns the share of different sequences, and the losses by band if it is a denoiser's.

    Sequences are different where tokens that count are. Arguments as `masked.band_losses`; those
    of a policy that revises count all.
    """
    counted = tokens if token_mask is None else jnp.where(token_mask, tokens, policy.vocab)
    metrics: dict[str, Array | Mean] = {"policy/unique": unique_share(counted)}
    if isinstance(policy, WritingPolicy):
        return metrics
    denoise = policy.denoise(params)
    if isinstance(policy, RevisingPolicy):
        bands = uniform.band_losses(key, denoise, tokens, vocab=policy.vocab, num_bands=NUM_BANDS)
    else:
        bands = masked.band_losses(
            key, denoise, tokens, vocab=policy.vocab, num_bands=NUM_BANDS, token_mask=token_mask
        )
    return metrics | {
        f"loss/band_{i}": Mean(bands.total[i], bands.count[i]) for i in range(NUM_BANDS)
    }


def remember(
    state: SequenceState,
    tokens: Int[Array, "*B K"],
    rewards: Float[Array, "*B"],
    failed: Float[Array, ""],
) -> SequenceState:
    """Keeps the best sequence, none of a batch that failed as a whole, and counts rewards."""
    rewards, tokens = rewards.reshape(-1), tokens.reshape(-1, tokens.shape[-1])
    best = jnp.argmax(rewards)
    better = (failed < 1.0) & (rewards[best] > state.best_reward)
    return state._replace(
        best_tokens=jnp.where(better, tokens[best], state.best_tokens),
        best_reward=jnp.where(better, rewards[best], state.best_reward),
        num_rewards=state.num_rewards + rewards.size,
    )


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Makes Adam with the gradient clipped, of the settings `learning_rate` and `max_grad_norm`."""
    rate: Any = settings["learning_rate"]
    return optax.chain(optax.clip_by_global_norm(settings["max_grad_norm"]), optax.adam(rate))


def descend(
    grads: PyTree, params: PyTree, opt_state: PyTree, settings: Settings
) -> tuple[PyTree, PyTree]:
    """Makes one step of the optimizer; returns parameters and its state."""
    updates, opt_state = make_optimizer(settings).update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def descend_epochs(
    key: jax.Array,
    loss: Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]],
    params: PyTree,
    opt_state: PyTree,
    settings: Settings,
    *,
    batch: int,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[PyTree, PyTree, dict[str, Array]]:
    """Descends a loss for some epochs over a batch, in minibatches of a new order each time.

    Args:
        key: PRNG key of orders and losses.
        loss: `loss(params, key, index) -> (loss, metrics)` of the samples that `index` names.
        params: parameters before the descent.
        opt_state: state of their optimizer, see `make_optimizer`.
        settings: its numbers.
        batch: B, number of samples.
        num_epochs: how often each sample is learned from.
        num_minibatches: gradient steps of an epoch, dividing the batch.

    Returns:
        Parameters, the optimizer's state, and metrics averaged over all gradient steps, the loss
        as `policy/loss`.
    """

    def minibatch(carry: tuple, at: tuple[Array, Array]) -> tuple[tuple, dict[str, Array]]:
        params, opt_state = carry
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, *at)
        return descend(grads, params, opt_state, settings), metrics | {"policy/loss": value}

    def epoch(carry: tuple, key: Array) -> tuple[tuple, dict[str, Array]]:
        key_order, key_loss = jax.random.split(key)
        order = jax.random.permutation(key_order, batch).reshape(num_minibatches, -1)
        return jax.lax.scan(minibatch, carry, (jax.random.split(key_loss, num_minibatches), order))

    keys = jax.random.split(key, num_epochs)
    (params, opt_state), metrics = jax.lax.scan(epoch, (params, opt_state), keys)
    return params, opt_state, {name: jnp.mean(x) for name, x in metrics.items()}


def climb(
    state: SequenceState,
    loss: Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]],
    policy: Policy,
    drawn: Drawn,
    rewards: Float[Array, " B"],
    failed: Float[Array, ""],
    keys: tuple[jax.Array, jax.Array],
    *,
    num_epochs: int,
    num_minibatches: int,
) -> tuple[SequenceState, dict[str, Array | Mean]]:
    """Descends a loss for some epochs over what was drawn, in minibatches of a new order each time.

    Args:
        state: before the descent, with the parameters that drew.
        loss: `loss(params, key, index) -> (loss, metrics)` of the samples that `index` names.
        policy: what is trained.
        drawn: `[B, K]` what it drew.
        rewards: `[B]` of these.
        failed: share of them that failed.
        keys: PRNG keys of the epochs, and of what is described.
        num_epochs: how often each sample is learned from.
        num_minibatches: gradient steps of an epoch, dividing the batch.

    Returns:
        The state after the descent, what was drawn remembered, and metrics.
    """

    params, opt_state, fitted = descend_epochs(
        keys[0],
        loss,
        state.params,
        state.opt_state,
        state.settings,
        batch=rewards.size,
        num_epochs=num_epochs,
        num_minibatches=num_minibatches,
    )
    metrics = describe(keys[1], policy, state.params, drawn, rewards)
    metrics |= fitted | {"reward/failed": failed}
    state = state._replace(params=params, opt_state=opt_state)
    return remember(state, drawn.tokens, rewards, failed), metrics


def adapt(
    state: Any, metrics: dict[str, Array | Mean], target_kl: float
) -> tuple[Any, dict[str, Array | Mean]]:
    """Moves the setting `temperature` of a state by the divergence of its last step, and logs it.

    See `targets.adapt_temperature`; `policy/temperature` is the one with which the step was made.
    """
    kl: Any = metrics["policy/kl"]
    price = state.settings["temperature"]
    moved = targets.adapt_temperature(price, kl, target_kl)
    state = state._replace(settings={**state.settings, "temperature": moved})
    return state, metrics | {"policy/temperature": price}


def check_target(target_kl: float | None, num_epochs: int, num_minibatches: int) -> None:
    """Refuses a target of divergence that no step can have, with a ValueError; None is no target.

    The first gradient step is at the policy that drew: it alone shows no divergence.
    """
    if target_kl is None:
        return
    targets.check_target(target_kl)
    if num_epochs * num_minibatches < 2:
        raise ValueError(
            "target_kl needs two gradient steps at least, num_epochs times num_minibatches, got one"
        )


def make_algorithm(
    policy: Policy,
    step: Callable[[SequenceState], tuple[SequenceState, Metrics]],
    numbers: Mapping[str, float],
    init_params: PyTree,
    name: str,
    rules: Mapping[str, settings_lib.Rule] = RULES,
) -> Algorithm:
    """Makes the algorithm of a step, its numbers checked by `rules` and swept as settings.

    Args:
        policy: what is trained.
        step: `step(state) -> (state, metrics)`.
        numbers: the settings' defaults by name.
        init_params: parameters to begin with; drawn if None.
        name: what checkpoints call it.
        rules: what each number must be.

    Raises:
        ValueError: if a number is out of range.
    """
    settings_lib.fill(None, numbers, rules)

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> SequenceState:
        values = settings_lib.fill(settings, numbers, rules)
        key, key_params = jax.random.split(key)
        # A copy: the state is donated, and the given parameters must outlive it.
        given = init_params is not None
        params = jax.tree.map(jnp.array, init_params) if given else policy.init(key_params)
        return SequenceState(
            params,
            make_optimizer(values).init(params),
            jnp.zeros((policy.length,), jnp.int32),
            jnp.asarray(-jnp.inf, jnp.float32),
            jnp.zeros((), jnp.int32),
            values,
            key,
        )

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, rules)

    return Algorithm(init, step, check=check, name=name)


def check_minibatches(batch: int, num_minibatches: int) -> None:
    """Refuses a batch that does not divide into minibatches of two and more, with a ValueError."""
    if batch % num_minibatches or batch // num_minibatches < 2:
        raise ValueError(
            f"batch must divide into num_minibatches of two sequences or more, got {batch} and "
            f"{num_minibatches}"
        )


def check_counts(**counts: int) -> None:
    """Refuses counts that are no integers from 1 on, each with its name, with a ValueError."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
        if count != int(count):
            raise ValueError(f"{name} must be an integer, got {count}")


def check_denoiser(policy: Policy) -> None:
    """Refuses a policy that does not reveal hidden tokens, where only such will do (ValueError)."""
    if not isinstance(policy, TokenPolicy):
        raise ValueError(
            f"policy must be a denoiser, a TokenPolicy, got {type(policy).__name__}; reverse and "
            "grpo train one that writes, forward and reverse one that revises"
        )


def check_bands(policy: Policy, batch: int) -> None:
    """Refuses a step with too few sequences for the losses by band of noise, with a ValueError."""
    if not isinstance(policy, WritingPolicy) and batch < NUM_BANDS:
        raise ValueError(
            f"a step of a denoiser must draw at least {NUM_BANDS} sequences, one for each band of "
            f"noise whose loss is logged, got {batch}"
        )

"""Fitting a denoiser to a corpus of sequences, before any reward is seen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.diffusion.discrete import masked, schedules, uniform
from jaxlab.rl.discrete.bandits import Policy
from jaxlab.rl.discrete.policies import RevisingPolicy, TokenPolicy, check_corpus
from jaxlab.rl.discrete.transformers import WritingPolicy


class PretrainState(NamedTuple):
    """All that evolves.

    Attributes:
        params: parameters.
        average: their running average, which is what a pre-trained policy is.
        opt_state: state of the optimizer.
        updates: int32, gradient steps so far.
        key: PRNG key of all draws to come.
    """

    params: PyTree
    average: PyTree
    opt_state: Any
    updates: Int[Array, ""]
    key: Array


def pretrain(
    policy: Policy,
    corpus: Int[Array, "num K"],
    *,
    batch: int = 512,
    learning_rate: float | optax.Schedule = 3e-4,
    max_grad_norm: float = 1.0,
    average: float = 0.9999,
) -> Algorithm:
    """Makes pre-training on the evidence bound in continuous time; a step is one gradient step.

    A policy that writes has no bound: its own log-probability is exact.

    Args:
        policy: what is trained: a denoiser, one that writes, or one that revises.
        corpus: `[num, K]` tokens; batches are drawn from it with replacement.
        batch: sequences of a step.
        learning_rate: of AdamW without decay; a number, or a schedule over steps.
        max_grad_norm: the gradient is shortened to this.
        average: share of the running average that a step keeps; the first steps keep less, so that
            it is not of the untrained network: (1 + n) / (10 + n) at most.

    Raises:
        ValueError: if the corpus is empty, of another length or has other tokens, or a number is
            out of range.

    Source: released code of arXiv:2410.13643 and arXiv:2406.07524, whose numbers are the defaults.
    """
    check_corpus(corpus, policy.vocab, policy.length)
    if batch < 1 or not 0.0 <= average < 1.0:
        raise ValueError(
            f"batch must be at least 1 and average lie in [0, 1), got {batch} and {average}"
        )
    if not max_grad_norm > 0.0:
        raise ValueError(f"max_grad_norm must be positive, got {max_grad_norm}")
    if not callable(learning_rate) and not learning_rate > 0.0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    optimizer = optax.chain(
        optax.clip_by_global_norm(max_grad_norm), optax.adamw(learning_rate, weight_decay=0.0)
    )

    def init(key: jax.Array) -> PretrainState:
        key, key_params = jax.random.split(key)
        params = policy.init(key_params)
        return PretrainState(
            params,
            jax.tree.map(jnp.array, params),
            optimizer.init(params),
            jnp.zeros((), jnp.int32),
            key,
        )

    def step(state: PretrainState) -> tuple[PretrainState, Metrics]:
        key, key_batch, key_noise = jax.random.split(state.key, 3)
        index = jax.random.randint(key_batch, (batch,), 0, corpus.shape[0])

        def loss(params: PyTree) -> Array:
            if isinstance(policy, WritingPolicy):
                bound = -policy.log_prob(params, corpus[index])
            else:
                nelbo = uniform.nelbo if isinstance(policy, RevisingPolicy) else masked.nelbo
                bound = nelbo(key_noise, policy.denoise(params), corpus[index], vocab=policy.vocab)
            return jnp.mean(bound) / policy.length

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        n = state.updates.astype(jnp.float32)
        keep = jnp.minimum(average, (1.0 + n) / (10.0 + n))
        averaged = jax.tree.map(lambda a, p: a + (1.0 - keep) * (p - a), state.average, params)
        state = PretrainState(params, averaged, opt_state, state.updates + 1, key)
        return state, {"loss/bound_per_token": value}

    return Algorithm(init, step, name="pretrain_sequences")


def log_likelihood(
    key: jax.Array, policy: TokenPolicy, params: PyTree, tokens: Int[Array, "B K"], num_steps: int
) -> Array:
    """Returns sum_n u_n sum over hidden tokens of log mu(token | tokens noised to n), `[B]` nats.

    Minus the discrete evidence bound with one draw of noise at each of N steps: the measure of
    naturalness that the published evaluation uses, of the pre-trained policy.

    Source: released code of arXiv:2410.13643.
    """
    schedule = schedules.make_schedule(num_steps)
    denoise = policy.denoise(params)

    def term(total: Array, n: Array) -> tuple[Array, None]:
        level = jnp.broadcast_to(schedule.level[n], tokens.shape[:1])
        noisy = masked.corrupt(jax.random.fold_in(key, n), tokens, level, vocab=policy.vocab)
        nll = masked.hidden_nll(denoise, tokens, noisy, level, vocab=policy.vocab)
        return total - schedule.reveal[n] * nll, None

    steps = jnp.arange(1, num_steps + 1, dtype=jnp.int32)
    return jax.lax.scan(term, jnp.zeros(tokens.shape[:1]), steps)[0]

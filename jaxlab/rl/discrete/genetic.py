"""A genetic algorithm over sequences: tournaments, crossing over, mutation, the best kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.core.types import Algorithm, Metrics
from jaxlab.diffusion.discrete.masked import check_tokens
from jaxlab.rl.discrete import bandits
from jaxlab.rl.discrete.bandits import Reward, unique_share


class GeneticState(NamedTuple):
    """All that evolves.

    Attributes:
        tokens: `[B, K]` the population.
        reward: `[B]`.
        num_rewards: calls of the reward function so far.
        key: PRNG key of all draws to come.
    """

    tokens: Int[Array, "B K"]
    reward: Float[Array, " B"]
    num_rewards: Int[Array, ""]
    key: Array


def evolve(
    reward: Reward,
    vocab: int,
    length: int,
    *,
    population: int = 128,
    elite: int = 8,
    tournament: int = 3,
    mutation: float | None = None,
    start: Int[Array, "B K"] | None = None,
) -> Algorithm:
    """Makes a genetic algorithm; one step is a generation, B - elite rewards.

    Parents win tournaments; a child takes each half, cut at one random place, from another parent;
    each of its tokens is drawn anew with the probability `mutation`.

    Args:
        reward: `reward(tokens [B, K]) -> [B]`.
        vocab: V.
        length: K.
        population: B.
        elite: the best that live on as they are.
        tournament: who compete to be a parent.
        mutation: by token; 1 / K by default.
        start: `[B, K]` first population; random by default.

    Raises:
        ValueError: if a number is out of range, or the first population is of another shape or
            has other tokens.
    """
    if min(vocab, length, tournament) < 1 or not 0 <= elite < population:
        raise ValueError(
            "vocab, length and tournament must be at least 1 and elite below population, got "
            f"{vocab}, {length}, {tournament}, {elite} and {population}"
        )
    rate = 1.0 / length if mutation is None else mutation
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"mutation must lie in [0, 1], got {mutation}")
    if start is not None and start.shape != (population, length):
        raise ValueError(f"start must be {(population, length)}, got {start.shape}")
    if start is not None:
        check_tokens(start, vocab)
    children = population - elite

    def score(tokens: Array) -> Array:
        """Returns rewards, those that failed below all others: NaN would win every tournament."""
        rewards = reward(tokens)
        bandits.check_rewards(rewards, tokens)
        rewards = rewards.astype(jnp.float32)
        return jnp.where(jnp.isfinite(rewards), rewards, -jnp.inf)

    def init(key: jax.Array) -> GeneticState:
        key, key_start = jax.random.split(key)
        tokens: Any = start
        if tokens is None:
            tokens = jax.random.randint(key_start, (population, length), 0, vocab, jnp.int32)
        tokens = jnp.array(tokens, jnp.int32)
        return GeneticState(tokens, score(tokens), jnp.asarray(population, jnp.int32), key)

    def step(state: GeneticState) -> tuple[GeneticState, Metrics]:
        key, key_parents, key_cut, key_which, key_new = jax.random.split(state.key, 5)
        rivals = jax.random.randint(key_parents, (2, children, tournament), 0, population)
        winner = jnp.argmax(state.reward[rivals], axis=-1)
        parents = jnp.take_along_axis(rivals, winner[..., None], axis=-1)[..., 0]
        first, second = state.tokens[parents]
        cut = jax.random.randint(key_cut, (children, 1), 0, length)
        child = jnp.where(jnp.arange(length)[None] < cut, first, second)
        mutates = jax.random.uniform(key_which, child.shape) < rate
        drawn = jax.random.randint(key_new, child.shape, 0, vocab, jnp.int32)
        child = jnp.where(mutates, drawn, child)
        _, best = jax.lax.top_k(state.reward, elite)
        tokens = jnp.concatenate([state.tokens[best], child])
        rewards = jnp.concatenate([state.reward[best], score(child)])
        mended, failed = bandits.mend(rewards)
        metrics = {
            "reward/mean": jnp.mean(mended),
            "reward/max": jnp.max(mended),
            "reward/failed": failed,
            "policy/unique": unique_share(tokens),
        }
        return GeneticState(tokens, rewards, state.num_rewards + children, key), metrics

    return Algorithm(init, step, name="genetic_sequences")

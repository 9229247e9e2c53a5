"""Forward mirror descent on rollouts of the past: F4, replay of macro-actions.

What an older policy drew teaches as if the present one had drawn it, where its weight is multiplied
by the ratio of both, clipped; or it is imitated where it went better than the state's value.

Ma et al. 2025, arXiv:2509.22963, replay. Its recipe is not known; this one is ours.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab import envs
from jaxlab.core.types import Algorithm, PyTree
from jaxlab.diffusion.discrete import schedules
from jaxlab.learning.settings import Settings
from jaxlab.rl.discrete import bandits, on_policy, rollouts, targets
from jaxlab.rl.discrete.matching import Policy
from jaxlab.rl.discrete.rollouts import Memory, Played, Rollout
from jaxlab.rl.discrete.state_policies import StatePolicy, at_states

Weighting = Literal["advantage", "imitation"]


class Kept(NamedTuple):
    """The last R rollouts, the newest first: `[R, T, E, ...]`.

    Attributes:
        rolled: what was played.
        bound: `[R, T, E]` negative evidence bounds, nats, of the policies that played.
        noise: `[R]` PRNG keys of the noise under which these bounds were estimated.
        count: int32, how many there are so far.
    """

    rolled: Rollout
    bound: Float[Array, "R T E"]
    noise: Array
    count: Int[Array, ""]


def forward_replay(
    env: envs.Env,
    policy: StatePolicy,
    value: Any,
    *,
    num_steps: int | None = None,
    rollout: int = 128,
    num_kept: int = 8,
    num_epochs: int = 4,
    num_minibatches: int = 4,
    count: int = 1,
    weighting: Weighting = "advantage",
    temperature: float = 1.0,
    largest: float = 20.0,
    largest_ratio: float | None = 2.0,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    value_coef: float = 0.5,
    learning_rate: float = 3e-4,
    max_grad_norm: float = 0.5,
    reward_scale: float = 1.0,
) -> Algorithm:
    """Makes forward mirror descent on the last rollouts: bounds weighted by what came of them, F4.

    A step plays a rollout, judges all that are kept by the present values, and learns from as many
    macro-actions of them, drawn uniformly, as it has played. Weights are

    * "advantage": min(exp(A / lambda), w_max) min(pi_old / pi_behavior, rho_max). A is standardized
      over what was drawn; the ratio is of evidence bounds under the same noise, and pi_old the
      policy at the start of the step, so that it is one for the newest rollout.
    * "imitation": max(R - V, 0), R the lambda-return: self-imitation.

    Arguments as `forward_rollouts`, but for these.

    Args:
        env: environments of macro-actions.
        policy: what is trained, a denoiser, or one that writes, whose log-probability is exact.
        value: network of the value of a state.
        num_kept: R rollouts; with 1 it is `forward_rollouts` on a resampled batch.
        count: levels of noise for each macro-action, of the loss and of the ratio.
        weighting: see above.
        temperature: lambda, of "advantage" alone.
        largest: w_max, of "advantage" alone.
        largest_ratio: rho_max; None leaves the ratio out: the target is the behavior's then,
            tilted.

    Raises:
        ValueError: as `forward_rollouts`, or if there is no such weighting.

    Source: arXiv:2509.22963, replay; without ratio Peng et al. 2019, arXiv:1910.00177; imitation Oh
    et al. 2018, arXiv:1806.05635.
    """
    N = bandits.check_steps(rollouts.check_policy(policy, env), num_steps)
    bandits.check_counts(count=count, num_kept=num_kept)
    if weighting not in get_args(Weighting):
        raise ValueError(
            f"weighting must be one of {', '.join(get_args(Weighting))}, got {weighting!r}"
        )
    most = 1.0 if largest_ratio is None else largest_ratio
    targets.advantage_weights(jnp.zeros((1,)), temperature, largest=largest, largest_ratio=most)
    imitates = weighting == "imitation"

    def loss(
        key: Array, here: Policy, params: PyTree, old: PyTree, played: Played, settings: Settings
    ) -> tuple[Array, dict[str, Array]]:
        del old
        if imitates:
            weight = targets.imitation_weights(played.advantage, jnp.zeros_like(played.advantage))
        else:
            weight = targets.advantage_weights(
                played.advantage,
                settings["temperature"],
                largest=largest,
                log_ratio=None if isinstance(played.log_ratio, tuple) else played.log_ratio,
                largest_ratio=most,
            )
        return on_policy.weighted_loss(key, here, params, played, weight, count=count)

    numbers = {"temperature": temperature}
    numbers |= on_policy.shared_numbers(
        gamma, gae_lambda, value_coef, learning_rate, max_grad_norm, reward_scale
    )
    return rollouts.make_learner(
        env,
        policy,
        value,
        loss,
        schedules.make_schedule(N),
        (rollout, num_epochs, num_minibatches),
        numbers,
        rollouts.RULES,
        f"forward_replay, {weighting}",
        make_memory(
            policy,
            value,
            num_kept=num_kept,
            count=count,
            compare=not imitates and largest_ratio is not None,
            standardize=not imitates,
        ),
    )


def make_memory(
    policy: StatePolicy, value: Any, *, num_kept: int, count: int, compare: bool, standardize: bool
) -> Memory:
    """Makes the memory of the last rollouts, of which a uniform sample is learned from.

    Args:
        policy: what plays.
        value: network of the value of a state.
        num_kept: R rollouts.
        count: levels of noise of the bounds that are compared.
        compare: whether `Played.log_ratio` is asked for.
        standardize: whether advantages are, over what was drawn.
    """

    def bound_of(key: Array, params: PyTree, rolled: Rollout) -> Float[Array, "T E"]:
        here = at_states(policy, rolled.obs, rolled.mask)
        at = (params["policy"], rolled.tokens, rolled.executed)
        return on_policy.executed_bound(key, here, *at, count=count)

    def init(key: jax.Array, example: Rollout) -> Kept:
        # Ones, which are allowed and finite: nobody learns from them.
        rolled = jax.tree.map(lambda x: jnp.ones((num_kept, *x.shape), x.dtype), example)
        bound = jnp.zeros(rolled.reward.shape)
        return Kept(rolled, bound, jax.random.split(key, num_kept), jnp.zeros((), jnp.int32))

    def recall(
        key: jax.Array, kept: Kept, params: PyTree, rolled: Rollout, settings: Settings
    ) -> tuple[Kept, Played]:
        key_noise, key_pick = jax.random.split(key)
        bound = bound_of(key_noise, params, rolled) if compare else jnp.zeros(rolled.reward.shape)
        newest = (rolled, bound, key_noise)
        rolled, bound, noise = jax.tree.map(
            lambda new, old: jnp.concatenate([new[None], old[:-1]]), newest, tuple(kept[:3])
        )
        kept = Kept(rolled, bound, noise, jnp.minimum(kept.count + 1, num_kept))
        advantage, target = jax.vmap(
            lambda x: rollouts.judge(value, params, x, settings["gae_lambda"])
        )(rolled)
        log_ratio: Any = ()
        if compare:
            now = jax.lax.map(lambda x: bound_of(x[0], params, x[1]), (noise, rolled))
            log_ratio = bound - now
        played = Played(*rolled[:4], advantage, target, rolled.mask, log_ratio)
        played = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), played)
        each = bound[0].size
        index = jax.random.randint(key_pick, (each,), 0, kept.count * each)
        played = jax.tree.map(lambda x: x[index], played)
        if standardize:
            advantage = rollouts.standardize(played.advantage, played.mask, policy.length)
            played = played._replace(advantage=advantage)
        return kept, played

    return Memory(init, recall)

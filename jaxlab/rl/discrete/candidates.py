"""Off-policy actors of macro-actions for `rl.make_learner`: weighted candidates, and deep Q.

Each is a record `rl.Policy`; replay, twin critics, targets and the temperature's descent are the
learner's. Its critics are those of `token_critics`.

Ma et al. 2025, arXiv:2509.22963, forward divergence with an action critic (F2).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import PyTree
from jaxlab.diffusion.discrete import exact, schedules
from jaxlab.envs import spaces
from jaxlab.learning import temperature as temperature_lib
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import policy as policy_lib
from jaxlab.rl.discrete import bandits, matching, targets, token_critics
from jaxlab.rl.discrete.state_policies import StatePolicy, at_states
from jaxlab.rl.discrete.transformers import WritingPolicy
from jaxlab.rl.policy import Context, Improvement


def forward_candidates(
    policy: StatePolicy,
    *,
    num_steps: int | None = None,
    num_candidates: int = 64,
    num_next: int = 1,
    target_kl: float | None = 2.0,
    temperature: float = 1.0,
    temperature_learning_rate: float = 3e-4,
    renew_every: int = 1000,
    best_of: int = 10,
    uniform_share: float = 0.0,
    count: int = 1,
    learning_rate: float = 1e-4,
    max_grad_norm: float = 10.0,
) -> policy_lib.Policy:
    """Makes the actor that is fitted to n candidates of its old self in every state of a batch: F2.

    Candidates weigh softmax(q / lambda), q the smaller critic, and the policy descends its own
    bound, exact of one that writes. The old policy draws the candidates and acts; it becomes the
    present one every so many steps. Acting without exploration is the best of several by critics.

    Args:
        policy: what is trained.
        num_steps: N steps of sampling; of a writing policy its K tokens, and may be left out.
        num_candidates: n of each state, of the old policy.
        num_next: M actions of the present policy, whose mean value the critics are fitted to.
        target_kl: nats by which targets diverge from the old policy on average; lambda descends
            `learning.kl_dual_loss`, not below 1e-6. None: lambda stays at `temperature`.
        temperature: lambda at the start, in units of the value.
        temperature_learning_rate: of its Adam.
        renew_every: steps of the policy after which the old one is renewed.
        best_of: actions that an actor without exploration chooses from.
        uniform_share: chance that a token of an exploring actor is replaced by a uniform one.
        count: levels of noise for each candidate.
        learning_rate: of the policy's Adam.
        max_grad_norm: its gradient is shortened to this.

    Returns:
        The actor, for `rl.make_learner(env, actor, critics=make_token_critics(...))`. Its
        `act(key, state.policy_average_params, obs, q, alpha, explore=False)` is what evaluations
        play, with `q = rl.critics.smaller(critics, state.critic_params)`.

    Raises:
        ValueError: if a number is out of range.

    Source: arXiv:2509.22963; sizes and rates as in its co-authors' code.
    """
    N = bandits.check_steps(policy.given(jnp.zeros((1,))), num_steps)
    bandits.check_counts(
        num_candidates=num_candidates,
        num_next=num_next,
        renew_every=renew_every,
        best_of=best_of,
        count=count,
    )
    most = math.log(num_candidates)
    if num_candidates < 2 or (target_kl is not None and not 0.0 < target_kl < most):
        raise ValueError(
            f"num_candidates must be at least 2 and target_kl lie between 0 and its logarithm, "
            f"{most:.3g}, got {num_candidates} and {target_kl}"
        )
    if not 0.0 <= uniform_share <= 1.0:
        raise ValueError(f"uniform_share must lie in [0, 1], got {uniform_share}")
    if not (learning_rate > 0.0 and max_grad_norm > 0.0):
        raise ValueError(
            f"learning_rate and max_grad_norm must be positive, got {learning_rate} and "
            f"{max_grad_norm}"
        )
    V, schedule = policy.vocab, schedules.make_schedule(N)
    space = spaces.MultiDiscrete((V,) * policy.length)

    def draw(key: Array, params: PyTree, obs: Array, mask: Any, num: int) -> Int[Array, "n B K"]:
        here, shape = at_states(policy, obs, mask), (num, *obs.shape[:-1])
        return jax.lax.stop_gradient(bandits.draw(key, here, params, shape, schedule).tokens)

    def act(
        key: jax.Array,
        params: PyTree,
        obs: Array,
        q: critics_lib.Q,
        alpha: Array,
        *,
        explore: bool,
        mask: Any = (),
    ) -> Int[Array, "B K"]:
        del alpha
        key_draw, key_mix, key_uniform = jax.random.split(key, 3)
        if not explore:
            tokens = draw(key_draw, params, obs, mask, best_of)
            return _best(tokens, q(obs[None], tokens))
        tokens = draw(key_draw, params, obs, mask, 1)[0]
        if uniform_share == 0.0:
            return tokens
        mixed = jax.random.bernoulli(key_mix, uniform_share, tokens.shape)
        anew = spaces.sample(key_uniform, space, obs.shape[:-1], mask)
        return jnp.where(mixed, anew, tokens)

    def propose(
        key: jax.Array,
        params: PyTree,
        old: PyTree,
        obs: Array,
        q: critics_lib.Q,
        alpha: Array,
        *,
        mask: Any = (),
    ) -> tuple[Int[Array, "M B K"], Float[Array, " B"], dict[str, Array]]:
        del old, q, alpha
        return draw(key, params, obs, mask, num_next), jnp.zeros(obs.shape[:-1]), {}

    def loss(key: jax.Array, params: PyTree, context: Context) -> tuple[jax.Array, Improvement]:
        key_draw, key_noise = jax.random.split(key)
        at = (context.obs, context.action_mask)
        tokens = draw(key_draw, context.average_params, *at, num_candidates)
        q = jax.lax.stop_gradient(context.q(context.obs[None], tokens))
        here = at_states(policy, *at)
        if isinstance(here, WritingPolicy):
            bound = -here.log_prob(params, tokens)
        else:
            bound = matching.sequence_loss(
                key_noise, here.denoise(params), tokens, vocab=V, count=count
            )
        total, metrics = matching.candidate_loss(bound, q, context.alpha)
        gap = jnp.zeros(())
        if target_kl is not None:
            slope = jax.grad(temperature_lib.kl_dual_loss)
            gap = slope(jnp.log(context.alpha), q, target_kl=target_kl)
            # Critics that find all candidates equal would have lambda fall for ever.
            least = context.alpha <= targets.TEMPERATURES[0]
            gap = jnp.where(least, jnp.minimum(gap, 0.0), gap)
        return total / policy.length, Improvement(q, gap, metrics)

    optimizer = optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate))
    return policy_lib.Policy(
        action_size=policy.length,
        action_space=space,
        init=policy.init,
        act=act,
        propose=propose,
        loss=loss,
        optimizer=optimizer,
        policy_every=1,
        alpha_init=temperature,
        alpha_every=0 if target_kl is None else 1,
        alpha_learning_rate=temperature_learning_rate,
        renew_every=renew_every,
        name="forward_candidates",
    )


def greedy_macro(vocab: int, length: int, *, explore_prob: float = 0.05) -> policy_lib.Policy:
    """Makes the actor of deep Q learning: the best of all V^K macro-actions, at times a random one.

    It has no parameters. With `make_flat_critics` it is clipped double DQN: the smaller of two
    online critics chooses, the smaller target critic judges.

    Args:
        vocab: V.
        length: K.
        explore_prob: chance of a uniform macro-action while exploring.

    Raises:
        ValueError: if there are more than 4096 macro-actions, or a number is out of range.

    Source: Mnih et al. 2015 (DQN), on macro-actions; van Hasselt et al. 2016, arXiv:1509.06461.
    """
    bandits.check_counts(vocab=vocab, length=length)
    token_critics.check_flat(vocab, length)
    if not 0.0 <= explore_prob <= 1.0:
        raise ValueError(f"explore_prob must lie in [0, 1], got {explore_prob}")
    every, space = exact.sequences(vocab, length), spaces.MultiDiscrete((vocab,) * length)

    def greedy(obs: Array, q: critics_lib.Q, mask: Any) -> Int[Array, "B K"]:
        listed = jnp.asarray(every).reshape(-1, *(1,) * (obs.ndim - 1), length)
        listed = jnp.broadcast_to(listed, (len(every), *obs.shape[:-1], length))
        values = jnp.where(_allowed(listed, mask), q(obs[None], listed), -jnp.inf)
        return _best(listed, values)

    def act(
        key: jax.Array,
        params: PyTree,
        obs: Array,
        q: critics_lib.Q,
        alpha: Array,
        *,
        explore: bool,
        mask: Any = (),
    ) -> Int[Array, "B K"]:
        del params, alpha
        best = greedy(obs, q, mask)
        if not explore:
            return best
        key_which, key_uniform = jax.random.split(key)
        which = jax.random.bernoulli(key_which, explore_prob, (*obs.shape[:-1], 1))
        anew = spaces.sample(key_uniform, space, obs.shape[:-1], mask)
        return jnp.where(jnp.broadcast_to(which, best.shape), anew, best)

    def propose(
        key: jax.Array,
        params: PyTree,
        old: PyTree,
        obs: Array,
        q: critics_lib.Q,
        alpha: Array,
        *,
        mask: Any = (),
    ) -> tuple[Int[Array, "1 B K"], Float[Array, " B"], dict[str, Array]]:
        del key, params, old, alpha
        return greedy(obs, q, mask)[None], jnp.zeros(obs.shape[:-1]), {}

    def loss(key: jax.Array, params: PyTree, context: Context) -> tuple[jax.Array, Improvement]:
        del key, params
        values = context.q(context.obs, context.action)
        return jnp.zeros(()), Improvement(values, jnp.zeros(()), {})

    return policy_lib.Policy(
        action_size=length,
        action_space=space,
        init=lambda key: {},
        act=act,
        propose=propose,
        loss=loss,
        optimizer=optax.identity(),
        act_with_average=False,
        policy_every=1,
        alpha_every=0,
        name="greedy_macro",
    )


def _allowed(tokens: Int[Array, "n B K"], mask: Any) -> Bool[Array, "n B"]:
    """Says which candidates a mask `[B, K V]` allows in each state; `()` allows all."""
    if isinstance(mask, tuple):
        return jnp.ones(tokens.shape[:-1], bool)
    mask = mask.reshape(*mask.shape[:-1], tokens.shape[-1], -1)
    mask = jnp.broadcast_to(mask, (*tokens.shape[:-1], *mask.shape[-2:]))
    return jnp.all(jnp.take_along_axis(mask, tokens[..., None], axis=-1)[..., 0], axis=-1)


def _best(tokens: Int[Array, "n B K"], values: Float[Array, "n B"]) -> Int[Array, "B K"]:
    """Returns the candidate with the largest value in each state."""
    best = jnp.argmax(values, axis=0)
    return jnp.take_along_axis(tokens, best[None, ..., None], axis=0)[0]

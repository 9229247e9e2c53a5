"""Diffusion policies whose gradient runs through the whole chain: DACER and DIME."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxlab.diffusion import ddpm
from jaxlab.learning import temperature
from jaxlab.rl import critics, generators
from jaxlab.rl.policy import Context, Improvement, Policy, see

POLICY_EVERY = 2
"""Critic updates for one of DACER's policy."""


def dacer(
    obs_size: int,
    action_size: int,
    *,
    schedule: ddpm.Schedule | None = None,
    hidden: tuple[int, ...] = generators.HIDDEN,
    init_noise: float = 1.0,
    noise_scale: float = 0.1,
    entropy_per_dim: float = -0.9,
    num_samples: int = 200,
    num_states: int = 8,
    num_components: int = 3,
    alpha_every: int = 10_000,
    alpha_learning_rate: float = 3e-2,
    num_particles: int = 1,
    optimizer: optax.GradientTransformation | None = None,
) -> Policy:
    """Makes DACER: minus Q is descended through the sampler; take `make_gaussian_critics` with it.

    Noise of `noise_scale * alpha` is added in acting; alpha follows the policy's entropy, that of a
    mixture of normal distributions fitted to samples.

    Args:
        entropy_per_dim: target of the entropy.
        num_samples, num_states: samples that a mixture is fitted to, for so many states.
        num_components: normal distributions in the mixture.
        alpha_every: critic updates between two moves of alpha.
        num_particles: K samples, of which the critics choose the best, as mirror descent does; 1
            is DACER itself.

    Raises:
        ValueError: if a mixture has fewer samples than components, or a count is below 1.

    Source: Wang et al. 2024, arXiv:2405.15177.
    """
    if not 1 <= num_components <= num_samples or min(num_states, alpha_every) < 1:
        raise ValueError(
            "1 <= num_components <= num_samples, num_states and alpha_every at least 1, got "
            f"{num_components}, {num_samples}, {num_states}, {alpha_every}"
        )
    critics.check_particles(num_particles)
    generator = generators.make_diffusion(
        obs_size, action_size, schedule=schedule, hidden=hidden, init_noise=init_noise
    )

    def act(
        key: jax.Array,
        params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
        *,
        explore: bool,
    ) -> jax.Array:
        key_draw, key_noise = jax.random.split(key)
        drawn = generators.draw(key_draw, generator, params, obs, num_particles=num_particles)
        action = critics.choose(q, obs, drawn)
        if explore:
            action = action + noise_scale * alpha * jax.random.normal(key_noise, action.shape)
        return jnp.clip(action, -1.0, 1.0)

    def propose(
        key: jax.Array,
        params: Any,
        target_params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        return act(key, target_params, obs, q, alpha, explore=True), jnp.zeros(obs.shape[:1]), {}

    def loss(key: jax.Array, params: Any, context: Context) -> tuple[jax.Array, Improvement]:
        key_draw, key_entropy = jax.random.split(key)
        action = generators.draw(key_draw, generator, params, context.obs, num_particles=1)[0]
        values = context.q(context.obs, jnp.clip(action, -1.0, 1.0))
        before = context.updates - POLICY_EVERY
        due = context.updates // alpha_every > before // alpha_every
        entropy = jax.lax.cond(
            due,
            lambda: policy_entropy(key_entropy, params, context.obs[:num_states], context.alpha),
            lambda: jnp.asarray(entropy_per_dim * action_size, values.dtype),
        )
        gap = entropy - entropy_per_dim * action_size
        return -jnp.mean(values), Improvement(values, gap, {})

    def policy_entropy(
        key: jax.Array, params: Any, obs: jax.Array, alpha: jax.Array
    ) -> Float[Array, ""]:
        """Mean over states of the entropy of what is acted, noise included."""
        key_draw, key_noise, key_fit = jax.random.split(key, 3)
        params = jax.lax.stop_gradient(params)
        drawn = generators.draw(key_draw, generator, params, obs, num_particles=num_samples)
        drawn = drawn + noise_scale * alpha * jax.random.normal(key_noise, drawn.shape)
        keys = jax.random.split(key_fit, obs.shape[0])
        fit = jax.vmap(lambda k, x: mixture_entropy(k, x, num_components), (0, 1))
        return jnp.mean(fit(keys, drawn))

    return Policy(
        action_size=action_size,
        obs_size=obs_size,
        init=generator.init,
        act=act,
        propose=propose,
        loss=loss,
        optimizer=optax.adam(1e-4) if optimizer is None else optimizer,
        act_with_average=False,
        policy_every=POLICY_EVERY,
        alpha_init=1.0,
        alpha_every=alpha_every,
        alpha_learning_rate=alpha_learning_rate,
    )


@functools.partial(jax.jit, static_argnames=("num_components", "num_steps"))
def mixture_entropy(
    key: jax.Array, x: Float[Array, "N A"], num_components: int = 3, *, num_steps: int = 50
) -> Float[Array, ""]:
    """Fits a mixture of normal distributions with diagonal covariances; returns its entropy, nats.

    The entropy is bounded from above by sum_k w_k (H_k - log w_k), which is exact where components
    do not overlap; that is what DACER takes for it.

    Args:
        num_steps: iterations of expectation maximization.
    """
    N, A = x.shape
    start = x[jax.random.choice(key, N, (num_components,), replace=False)]
    spread = jnp.var(x, axis=0) + 1e-6
    mixture = (
        jnp.full((num_components,), 1.0 / num_components),
        start,
        jnp.broadcast_to(spread, start.shape),
    )

    def em(mixture: tuple, _: None) -> tuple[tuple, None]:
        weight, mean, var = mixture
        z = (x[:, None] - mean[None]) ** 2 / var[None]
        logp = jnp.log(weight)[None] - 0.5 * jnp.sum(z + jnp.log(var)[None], axis=-1)
        share = jax.nn.softmax(logp, axis=1)  # [N, K]
        total = jnp.sum(share, axis=0) + 1e-6
        mean = (share.T @ x) / total[:, None]
        square = jnp.einsum("nk,nka->ka", share, (x[:, None] - mean[None]) ** 2)
        return (total / jnp.sum(total), mean, square / total[:, None] + 1e-6), None

    (weight, _, var), _ = jax.lax.scan(em, mixture, length=num_steps)
    entropy = 0.5 * (A * math.log(2.0 * math.pi * math.e) + jnp.sum(jnp.log(var), axis=1))
    return jnp.sum(weight * (entropy - jnp.log(weight)))


def dime(
    obs_size: int,
    action_size: int,
    *,
    schedule: ddpm.Schedule | None = None,
    hidden: tuple[int, ...] = generators.HIDDEN,
    target_entropy: float | None = None,
    alpha_init: float = 1.0,
    learning_rate: float = 3e-4,
    alpha_learning_rate: float = 3e-4,
    num_particles: int = 1,
) -> Policy:
    """Makes DIME: a diffusion of maximal entropy, by a bound along the chain.

    The reverse chain x_T .. x_0, a = tanh(x_0), is fitted to the forward noising of
    exp(Q / alpha): the divergence of the two chains bounds that of the actions. It is

      E[ sum_t log p(x_{t-1} | x_t) - log q(x_t | x_{t-1}) + log p(x_T) - log(1 - a^2) - Q / alpha ]

    and its gradient runs through the chain. All but the last term is minus a lower bound of the
    entropy, which is the critics' bonus and sets alpha.

    Args:
        schedule: 16 steps by default, linear up to 0.2.
        target_entropy: -A by default.
        num_particles: K samples, of which the critics choose the best, as mirror descent does; 1
            is DIME itself.

    Raises:
        ValueError: if there is no sample.

    Source: Celik et al. 2025, arXiv:2502.02316, with plain networks; critics are distributional.
    """
    critics.check_particles(num_particles)
    schedule = ddpm.linear_schedule(16, scale=0.2) if schedule is None else schedule
    target_entropy = -float(action_size) if target_entropy is None else target_entropy
    score = generators.noise_predictor(action_size, hidden)  # of the same shape
    network: Any = generators.TimedNetwork(hidden, action_size)

    @jax.jit
    def chain(key: jax.Array, params: Any, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns actions and the integrand of the lower bound of their entropy."""
        key_start, key_steps = jax.random.split(key)
        start = jax.random.normal(key_start, (*obs.shape[:-1], action_size), obs.dtype)
        x, entropy = reverse_chain(key_steps, schedule, score(params, see(obs, obs_size)), start)
        stretch = 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))  # log(1 - tanh^2)
        return jnp.tanh(x), entropy + jnp.sum(stretch, axis=-1)

    def choose(
        key: jax.Array, params: Any, obs: jax.Array, q: critics.Q
    ) -> tuple[jax.Array, jax.Array]:
        """The best action, and the entropy's integrand of any one, which is unbiased."""
        if num_particles == 1:
            return chain(key, params, obs)
        keys = jax.random.split(key, num_particles)
        actions, entropy = jax.vmap(lambda k: chain(k, params, obs))(keys)
        return critics.choose(q, obs, actions), entropy[0]

    def act(
        key: jax.Array,
        params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
        *,
        explore: bool,
    ) -> jax.Array:
        return choose(key, params, obs, q)[0]

    def propose(
        key: jax.Array,
        params: Any,
        target_params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        action, entropy = choose(key, params, obs, q)
        return action, alpha * entropy, {}

    def loss(key: jax.Array, params: Any, context: Context) -> tuple[jax.Array, Improvement]:
        action, entropy = chain(key, params, context.obs)
        values = context.q(context.obs, action)
        alpha = jax.lax.stop_gradient(context.alpha)
        mean = jnp.mean(jax.lax.stop_gradient(entropy))
        slope = jax.grad(temperature.entropy_dual_loss)
        gap = slope(jnp.log(alpha), mean, target_entropy)
        found = Improvement(values, gap, {"policy/entropy": mean})
        return jnp.mean(-alpha * entropy - values), found

    def init(key: jax.Array) -> Any:
        zero = jnp.zeros((action_size,))
        return network.init(key, jnp.zeros((obs_size,)), zero, jnp.zeros(()))

    return Policy(
        action_size=action_size,
        obs_size=obs_size,
        init=init,
        act=act,
        propose=propose,
        loss=loss,
        optimizer=optax.adam(learning_rate),
        act_with_average=False,
        policy_every=1,
        alpha_init=alpha_init,
        alpha_every=1,
        alpha_learning_rate=alpha_learning_rate,
    )


def reverse_chain(
    key: jax.Array,
    schedule: ddpm.Schedule,
    score: Callable[[jax.Array, jax.Array], jax.Array],
    start: Float[Array, "... A"],
) -> tuple[Float[Array, "... A"], Float[Array, "..."]]:
    """Walks from standard normal noise to x_0, and returns a lower bound of its entropy.

    x_{t-1} = (x_t + beta score(x_t, t)) / sqrt(1 - beta) + sqrt(beta) n. The bound is the mean of

      -log p(x_T) + sum_t log q(x_t | x_{t-1}) - log p(x_{t-1} | x_t)

    with the noising kernel q; it is the entropy where the chain is the reverse of the noising.

    Returns:
        `(x_0, integrand [...])`.
    """

    def back(carry: tuple, t: jax.Array) -> tuple[tuple, None]:
        x, total = carry
        beta = schedule.beta.astype(x.dtype)[t]
        steps = t.reshape((1,) * (x.ndim - 1))
        mean = (x + beta * score(x, steps)) / jnp.sqrt(1.0 - beta)
        noise = jax.random.normal(jax.random.fold_in(key, t), x.shape, x.dtype)
        before = mean + jnp.sqrt(beta) * noise
        forward = (x - jnp.sqrt(1.0 - beta) * before) / jnp.sqrt(beta)
        # Both kernels have variance beta: their normalizations cancel.
        return (before, total + 0.5 * jnp.sum(noise**2 - forward**2, axis=-1)), None

    total = 0.5 * jnp.sum(start**2 + math.log(2.0 * math.pi), axis=-1)
    times = jnp.arange(schedule.num_steps - 1, -1, -1, dtype=jnp.int32)
    return jax.lax.scan(back, (start, total), times)[0]

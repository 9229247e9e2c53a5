"""Diffusion policies that mirror descent is compared with: QVPO, DIPO, QSM.

All share the learner's critics, replay and acting with every other method.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxlab.diffusion import ddpm
from jaxlab.nn import Mlp
from jaxlab.rl import critics, generators, mirror_descent, temperature
from jaxlab.rl.policy import Context, Improvement, Policy, decaying_adam, see


def qvpo(
    obs_size: int,
    action_size: int,
    *,
    weighting: Literal["advantage", "value"] = "advantage",
    num_samples: int = 64,
    num_uniform: int = 10,
    entropy_coef: tuple[float, float] = (0.02, 0.002),
    entropy_steps: int = 200_000,
    schedule: ddpm.Schedule | None = None,
    hidden: tuple[int, ...] = generators.HIDDEN,
    init_noise: float = 1.0,
    num_particles: int = 32,
    optimizer: optax.GradientTransformation | None = None,
    alpha_every: int = 250,
) -> Policy:
    """Makes QVPO: a diffusion fitted to the policy's best samples, weighted by their values.

    Args:
        weighting: "advantage": the best value less the mean over samples, of the authors' later
            library. "value": the value itself where it exceeds 1, else nothing, as in the released
            comparison; where values are negative that learns nothing.
        num_samples: actions drawn in each state, of which the best is taken and the mean formed; 2
            or more for an advantage.
        num_uniform: uniform actions a state that the loss adds, to keep the policy's entropy.
        entropy_coef, entropy_steps: factor of their weight, falling linearly over critic updates,
            of the released comparison; the later library has 0.01 throughout.
        num_particles, optimizer, alpha_every: see `mirror_descent.make_mirror_descent`.

    Raises:
        ValueError: if there is no such weighting, or a count is out of range.

    Source: Ding et al. 2024, arXiv:2405.16173.
    """
    if weighting not in ("advantage", "value"):
        raise ValueError(f"weighting must be advantage or value, got {weighting!r}")
    fewest = 2 if weighting == "advantage" else 1
    if num_samples < fewest or num_uniform < 0:
        raise ValueError(
            f"num_samples must be at least {fewest} and num_uniform not negative, got "
            f"{num_samples}, {num_uniform}"
        )
    generator = generators.make_diffusion(
        obs_size, action_size, schedule=schedule, hidden=hidden, init_noise=init_noise
    )
    base = mirror_descent.make_mirror_descent(
        generator, num_particles=num_particles, optimizer=optimizer, alpha_every=alpha_every
    )

    def loss(key: jax.Array, params: Any, context: Context) -> tuple[jax.Array, Improvement]:
        key_draw, key_uniform, key_loss = jax.random.split(key, 3)
        obs, old = context.obs, jax.lax.stop_gradient(params)
        drawn = generators.draw(key_draw, generator, old, obs, num_particles=num_samples)
        best, values = critics.best_of(context.q, obs, drawn)
        top = jnp.max(values, axis=0)
        weight = top - jnp.mean(values, axis=0) if weighting == "advantage" else top * (top > 1.0)
        progress = jnp.minimum(context.updates.astype(obs.dtype) / entropy_steps, 1.0)
        coef = entropy_coef[0] + progress * (entropy_coef[1] - entropy_coef[0])
        shape = (num_uniform, *best.shape)
        uniform = jax.random.uniform(key_uniform, shape, minval=-1.0, maxval=1.0)
        actions = jnp.concatenate([best[None], uniform])
        repeated = jnp.broadcast_to(obs, (num_uniform + 1, *obs.shape))
        weights = jnp.concatenate(
            [weight[None], jnp.broadcast_to(coef * weight, (num_uniform, *weight.shape))]
        )
        flat = [x.reshape(-1, *x.shape[2:]) for x in (repeated, actions, weights)]
        gap = temperature.temperature_gradient(jnp.log(context.alpha), action_size)
        value = generator.loss(key_loss, params, *flat)
        return value, Improvement(top, gap, {"policy/weight_mean": jnp.mean(weight)})

    return base._replace(loss=loss)


def dipo(
    obs_size: int,
    action_size: int,
    *,
    num_ascents: int = 30,
    action_learning_rate: float = 0.03,
    max_grad_norm: float = 0.16,
    schedule: ddpm.Schedule | None = None,
    hidden: tuple[int, ...] = generators.HIDDEN,
    init_noise: float = 1.0,
    num_particles: int = 1,
    optimizer: optax.GradientTransformation | None = None,
) -> Policy:
    """Makes DIPO: stored actions climb the critics, and a diffusion is fitted to them.

    Args:
        num_ascents: steps of Adam that raise min Q, for the actions of a batch, each time.
        action_learning_rate: learning rate of that Adam.
        max_grad_norm: largest norm of its gradient, for each action by itself.
        schedule: 100 steps by default, cosine.
        num_particles: K samples, of which the critics choose the best, as mirror descent does; 1
            is DIPO itself.

    Raises:
        ValueError: if there is no ascent or no sample.

    Source: Yang et al. 2023, arXiv:2305.13122.
    """
    if num_ascents < 1:
        raise ValueError(f"num_ascents must be at least 1, got {num_ascents}")
    critics.check_particles(num_particles)
    schedule = ddpm.cosine_schedule(100) if schedule is None else schedule
    generator = generators.make_diffusion(
        obs_size, action_size, schedule=schedule, hidden=hidden, init_noise=init_noise
    )
    ascent = optax.adam(action_learning_rate)

    def act(
        key: jax.Array,
        params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
        *,
        explore: bool,
    ) -> jax.Array:
        drawn = generators.draw(key, generator, params, obs, num_particles=num_particles)
        return jnp.clip(critics.choose(q, obs, drawn), -1.0, 1.0)

    def propose(
        key: jax.Array,
        params: Any,
        target_params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        return act(key, target_params, obs, q, alpha, explore=True), jnp.zeros(obs.shape[:1]), {}

    def refine(key: jax.Array, params: Any, context: Context) -> jax.Array:
        def climb(carry: tuple, _: None) -> tuple[tuple, None]:
            action, opt_state = carry
            grads = jax.grad(lambda a: -jnp.sum(context.q(context.obs, a)))(action)
            norm = jnp.linalg.norm(grads, axis=-1, keepdims=True)
            grads = grads * jnp.minimum(1.0, max_grad_norm / jnp.maximum(norm, 1e-12))
            steps, opt_state = ascent.update(grads, opt_state)
            return (jnp.clip(action + steps, -1.0, 1.0), opt_state), None

        start = (context.extras, ascent.init(context.extras))
        return jax.lax.scan(climb, start, length=num_ascents)[0][0]

    def loss(key: jax.Array, params: Any, context: Context) -> tuple[jax.Array, Improvement]:
        ones = jnp.ones(context.extras.shape[:1])
        value = generator.loss(key, params, context.obs, context.extras, ones)
        values = context.q(context.obs, context.extras)
        return value, Improvement(values, jnp.zeros(()), {})

    return Policy(
        action_size=action_size,
        obs_size=obs_size,
        init=generator.init,
        act=act,
        propose=propose,
        loss=loss,
        optimizer=decaying_adam() if optimizer is None else optimizer,
        alpha_init=1.0,
        alpha_every=0,
        extras=lambda action: action,
        refine=refine,
    )


def qsm(
    obs_size: int,
    action_size: int,
    *,
    num_steps: int = 20,
    hidden: tuple[int, ...] = generators.HIDDEN,
    learning_rate: float = 3e-4,
    num_particles: int = 1,
) -> Policy:
    """Makes QSM: a score that is the critics' gradient in the action, followed by Langevin steps.

    x <- clip(x + d/2 score + sqrt(d) n, -1, 1), d = 1 - i / N for i = 0 to N - 1, from noise.

    Args:
        num_particles: K samples, of which the critics choose the best, as mirror descent does; 1
            is QSM itself.

    Raises:
        ValueError: if there is no step or no sample.

    Source: Psenka et al. 2023, arXiv:2312.11752.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    critics.check_particles(num_particles)
    network: Any = Mlp(hidden, action_size)

    @jax.jit
    def sample(key: jax.Array, params: Any, obs: jax.Array) -> jax.Array:
        shape = (num_particles, *obs.shape[:-1], action_size)
        seen = jnp.broadcast_to(see(obs, obs_size), (num_particles, *obs.shape[:-1], obs_size))

        def langevin(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            step = 1.0 - i.astype(x.dtype) / num_steps
            noise = jax.random.normal(jax.random.fold_in(key, i + 1), shape, x.dtype)
            x = x + 0.5 * step * network.apply(params, seen, x) + jnp.sqrt(step) * noise
            return jnp.clip(x, -1.0, 1.0), None

        start = jax.random.normal(jax.random.fold_in(key, 0), shape, obs.dtype)
        return jax.lax.scan(langevin, start, jnp.arange(num_steps, dtype=jnp.int32))[0]

    def act(
        key: jax.Array,
        params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
        *,
        explore: bool,
    ) -> jax.Array:
        return critics.choose(q, obs, sample(key, params, obs))

    def propose(
        key: jax.Array,
        params: Any,
        target_params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        return act(key, params, obs, q, alpha, explore=True), jnp.zeros(obs.shape[:1]), {}

    def loss(key: jax.Array, params: Any, context: Context) -> tuple[jax.Array, Improvement]:
        slope = jax.grad(lambda a: jnp.sum(context.q(context.obs, a)))(context.action)
        error = network.apply(params, see(context.obs, obs_size), context.action) - slope
        values = context.q(context.obs, context.action)
        return jnp.mean(error**2), Improvement(values, jnp.zeros(()), {})

    return Policy(
        action_size=action_size,
        obs_size=obs_size,
        init=lambda key: network.init(key, jnp.zeros((obs_size,)), jnp.zeros((action_size,))),
        act=act,
        propose=propose,
        loss=loss,
        optimizer=optax.adam(learning_rate),
        alpha_init=1.0,
        alpha_every=0,
    )

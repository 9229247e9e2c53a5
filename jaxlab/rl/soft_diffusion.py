"""SDAC: a diffusion policy that is fitted to exp(Q / lambda) itself, by reverse sampling.

Ma et al. 2025, arXiv:2502.00361 (soft diffusion actor-critic).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import ndtr, ndtri

from jaxlab.diffusion import ddpm, reverse_sampling
from jaxlab.rl import generators, mirror_descent
from jaxlab.rl import temperature as noise_temperature
from jaxlab.rl.policy import Context, Improvement, Policy, see


def sdac(
    obs_size: int,
    action_size: int,
    *,
    schedule: ddpm.Schedule | None = None,
    num_samples: int = 64,
    value_scale: float = 5.0,
    temperature: float | None = None,
    from_replay: bool = False,
    truncated: bool = False,
    hidden: tuple[int, ...] = generators.HIDDEN,
    init_noise: float = 1.0,
    num_particles: int = 32,
    noise_scale: float = 0.1,
    entropy_per_dim: float = -1.5,
    optimizer: optax.GradientTransformation | None = None,
    alpha_every: int = 250,
) -> Policy:
    """Makes SDAC.

    Args:
        num_samples: noises drawn in reverse for each state.
        value_scale: factor of values over alpha in the weights; 5 undoes rewards scaled by 0.2.
        temperature: constant that divides values, in place of alpha / value_scale; the authors'
            later library takes 0.05. It may be swept.
        from_replay: noise the actions of the replay, as that library does, instead of the policy's
            own best.
        truncated: draw the noises within the bounds that keep candidates in [-1, 1], as that
            library does, instead of clipping the candidates.
        num_particles, noise_scale, entropy_per_dim, optimizer, alpha_every: see
            `mirror_descent.make_mirror_descent`.

    Raises:
        ValueError: if there is no sample, or the temperature is not positive.
    """
    if num_samples < 1 or (temperature is not None and temperature <= 0.0):
        raise ValueError(
            "num_samples must be at least 1 and temperature positive, got "
            f"{num_samples}, {temperature}"
        )
    schedule = ddpm.linear_schedule() if schedule is None else schedule
    generator = generators.make_diffusion(
        obs_size, action_size, schedule=schedule, init_noise=init_noise, hidden=hidden
    )
    predict = generators.noise_predictor(action_size, hidden)
    base = mirror_descent.make_mirror_descent(
        generator,
        num_particles=num_particles,
        noise_scale=noise_scale,
        optimizer=optimizer,
        entropy_per_dim=entropy_per_dim,
        alpha_every=alpha_every,
    )

    def loss(key: jax.Array, params: Any, context: Context) -> tuple[jax.Array, Improvement]:
        key_action, key_t, key_noise, key_reverse = jax.random.split(key, 4)
        obs = context.obs
        if from_replay:
            action = context.action
        else:
            old = jax.lax.stop_gradient(params)
            action = base.propose(key_action, old, old, obs, context.q, context.alpha)[0]
        t = jax.random.randint(key_t, obs.shape[:1], 0, schedule.num_steps)
        x = ddpm.diffuse(schedule, action, jax.random.normal(key_noise, action.shape), t)
        if truncated:
            noise = _within(key_reverse, schedule, num_samples, x, t)
        else:
            noise = reverse_sampling.draw_noise(key_reverse, num_samples, x)
        tried = reverse_sampling.candidates(schedule, x, noise, t)
        values = context.q(obs[None], tried)
        scale = context.settings.get("temperature", temperature)
        if scale is None:
            scale = context.alpha / value_scale
        log_weight = jax.lax.stop_gradient(values / scale)
        value = reverse_sampling.loss(predict(params, see(obs, obs_size)), x, t, log_weight, noise)
        weight = jax.nn.softmax(log_weight, axis=0)
        share = jnp.mean(1.0 / jnp.sum(weight**2, axis=0)) / num_samples
        gap = noise_temperature.temperature_gradient(
            jnp.log(context.alpha),
            action_size,
            entropy_per_dim=entropy_per_dim,
            noise_scale=noise_scale or 0.1,
        )
        return value, Improvement(values, gap, {"policy/ess": share})

    fixed = {} if temperature is None else {"temperature": temperature}
    return base._replace(loss=loss, loss_settings=fixed)


def _within(
    key: jax.Array, schedule: ddpm.Schedule, num: int, x: jax.Array, t: jax.Array
) -> jax.Array:
    """Normal noise `[num, B, A]`, truncated to where candidates for x_t lie in [-1, 1]."""
    alpha_bar = schedule.alpha_bar.astype(x.dtype)[t][:, None]
    center, reach = x / jnp.sqrt(1.0 - alpha_bar), jnp.sqrt(alpha_bar / (1.0 - alpha_bar))
    # Drawn on the negative side, where tails keep their digits, and turned round.
    side = jnp.where(center > 0.0, -1.0, 1.0)
    low, high = side * center - reach, side * center + reach
    u = jax.random.uniform(key, (num, *x.shape), x.dtype)
    u = jnp.maximum(u, 2.0**-25)  # 0 has no finite quantile
    below, above = ndtr(low)[None], ndtr(high)[None]
    inner = ndtri(below + u * (above - below))
    outer = high[None] + jnp.log(u) / jnp.maximum(-high, 1.0)[None]  # exponential beyond 8
    drawn = jnp.where((high < -8.0)[None], outer, inner)
    return side[None] * jnp.clip(drawn, low[None], high[None])

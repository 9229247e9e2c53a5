"""Policy mirror descent with generative policies: FPMD-R, FPMD-M, DPMD.

The target pi_old exp(Q / lambda) / Z is fitted by the generator's own loss on the policy's own
samples, weighted by exp(Q / lambda): no gradient runs through the sampler (arXiv:2507.23675, eq. 7
to 9; arXiv:2502.00361). One proposal at the next state serves the critics' target and the policy.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxlab.diffusion import ddpm
from jaxlab.learning.temperature import kl_dual_loss
from jaxlab.rl import critics, generators, policy, weights
from jaxlab.rl import temperature as noise_temperature
from jaxlab.rl.generators import Generator
from jaxlab.rl.policy import Context, Improvement, Policy


def make_mirror_descent(
    generator: Generator,
    *,
    weighting: weights.Weighting = "clip_std",
    temperature: float | None = None,
    target_kl: float | None = None,
    num_particles: int = 32,
    num_samples: int = 64,
    noise_scale: float = 0.1,
    entropy_per_dim: float = -1.5,
    optimizer: optax.GradientTransformation | None = None,
    gradient_weight: float | None = None,
    alpha_every: int = 250,
) -> Policy:
    """Makes the policy record of mirror descent with a generator.

    Args:
        generator: the flow or diffusion that is improved.
        weighting: how values become weights, see `weights.importance_weights`; "softmax" takes
            `num_samples` actions a state.
        temperature: what divides values with "raw", "scale_std" and "softmax"; 1 by default, and
            a setting that may be swept. The clipped kinds divide by the learned alpha.
        target_kl: with "softmax" alone: alpha divides values, and is learned so that the weights
            keep this divergence from uniform ones, nats (2 in the authors' later library, with 64
            samples); exploration noise is of std `noise_scale` then, and alpha moves at every step
            of the policy, whatever `alpha_every` is.
        num_particles: K actions a state, of which the best by the critics is taken, in training and
            in acting.
        num_samples: M actions a state that "softmax" weighs against each other.
        noise_scale: std of the added noise over alpha; 0 switches exploration noise off.
        entropy_per_dim: target of the noise's entropy, per dimension.
        optimizer: Adam from 3e-4 to 3e-5 by default.
        gradient_weight: None, or the factor of the generator's loss in the sum with -Q of one
            sample, through which the gradient runs (the released variant "mf2" takes 0.1).
        alpha_every: critic updates between two of the temperature. A run of U updates in all
            needs about U / 800.

    Raises:
        ValueError: if a count is below 1, a scale negative, a temperature not positive, there is no
            such weighting, or a setting is not of it.
    """
    if min(num_particles, num_samples, alpha_every) < 1 or noise_scale < 0.0:
        raise ValueError(
            "num_particles, num_samples and alpha_every must be at least 1 and noise_scale not "
            f"negative, got {num_particles}, {num_samples}, {alpha_every}, {noise_scale}"
        )
    if gradient_weight is not None and gradient_weight < 0.0:
        raise ValueError(f"gradient_weight must not be negative, got {gradient_weight}")
    if weighting not in weights.WEIGHTINGS:
        raise ValueError(
            f"weighting must be one of {', '.join(weights.WEIGHTINGS)}, got {weighting!r}"
        )
    clipped = weighting.startswith("clip")
    if temperature is not None and clipped:
        raise ValueError(f"{weighting} divides by the learned alpha; leave temperature out")
    if temperature is not None and temperature <= 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    temperature = 1.0 if temperature is None else temperature
    dual = target_kl is not None
    if dual and (weighting != "softmax" or not 0.0 < target_kl < math.log(num_samples)):
        raise ValueError(
            "target_kl goes with the weighting softmax, and must lie between 0 and the logarithm "
            f"of num_samples, {math.log(num_samples):.3g}; got {target_kl} with {weighting}"
        )
    divides = weighting in ("raw", "scale_std", "softmax") and not dual
    A = generator.action_size

    def noise(key: jax.Array, alpha: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return noise_scale * (1.0 if dual else alpha) * jax.random.normal(key, shape)

    def fixed(context: Context) -> jax.Array | float:
        return context.settings.get("temperature", temperature)

    def best(
        key: jax.Array,
        params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
        *,
        explore: bool,
    ) -> tuple[jax.Array, jax.Array]:
        key_draw, key_noise = jax.random.split(key)
        actions = generators.draw(key_draw, generator, params, obs, num_particles=num_particles)
        if explore and weighting == "scale_std":  # there noise comes before the choice
            actions = actions + noise(key_noise, alpha, actions.shape)
            return critics.best_of(q, obs, actions)
        chosen, values = critics.best_of(q, obs, actions)
        return (chosen + noise(key_noise, alpha, chosen.shape) if explore else chosen), values

    def act(
        key: jax.Array,
        params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
        *,
        explore: bool,
    ) -> jax.Array:
        return best(key, params, obs, q, alpha, explore=explore)[0]

    def propose(
        key: jax.Array,
        params: Any,
        target_params: Any,
        obs: jax.Array,
        q: critics.Q,
        alpha: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        del target_params
        action, values = best(key, params, obs, q, alpha, explore=True)
        changed = jnp.mean((jnp.argmax(values, axis=0) != 0).astype(obs.dtype))
        spread = jnp.mean(jnp.std(values, axis=0))
        return (
            action,
            jnp.zeros(obs.shape[:1]),
            {"policy/best_changed": changed, "policy/particle_q_std": spread},
        )

    def loss(key: jax.Array, params: Any, context: Context) -> tuple[jax.Array, Improvement]:
        key_sample = key
        if gradient_weight is not None:
            key, key_sample = jax.random.split(key)
        log_alpha = jnp.log(context.alpha)
        gap = noise_temperature.temperature_gradient(
            log_alpha, A, entropy_per_dim=entropy_per_dim, noise_scale=noise_scale or 0.1
        )
        if weighting == "softmax":
            value, values, metrics = _softmax_loss(key, params, context)
            if target_kl is not None:
                gap = jax.grad(kl_dual_loss)(log_alpha, values, target_kl=target_kl)
        else:
            action = jax.lax.stop_gradient(context.next_action)
            values = context.q(context.next_obs, action)
            scale = context.alpha if clipped else fixed(context)
            weight, metrics = weights.importance_weights(values, context.stats, scale, weighting)
            value = generator.loss(key, params, context.next_obs, action, weight)
            metrics = {**metrics, "weight_max": jnp.max(weight)}
        if gradient_weight is not None:
            sampled = generators.draw(key_sample, generator, params, context.obs, num_particles=1)
            value = gradient_weight * value - jnp.mean(context.q_target(context.obs, sampled[0]))
        metrics = {f"policy/{name}": x for name, x in metrics.items()}
        return value, Improvement(values, gap, metrics)

    def _softmax_loss(
        key: jax.Array, params: Any, context: Context
    ) -> tuple[jax.Array, Float[Array, "M B"], dict[str, jax.Array]]:
        """Several noisy samples a state, self-normalized: no factor Z(s)."""
        key_draw, key_noise, key_loss = jax.random.split(key, 3)
        old = jax.lax.stop_gradient(params)
        obs = context.next_obs
        actions = generators.draw(key_draw, generator, old, obs, num_particles=num_samples)
        actions = jnp.clip(actions + noise(key_noise, context.alpha, actions.shape), -1.0, 1.0)
        repeated = jnp.broadcast_to(obs, (num_samples, *obs.shape))
        values = context.q(obs[None], actions)
        weight = weights.softmax_weights(values, context.alpha if dual else fixed(context))
        flat = [x.reshape(-1, *x.shape[2:]) for x in (repeated, actions, weight)]
        share = jnp.mean(jax.vmap(weights.effective_share, 1)(jnp.log(weight + 1e-30)))
        return generator.loss(key_loss, params, *flat), values, {"ess": share}

    return Policy(
        action_size=A,
        obs_size=generator.obs_size,
        init=generator.init,
        act=act,
        propose=propose,
        loss=loss,
        optimizer=policy.decaying_adam() if optimizer is None else optimizer,
        alpha_init=1.0 if dual else 5.0,
        alpha_every=2 if dual else alpha_every,
        alpha_learning_rate=3e-4 if dual else 7e-3,
        loss_settings={"temperature": temperature} if divides else {},
        name=generator.kind,
    )


def fpmd_r(
    obs_size: int,
    action_size: int,
    *,
    num_steps: int = 20,
    init_noise: float = 1.0,
    hidden: tuple[int, ...] = generators.HIDDEN,
    **options: Any,
) -> Policy:
    """Makes FPMD-R: a rectified flow, N = 20 steps in training, one at the end if one likes.

    Args:
        num_steps, init_noise, hidden: see `generators.make_flow`; for its other options make it
            yourself and hand it to `make_mirror_descent`.
        options: see `make_mirror_descent`.
    """
    flow = generators.make_flow(
        obs_size, action_size, num_steps=num_steps, init_noise=init_noise, hidden=hidden
    )
    return make_mirror_descent(flow, **options)


def fpmd_m(
    obs_size: int,
    action_size: int,
    *,
    num_steps: int = 1,
    init_noise: float = 1.0,
    hidden: tuple[int, ...] = generators.HIDDEN,
    **options: Any,
) -> Policy:
    """Makes FPMD-M: a MeanFlow, one step in training and in acting.

    Args:
        num_steps, init_noise, hidden: see `generators.make_mean_flow`; for its other options make
            it yourself and hand it to `make_mirror_descent`.
        options: see `make_mirror_descent`.
    """
    mean_flow = generators.make_mean_flow(
        obs_size, action_size, num_steps=num_steps, init_noise=init_noise, hidden=hidden
    )
    return make_mirror_descent(mean_flow, **options)


def dpmd(
    obs_size: int,
    action_size: int,
    *,
    schedule: ddpm.Schedule | None = None,
    init_noise: float = 1.0,
    hidden: tuple[int, ...] = generators.HIDDEN,
    **options: Any,
) -> Policy:
    """Makes DPMD: a diffusion of 20 steps.

    Args:
        schedule, init_noise, hidden: see `generators.make_diffusion`; for its other options make it
            yourself and hand it to `make_mirror_descent`.
        options: see `make_mirror_descent`.
    """
    diffusion = generators.make_diffusion(
        obs_size, action_size, schedule=schedule, init_noise=init_noise, hidden=hidden
    )
    return make_mirror_descent(diffusion, **options)

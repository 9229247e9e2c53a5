"""Policies that turn noise into actions: rectified flow, MeanFlow, diffusion.

A generator is a network with a sampler and a weighted loss; how it is improved is another matter
(`mirror_descent`, `soft_diffusion`, and the baselines).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.diffusion import ddpm, mean_flow, rectified_flow
from jaxlab.nn import Mlp, TimeEmbedding, Trunk
from jaxlab.rl.policy import see

HIDDEN = (256, 256, 256)
"""Widths of the released networks, with Mish."""


class Generator(NamedTuple):
    """A policy that samples.

    Attributes:
        kind: "flow", "mean_flow" or "diffusion".
        action_size: A, numbers in one action.
        num_steps: N, network evaluations of a sample in training.
        init_noise: Standard deviation of the noise that a sample starts from.
        init: `init(key) -> params`.
        sample: `sample(key, params, obs [..., O], start [..., A], num_steps) -> [..., A]`, not
            clipped; a diffusion has its own number of steps and takes None or that number. It is
            compiled once for all values.
        loss: `loss(key, params, obs [B, O], action [B, A], weight [B]) -> []`.
        obs_size: O, the first numbers of an observation, at which the network looks.
    """

    kind: Literal["flow", "mean_flow", "diffusion"]
    action_size: int
    num_steps: int
    init_noise: float
    init: Callable[[jax.Array], Any]
    sample: Callable[..., jax.Array]
    loss: Callable[..., jax.Array]
    obs_size: int


class TimedNetwork(nn.Module):
    """A network of an observation, a noisy action and one time or more.

    Attributes:
        hidden: Widths of the hidden layers.
        action_size: A, numbers in one action.
        time_size, time_scale: Size and highest frequency of each time's own embedding.
        trunk: Size that features of images are brought to first; 0 for states.
    """

    hidden: tuple[int, ...]
    action_size: int
    time_size: int = 16
    time_scale: float = 1.0
    trunk: int = 0

    @nn.compact
    def __call__(
        self, obs: Float[Array, "... O"], x: Float[Array, "... A"], *times: Float[Array, "..."]
    ) -> Float[Array, "... A"]:
        if self.trunk:
            obs = Trunk(self.trunk)(obs)
        embedded = [TimeEmbedding(self.time_size, self.time_scale)(t) for t in times]
        return Mlp(self.hidden, self.action_size)(obs, x, *embedded)


def make_flow(
    obs_size: int,
    action_size: int,
    *,
    num_steps: int = 20,
    init_noise: float = 1.0,
    hidden: tuple[int, ...] = HIDDEN,
    time_size: int = 16,
    time_scale: float = 1.0,
    trunk: int = 0,
) -> Generator:
    """Makes a rectified flow, the policy of FPMD-R.

    Args:
        init_noise: 1 is what the loss assumes, and more reliable; the released code takes 0.5,
            which halves the spread of every sample.
        trunk: size that features of images are brought to first, see `TimedNetwork`.

    Raises:
        ValueError: if a size or count is out of range.

    Source: arXiv:2507.23675, eq. 9.
    """
    _check(obs_size, action_size, num_steps, init_noise, time_size)
    network: Any = TimedNetwork(hidden, action_size, time_size, time_scale, trunk)

    def velocity(params: Any, obs: jax.Array) -> rectified_flow.Velocity:
        return lambda x, t: network.apply(params, see(obs, obs_size), x, t)

    @functools.partial(jax.jit, static_argnames="num_steps")
    def sample(
        key: jax.Array, params: Any, obs: jax.Array, start: jax.Array, num_steps: int
    ) -> jax.Array:
        del key  # all its noise is in the start
        return rectified_flow.sample(velocity(params, obs), start, num_steps=num_steps)

    def loss(
        key: jax.Array, params: Any, obs: jax.Array, action: jax.Array, weight: jax.Array
    ) -> jax.Array:
        key_t, key_noise = jax.random.split(key)
        t = jax.random.uniform(key_t, action.shape[:-1])
        noise = jax.random.normal(key_noise, action.shape)
        return rectified_flow.loss(velocity(params, obs), action, noise, t, weight)

    init = _init(network, obs_size, action_size, 1)
    return Generator("flow", action_size, num_steps, init_noise, init, sample, loss, obs_size)


def make_mean_flow(
    obs_size: int,
    action_size: int,
    *,
    num_steps: int = 1,
    init_noise: float = 1.0,
    hidden: tuple[int, ...] = HIDDEN,
    time_size: int = 16,
    time_scale: float = 1.0,
    equal: float = 0.0,
    distribution: Literal["uniform", "logit_normal"] = "uniform",
    adaptive_power: float = 0.0,
    trunk: int = 0,
) -> Generator:
    """Makes a MeanFlow, the policy of FPMD-M: one step in training too.

    Args:
        equal, distribution: how the pairs of times are drawn, see `mean_flow.sample_times`.
        adaptive_power: how strongly large errors are damped, see `mean_flow.loss`.
        trunk: size that features of images are brought to first, see `TimedNetwork`.

    Raises:
        ValueError: if a size or count is out of range, or times cannot be drawn.

    Source: arXiv:2507.23675; Geng et al. 2025.
    """
    _check(obs_size, action_size, num_steps, init_noise, time_size)
    mean_flow.check_times(equal, distribution)
    network: Any = TimedNetwork(hidden, action_size, time_size, time_scale, trunk)

    def average(params: Any, obs: jax.Array) -> mean_flow.AverageVelocity:
        return lambda z, r, t: network.apply(params, see(obs, obs_size), z, r, t)

    @functools.partial(jax.jit, static_argnames="num_steps")
    def sample(
        key: jax.Array, params: Any, obs: jax.Array, start: jax.Array, num_steps: int
    ) -> jax.Array:
        del key
        return mean_flow.sample(average(params, obs), start, num_steps=num_steps)

    def loss(
        key: jax.Array, params: Any, obs: jax.Array, action: jax.Array, weight: jax.Array
    ) -> jax.Array:
        key_times, key_noise = jax.random.split(key)
        r, t = mean_flow.sample_times(
            key_times, action.shape[:-1], equal=equal, distribution=distribution
        )
        noise = jax.random.normal(key_noise, action.shape)
        return mean_flow.loss(
            average(params, obs), action, noise, r, t, weight, adaptive_power=adaptive_power
        )

    init = _init(network, obs_size, action_size, 2)
    return Generator("mean_flow", action_size, num_steps, init_noise, init, sample, loss, obs_size)


def make_diffusion(
    obs_size: int,
    action_size: int,
    *,
    schedule: ddpm.Schedule | None = None,
    init_noise: float = 1.0,
    hidden: tuple[int, ...] = HIDDEN,
    time_size: int = 16,
    clip: float | None = 1.0,
) -> Generator:
    """Makes a diffusion with few steps, the policy of DPMD, SDAC and others.

    Args:
        schedule: `ddpm.linear_schedule(20, scale=0.8)` by default.
        clip: bound of the predicted action at every step; None for none.

    Raises:
        ValueError: if a size or count is out of range.

    Source: arXiv:2502.00361.
    """
    schedule = ddpm.linear_schedule() if schedule is None else schedule
    _check(obs_size, action_size, schedule.num_steps, init_noise, time_size)
    of_network = noise_predictor(action_size, hidden, time_size)

    def predict(params: Any, obs: jax.Array) -> ddpm.PredictNoise:
        return of_network(params, see(obs, obs_size))

    @functools.partial(jax.jit, static_argnames="num_steps")
    def sample(
        key: jax.Array, params: Any, obs: jax.Array, start: jax.Array, num_steps: int | None = None
    ) -> jax.Array:
        if num_steps not in (None, schedule.num_steps):
            raise ValueError(
                f"this diffusion was made with {schedule.num_steps} steps and samples in as many, "
                f"got {num_steps}"
            )
        return ddpm.sample(key, schedule, predict(params, obs), start, clip=clip)

    def loss(
        key: jax.Array, params: Any, obs: jax.Array, action: jax.Array, weight: jax.Array
    ) -> jax.Array:
        key_t, key_noise = jax.random.split(key)
        t = jax.random.randint(key_t, action.shape[:-1], 0, schedule.num_steps)
        noise = jax.random.normal(key_noise, action.shape)
        return ddpm.loss(schedule, predict(params, obs), action, noise, t, weight)

    network = TimedNetwork(hidden, action_size, time_size)
    init = _init(network, obs_size, action_size, 1)
    num_steps = schedule.num_steps
    return Generator("diffusion", action_size, num_steps, init_noise, init, sample, loss, obs_size)


def noise_predictor(
    action_size: int, hidden: tuple[int, ...] = HIDDEN, time_size: int = 16
) -> Callable[[Any, jax.Array], ddpm.PredictNoise]:
    """Returns `predict(params, obs) -> eps(x, t)` of a diffusion's network; t is not scaled."""
    network: Any = TimedNetwork(hidden, action_size, time_size)
    return lambda params, obs: lambda x, t: network.apply(params, obs, x, t.astype(x.dtype))


def draw(
    key: jax.Array,
    generator: Generator,
    params: Any,
    obs: Float[Array, "B O"],
    *,
    num_particles: int,
    num_steps: int | None = None,
) -> Float[Array, "K B A"]:
    """Draws K actions for each state, not clipped.

    Raises:
        ValueError: if a count is below 1.
    """
    num_steps = generator.num_steps if num_steps is None else num_steps
    if num_particles < 1 or num_steps < 1:
        raise ValueError(
            f"num_particles and num_steps must be at least 1, got {num_particles}, {num_steps}"
        )
    key_start, key_chain = jax.random.split(key)
    shape = (num_particles, *obs.shape[:-1], generator.action_size)
    start = generator.init_noise * jax.random.normal(key_start, shape, obs.dtype)
    return generator.sample(key_chain, params, obs[None], start, num_steps)


def _init(network: TimedNetwork, obs_size: int, action_size: int, num_times: int) -> Callable:
    def init(key: jax.Array) -> Any:
        times = [jnp.zeros(()) for _ in range(num_times)]
        return network.init(key, jnp.zeros((obs_size,)), jnp.zeros((action_size,)), *times)

    return init


def _check(
    obs_size: int, action_size: int, num_steps: int, init_noise: float, time_size: int
) -> None:
    if min(obs_size, action_size, num_steps) < 1 or init_noise < 0.0:
        raise ValueError(
            "obs_size, action_size and num_steps must be at least 1 and init_noise not negative, "
            f"got {obs_size}, {action_size}, {num_steps}, {init_noise}"
        )
    if time_size < 2 or time_size % 2:
        raise ValueError(f"time_size must be even: half sines, half cosines; got {time_size}")

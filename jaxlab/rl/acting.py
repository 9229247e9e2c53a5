"""Acting with a generative policy in four ways, from many samples to one pass of the network."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.rl import critics, generators
from jaxlab.rl.generators import Generator

Mode = Literal["bon", "vanilla", "one_step", "zero_noise"]
MODES: tuple[Mode, ...] = get_args(Mode)


def act(
    key: jax.Array,
    generator: Generator,
    params: Any,
    obs: Float[Array, "B O"],
    q: critics.Q | None = None,
    *,
    mode: Mode = "bon",
    num_particles: int = 32,
    num_steps: int | None = None,
) -> Float[Array, "B A"]:
    """Returns actions in [-1, 1] without exploration noise.

    Args:
        key: PRNG key of the samples.
        generator: the policy, see `generators`.
        params: parameters of the generator.
        obs: `[B, O]`, or `[O]`; for "bon" as critics see it, which may be more.
        q: critics that choose; needed by "bon" alone.
        mode: "bon": the best of `num_particles` samples of `num_steps` steps. "vanilla": one
            sample. "one_step": one sample in one step. "zero_noise": one step from zero noise, a
            deterministic pass.
        num_steps: those of training by default; ignored by the last two modes.

    Raises:
        ValueError: if there is no such mode, "bon" has no critics, observations are not floats or
            of another size, or one step is asked of a diffusion, which has its own number.

    Source: arXiv:2507.23675, sections 4 and 5.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if not jnp.issubdtype(obs.dtype, jnp.floating):
        raise ValueError(f"obs must be floats, got {obs.dtype}; cast it")
    given, size = obs.shape[-1], generator.obs_size
    if given < size or (given > size and mode != "bon"):
        raise ValueError(f"the policy is for observations of {size} numbers, got {given}")
    if mode == "bon":
        if q is None:
            raise ValueError("the mode bon chooses by critics: give q")
        drawn = generators.draw(
            key, generator, params, obs, num_particles=num_particles, num_steps=num_steps
        )
        return critics.best_of(q, obs, drawn)[0]
    if mode in ("one_step", "zero_noise"):
        num_steps = 1
    if mode == "zero_noise":
        start = jnp.zeros((*obs.shape[:-1], generator.action_size), obs.dtype)
        return jnp.clip(generator.sample(key, params, obs, start, num_steps), -1.0, 1.0)
    drawn = generators.draw(key, generator, params, obs, num_particles=1, num_steps=num_steps)
    return jnp.clip(drawn[0], -1.0, 1.0)


def num_evaluations(mode: Mode, *, num_particles: int = 32, num_steps: int = 20) -> tuple[int, int]:
    """Returns evaluations of the policy's network and of the critics' for one action.

    Raises:
        ValueError: if there is no such mode, or a count is below 1.
    """
    if mode not in MODES or min(num_particles, num_steps) < 1:
        raise ValueError(
            f"mode must be one of {', '.join(MODES)}, num_particles and num_steps at least 1, got "
            f"{mode!r}, {num_particles}, {num_steps}"
        )
    if mode == "bon":
        return num_particles * num_steps, 2 * num_particles
    return (num_steps if mode == "vanilla" else 1), 0

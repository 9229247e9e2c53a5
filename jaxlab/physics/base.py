"""The base model: a denoiser trained on fields, with a running average of its weights."""

from typing import Any, NamedTuple

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.diffusion import edm
from jaxlab.learning import settings as settings_lib


class BaseState(NamedTuple):
    """All that evolves.

    Attributes:
        params: Weights of the network.
        average_params: Their running average, which is what samples are drawn with.
        opt_state: State of the optimizer.
        updates: int32, updates so far.
        key: PRNG key of all draws to come.
    """

    params: PyTree
    average_params: PyTree
    opt_state: PyTree
    updates: Int[Array, ""]
    key: Array


def denoiser_of(network: flax.linen.Module, params: PyTree) -> edm.Denoiser:
    """Returns the denoiser of a network's weights, for use: nothing is dropped."""

    def apply(x: jax.Array, noise: jax.Array) -> Any:
        return network.apply(params, x, noise)

    return edm.precondition(apply)


def make_base(
    data: Float[Array, "N H W C"] | np.ndarray,
    network: flax.linen.Module,
    *,
    num_steps: int,
    batch_size: int = 60,
    learning_rate: float = 1e-3,
    warmup: int = 100,
    half_life: float = 50_000.0,
    clip_norm: float = 1.0,
) -> Algorithm:
    """Makes the learner of a base model by EDM's loss, on the one loop.

    The rate warms up linearly and falls to 0 like a cosine at `num_steps`.

    Args:
        data: `[N, H, W, C]`, normalized fields, float32.
        network: a `nn.Unet` for C channels, or another module called like it.
        num_steps: updates of the whole run; the loop is given the same number.
        batch_size: fields of an update.
        learning_rate: of Adam, at its highest.
        warmup: updates until then.
        half_life: of the average of weights, in fields seen; early on it is 5 % of those seen.
        clip_norm: largest norm of a gradient.

    Returns:
        The algorithm; its state is a `BaseState`, and `average_params` what to keep.

    Raises:
        ValueError: if the data are no finite batch of float32 fields of order one, or a number is
            out of range.

    Example:
        >>> algorithm = make_base(x, nn.Unet(2, 28, (1, 1), 1), num_steps=2500)
        >>> loop.run(algorithm, jax.random.key(0), num_steps=2500, chunk_size=100)

    Source: EDM, arXiv:2206.00364; the cosine is ours, for small bases.
    """
    check_fields(data)
    data = jnp.asarray(data)
    settings_lib.check_count(num_steps, "num_steps")
    settings_lib.check_count(batch_size, "batch_size")
    if not 0 <= warmup < num_steps:
        raise ValueError(f"warmup must lie in 0 to num_steps - 1, got {warmup} of {num_steps}")
    numbers = {"learning_rate": learning_rate, "half_life": half_life, "clip_norm": clip_norm}
    settings_lib.check(numbers, dict.fromkeys(numbers, settings_lib.POSITIVE))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup, num_steps)
    optimizer = optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(schedule))

    def init(key: jax.Array) -> BaseState:
        key, key_init = jax.random.split(key)
        params = network.init(key_init, data[:1], jnp.zeros(1))
        return BaseState(params, params, optimizer.init(params), jnp.zeros((), jnp.int32), key)

    def step(state: BaseState) -> tuple[BaseState, Metrics]:
        key, key_rows, key_noise, key_sigma, key_drop = jax.random.split(state.key, 5)
        rows = jax.random.randint(key_rows, (batch_size,), 0, data.shape[0])
        noise = jax.random.normal(key_noise, (batch_size, *data.shape[1:]), data.dtype)
        sigma = edm.draw_sigma(key_sigma, (batch_size,))

        def loss(params: PyTree) -> jax.Array:
            def apply(x: jax.Array, noise: jax.Array) -> Any:
                return network.apply(params, x, noise, train=True, rngs={"dropout": key_drop})

            return edm.loss(edm.precondition(apply), data[rows], noise, sigma)

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        seen = (state.updates + 1).astype(jnp.float32) * batch_size
        average = averaged(state.average_params, params, batch_size, seen, half_life)
        new = BaseState(params, average, opt_state, state.updates + 1, key)
        return new, {"train/loss": value, "train/grad_norm": optax.tree.norm(grads)}

    return Algorithm(init, step, name="pirf_base")


def averaged(
    average: PyTree, params: PyTree, batch_size: int, seen: Float[Array, ""], half_life: float
) -> PyTree:
    """Returns the running average of weights, its half-life at most 5 % of the fields seen."""
    keep = 0.5 ** (batch_size / jnp.minimum(half_life, 0.05 * seen))
    return jax.tree.map(lambda a, p: a + (1.0 - keep).astype(p.dtype) * (p - a), average, params)


def check_fields(data: Any) -> None:
    """Refuses data that are no normalized fields.

    Raises:
        ValueError: if they are not finite float32 `[N, H, W, C]`, or their scale is not of order
            one: the network is prepared for a standard deviation of 0.5.
    """
    shape, dtype = np.shape(data), getattr(data, "dtype", None)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"data must be [N, H, W, C], got {shape}")
    if dtype != np.float32:
        raise ValueError(f"data must be float32, got {dtype}")
    values = np.asarray(data)
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"data must be finite, got {int(np.sum(~np.isfinite(values)))} that are not"
        )
    largest = float(np.quantile(np.abs(values), 0.999))
    if not 0.01 < largest < 10.0:
        raise ValueError(
            f"data must be of order one, got values of {largest:.3g}; pass them through normalize"
        )

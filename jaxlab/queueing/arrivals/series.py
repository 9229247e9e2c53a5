"""Series of which the first steps count, and what is asked of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Shaped


def step_mask(x: Float[Array, "*B T"], size: Int[Array, "*B"]) -> Bool[Array, "*B T"]:
    """Returns which steps of series count, the first `size` of each."""
    last = jnp.broadcast_to(jnp.asarray(size, jnp.int32)[..., None], x.shape)
    return jnp.broadcast_to(jnp.arange(x.shape[-1], dtype=jnp.int32), x.shape) < last


def over_last_axis(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Lets a function of `[T]` take `[..., T]`."""

    def batched(x: Array) -> Any:
        return function(x) if x.ndim == 1 else jax.vmap(batched)(x)

    return batched


def check_size(size: Any, x: Shaped[Array, "*B T"], least: int) -> None:
    """Refuses sizes that are not one for each series, or known to lie outside `least` .. T.

    Raises:
        ValueError: see above.
    """
    if size is None:
        return
    if jnp.shape(size) != x.shape[:-1]:
        raise ValueError(f"size must be {x.shape[:-1]}, one per series, got {jnp.shape(size)}")
    if not isinstance(size, Tracer):
        sizes = np.asarray(size)
        if sizes.size and not (least <= sizes.min() and sizes.max() <= x.shape[-1]):
            raise ValueError(
                f"size must be in {least}..{x.shape[-1]} steps, got {sizes.min()}..{sizes.max()}"
            )


def check_span(name: str, span: int, *, above: int = 2) -> None:
    """Refuses a span that is not an odd integer from 3 on, and more than `above`.

    Raises:
        ValueError: see above.
    """
    if not isinstance(span, int | np.integer) or span % 2 == 0 or span < 3 or span <= above:
        raise ValueError(f"{name} must be an odd integer >= 3 and > {above}, got {span}")

"""Which weights are tuned, and how far they may go: layer-wise truncation, regularization.

Yuan et al. 2025, arXiv:2509.20570. A residual is a local stencil, so the decoder's highest
resolution is enough to remove it; and what is free to move learns to please the reward instead.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import PyTree

Layers = Literal["none", "mask", "detach", "late"]
"""What is truncated: nothing; all but the decoder's highest resolution, with gradients through the
others ("mask") or not ("detach"); or, as a control, all but the decoder's lower resolutions."""
Regularizer = Literal["l2", "l2sq", "l2sp", "distillation", "off"]
"""What holds the weights: the sum of distances, or of their squares; a pull toward the start after
each step; the distance of outputs; or nothing."""
SMALLEST = 1e-12
"""Added under the root of a distance, whose gradient at the start would be NaN."""


def trainable_mask(params: PyTree, layers: Layers | Callable[[str], bool]) -> PyTree:
    """Returns True for every leaf that is tuned, in the structure of the weights.

    Args:
        params: weights of an `nn.Unet`, or of any network if `layers` is a function.
        layers: see `Layers`; or `layers(name) -> bool`, for a leaf's path such as
            "params/out_conv/kernel".

    Raises:
        ValueError: if it is unknown, or nothing would be tuned.
    """
    if not callable(layers) and layers not in get_args(Layers):
        raise ValueError(f"layers must be one of {', '.join(get_args(Layers))}, got {layers!r}")

    def tuned(name: str) -> bool:
        if callable(layers):
            return bool(layers(name))
        parts = name.split("/")
        top = any(part.startswith(("decoder_0_", "out_")) for part in parts)
        if layers == "late":
            return not top and any(part.startswith("decoder_") for part in parts)
        return layers == "none" or top

    mask = jax.tree_util.tree_map_with_path(lambda path, _: tuned(_name(path)), params)
    if not jax.tree.leaves(mask):
        raise ValueError("params must hold weights, got none")
    if not any(jax.tree.leaves(mask)):
        names = sorted({_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)})
        raise ValueError(
            f"layers must leave something to tune, got {layers!r} for weights like {names[0]!r}; "
            "give a function of the name"
        )
    return mask


def split(params: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the weights that are tuned, and the others; None stands for what the other has.

    Only the first are differentiated, so no gradient of the others is computed.
    """
    train = jax.tree.map(lambda m, p: p if m else None, mask, params)
    frozen = jax.tree.map(lambda m, p: None if m else p, mask, params)
    return train, frozen


def join(train: PyTree, frozen: PyTree) -> PyTree:
    """Returns the weights that were split."""
    return jax.tree.map(
        lambda t, f: f if t is None else t, train, frozen, is_leaf=lambda x: x is None
    )


def distance(train: PyTree, anchor: PyTree, kind: Literal["l2", "l2sq"] = "l2") -> Float[Array, ""]:
    """Returns the sum over tensors of |theta - theta_0|, or of its square.

    The first is the released form: its pull does not fade near the start, so what gains nothing
    stays where it is. sqrt(|d|^2 + 1e-12) has a gradient at d = 0, which is 0.

    Args:
        train: tuned weights.
        anchor: what they were loaded as.
        kind: "l2" or "l2sq".

    Source: arXiv:2509.20570; the un-squared norm is that of the released code.
    """
    squares = [
        jnp.sum((a.astype(jnp.float32) - b.astype(jnp.float32)) ** 2)
        for a, b in zip(jax.tree.leaves(train), jax.tree.leaves(anchor), strict=True)
    ]
    roots = squares if kind == "l2sq" else [jnp.sqrt(s + SMALLEST) for s in squares]
    return jnp.sum(jnp.stack(roots))


def pull_back(train: PyTree, anchor: PyTree, weight: Array | float) -> PyTree:
    """Returns theta_0 + (theta - theta_0) / (1 + weight): a step toward the start."""
    return jax.tree.map(lambda a, b: b + (a - b) / (1.0 + weight), train, anchor)


def _name(path: tuple) -> str:
    return "/".join(str(getattr(part, "key", getattr(part, "name", part))) for part in path)

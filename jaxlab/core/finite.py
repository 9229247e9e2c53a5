"""Which seeds are finite still, by their metrics and by their state."""

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import checkpoint, sharding
from jaxlab.core.types import PyTree

Look = Callable[[PyTree, Collection[int]], dict[str, np.ndarray]]
"""`look(state, frozen)` returns nothing if all seeds but the frozen ones are finite, else how far
each leaf is from that: 2 with NaN in it, 1 with an infinity, or 0; `[]`, or `[seeds]` of seeds side
by side, where a leaf that all share counts for each."""

SMALL = 2**20
"""Elements of a leaf below which it is looked at together with others."""


class NonFiniteError(FloatingPointError):
    """A metric or the state became NaN or infinite, of seeds side by side that of all."""


class Chunk(NamedTuple):
    """Steps of a run, for messages: those before and after it, and what is kept of the run."""

    first: int
    last: int
    kept: str


def make_look(axes: Any = None, allowed: Mapping[str, int] | None = None) -> Look:
    """Makes a look at states: one pass on the device, one bit for each seed to the host.

    Args:
        axes: where seeds lie in the state, as `Algorithm.axes` says; None for one run.
        allowed: what leaves may be, `at_start` of the run.
    """
    allowed = allowed or {}

    def floats(state: PyTree) -> dict[str, jax.Array]:
        leaves = checkpoint.named_leaves(state).items()
        return {n: leaf for n, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)}

    def good(state: PyTree) -> jax.Array:
        fine, together = [jnp.ones((), bool)], []
        for name, leaf in floats(state).items():
            if allowed.get(name) == 2:
                continue
            ok = ~jnp.isnan(leaf) if name in allowed else jnp.isfinite(leaf)
            if leaf.size < SMALL:  # a loop for each of hundreds would take the compiler seconds
                together.append(ok.ravel())
            else:
                fine.append(jnp.all(ok))
        if together:
            fine.append(jnp.all(jnp.concatenate(together)))
        return jnp.all(jnp.stack(fine))

    def levels(state: PyTree) -> dict[str, jax.Array]:
        def level(leaf: jax.Array) -> jax.Array:
            infinite = jnp.any(jnp.isinf(leaf)).astype(jnp.int32)
            return jnp.where(jnp.any(jnp.isnan(leaf)), 2, infinite)

        return jax.tree.map(level, floats(state))

    def by_seed(fn: Callable) -> Callable:
        return jax.jit(fn if axes is None else jax.vmap(fn, in_axes=(axes,)))

    good_by_seed, levels_by_seed = by_seed(good), by_seed(levels)

    def look(state: PyTree, frozen: Collection[int]) -> dict[str, np.ndarray]:
        bad = np.flatnonzero(~np.atleast_1d(sharding.fetch(good_by_seed(state))))
        return sharding.fetch(levels_by_seed(state)) if set(bad) - set(frozen) else {}

    return look


def at_start(found: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns the leaves that are not finite when a run begins: they may be so later too."""
    return {name: int(level.max()) for name, level in found.items() if level.any()}


def worse(found: Mapping[str, np.ndarray], allowed: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Returns, as `freeze` takes it, which leaves are further from finite than they may be."""
    return {
        f"leaf {name!r} of the state": level > allowed.get(name, 0) for name, level in found.items()
    }


def freeze(
    bad: Mapping[str, np.ndarray], at: np.ndarray, frozen: Mapping[int, int], chunk: Chunk
) -> dict[int, int]:
    """Returns the frozen seeds, with those that are bad now, each with its step.

    Args:
        bad: by name what is not finite: `[]` bool of one run or of all seeds together, `[seeds]`.
        at: `[]` or `[seeds]`, the step at which.
        frozen: seeds that were frozen before; nothing of them counts any more.
        chunk: where that was.

    Raises:
        NonFiniteError: if something of all seeds is bad, or no seed is left.

    Warns:
        RuntimeWarning: for each seed that is added.
    """
    num_seeds = max((flag.size for flag in bad.values() if flag.ndim), default=0)
    at = np.broadcast_to(at, (max(num_seeds, 1),))
    shared = sorted(name for name, flag in bad.items() if not flag.ndim and flag)
    if shared:
        advice = "; return [seeds], not a mean over them" if num_seeds else ""
        raise NonFiniteError(
            f"{_listed(shared)} is not finite at step {at.min()}, between steps {chunk.first} and "
            f"{chunk.last}; {chunk.kept}{advice}"
        )
    frozen = dict(frozen)
    for seed in sorted(set(range(num_seeds)) - set(frozen)):
        names = sorted(name for name, flag in bad.items() if flag.ndim and flag[seed])
        if names:
            frozen[seed] = int(at[seed])
            warnings.warn(
                f"seed {seed} of {num_seeds} is frozen: {_listed(names)} is not finite at step "
                f"{frozen[seed]}",
                RuntimeWarning,
                stacklevel=3,
            )
    if num_seeds and len(frozen) == num_seeds:
        steps = ", ".join(str(frozen[seed]) for seed in range(num_seeds))
        raise NonFiniteError(
            f"no seed is left, they were not finite at steps {steps}; {chunk.kept}"
        )
    return frozen


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"

"""Records that every system shares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any
"""Any nesting of dicts, tuples and dataclasses with arrays as leaves."""
Metrics = dict[str, jax.Array]
"""Scalars reported by one step, named `group/name`."""


class Algorithm(NamedTuple):
    """A runnable algorithm as a pair of pure functions.

    Data, settings and environments are closed over by the builder that returns it; everything that
    evolves, the PRNG key included, lives in the state, so that `jaxlab.core.loop` can scan it,
    checkpoint it and resume it.

    Attributes:
        init: `init(key) -> state`, a pytree whose leaves are arrays of fixed shape and dtype.
        step: `step(state) -> (state, metrics)`, the state with the same structure.
    """

    init: Callable[[jax.Array], PyTree]
    step: Callable[[PyTree], tuple[PyTree, Metrics]]


class Transition(NamedTuple):
    """One environment step; in trajectories every field is time-major, `[T, B, ...]`.

    Attributes:
        obs: observation before acting.
        action: action taken.
        reward: reward after acting, float32.
        terminated: the episode ended by the decision process, bool.
        truncated: the episode was cut by time, bool.
        next_obs: true next observation, before any automatic reset.
        extras: what one algorithm adds (log-probabilities, values, weights), or `()`.
    """

    obs: PyTree
    action: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_obs: PyTree
    extras: PyTree = ()

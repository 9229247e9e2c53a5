"""Records that every system shares."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

PyTree = Any
"""Any nesting of dicts, tuples and dataclasses with arrays as leaves."""


class Mean(NamedTuple):
    """A metric that is a ratio of sums, such as the mean return of the episodes that ended.

    The loop adds up both over a chunk of steps and logs `total / count`; it leaves the metric out
    where nothing was counted, since 0.0 would read like a result.

    Attributes:
        total: sum of what was counted in this step, `[]` or `[seeds]`.
        count: how many were counted, of the same shape.

    Example:
        `{"env/return": Mean(jnp.sum(jnp.where(done, returns, 0.0)), jnp.sum(done))}`
    """

    total: jax.Array
    count: jax.Array


Metrics = Mapping[str, jax.Array | Mean]
"""Numbers of one step, named `group/name`: `[]` each, or `[seeds]` for seeds side by side."""


class Algorithm(NamedTuple):
    """A runnable algorithm as a pair of pure functions.

    Data, settings and environments are closed over by the builder that returns it; everything that
    evolves, the PRNG key included, lives in the state, so that `jaxlab.core.loop` can scan it,
    checkpoint it and resume it.

    Attributes:
        init: `init(key) -> state`, a pytree whose leaves are arrays of fixed shape and dtype.
        step: `step(state) -> (state, metrics)`, the state with the same structure.
        axes: where the seeds lie in the state of an algorithm that trains several side by side, as
            `jax.vmap` takes it, so that `jax.vmap(look, in_axes=(axes,))(state)` looks at each of
            them; None for one run.
        seed_axes: where `learning.over_seeds` shall lay the seeds of this algorithm: 0, a leading
            axis for every leaf, unless all seeds share some leaf (None there).
        check: `check(settings)`, raises a ValueError if these settings of one run, or arrays of
            those of several, are not what `init(key, settings)` takes; None if nothing is checked.
        name: what checkpoints call it, so that another algorithm with a state of the same shapes
            cannot go on with them; the name of the function `step` where it is empty.
    """

    init: Callable[..., PyTree]
    step: Callable[[PyTree], tuple[PyTree, Metrics]]
    axes: Any = None
    seed_axes: Any = 0
    check: Callable[[PyTree], None] | None = None
    name: str = ""


def name_of(fn: Callable) -> str:
    """Returns the name of the function that is called in the end, behind partials and wrappers."""
    while isinstance(fn, functools.partial) or hasattr(fn, "__wrapped__"):
        fn = fn.func if isinstance(fn, functools.partial) else fn.__wrapped__
    return getattr(fn, "__qualname__", type(fn).__qualname__)


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
        action_mask: choices that were allowed at `obs`, bool, or `()` without masks.
        next_action_mask: choices that are allowed at `next_obs`.
        duration: steps of the clock that the action took, int32, or `()` where each takes one.
    """

    obs: PyTree
    action: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_obs: PyTree
    extras: PyTree = ()
    action_mask: PyTree = ()
    next_action_mask: PyTree = ()
    duration: PyTree = ()

"""ZOFL for experiments outside of JAX: ask for points, measure them anyhow, tell the values."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core.types import PyTree
from jaxlab.zeroth_order import problem as problems
from jaxlab.zeroth_order import zofl
from jaxlab.zeroth_order.method import State
from jaxlab.zeroth_order.problem import Problem
from jaxlab.zeroth_order.settings import ZOFLConfig


class AskTellState(NamedTuple):
    """State of an experiment in progress; a pytree, so it can be saved.

    Attributes:
        key: PRNG key of the start.
        state: the method's state, or None until the first batch has been told.
        told: batches told of the update in progress.
    """

    key: Array
    state: State | None
    told: tuple[Float[Array, "Q d"], ...] = ()


class AskTell(NamedTuple):
    """Three functions over `AskTellState`.

    Attributes:
        init: `init(key) -> state`.
        ask: `ask(state) -> points`, `[Q, n]`, the points to measure next; asking twice gives the
            same points. `problem.unravel` gives a point the user's structure.
        tell: `tell(state, f, h) -> state` with the objectives `[Q]` and the constraints `[Q, m]`
            measured there.
    """

    init: Callable[[Array], AskTellState]
    ask: Callable[[AskTellState], Float[Array, "Q n"]]
    tell: Callable[[AskTellState, Array, Array], AskTellState]


def external_problem(
    x0: PyTree,
    *,
    m_eq: int = 0,
    m_ineq: int = 0,
    lower: PyTree | float | None = None,
    upper: PyTree | float | None = None,
    sigma: float = 0.0,
    feasibility_tol: float = 1e-4,
    max_queries: int | None = None,
    name: str = "",
) -> Problem:
    """Describes a problem whose values only `tell` knows; arguments as in `make_problem`.

    Raises:
        ValueError: if a count is negative, or as `make_problem`.
    """
    if m_eq < 0 or m_ineq < 0:
        raise ValueError(f"m_eq and m_ineq must be at least 0, got {m_eq} and {m_ineq}")
    zeros = (0.0, jnp.zeros((m_eq + m_ineq,)))
    described = problems.make_problem(
        lambda x: zeros,
        x0,
        m_eq=m_eq,
        lower=lower,
        upper=upper,
        sigma=sigma,
        feasibility_tol=feasibility_tol,
        max_queries=max_queries,
        name=name,
    )
    return described._replace(q=_not_callable, exact=None)


def make_ask_tell(problem: Problem, config: ZOFLConfig = ZOFLConfig()) -> AskTell:  # noqa: B008
    """Builds ZOFL with its queries outside; the iterates are those of `make_zofl`.

    An update is one batch of points, two for `midpoint` and `mid_reuse` and for a line search; the
    first batch of all measures the step, when `config.eta` is None.

    Args:
        problem: what `external_problem` or `make_problem` returned.
        config: settings of `make_zofl`; directions are neither `exact` nor in chunks.

    Raises:
        ValueError: as `make_zofl`, or for derivatives and chunks, which do not ask.
    """
    if config.kind == "exact" or config.chunk is not None:
        raise ValueError("ask and tell go with sampled directions held at once, without chunk")
    starts_with_probe = config.eta is None or config.ineq == "slack"
    m = problem.m

    def replay(key: Array, state: State | None, told: tuple) -> tuple[State, list[Array]]:
        """Runs the start or a step with the values told, zeros after them; lists the points."""
        asked = []

        def evaluate(q: Callable, points: Array, keys: Array) -> Array:
            asked.append(points)
            known = len(asked) <= len(told)
            return told[len(asked) - 1] if known else jnp.zeros((len(points), 1 + m), points.dtype)

        algorithm = zofl.make_zofl(problem, config, evaluate=evaluate)
        if state is None:
            following = algorithm.init(key)
            return following, asked[:1]  # what follows only traces the shapes of an update
        return algorithm.step(state)[0], asked

    @jax.jit
    def next_points(key: Array, state: State | None, told: tuple) -> Array:
        return replay(key, state, told)[1][len(told)]

    @jax.jit
    def advance(key: Array, state: State | None, told: tuple) -> State:
        return replay(key, state, told)[0]

    def num_batches(state: AskTellState) -> int:
        batches = []

        def count(key: Array, inner: State | None) -> None:
            batches.extend(replay(key, inner, ())[1])

        jax.eval_shape(count, state.key, state.state)
        return len(batches)

    def init(key: Array) -> AskTellState:
        return AskTellState(key, None if starts_with_probe else advance(key, None, ()))

    def ask(state: AskTellState) -> Array:
        return next_points(*state)

    def tell(state: AskTellState, f: Array, h: Array) -> AskTellState:
        f, h = jnp.asarray(f, problem.x0.dtype), jnp.asarray(h, problem.x0.dtype)
        num_points = jax.eval_shape(next_points, *state).shape[0]
        if f.shape != (num_points,) or h.shape != (num_points, m):
            raise ValueError(
                f"tell needs f [{num_points}] and h [{num_points}, {m}] for the points asked, got "
                f"{f.shape} and {h.shape}"
            )
        told = (*state.told, jnp.concatenate([f[:, None], h], axis=1))
        if len(told) < num_batches(state):
            return state._replace(told=told)
        return AskTellState(state.key, advance(state.key, state.state, told))

    return AskTell(init, ask, tell)


def _not_callable(x: Array, key: Array) -> tuple[Array, Array]:
    raise ValueError("this problem is measured outside: use ask and tell")

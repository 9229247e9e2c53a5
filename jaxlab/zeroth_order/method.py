"""What every method shares: the state around an update, its accounts, and a scan with history.

A method is an `update` from one iterate to the next. `make_algorithm` adds what none should write
again: query accounts, the best feasible point so far, the average iterate, and the treatment of
values that are not finite. Such an update is rejected, the iterate returns to the last good one
and the step is halved, until a new point succeeds; after `MAX_REJECTIONS` without one the instance
is frozen with a `status`, so that in a vmapped batch its neighbours go on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.zeroth_order import kkt
from jaxlab.zeroth_order.problem import Problem, check_tolerance

RUNNING, BAD_START, DIVERGED = 0, 1, 2
"""Status of an instance: running; no finite step from the start; frozen after it diverged."""
MAX_REJECTIONS = 10
"""Rejected updates, without success at a new point in between, that freeze an instance."""
STEP_RECOVERY = 2.0
"""Growth of a shortened step per success at a new point, until it is whole again."""


class Proposal(NamedTuple):
    """What one update returns.

    Attributes:
        x: `[n]`, next iterate.
        inner: the method's own evolving quantities (duals, moments, cached values).
        at: `[n]`, a point that was measured.  f: `()`, h: `[m]`, the values measured there.
        queries: joint queries that the update made, a static integer or an int32 scalar.
        metrics: further floating scalars, named `zo/...`.
    """

    x: Float[Array, " n"]
    inner: PyTree
    at: Float[Array, " n"]
    f: Float[Array, ""]
    h: Float[Array, " m"]
    queries: int | Array
    metrics: Metrics = {}  # noqa: RUF012


class State(NamedTuple):
    """State of any method of this room.

    Attributes:
        key: PRNG key.  t: int32, updates so far, rejected ones included.
        x: `[n]`, iterate.  inner: the method's own quantities.
        good_x, good_inner: the last pair from which an update succeeded.
        f: `()`, h: `[m]`, the last finite measurement.
        best_x: `[n]`, best_f, best_violation: the best measured point so far, in the order of
            `kkt.better`: feasible before infeasible, then objective, then violation. With noise
            it is a lucky measurement: its true values are worse, and `x` may be as good.
        average: `[n]`, mean of the iterates.
        queries: int32, joint queries so far.
        extras: the update's own metrics, of the last accepted one; infinite before it.
        step_scale: factor in (0, 1] on the step, halved by a rejection.
        retrying: bool, the last update was rejected, so this one starts from a known point.
        rejections: int32, rejected updates since the last success at a new point.
        rejected: int32, rejected updates in all.
        status: int32, `RUNNING`, `BAD_START` or `DIVERGED`.
    """

    key: Array
    t: Int[Array, ""]
    x: Float[Array, " n"]
    inner: PyTree
    good_x: Float[Array, " n"]
    good_inner: PyTree
    f: Float[Array, ""]
    h: Float[Array, " m"]
    best_x: Float[Array, " n"]
    best_f: Float[Array, ""]
    best_violation: Float[Array, ""]
    average: Float[Array, " n"]
    queries: Int[Array, ""]
    extras: Metrics
    step_scale: Float[Array, ""]
    retrying: Bool[Array, ""]
    rejections: Int[Array, ""]
    rejected: Int[Array, ""]
    status: Int[Array, ""]


def make_algorithm(
    problem: Problem,
    *,
    init_inner: Callable[[Array, Array], tuple[PyTree, int]],
    update: Callable[..., Proposal],
) -> Algorithm:
    """Makes an `Algorithm` of a method's update.

    Args:
        problem: the problem.
        init_inner: `init_inner(key, x0) -> (inner, queries)`, the queries it made a static int.
        update: `update(key, x, inner, t, step_scale) -> Proposal`; `t` is int32 and counts from 0,
            `step_scale` is to multiply the step.

    Returns:
        `(init, step)` over `State`; the metrics are the fields of `_metrics` and the update's own.

    Raises:
        ValueError: if `problem.feasibility_tol` is not one number of at least 0.
    """
    check_tolerance(problem.feasibility_tol)
    dtype = problem.x0.dtype
    feasibility_tol = jnp.asarray(problem.feasibility_tol, dtype)

    def init(key: Array) -> State:
        key, key_inner = jax.random.split(key)
        x0 = jnp.array(problem.x0, copy=True)
        with jax.default_matmul_precision("highest"):
            inner, queries = init_inner(key_inner, x0)
        inner = jax.tree.map(jnp.asarray, inner)
        count = jnp.asarray(0, jnp.int32)
        infinite = jnp.asarray(jnp.inf, dtype)
        shape = jax.eval_shape(update, key, x0, inner, count, jnp.ones((), dtype)).metrics
        state = State(
            key=key,
            t=count,
            x=x0,
            inner=inner,
            good_x=x0,
            good_inner=inner,
            f=infinite,
            h=jnp.full((problem.m,), infinite),
            best_x=x0,
            best_f=infinite,
            best_violation=infinite,
            average=jnp.zeros_like(x0),
            queries=jnp.asarray(queries, jnp.int32),
            extras=jax.tree.map(lambda like: jnp.full(like.shape, jnp.inf, like.dtype), shape),
            step_scale=jnp.ones((), dtype),
            retrying=jnp.asarray(False),
            rejections=count,
            rejected=count,
            status=count,
        )
        # A leaf of its own for every field, so that an eager state can be donated.
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)

    def step(state: State) -> tuple[State, Metrics]:
        key, key_update = jax.random.split(state.key)
        # Differences of values amplify the rounding of tensor cores: full precision, the oracle's
        # products included.
        with jax.default_matmul_precision("highest"):
            proposal = update(key_update, state.x, state.inner, state.t, state.step_scale)
        accepted = _all_finite((proposal.x, proposal.inner, proposal.f, proposal.h))

        violation = kkt.max_violation(proposal.h, problem.m_eq)
        measured = (proposal.at, proposal.f, violation)
        best = (state.best_x, state.best_f, state.best_violation)
        take = accepted & kkt.better(measured[1:], best[1:], feasibility_tol)
        best_x, best_f, best_violation = _select(take, measured, best)

        num_accepted = (state.t - state.rejected + 1).astype(dtype)
        taken = state._replace(
            x=proposal.x,
            inner=proposal.inner,
            good_x=state.x,
            good_inner=state.inner,
            f=proposal.f,
            h=proposal.h,
            extras=proposal.metrics,
            average=state.average + (proposal.x - state.average) / num_accepted,
            step_scale=jnp.where(
                state.retrying, state.step_scale, jnp.minimum(1.0, STEP_RECOVERY * state.step_scale)
            ),
            retrying=jnp.asarray(False),
            rejections=jnp.where(state.retrying, state.rejections, 0),
        )
        undone = state._replace(
            x=state.good_x,
            inner=state.good_inner,
            step_scale=0.5 * state.step_scale,
            retrying=jnp.asarray(True),
            rejections=state.rejections + 1,
            rejected=state.rejected + 1,
        )
        following = _select(accepted, taken, undone)
        hopeless = following.rejections >= MAX_REJECTIONS
        verdict = jnp.where(following.rejected > state.t, BAD_START, DIVERGED)
        following = following._replace(
            key=key,
            t=state.t + 1,
            queries=state.queries + proposal.queries,
            best_x=best_x,
            best_f=best_f,
            best_violation=best_violation,
            status=jnp.where(hopeless, verdict, RUNNING).astype(jnp.int32),
        )
        following = _select(state.status == RUNNING, following, state)
        return following, _metrics(following, problem.m_eq) | following.extras

    # By its update checkpoints tell a method from the others, whose `step` is this one too.
    return Algorithm(init, step, name=getattr(update, "__qualname__", ""))


def run(
    algorithm: Algorithm,
    key: Array,
    *,
    num_steps: int,
    log_every: int = 1,
    observe: Callable[[State], PyTree] | None = None,
) -> tuple[State, PyTree]:
    """Scans `num_steps` updates, a pure function to `jit` and to `vmap` over keys or problems.

    Long runs with checkpoints go through `jaxlab.core.loop.run`, which takes the same algorithm.

    Args:
        algorithm: what a `make_...` of this room returned.
        key: typed PRNG key.
        num_steps: number of updates, a multiple of `log_every`.
        log_every: updates between two entries of the history.
        observe: `observe(state) -> record`; the metrics of the last update when None.

    Returns:
        `(state, history)`, every leaf of the history with a leading axis `num_steps // log_every`.

    Raises:
        ValueError: if a count is below 1 or `log_every` does not divide `num_steps`.
    """
    if num_steps < 1 or log_every < 1 or num_steps % log_every:
        raise ValueError(
            f"num_steps must be a positive multiple of log_every, got {num_steps} and {log_every}"
        )

    def period(state: State, _: None) -> tuple[State, PyTree]:
        state = jax.lax.fori_loop(0, log_every - 1, lambda _, s: algorithm.step(s)[0], state)
        state, metrics = algorithm.step(state)
        return state, metrics if observe is None else observe(state)

    return jax.lax.scan(period, algorithm.init(key), length=num_steps // log_every)


def _metrics(state: State, m_eq: int) -> Metrics:
    violations = kkt.violation(state.h, m_eq)
    zero = jnp.zeros((1,), violations.dtype)  # the maximum over no constraints is 0
    return {
        "zo/f": state.f,
        "zo/violation_eq": jnp.max(jnp.concatenate([violations[:m_eq], zero])),
        "zo/violation_ineq": jnp.max(jnp.concatenate([violations[m_eq:], zero])),
        "zo/violation_sum": jnp.sum(violations),
        "zo/best_f": state.best_f,
        "zo/best_violation": state.best_violation,
        "zo/queries": state.queries,
        "zo/rejected": state.rejected,
        "zo/status": state.status,
    }


def _all_finite(tree: PyTree) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()


def _select(condition: Array, on_true: Any, on_false: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), on_true, on_false)

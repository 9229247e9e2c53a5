"""What every method shares: the state around an update, its accounts, and a scan with history.

A method is an `update` from one iterate to the next. `make_algorithm` adds what none should write
again: query accounts, the best feasible point so far, the average iterate, and the treatment of
values that are not finite. Such an update is rejected, the iterate returns to the last good one
and the step is halved, until a new point succeeds; after `MAX_REJECTIONS` without one the instance
is frozen. A method may turn a point down itself and propose another one. What has become of an
instance is its `status`; one that is frozen spares its neighbours in a vmapped batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import Algorithm, Metrics, PyTree, name_of
from jaxlab.zeroth_order import kkt
from jaxlab.zeroth_order.problem import Problem, check_tolerance

CONVERGED, FEASIBLE, INFEASIBLE, BUDGET_SPENT, DIVERGED, BAD_START = range(6)
"""Status of an instance, the first that applies from the right; the last three are frozen.

    CONVERGED: the iterate `x` is feasible, and stationary as far as its derivatives can tell. Only
        methods that estimate the multipliers say so, and only without noise; the run goes on.
    FEASIBLE: a feasible point is known, `best_x`, but the method has not converged.
    INFEASIBLE: none is; `best_violation` is the least violation found, at `best_x`.
    BUDGET_SPENT: another update would exceed `Problem.max_queries`, and has not been made.
    DIVERGED: values are not finite, or `BLOW_UP` times worse than the best; `best_x` is the answer.
    BAD_START: no finite value at the start.
"""
BLOW_UP = 1e6
"""Rise of f above the best, or of the violation, that is divergence: in units of 1, of the size of
the first values measured (`State.sizes`), and of the best, whichever is largest."""
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
        kept: whether the measured point becomes the iterate. A method that finds it too bad
            proposes to go on from another `x`.
        stationary: whether the measured point, if it is feasible, has converged.
    """

    x: Float[Array, " n"]
    inner: PyTree
    at: Float[Array, " n"]
    f: Float[Array, ""]
    h: Float[Array, " m"]
    queries: int | Array
    metrics: Metrics = {}  # noqa: RUF012
    kept: bool | Bool[Array, ""] = True
    stationary: bool | Bool[Array, ""] = False


class State(NamedTuple):
    """State of any method of this room.

    Attributes:
        key: PRNG key.  t: int32, updates so far, rejected ones included.
        x: `[n]`, the iterate: the last point that was measured and kept, at first the start.
        f: `()`, h: `[m]`, the values measured at `x`; infinite before the first update.
        next_x: `[n]`, where the next update begins: `x` after the step that was made from there.
        inner: the method's own quantities.
        good_x, good_inner: the last pair from which an update succeeded.
        best_x: `[n]`, best_f, best_violation: the best measured point so far, in the order of
            `kkt.better`: feasible before infeasible, then objective, then violation. With noise
            it is a lucky measurement: its true values are worse, and `x` may be as good.
        sizes: `[2]`, max(1, |f|) and max(1, max |h_i|) of the first values measured; 1 before.
        average: `[n]`, mean of the points that were stepped to.
        queries: int32, joint queries so far.  cost: int32, those of the last update.
        extras: the update's own metrics, of the last accepted one; infinite before it.
        step_scale: factor in (0, 1] on the step, halved by a rejection.
        retrying: bool, the last update was rejected, so this one starts from a known point.
        rejections: int32, rejected updates since the last success at a new point.
        rejected: int32, updates in all that were rejected, or whose point was not kept.
        status: int32, `CONVERGED`, `FEASIBLE`, `INFEASIBLE`, `BUDGET_SPENT`, `DIVERGED` or
            `BAD_START`.
    """

    key: Array
    t: Int[Array, ""]
    x: Float[Array, " n"]
    f: Float[Array, ""]
    h: Float[Array, " m"]
    next_x: Float[Array, " n"]
    inner: PyTree
    good_x: Float[Array, " n"]
    good_inner: PyTree
    best_x: Float[Array, " n"]
    best_f: Float[Array, ""]
    best_violation: Float[Array, ""]
    sizes: Float[Array, " 2"]
    average: Float[Array, " n"]
    queries: Int[Array, ""]
    cost: Int[Array, ""]
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
    most_queries = jnp.asarray(
        jnp.iinfo(jnp.int32).max if problem.max_queries is None else problem.max_queries, jnp.int32
    )

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
            f=infinite,
            h=jnp.full((problem.m,), infinite),
            next_x=x0,
            inner=inner,
            good_x=x0,
            good_inner=inner,
            best_x=x0,
            best_f=infinite,
            best_violation=infinite,
            sizes=jnp.ones((2,), dtype),
            average=jnp.zeros_like(x0),
            queries=jnp.asarray(queries, jnp.int32),
            cost=count,
            extras=jax.tree.map(lambda like: jnp.full(like.shape, jnp.inf, like.dtype), shape),
            step_scale=jnp.ones((), dtype),
            retrying=jnp.asarray(False),
            rejections=count,
            rejected=count,
            status=jnp.asarray(INFEASIBLE, jnp.int32),
        )
        # A leaf of its own for every field, so that an eager state can be donated.
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)

    def step(state: State) -> tuple[State, Metrics]:
        # The key goes on in every case, outside of the selections: the old one has been used.
        key, key_update = jax.random.split(state.key)
        state = state._replace(key=())
        # Differences of values amplify the rounding of tensor cores: full precision, the oracle's
        # products included.
        with jax.default_matmul_precision("highest"):
            proposal = update(key_update, state.next_x, state.inner, state.t, state.step_scale)
        accepted = _all_finite((proposal.x, proposal.inner, proposal.f, proposal.h))
        kept = accepted & proposal.kept

        violation = kkt.max_violation(proposal.h, problem.m_eq)
        measured = (proposal.at, proposal.f, violation)
        best = (state.best_x, state.best_f, state.best_violation)
        take = accepted & kkt.better(measured[1:], best[1:], feasibility_tol)
        best_x, best_f, best_violation = best = _select(take, measured, best)
        sizes = jnp.stack([jnp.abs(proposal.f), jnp.max(jnp.abs(proposal.h), initial=0.0)])
        is_first = accepted & jnp.isinf(state.best_f)
        sizes = jnp.where(is_first, jnp.maximum(1.0, sizes), state.sizes)

        going_on = state._replace(next_x=proposal.x, inner=proposal.inner)
        num_kept = (state.t - state.rejected + 1).astype(dtype)
        taken = going_on._replace(
            x=proposal.at,
            f=proposal.f,
            h=proposal.h,
            good_x=state.next_x,
            good_inner=state.inner,
            extras=proposal.metrics,
            average=state.average + (proposal.x - state.average) / num_kept,
            step_scale=jnp.where(
                state.retrying, state.step_scale, jnp.minimum(1.0, STEP_RECOVERY * state.step_scale)
            ),
            retrying=jnp.asarray(False),
            rejections=jnp.where(state.retrying, state.rejections, 0),
        )
        turned_down = going_on._replace(rejected=state.rejected + 1)
        undone = state._replace(
            next_x=state.good_x,
            inner=state.good_inner,
            step_scale=0.5 * state.step_scale,
            retrying=jnp.asarray(True),
            rejections=state.rejections + 1,
            rejected=state.rejected + 1,
        )
        following = _select(accepted, _select(kept, taken, turned_down), undone)

        feasible = kkt.max_violation(following.h, problem.m_eq) <= feasibility_tol
        stationary = jnp.where(kept, proposal.stationary, state.status == CONVERGED)
        status = jnp.where(best_violation <= feasibility_tol, FEASIBLE, INFEASIBLE)
        status = jnp.where(stationary & feasible, CONVERGED, status)
        queries = state.queries + proposal.queries
        spent = (queries > most_queries - proposal.queries) & (status != CONVERGED)
        status = jnp.where(spent, BUDGET_SPENT, status)
        blown_up = kept & _blown_up(measured[1:], best[1:], sizes, feasibility_tol)
        hopeless = following.rejections >= MAX_REJECTIONS
        status = jnp.where(blown_up | hopeless, DIVERGED, status)
        status = jnp.where(hopeless & (following.rejected > state.t), BAD_START, status)
        following = following._replace(
            t=state.t + 1,
            queries=queries,
            cost=jnp.asarray(proposal.queries, jnp.int32),
            best_x=best_x,
            best_f=best_f,
            best_violation=best_violation,
            sizes=sizes,
            status=status.astype(jnp.int32),
        )
        exhausted = state.queries > most_queries - state.cost
        frozen = (state.status >= BUDGET_SPENT) | exhausted
        following = _select(frozen, state, following)._replace(key=key)
        return following, _metrics(following, problem.m_eq) | following.extras

    # By its update checkpoints tell a method from the others, whose `step` is this one too.
    return Algorithm(init, step, name=name_of(update))


def run(
    algorithm: Algorithm,
    key: Array,
    *,
    num_steps: int,
    log_every: int = 1,
    observe: Callable[[State], PyTree] | None = None,
) -> tuple[State, PyTree]:
    """Scans `num_steps` updates, a pure function to `jit` and to `vmap` over keys or problems.

    Called as it is, it compiles once for an algorithm, whatever the key.

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

    return _run(algorithm, key, num_steps, log_every, observe)


# Compiled by itself too, so that a notebook's second call with another key needs no compilation.
@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _run(
    algorithm: Algorithm,
    key: Array,
    num_steps: int,
    log_every: int,
    observe: Callable[[State], PyTree] | None,
) -> tuple[State, PyTree]:
    def period(state: State, _: None) -> tuple[State, PyTree]:
        state = jax.lax.fori_loop(0, log_every - 1, lambda _, s: algorithm.step(s)[0], state)
        state, metrics = algorithm.step(state)
        return state, metrics if observe is None else observe(state)

    return jax.lax.scan(period, algorithm.init(key), length=num_steps // log_every)


def _blown_up(
    measured: tuple[Array, Array], best: tuple[Array, Array], sizes: Array, feasibility_tol: Array
) -> Array:
    """Says whether a point, `(f, violation)`, is worse than the best one beyond all measure."""
    (f, violation), (best_f, best_violation) = measured, best
    rise = f - best_f > BLOW_UP * jnp.maximum(sizes[0], jnp.abs(best_f))
    broken = violation > BLOW_UP * jnp.maximum(sizes[1], best_violation)
    return kkt.better(best, measured, feasibility_tol) & (rise | broken)


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

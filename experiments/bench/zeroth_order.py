"""Timings of zeroth-order optimization: batches, time to a solution, a million variables."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from experiments.bench import timing
from jaxlab import zeroth_order as zo
from jaxlab.zeroth_order import CurvedQuadratic
from jaxlab.zeroth_order.problem import exact_of
from jaxlab.zeroth_order.problems import policy_search

SUMMARY = "Constrained zeroth-order optimization: instances a second against numpy, scipy, optax"
N, M_EQ = 10, 3
ETA, GAIN, RADIUS = 0.15, 0.5, 1e-3
TUNED_STEPS = 60
TOLERANCE = 1e-6
"""Relative accuracy of the objective; the violation must be at most 1e-4."""


def run(out: pathlib.Path) -> list[timing.Measurement]:
    """Times everything on this machine, rivals in the same process."""
    return [*batches(), *solutions(), *streamed(), *rollouts()]


def batches(num_instances: int = 1000, num_steps: int = 200) -> list[timing.Measurement]:
    """Times a batch against the same method in batched numpy."""
    from experiments.rivals import zofl

    (ours,) = batches_gpu(num_instances, num_steps)
    data = zo.draw_curved_quadratics(num_instances, n=N, m=M_EQ)
    q = functools.partial(_evaluate, data)
    rival = _timed(
        lambda: zofl.numpy_zofl(
            q,
            np.asarray(data.x0),
            m_eq=M_EQ,
            eta=ETA,
            a=GAIN,
            u=RADIUS,
            num_directions=N,
            num_steps=num_steps,
        ),
        repeats=3,
    )
    return [dataclasses.replace(ours, rival_name="numpy, batched", rival=rival)]


def batches_gpu(num_instances: int = 100_000, num_steps: int = 200) -> list[timing.Measurement]:
    """Times the batch alone, an entry of the accelerator suite."""
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, zo.draw_curved_quadratics(num_instances, n=N, m=M_EQ))
        keys = jax.random.split(jax.random.key(0), num_instances)
        algorithm = solver(num_steps)
        timed = timing.measure(jax.jit(jax.vmap(algorithm)), keys, data, repeats=5)
    shape = f"{num_instances:,} instances x {num_steps} steps, n = {N}, m = {M_EQ}, float64"
    work = float(num_instances * num_steps)
    return [timing.Measurement("ZOFL, vmapped", shape, timed, work=work, work_unit="steps")]


def solutions(num_instances: int = 1000, num_rival: int = 100) -> list[timing.Measurement]:
    """Times an instance solved to the tolerance, against SciPy's solvers and Adam on a penalty.

    Step, gain and scheme of ZOFL and learning rate, weights and steps of Adam were tuned on 100
    other instances, to the fewest steps that solve (almost) all of them; SciPy's solvers take the
    loosest tolerance that does.
    """
    from experiments.rivals import zofl

    with jax.enable_x64(True):
        data = zo.draw_curved_quadratics(num_instances, n=N, m=M_EQ)
        on_device = jax.tree.map(jnp.asarray, data)
        keys = jax.random.split(jax.random.key(0), num_instances)
        f_star = np.asarray(jax.jit(jax.vmap(optimum))(on_device))
        solve = jax.jit(jax.vmap(tuned_solver()))
        timed = timing.measure(solve, keys, on_device, repeats=5)
        ours = _row(timed, is_solved(on_device, solve(keys, on_device), f_star))
        found = []

        few = [jax.tree.map(lambda v, i=i: v[i], data) for i in range(num_rival)]
        for method, tolerance in (("SLSQP", 1e-6), ("COBYQA", 1e-3)):
            start = time.perf_counter()
            x = np.stack([_scipy(one, method, tolerance) for one in few])
            seconds = time.perf_counter() - start
            first = jax.tree.map(lambda v: v[:num_rival], on_device)
            solved = is_solved(first, jnp.asarray(x), f_star[:num_rival])
            found.append(_against(ours, f"scipy {method}, one core", seconds, solved))

        for exact in (False, True):
            penalty = jax.jit(
                jax.vmap(
                    lambda k, d, exact=exact: (
                        zofl.optax_penalty(
                            k,
                            zo.curved_quadratic(d),
                            num_steps=2000,
                            learning_rate=0.03,
                            weight=10.0,
                            growth=1.0045,
                            max_weight=3e4,
                            exact_gradients=exact,
                            kind="coordinate",
                        ).x
                    )
                )
            )
            penalty(keys, on_device).block_until_ready()
            start = time.perf_counter()
            x = penalty(keys, on_device).block_until_ready()
            seconds = time.perf_counter() - start
            name = "optax Adam on a penalty, " + ("exact gradients" if exact else "from values")
            found.append(_against(ours, name, seconds, is_solved(on_device, x, f_star)))
    return found


def streamed(n: int = 1_000_000, num_directions: int = 256) -> list[timing.Measurement]:
    """Times a step with a million variables against numpy that keeps one direction at a time."""
    (ours,) = streamed_gpu(n, num_directions)
    rival = _timed(lambda: _numpy_streamed(n, num_directions), repeats=2)
    return [dataclasses.replace(ours, rival_name="numpy, one direction at a time", rival=rival)]


def streamed_gpu(n: int = 1_000_000, num_directions: int = 256) -> list[timing.Measurement]:
    """Times a step with a million variables; its note says how much memory it takes."""
    problem = zo.sphere(n, jax.random.key(0))
    config = zo.ZOFLConfig(
        eta=0.5 * num_directions / n,
        u=1.0,
        B=num_directions,
        kind="hadamard",
        chunk=1,
        control=False,
    )
    algorithm = zo.make_zofl(problem, config)
    state = jax.jit(algorithm.init)(jax.random.key(1))
    step = jax.jit(algorithm.step)
    megabytes = timing.temporary_megabytes(step.lower(state).compile())
    timed = timing.measure(step, state, repeats=3)
    dense = 4 * n * num_directions
    note = (
        f"Directions are drawn again from their key: {megabytes:.0f} MB of "
        f"temporary memory, where the directions alone would take {dense / 1e6:.0f} MB and the "
        "points to evaluate twice that."
    )
    return [
        timing.Measurement(
            "ZOFL, streamed directions",
            f"n = {n:,}, B = {num_directions}, float32",
            timed,
            work=float(num_directions),
            work_unit="directions",
            note=note,
        )
    ]


def rollouts(num_instances: int = 100, num_steps: int = 20) -> list[timing.Measurement]:
    """Rollouts a second while gains are tuned, against the same rollouts in batched numpy."""
    (ours,) = rollouts_gpu(num_instances, num_steps)
    gains = policy_search.START[None] + 0.01 * np.random.default_rng(0).normal(
        size=(num_instances * (2 * policy_search.START.size + 1), 2, 4)
    )
    rival = _timed(lambda: [_numpy_rollouts(gains) for _ in range(num_steps + 1)], repeats=3)
    return [dataclasses.replace(ours, rival_name="numpy, batched, rollouts alone", rival=rival)]


def rollouts_gpu(num_instances: int = 600, num_steps: int = 100) -> list[timing.Measurement]:
    """Tunes many gains at once: 600 instances x 17 queries are 10,200 rollouts a step."""
    problem = zo.policy_search_problem()
    algorithm = zo.make_zofl(problem)
    keys = jax.random.split(jax.random.key(0), num_instances)

    def tune(key: jax.Array) -> jax.Array:
        return zo.run(algorithm, key, num_steps=num_steps, log_every=num_steps)[0].best_f

    timed = timing.measure(jax.jit(jax.vmap(tune)), keys, repeats=3)
    per_step = num_instances * (2 * problem.n + 1)
    shape = f"{per_step:,} rollouts of {policy_search.HORIZON} steps x {num_steps} updates, float32"
    work = float(per_step * (num_steps + 1))  # the default step is measured by one more
    return [
        timing.Measurement("ZOFL, policy search", shape, timed, work=work, work_unit="rollouts")
    ]


def _evaluate(data: CurvedQuadratic, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Evaluates a batch in NumPy at points `[I, Q, N]`: f `[I, Q]` and h `[I, Q, M_EQ]`."""
    f = 0.5 * (x @ data.Q * x).sum(-1) + np.einsum("iqn,in->iq", x, data.c)
    h = 0.5 * data.r[:, None] * (x**2).sum(-1, keepdims=True)
    return f, h + np.einsum("imn,iqn->iqm", data.A, x) + data.b[:, None]


def _scipy(one: CurvedQuadratic, method: str, tolerance: float) -> np.ndarray:
    """Solves one instance with a plain NumPy callback: f and h, and their differences, at once."""
    steps = 1e-7 * np.concatenate([np.zeros((1, N)), np.eye(N)]) if method == "SLSQP" else 0.0
    seen: dict[str, np.ndarray] = {"x": np.full(N, np.nan)}

    def at(x: np.ndarray) -> dict[str, np.ndarray]:
        if not np.array_equal(seen["x"], x):
            points = x[None] + steps
            f = 0.5 * ((points @ one.Q) * points).sum(1) + points @ one.c
            h = 0.5 * one.r * (points**2).sum(1, keepdims=True) + points @ one.A.T + one.b
            seen.update(x=x.copy(), f=f[0], h=h[0])
            if len(f) > 1:
                seen.update(slope=(f[1:] - f[0]) / 1e-7, jacobian=(h[1:] - h[0]).T / 1e-7)
        return seen

    if method == "SLSQP":
        constraints = {
            "type": "eq",
            "fun": lambda x: at(x)["h"],
            "jac": lambda x: at(x)["jacobian"],
        }
        options, jac = {"ftol": tolerance, "maxiter": 1000}, lambda x: at(x)["slope"]
    else:
        constraints = scipy.optimize.NonlinearConstraint(lambda x: at(x)["h"], 0.0, 0.0)
        options, jac = {"final_tr_radius": tolerance, "maxfev": 10_000}, None
    return scipy.optimize.minimize(
        lambda x: at(x)["f"],
        one.x0,
        method=method,
        jac=jac,
        constraints=constraints,
        options=options,
    ).x


def solver(num_steps: int, **options: Any) -> Callable:
    """Returns `solve(key, one) -> x` of ZOFL; options as in `ZOFLConfig`."""
    config = zo.ZOFLConfig(eta=ETA, gain=GAIN, u=RADIUS, control=False)._replace(**options)

    def solve(key: jax.Array, one: CurvedQuadratic) -> jax.Array:
        algorithm = zo.make_zofl(zo.curved_quadratic(one), config)
        return zo.run(algorithm, key, num_steps=num_steps, log_every=num_steps)[0].next_x

    return solve


def tuned_solver() -> Callable:
    """Returns the solver that takes few steps: without noise nothing need be drawn at random."""
    return solver(TUNED_STEPS, eta=0.2, gain=1.0, kind="coordinate", scheme="momentum")


def optimum(one: CurvedQuadratic) -> jax.Array:
    """Returns the objective at the optimum, by first-order FL run for long."""
    problem = zo.curved_quadratic(one)
    algorithm = zo.make_zofl(
        problem, zo.ZOFLConfig(eta=ETA, gain=GAIN, kind="exact", control=False)
    )
    state, _ = zo.run(algorithm, jax.random.key(0), num_steps=5000, log_every=5000)
    return exact_of(problem)(state.next_x)[0]


def is_solved(data: CurvedQuadratic, x: jax.Array, f_star: np.ndarray) -> np.ndarray:
    def exact(one: CurvedQuadratic, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return exact_of(zo.curved_quadratic(one))(x)

    f, h = map(np.asarray, jax.vmap(exact)(data, x))
    f0 = np.asarray(jax.vmap(lambda one: exact(one, one.x0)[0])(data))
    gap = np.maximum(f - f_star, 0.0) / np.maximum(1.0, np.abs(f0 - f_star))
    return (gap <= TOLERANCE) & (np.abs(h).max(-1) <= 1e-4)


def _row(timed: timing.Timing, solved: np.ndarray) -> timing.Measurement:
    """Scales the time of the batch to one solved instance."""
    share = 1.0 / solved.sum()
    scaled = timing.Timing(timed.compile_s, timed.median_s * share, timed.iqr_s * share, timed.n)
    shape = f"{solved.size:,} instances, n = {N}, m = {M_EQ}, gap {TOLERANCE:.0e}, float64"
    note = f"{solved.mean():.1%} of our instances were solved, in {TUNED_STEPS} steps."
    return timing.Measurement(
        "ZOFL, per solved instance", shape, scaled, work=1.0, work_unit="instances", note=note
    )


def _against(
    ours: timing.Measurement, name: str, seconds: float, solved: np.ndarray
) -> timing.Measurement:
    note = f"{ours.note} {name}: {int(solved.sum()):,} of {solved.size:,} solved."
    if not solved.any():
        return dataclasses.replace(ours, rival_name=f"{name}: none solved", note=note)
    rival = timing.Timing(0.0, seconds / solved.sum(), 0.0, 1)
    return dataclasses.replace(ours, rival_name=name, rival=rival, note=note)


def _numpy_streamed(n: int, num_directions: int) -> np.ndarray:
    """Takes the same step on the sphere in numpy: signs drawn anew for each direction."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=n).astype(np.float32)
    z *= 2.0 / np.linalg.norm(z)
    x = rng.normal(size=n).astype(np.float32)
    x /= np.linalg.norm(x)
    u, eta = np.float32(1.0), 0.5 * num_directions / n

    def q(x: np.ndarray) -> np.ndarray:
        residual = x - z
        return np.array([0.5 * residual @ residual, x @ x - 1.0])

    def direction(b: int) -> np.ndarray:
        bits = np.random.default_rng((1, b)).bytes(n // 8 + 1)
        signs = np.unpackbits(np.frombuffer(bits, np.uint8))[:n].astype(np.float32)
        return (2.0 * signs - 1.0) / np.float32(n**0.5)

    D = np.empty((2, num_directions))
    for b in range(num_directions):
        s = u * direction(b)
        D[:, b] = (q(x + s) - q(x - s)) / (2.0 * u)
    c = n / num_directions
    lam = -(c * D[1] @ D[0] - 0.5 / eta * q(x)[1]) / (c * D[1] @ D[1])
    weights = (c * (D[0] + lam * D[1])).astype(np.float32)
    F = np.zeros_like(x)
    for b in range(num_directions):
        F -= weights[b] * direction(b)
    return x + np.float32(eta) * F


def _numpy_rollouts(gains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns cost `[R]` and peak speeds `[R, 2]` of gains `[R, 2, 4]` over all starts."""
    dt, spring = np.float32(policy_search.DT), np.float32(policy_search.SPRING)
    mass = np.array(policy_search.MASS, np.float32)
    q, r = (w.astype(np.float32) for w in (policy_search.STATE_COST, policy_search.INPUT_COST))
    k = gains.astype(np.float32).transpose(1, 2, 0)[..., None]  # [2, 4, R, 1]
    start = policy_search.INITIAL.astype(np.float32)
    p1, p2, v1, v2 = (np.repeat(start[None, :, i], len(gains), axis=0) for i in range(4))
    cost, peak1, peak2 = np.zeros_like(p1), np.abs(v1), np.abs(v2)
    for _ in range(policy_search.HORIZON):
        u1 = -(k[0, 0] * p1 + k[0, 1] * p2 + k[0, 2] * v1 + k[0, 3] * v2)
        u2 = -(k[1, 0] * p1 + k[1, 1] * p2 + k[1, 2] * v1 + k[1, 3] * v2)
        cost += dt * (q[0] * p1**2 + q[1] * p2**2 + q[2] * v1**2 + q[3] * v2**2)
        cost += dt * (r[0] * u1**2 + r[1] * u2**2)
        pull = spring * (p2 - p1)
        p1, p2 = p1 + dt * v1, p2 + dt * v2
        v1, v2 = v1 + dt / mass[0] * (u1 + pull), v2 + dt / mass[1] * (u2 - pull)
        np.maximum(peak1, np.abs(v1), out=peak1)
        np.maximum(peak2, np.abs(v2), out=peak2)
    return cost.mean(axis=1), np.stack([peak1.max(axis=1), peak2.max(axis=1)], axis=1)


def _timed(fn: Callable[[], object], *, repeats: int) -> timing.Timing:
    """Times a rival that is not jitted."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - start)
    spread = float(np.subtract(*np.quantile(seconds, [0.75, 0.25])))
    return timing.Timing(0.0, float(np.median(seconds)), spread, repeats)

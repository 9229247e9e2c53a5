"""How ZOFL scales: instances in one program, directions against dimension, a million variables."""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing
from experiments.bench import zeroth_order as family
from experiments.harness import units
from experiments.harness.result import Figure, Part, Row, Table
from experiments.harness.units import Unit
from experiments.zofl import Config, figures
from jaxlab import zeroth_order as zo
from jaxlab.core import loop
from jaxlab.zeroth_order import CurvedQuadratic
from jaxlab.zeroth_order.problem import exact_of, f_star_of

GAP = 1e-3
"""Relative gap that the study of dimension runs to, at a violation of at most 1e-3."""
DIRECTIONS = (8, 32, 128, 256, 512, 4096)
"""With one constraint and B directions the correction of a violation has a finite variance from
B = 5 on: its size is that of 1 / chi_B."""
MOST_CHUNKS = 200
"""Most times that n / 4B steps are made."""
MILLION, MANY = 1_000_000, 256


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures instances a second, queries against n and B, and the memory of large steps."""
    instances = instances_part(config.instances)
    dimension = dimension_part(config, out)
    rows = instances.rows + dimension.rows + memory_part().rows
    return Part(rows, dimension.figures, dimension.tables)


def instances_part(num_instances: int) -> Part:
    """Solves a batch of random instances, and then another batch with the same program."""
    with jax.enable_x64(True):
        solver, traces = family.tuned_solver(), []

        def traced(key: jax.Array, one: CurvedQuadratic) -> jax.Array:
            traces.append(one)
            return solver(key, one)

        solve = jax.jit(jax.vmap(traced))
        optimum = jax.jit(jax.vmap(family.optimum))
        shares, seconds = [], []
        for seed in range(3):
            data = jax.tree.map(jnp.asarray, zo.draw_curved_quadratics(num_instances, seed=seed))
            keys = jax.random.split(jax.random.key(seed), num_instances)
            f_star = np.asarray(optimum(data))
            start = time.perf_counter()
            x = jax.block_until_ready(solve(keys, data))
            seconds.append(time.perf_counter() - start)
            shares.append(family.is_solved(data, x, f_star).mean())
    claim = "Many instances are solved by one compiled program"
    size = f"n = {family.N}, {family.M_EQ} curved equalities, float64"
    rate = num_instances * np.mean(shares[1:]) / np.mean(seconds[1:])
    rows = (
        Row(
            claim,
            f"Instances solved to a gap of 1e-6 a second, {num_instances:,} at once",
            float(rate),
            unit="1/s",
            note=f"{size}; {family.TUNED_STEPS} steps",
        ),
        Row(claim, "Share of the instances solved", 100.0 * float(np.mean(shares)), unit="%"),
        Row(claim, "Compilations for three draws of the instances", float(len(traces))),
    )
    return Part(rows)


def dimension_part(config: Config, out: pathlib.Path) -> Part:
    """Queries to the gap on the sphere for growing dimension and number of directions."""
    sizes = [n for n in (100, 1000, 10_000, 100_000, 1_000_000) if n <= config.largest_n]
    tried = {
        n: [B for B in DIRECTIONS if B <= n // 2 and n // B <= config.largest_ratio] for n in sizes
    }
    queries = units.run(
        [_unit(n, B, config.seed) for n in sizes for B in tried[n]], out, title="zofl, scale"
    )
    per_variable: dict[int, dict[int, float | None]] = {
        n: {B: (q := queries[_unit_name(n, B)]) and q / n for B in tried[n]} for n in sizes
    }
    used = sorted(set().union(*per_variable.values()))
    table = Table(
        "Queries to a relative gap of 1e-3 on the unit sphere, per variable",
        ("n", *(f"B = {B}" for B in used)),
        tuple(
            (n, *((found[B] or "not reached") if B in found else None for B in used))
            for n, found in per_variable.items()
        ),
        "Hadamard directions, step B / 2n, gain 0.1, float32. Cells with n / B below 2 or over "
        f"{config.largest_ratio} are left out; a run has {MOST_CHUNKS} n / 4B steps.",
    )
    reached = {
        n: {B: q for B, q in found.items() if q is not None} for n, found in per_variable.items()
    }
    largest = list(reached[max(sizes)].values())
    row = Row(
        "Far fewer directions than variables are enough",
        f"Queries per variable to a gap of 1e-3 at n = {max(sizes):,}",
        float(np.mean(largest)) if largest else None,
        interval=(min(largest), max(largest)) if largest else None,
        verdict="measured" if largest else "not measured",
        note="mean over the numbers of directions in the table, one run each",
        interval_label="range over numbers of directions",
    )
    curves = {
        f"n = {n:,}": (np.array(list(found)), np.array(list(found.values())))
        for n, found in reached.items()
        if found
    }
    if not curves:
        return Part((row,), tables=(table,))
    figures.lines(
        out / "dimension.png",
        curves,
        xlabel="directions per step, B",
        ylabel="queries / n to a gap of 1e-3",
        title="Queries per variable, by directions per step",
        log="xy",
        markers=True,
    )
    caption = "Queries per variable until the gap is 1e-3, against the number of directions."
    return Part((row,), (Figure("dimension.png", caption, caption),), (table,))


def memory_part() -> Part:
    """Reports the memory that the compiler plans for a step with a million variables."""
    problem = zo.sphere(MILLION, jax.random.key(0))
    megabytes = {}
    for name, chunk in (("streamed", 1), ("all at once", None)):
        config = zo.ZOFLConfig(eta=1e-4, u=1.0, B=MANY, kind="hadamard", chunk=chunk, control=False)
        algorithm = zo.make_zofl(problem, config)
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        compiled = jax.jit(algorithm.step).lower(state).compile()
        megabytes[name] = timing.temporary_megabytes(compiled)
    row = Row(
        "A million variables fit: directions are drawn again, not stored",
        f"Temporary memory of a step, n = {MILLION:,}, B = {MANY}",
        megabytes["streamed"],
        baseline=("directions held at once", megabytes["all at once"]),
        unit="MB",
        note="planned by the compiler for float32; the directions alone are 1,024 MB",
    )
    return Part((row,))


def _unit_name(n: int, B: int) -> str:
    return f"scale/n={n}, B={B}"


def _unit(n: int, B: int, seed: int) -> Unit:
    """Makes the unit of one run to the gap, which goes on from its checkpoints."""
    settings = {"n": n, "B": B, "seed": seed, "gap": GAP, "most_chunks": MOST_CHUNKS}
    return Unit(
        _unit_name(n, B), settings, lambda folder: _queries_to_gap(n, B, seed, folder), object
    )


def _queries_to_gap(n: int, B: int, seed: int, folder: pathlib.Path) -> float | None:
    """Runs on the training loop, with checkpoints, until the gap is reached; None if it is not."""
    problem = zo.sphere(n, jax.random.key(seed))._replace(feasibility_tol=GAP)
    algorithm = zo.make_zofl(
        problem,
        zo.ZOFLConfig(
            eta=0.5 * B / n, gain=0.1, u=1.0, B=B, kind="hadamard", chunk=min(B, 8), control=False
        ),
    )
    exact, f_star = exact_of(problem), f_star_of(problem)
    f0 = exact(problem.x0)[0]

    @jax.jit
    def evaluate(state: zo.State) -> dict[str, jax.Array]:
        f, h = exact(state.next_x)
        gap = (f - f_star) / jnp.maximum(1.0, jnp.abs(f0 - f_star))
        # Off the sphere the objective may be too low: the distance counts either way.
        return {"scale/gap": jnp.maximum(jnp.abs(gap), zo.max_violation(h, problem.m_eq))}

    chunk = max(1, n // (4 * B))
    ended = loop.run(
        algorithm,
        jax.random.key(seed + 1),
        num_steps=MOST_CHUNKS * chunk,
        chunk_size=chunk,
        directory=folder,
        config={"n": n, "B": B, "seed": seed, "gap": GAP},
        evaluate=evaluate,
        stop=lambda _, metrics: metrics["scale/gap"] <= GAP,
        save_every=20,
    )
    return float(ended.state.queries) if ended.metrics["scale/gap"] <= GAP else None

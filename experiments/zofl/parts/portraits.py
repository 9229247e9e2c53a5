"""Phase portraits in the plane: the FL vector field, and the paths that methods take through it."""

import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.drawing import COLORS, INK
from experiments.harness.result import Figure, Part
from experiments.zofl import Config
from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import field, method, zofl
from jaxlab.zeroth_order.baselines import first_order, primal_dual
from jaxlab.zeroth_order.problem import Problem, exact_of, make_problem
from jaxlab.zeroth_order.settings import ZOFLConfig

STARTS = ((-0.9, -1.1), (-1.3, 0.6), (0.1, -0.5), (1.4, -0.6), (-0.2, 0.3))
ETA, GAIN = 0.1, 0.5
NUM_STEPS = 60
"""Steps of ZOFL; primal-dual methods, which need smaller ones, take `MORE_STEPS`."""
MORE_STEPS = 150
RANGE = ((-1.6, 1.6), (-1.4, 1.6))
GRID = 120


def run(config: Config, out: pathlib.Path) -> Part:
    """Draws the phase portrait of a projection onto the circle with the paths of four methods."""
    problem = circle()
    paths = {
        name: _paths(problem, build, jax.random.key(config.seed), num_steps=num_steps)
        for name, (build, num_steps) in _methods().items()
    }
    x1, x2 = (np.linspace(*ends, GRID, dtype=np.float32) for ends in RANGE)
    points = jnp.stack(jnp.meshgrid(jnp.asarray(x1), jnp.asarray(x2)), axis=-1)
    f, h, F = jax.device_get(jax.jit(jax.vmap(jax.vmap(lambda x: _at(problem, x))))(points))
    draw_portrait(
        out / "portrait.png",
        (x1, x2),
        (F[..., 0], F[..., 1]),
        h[..., 0],
        f,
        paths,
        optimum=np.asarray(problem.x_star),
        title="Nearest point of the unit circle",
    )
    caption = (
        "Phase portrait of a projection onto the circle: the feasible set (black), the velocity of "
        "feedback linearization (gray), the optimum (star), and the iterates of five starts. ZOFL "
        "goes to the circle at the rate it was given and then along it; primal-dual methods go "
        f"towards the objective first and swing around the optimum. {NUM_STEPS} steps of ZOFL, "
        f"{MORE_STEPS} of the others."
    )
    return Part(figures=(Figure("portrait.png", caption, caption),))


def draw_portrait(
    path: pathlib.Path,
    grid: tuple[np.ndarray, np.ndarray],
    field: tuple[np.ndarray, np.ndarray],
    constraint: np.ndarray,
    objective: np.ndarray,
    panels: Mapping[str, np.ndarray],
    *,
    optimum: np.ndarray,
    title: str,
) -> None:
    """Draws paths in the plane over the direction of the FL field, one panel a method.

    Args:
        grid: `(x1, x2)`, the axes `[G1]` and `[G2]`.
        field: both components of the velocity, `[G2, G1]`.
        constraint: h `[G2, G1]`, whose zero line is the feasible set.
        objective: f `[G2, G1]`.
        panels: paths by method, `[starts, T, 2]`; NaN after a path has left.
        optimum: `[2]`.
    """
    x1, x2 = grid
    with plt.rc_context(
        {**drawing.STYLE, "axes.grid": False, "xtick.labelsize": 8, "ytick.labelsize": 8}
    ):
        columns = 2
        rows = -(-len(panels) // columns)
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(6.4, 3.2 * rows + 0.5),
            sharex=True,
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (name, paths) in zip(axes.flat, panels.items(), strict=False):
            axis.contour(
                x1, x2, objective, levels=12, colors=drawing.GRID, linewidths=0.8, zorder=0
            )
            axis.streamplot(
                x1, x2, *field, color="#c3cad3", linewidth=0.6, arrowsize=0.6, density=0.9, zorder=1
            )
            axis.contour(x1, x2, constraint, levels=[0.0], colors=INK, linewidths=1.8, zorder=2)
            for path_, color in zip(paths, COLORS, strict=False):
                axis.plot(*path_.T, color=color, lw=1.5, marker=".", ms=3, zorder=3)
                axis.plot(*path_[0], "o", color=color, ms=6, mec="white", zorder=4)
            axis.plot(*optimum, "*", color=INK, ms=13, mec="white", zorder=5)
            axis.set_xlim(x1[0], x1[-1])
            axis.set_ylim(x2[0], x2[-1])
            axis.set_aspect("equal")
            axis.set_title(name)
        for axis in axes[-1]:
            axis.set_xlabel("x₁")
        for axis in axes[:, 0]:
            axis.set_ylabel("x₂")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        drawing.save(figure, path)


def circle() -> Problem:
    """Builds min ||x - z||^2 / 2 subject to ||x||^2 = 1 in the plane, z twice the optimum."""
    x_star = jnp.asarray([0.6, 0.8])

    def fun(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return 0.5 * jnp.sum((x - 2.0 * x_star) ** 2), jnp.sum(x**2)[None] - 1.0

    return make_problem(fun, jnp.asarray(STARTS[0]), m_eq=1, x_star=x_star, name="circle")


def _methods() -> dict[str, tuple[Callable[[Problem], Algorithm], int]]:
    ours = ZOFLConfig(eta=ETA, gain=GAIN, control=False)
    theirs = {"alpha": 0.05, "beta": 0.1}
    return {
        "ZOFL, Euler": (lambda p: zofl.make_zofl(p, ours), NUM_STEPS),
        "ZOFL, midpoint": (
            lambda p: zofl.make_zofl(p, ours._replace(scheme="midpoint")),
            NUM_STEPS,
        ),
        "PDGD, exact gradients": (lambda p: first_order.make_pdgd(p, **theirs), MORE_STEPS),
        "ZO-MinMax": (lambda p: primal_dual.make_zo_minmax(p, B=2, **theirs), MORE_STEPS),
    }


def _at(problem: Problem, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns f, h and the velocity of FL at x."""
    f, h, grad, J = first_order.linearize(exact_of(problem), x)
    F, _ = field.fl_field(grad, J, h, GAIN / ETA, problem.m_eq)
    return f, h, F


def _paths(
    problem: Problem, build: Callable[[Problem], Algorithm], key: jax.Array, *, num_steps: int
) -> np.ndarray:
    """Returns the iterates `[starts, num_steps + 1, 2]`, NaN from where a run has been frozen."""
    starts = jnp.asarray(STARTS, problem.x0.dtype)

    def follow(x0: jax.Array, key: jax.Array) -> jax.Array:
        x = method.run(
            build(problem._replace(x0=x0)),
            key,
            num_steps=num_steps,
            observe=lambda state: jnp.where(state.status < method.DIVERGED, state.next_x, jnp.nan),
        )[1]
        return jnp.concatenate([x0[None], x])

    keys = jax.random.split(key, len(STARTS))
    return np.asarray(jax.jit(jax.vmap(follow))(starts, keys))

"""What the choice of step, gain, radius and noise level does to ZOFL: maps and a table."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import ArrayLike

from experiments.harness import drawing
from experiments.harness.drawing import MUTED
from experiments.harness.result import Figure, Part, Table
from experiments.zofl import Config
from jaxlab.zeroth_order import kkt, method, noise, zofl
from jaxlab.zeroth_order.problem import Problem, exact_of, f_star_of
from jaxlab.zeroth_order.problems import hock_schittkowski
from jaxlab.zeroth_order.settings import Scheme, ZOFLConfig

PROBLEM = "HS78"
ETAS = tuple(np.geomspace(1e-3, 1.0, 13))
GAINS = tuple(np.round(np.concatenate([[0.02, 0.05], np.linspace(0.1, 1.9, 10)]), 3))
RADII = tuple(np.geomspace(1e-4, 1.0, 13))
NOISES = tuple(np.geomspace(1e-6, 1e-1, 11))
NUM_STEPS = 300
NUM_SEEDS = 4
SIGMAS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
ROBUST = ("HS7", "HS40", "HS43", "HS78")
FORMS: dict[str, ZOFLConfig] = {
    "subspace, Euler": ZOFLConfig(control=False),
    "subspace, midpoint": ZOFLConfig(scheme="midpoint", control=False),
    "plug-in sphere, Euler": ZOFLConfig(form="plugin", kind="sphere"),
}


class Final(NamedTuple):
    """Mean over the last fifth of a run: |f - f*| and the largest violation, noise free."""

    gap: jax.Array
    violation: jax.Array


def run(config: Config, out: pathlib.Path) -> Part:
    """Maps the final error over step and gain, over radius and noise, and tables it by problem."""
    with jax.enable_x64(True):
        parts = step_and_gain(config, out), radius_and_noise(config, out), robustness(config)
    return Part(
        figures=sum((part.figures for part in parts), ()),
        tables=sum((part.tables for part in parts), ()),
    )


def last_part(
    key: jax.Array, test: Problem, sigma: float | jax.Array, options: ZOFLConfig, *, updates: int
) -> Final:
    """Runs ZOFL under value noise and returns where it ended; NaN if it was lost.

    Problem and settings may hold traced numbers, so that a map is one `vmap`.
    """
    noisy = noise.with_noise(test, sigma)

    def observe(state: method.State) -> Final:
        f, h = exact_of(test)(state.next_x)
        return Final(jnp.abs(f - f_star_of(test)), kkt.max_violation(h, test.m_eq))

    state, history = method.run(
        zofl.make_zofl(noisy, options), key, num_steps=updates, observe=observe
    )
    end = jax.tree.map(lambda x: jnp.mean(x[-(updates // 5) :]), history)
    lost = (state.status >= method.DIVERGED) | ~((end.gap < 1e3) & (end.violation < 1e3))
    return jax.tree.map(lambda x: jnp.where(lost, jnp.nan, x), end)


def step_and_gain(config: Config, out: pathlib.Path) -> Part:
    """Maps of the final error over step and gain, Euler and midpoint."""
    test, keys = hock_schittkowski.hs(PROBLEM), _keys(config)
    panels = {}
    schemes: tuple[Scheme, ...] = ("euler", "midpoint")
    for scheme in schemes:

        def cell(key: jax.Array, a: jax.Array, eta: jax.Array, scheme: Scheme = scheme) -> Final:
            options = ZOFLConfig(eta=eta, gain=a, scheme=scheme, control=False)
            return last_part(key, test, 0.0, options, updates=NUM_STEPS)

        found = _over_grid(cell, keys, GAINS, ETAS)
        panels[f"{scheme}: violation"] = found.violation
    return _map(
        out / "step_and_gain.png",
        panels,
        x=ETAS,
        y=GAINS,
        xlabel="step eta",
        ylabel="gain a = eta K",
        what="violation",
        title=f"{PROBLEM}, {NUM_STEPS} steps without noise",
        caption=f"Largest violation over the last fifth of {NUM_STEPS} steps on {PROBLEM} by step "
        f"and gain, mean of {NUM_SEEDS} seeds, B = n, no noise; hatched: diverged. Both schemes "
        "are stable up to a = 2.",
    )


def radius_and_noise(config: Config, out: pathlib.Path) -> Part:
    """Maps of the final error over radius and noise level."""
    test, keys = hock_schittkowski.hs(PROBLEM), _keys(config)

    def cell(key: jax.Array, sigma: jax.Array, u: jax.Array) -> Final:
        options = ZOFLConfig(eta=0.03, gain=0.1, u=u, control=False)
        return last_part(key, test, sigma, options, updates=NUM_STEPS)

    found = _over_grid(cell, keys, NOISES, RADII)
    return _map(
        out / "radius_and_noise.png",
        {"violation": found.violation, "|f − f*|": found.gap},
        x=RADII,
        y=NOISES,
        xlabel="radius u",
        ylabel="noise σ",
        what="value",
        title=f"{PROBLEM}, {NUM_STEPS} steps with noise",
        caption=f"Violation and |f - f*| over the last fifth of {NUM_STEPS} steps on {PROBLEM} by "
        f"radius and noise level, eta = 0.03, a = 0.1, mean of {NUM_SEEDS} seeds; hatched: "
        "diverged.",
    )


def robustness(config: Config) -> Part:
    """Tables what noise does to the default settings on four problems."""
    keys = _keys(config)
    cells = []
    for name in ROBUST:
        test = hock_schittkowski.hs(name)
        for form, options in FORMS.items():

            def cell(
                key: jax.Array,
                sigma: jax.Array,
                options: ZOFLConfig = options,
                test: Problem = test,
            ) -> Final:
                return last_part(key, test, sigma, options, updates=NUM_STEPS)

            over_noise = jax.vmap(cell, in_axes=(None, 0))
            found = jax.device_get(
                jax.jit(jax.vmap(over_noise, in_axes=(0, None)))(keys, jnp.asarray(SIGMAS))
            )
            cells.append((name, form, *(_cell(found, k) for k in range(len(SIGMAS)))))
    table = Table(
        "Robustness to noise: violation / |f - f*|",
        ("Problem", "Form", *(f"σ = {sigma:g}" for sigma in SIGMAS)),
        tuple(cells),
        f"Noise of standard deviation σ on f and every constraint, unscaled; mean over the last "
        f"fifth of {NUM_STEPS} steps, median of {keys.size} seeds, values free of noise. Step, "
        "gain and radius are the defaults for that σ; midpoint makes twice the queries of a step.",
    )
    return Part(tables=(table,))


def draw_maps(
    path: pathlib.Path,
    panels: Mapping[str, np.ndarray],
    *,
    x: Sequence[float],
    y: Sequence[float],
    xlabel: str,
    ylabel: str,
    title: str,
    label: str,
) -> None:
    """Draws maps of log10 values `[len(y), len(x)]` side by side; NaN is hatched ("diverged")."""
    with plt.rc_context({**drawing.STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(
            1,
            len(panels),
            figsize=(3.4 * len(panels) + 0.4, 3.6),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, values) in zip(axes[0], panels.items(), strict=True):
            axis.set_facecolor("white")
            axis.patch.set(hatch="xxx", edgecolor=MUTED)
            image = axis.imshow(values, origin="lower", aspect="auto", cmap="cividis")
            for numbers, put in ((x, axis.set_xticks), (y, axis.set_yticks)):
                every = 1 + (len(numbers) - 1) // 5
                put(range(0, len(numbers), every), [f"{value:.2g}" for value in numbers[::every]])
            axis.set_xlabel(xlabel)
            axis.set_title(name)
            figure.colorbar(image, ax=axis, label=label, location="bottom", shrink=0.9)
        axes[0, 0].set_ylabel(ylabel)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        drawing.save(figure, path)


def _keys(config: Config) -> jax.Array:
    return jax.random.split(jax.random.key(config.seed), NUM_SEEDS)


def _over_grid(cell: Any, keys: jax.Array, y: Any, x: Any) -> Final:
    """Means over the keys, `[len(y), len(x)]`; NaN where any run was lost."""
    over_x = jax.vmap(cell, in_axes=(None, None, 0))
    over_y = jax.vmap(over_x, in_axes=(None, 0, None))
    over_keys = jax.jit(jax.vmap(over_y, in_axes=(0, None, None)))
    found = jax.device_get(over_keys(keys, jnp.asarray(y), jnp.asarray(x)))
    return Final(*(values.mean(axis=0) for values in found))


def _map(
    path: pathlib.Path, panels: Mapping[str, ArrayLike], *, what: str, caption: str, **options: Any
) -> Part:
    logs = {
        name: np.log10(np.maximum(values, 1e-16)) for name, values in panels.items()
    }  # NaN stays NaN
    draw_maps(path, logs, label=f"log₁₀ {what}", **options)
    return Part(figures=(Figure(path.name, caption, caption),))


def _cell(found: Final, k: int) -> str:
    violation, gap = (values[:, k] for values in (found.violation, found.gap))
    lost = int(np.isnan(violation).sum())
    if lost == violation.size:
        return "diverged"
    text = f"{np.nanmedian(violation):.0e} / {np.nanmedian(gap):.0e}"
    return text + (f" ({lost} of {violation.size} diverged)" if lost else "")

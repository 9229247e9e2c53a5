"""The client-fair logistic regression, whose KKT gaps are published, computed again in float64.

FL is first-order feedback linearization (arXiv:2503.12665); its ZOFL twin sees function values
alone (arXiv:2509.24056), along n orthonormal directions.
"""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.result import Figure, Part, Row
from experiments.zofl import Config, figures, published
from jaxlab.core.types import Algorithm
from jaxlab.zeroth_order import kkt, method, multiplier, zofl
from jaxlab.zeroth_order.baselines import first_order
from jaxlab.zeroth_order.problem import Problem, exact_of
from jaxlab.zeroth_order.problems import client_fairness
from jaxlab.zeroth_order.settings import ZOFLConfig

SAME = 1.25
"""Two figures agree if their ratio is within this factor: published ones have two digits."""
NTH = published.FAIR_LOGISTIC_ITERATE
"""Iterates; the start is the first one, and 299 updates lead to the last."""


def exact_gap(problem: Problem, x: jax.Array, K: float) -> jax.Array:
    """Returns the KKT gap at x, from exact derivatives and the multiplier of FL with gain K."""
    _, h, grad, J = first_order.linearize(exact_of(problem), x)
    lam, _ = multiplier.fl_multiplier(J @ J.T, J @ grad - K * h, problem.m_eq)
    return kkt.kkt_gap(grad, J, h, lam, problem.m_eq)


def agrees(value: float, published: float) -> str:
    """Returns the verdict on a figure beside a published one of two digits."""
    close = 1.0 / SAME <= value / published <= SAME
    return "reproduced" if close else "not reproduced"


def follow_all(*, twins: bool) -> tuple[dict[str, np.ndarray], float]:
    """Runs the methods of the client-fair logistic regression with their published settings.

    Returns:
        `(gaps, f)`: exact KKT gap `[NTH]` of the first iterates by method, and f at the last one of
        proximal FL.
    """
    problem, K = client_fairness.fair_logistic(), 10.0
    steps, betas = jnp.asarray([0.25, 0.1]), jnp.asarray([0.0, 0.7])

    def observe(state: method.State) -> tuple[jax.Array, jax.Array]:
        return exact_gap(problem, state.next_x, K), exact_of(problem)(state.next_x)[0]

    def follow(algorithm: Algorithm) -> Any:
        return method.run(algorithm, jax.random.key(0), num_steps=NTH - 1, observe=observe)[1]

    def pair(**options: Any) -> Any:
        """Runs proximal FL and momentum in one program: without momentum beta is 0."""

        def one(eta: jax.Array, beta: jax.Array) -> Any:
            config = ZOFLConfig(
                eta=eta, K=K, scheme="momentum", beta=beta, control=False, **options
            )
            return follow(zofl.make_zofl(problem, config))

        return jax.jit(jax.vmap(one))(steps, betas)

    def alone(algorithm: Algorithm) -> Any:
        return jax.jit(lambda: follow(algorithm))()

    newton = ZOFLConfig(eta=0.2, K=K, metric="newton", control=False)
    values = {"twin, u = 1e-5": {"B": problem.n, "u": 1e-5}} if twins else {}
    start = float(jax.jit(lambda: exact_gap(problem, problem.x0, K))())
    found, f = {}, math.nan
    for suffix, options in {"": {"kind": "exact"}, **values}.items():
        both, f_both = jax.device_get(pair(**options))
        f = float(f_both[0, -1]) if not suffix else f
        for name, gap in zip(("FL-proximal", "FL-momentum"), both, strict=True):
            found[_twin(name, suffix)] = gap
        if suffix:
            options = {**options, "u": 1e-4}  # curvatures divide by u twice
            suffix = "twin, u = 1e-4"
        found[_twin("FL-Newton", suffix)] = alone(
            zofl.make_zofl(problem, newton._replace(**options))
        )[0]
    found["PDGD"] = alone(first_order.make_pdgd(problem))[0]
    found["ALM"] = alone(first_order.make_alm(problem))[0]
    return {name: np.concatenate([[start], gap]) for name, gap in found.items()}, f


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures the KKT gaps at iteration 300; if `config.thorough`, those of the twins as well."""
    with jax.enable_x64(True):
        gaps, f = follow_all(twins=config.thorough)
    last = {name: float(gap[-1]) for name, gap in gaps.items()}
    claim = "KKT gap on client-fair logistic regression at iteration 300 (FL paper)"
    note = "Exact gap at the 300th iterate, the start being the first; float64."

    def row(name: str, published: float | str, verdict: str, **extra: Any) -> Row:
        return Row(claim, name, last[name], paper=published, verdict=verdict, note=note, **extra)

    low, high = published.FAIR_LOGISTIC_MOMENTUM
    in_range = low <= last["FL-momentum"] <= high
    due = published.FAIR_LOGISTIC_GAP
    rows = [
        row("FL-proximal", due["FL-proximal"], agrees(last["FL-proximal"], due["FL-proximal"])),
        row("FL-momentum", f"{low:g} to {high:g}", "reproduced" if in_range else "not reproduced"),
        row(
            "FL-Newton",
            "1e-10, or 1e-17 with an exact solver",
            "reproduced"
            if last["FL-Newton"] <= published.FAIR_LOGISTIC_NEWTON
            else "not reproduced",
        ),
        *(row(name, due[name], agrees(last[name], due[name])) for name in ("PDGD", "ALM")),
        Row(
            claim,
            "Objective of FL-proximal there",
            f,
            paper=published.FAIR_LOGISTIC_OBJECTIVE,
            verdict="reproduced"
            if round(f, 4) == published.FAIR_LOGISTIC_OBJECTIVE
            else "not reproduced",
        ),
    ]
    best = np.minimum.accumulate(gaps["FL-proximal"]) * np.sqrt(np.arange(1, NTH + 1))
    rows.append(
        Row(
            "The best KKT gap up to time T falls at least like 1/sqrt(T) (FL paper, theorems 1, 4)",
            "Best gap times sqrt(T): largest over T, and at T = 300 in the note",
            float(best.max()),
            verdict="reproduced" if best.argmax() < NTH // 2 else "not reproduced",
            note=f"FL-proximal, client-fair logistic regression; {best[-1]:.1e} at T = 300.",
        )
    )
    for name in (name for name in gaps if "twin" in name):
        whole = name.partition(" (")[0]
        rows.append(
            Row(
                "ZOFL equals FL up to O(u²) where the directions span the space",
                f"KKT gap at iteration 300, {name}",
                last[name],
                baseline=(f"{whole}, exact derivatives", last[whole]),
                note="The floor is the bias u² of the differences, or rounding over u.",
            )
        )
    figures.lines(
        out / "fair_logistic.png",
        {name: (np.arange(1, NTH + 1), np.maximum(gap, 1e-18)) for name, gap in gaps.items()},
        xlabel="iteration",
        ylabel="KKT gap",
        log="y",
        title="Client-fair logistic regression",
        dashed=[name for name in gaps if "twin" in name],
    )
    caption = (
        "KKT gap of the first 300 iterates on the client-fair logistic regression, published "
        "settings; dashed: from function values alone."
    )
    return Part(tuple(rows), (Figure("fair_logistic.png", caption, caption),))


def _twin(name: str, suffix: str) -> str:
    return f"{name} ({suffix})" if suffix else name

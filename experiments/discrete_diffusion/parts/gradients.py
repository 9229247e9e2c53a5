"""Where each estimate of the ratio points and what it is, against the exact ones by enumeration.

Three tokens of two kinds in three steps: eight sequences on 216 paths, under a random denoiser that
is a table, with random advantages. At the policy that drew, a ratio's gradient weighted by the
advantage should be the policy gradient; of a policy that has moved on, it should be that of the
probabilities.
"""

import itertools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.discrete_diffusion import Config
from experiments.harness import drawing, units, verdicts
from experiments.harness.result import Figure, Part
from experiments.harness.units import Unit
from jaxlab.diffusion.discrete import exact, path, schedules
from jaxlab.rl.discrete import matching

V, K, N = 2, 3, 3
TOYS = 20
"""Random denoisers."""
MOVED = 0.5
"""Standard deviation of what is added to the logits of the policy that drew."""
NAMES = {
    "step": "ratios of single steps (R2)",
    "bound": "ratios of evidence bounds (R1)",
    "mean_field": "ratios of all tokens at once (R3)",
}


class Measured(NamedTuple):
    """What every estimate is, by name.

    Attributes:
        cosine: `[TOYS]` of its gradient with the policy gradient.
        ratio: `[TOYS, V^K]` of every sequence, after a move; the exact one as "true".
    """

    cosine: dict[str, np.ndarray]
    ratio: dict[str, np.ndarray]


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures, or reads, then tells and draws."""
    settings = {"seed": config.seed, "toys": TOYS, "moved": MOVED}
    unit = Unit("gradients", settings, lambda folder: measure(config.seed), Measured)
    measured = units.run([unit], out, title="discrete_diffusion, gradients")["gradients"]
    found = measured.cosine
    rows = [
        verdicts.row(
            "Single-step ratios climb along the policy gradient; others point elsewhere",
            f"Cosine with the policy gradient, {NAMES['step']}",
            found["step"],
            (NAMES[name], found[name]),
            larger_is_better=True,
            note=f"Of {TOYS} random denoisers, by enumeration; the other's are "
            f"{found[name].min():.3f} to {found[name].max():.3f}.",
        )
        for name in ("bound", "mean_field")
    ]
    return Part(tuple(rows), (_draw(measured.ratio, out),))


def measure(seed: int) -> Measured:
    """Returns cosines and ratios, in double precision."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        logits = jnp.asarray(rng.normal(size=(TOYS, (V + 1) ** K, K, V)))
        advantage = jnp.asarray(rng.normal(size=(TOYS, V**K)))
        moved = logits + MOVED * jnp.asarray(rng.normal(size=logits.shape))
        found = jax.jit(jax.vmap(_one))(logits, advantage, moved)
        return Measured(*jax.tree.map(np.asarray, found))


def _one(
    logits: jax.Array, advantage: jax.Array, moved: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns the fields of `Measured` of one denoiser."""
    schedule = schedules.make_schedule(N)
    clean = jnp.asarray(exact.sequences(V, K))
    reveals = jnp.asarray(list(itertools.product(range(1, N + 1), repeat=K)), jnp.int32)
    tokens = jnp.repeat(clean, len(reveals), axis=0)
    reveal = jnp.tile(reveals, (len(clean), 1))
    number = exact.number(tokens, V)

    def law(logits: jax.Array) -> jax.Array:
        return exact.sampler_law(exact.table_denoiser(logits), schedule, vocab=V, length=K)

    def step_logp(logits: jax.Array) -> jax.Array:
        return path.step_logp(
            exact.table_denoiser(logits),
            tokens,
            reveal,
            jnp.arange(1, N + 1),
            vocab=V,
            schedule=schedule,
        )

    old = law(logits)
    # A linear schedule reveals every token in a step that is uniform over all.
    path_prob = jnp.exp(jnp.sum(step_logp(logits), axis=0)) / N**K
    advantage = advantage - old @ advantage

    def step(logits: jax.Array) -> jax.Array:
        return path_prob * advantage[number] @ jnp.sum(step_logp(logits), axis=0)

    def bound_logp(logits: jax.Array) -> jax.Array:
        denoise = exact.table_denoiser(logits)
        return -exact.nelbo_steps(denoise, schedule, vocab=V, length=K)

    def mean_field_logp(logits: jax.Array) -> jax.Array:
        return matching.mean_field_logp(exact.table_denoiser(logits), clean, vocab=V)[0]

    true = jax.grad(lambda logits: law(logits) @ advantage)(logits)
    whole = {"bound": bound_logp, "mean_field": mean_field_logp}
    cosine = {"step": _cosine(jax.grad(step)(logits), true)}
    for name, logp in whole.items():
        gradient = jax.grad(lambda x, logp=logp: (old * advantage) @ logp(x))(logits)
        cosine[name] = _cosine(gradient, true)
    ratio = {name: jnp.exp(logp(moved) - logp(logits)) for name, logp in whole.items()}
    return cosine, {"true": law(moved) / old, **ratio}


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)


def _draw(ratio: dict[str, np.ndarray], out: pathlib.Path) -> Figure:
    true = ratio["true"].ravel()
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 2)
        for axis, name, color in zip(
            axes[0], ("bound", "mean_field"), (drawing.BLUE, drawing.RED), strict=True
        ):
            axis.loglog(true, ratio[name].ravel(), "o", ms=4, alpha=0.5, color=color)
            ends = np.array([true.min(), true.max()])
            axis.plot(ends, ends, color=drawing.MUTED, lw=1, ls="--")
            axis.set_title(NAMES[name][:1].upper() + NAMES[name][1:])
            axis.set(xlabel="Exact ratio of probabilities", ylabel="Estimate", ylim=(0.05, 20.0))
            axis.set_xticks([0.5, 1.0, 2.0], ["0.5", "1", "2"])
            axis.set_yticks([0.1, 0.3, 1.0, 3.0, 10.0], ["0.1", "0.3", "1", "3", "10"])
            axis.minorticks_off()
        drawing.save(figure, out / "ratios.png")
    return Figure(
        "ratios.png",
        "Ratios of eight sequences after a move of the policy, twenty random denoisers, by "
        "enumeration; on the dashed line an estimate is exact.",
        "Estimated against exact ratios of evidence bounds and of the mean field",
    )

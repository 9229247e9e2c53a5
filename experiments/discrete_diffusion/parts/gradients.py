"""Where each estimate of the ratio points, against the policy gradient by enumeration.

Three tokens of two kinds in three steps: eight sequences on 216 paths, under a random denoiser that
is a table, with random advantages. At the policy that drew, a ratio's gradient weighted by the
advantage should be the policy gradient.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.discrete_diffusion import Config
from experiments.harness import units, verdicts
from experiments.harness.result import Part
from experiments.harness.units import Unit
from jaxlab.diffusion.discrete import exact, path, schedules
from jaxlab.rl.discrete import matching

V, K, N = 2, 3, 3
TOYS = 20
"""Random denoisers."""
NAMES = {
    "step": "ratios of single steps (R2)",
    "bound": "ratios of evidence bounds (R1)",
    "mean_field": "ratios of all tokens at once (R3)",
}


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures, or reads, then tells."""
    settings = {"seed": config.seed, "toys": TOYS}
    unit = Unit("gradients", settings, lambda folder: measure(config.seed))
    found = units.run([unit], out, title="discrete_diffusion, gradients")["gradients"]
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
    return Part(tuple(rows))


def measure(seed: int) -> dict[str, np.ndarray]:
    """Returns `[TOYS]` cosines of each ratio, in double precision."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        logits = jnp.asarray(rng.normal(size=(TOYS, (V + 1) ** K, K, V)))
        advantage = jnp.asarray(rng.normal(size=(TOYS, V**K)))
        found = jax.jit(jax.vmap(_cosines))(logits, advantage)
        return {name: np.asarray(x) for name, x in found.items()}


def _cosines(logits: jax.Array, advantage: jax.Array) -> dict[str, jax.Array]:
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

    def bound(logits: jax.Array) -> jax.Array:
        denoise = exact.table_denoiser(logits)
        return -(old * advantage) @ exact.nelbo_steps(denoise, schedule, vocab=V, length=K)

    def mean_field(logits: jax.Array) -> jax.Array:
        logp = matching.mean_field_logp(exact.table_denoiser(logits), clean, vocab=V)[0]
        return (old * advantage) @ logp

    true = jax.grad(lambda logits: law(logits) @ advantage)(logits)
    losses = {"step": step, "bound": bound, "mean_field": mean_field}
    return {name: _cosine(jax.grad(f)(logits), true) for name, f in losses.items()}


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)

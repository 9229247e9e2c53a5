"""Learned density ratios against the truth, on held-out transitions of the Gaussian pendulum."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing, units
from experiments.harness.result import Figure, Part, Row
from experiments.harness.units import Unit
from experiments.imitation import Config
from jaxlab import envs, imitation
from jaxlab.core import loop

LOSSES: dict[str, imitation.Loss] = {
    "ranking": "ranking_nce",
    "spectral": "spectral",
    "spectral, regularized": "spectral",
}
CLAIM = "Features learned from any data hold the density of the dynamics"
EPISODES, HELD = 60, 800
BATCH = 256
"""Transitions of a step, whatever the comparison takes: the published number."""


class Ratios(NamedTuple):
    """By loss.

    Attributes:
        truth: `[HELD]` true log-ratios.
        found: By loss `[HELD]` learned ones.
        noise_mean: By loss, mean ratio under the noise, which is 1 of a density ratio.
    """

    truth: np.ndarray
    found: dict[str, np.ndarray]
    noise_mean: dict[str, float]


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures, or reads, then tells and draws."""
    names = ("seed", "features", "width", "pretraining")
    basis = {"batch": BATCH, **{name: getattr(config, name) for name in names}}
    unit = Unit("ratios", basis, lambda _: measure(config), Ratios)
    found = units.run([unit], out, title="imitation, ratios")["ratios"]
    rows = []
    for name in LOSSES:
        r = float(np.corrcoef(found.found[name], found.truth)[0, 1])
        rows.append(Row(CLAIM, f"Correlation of log ratios with the truth, {name}", r))
    for name in LOSSES:
        note = "Of the ranking loss it is 1 by construction." if name == "ranking" else ""
        mean = found.noise_mean[name]
        rows.append(Row(CLAIM, f"Mean ratio under the noise, {name}", mean, note=note))
    return Part(
        tuple(rows),
        (_draw(found, out),),
        limits=(
            "The true ratio is that to the law of the recorded next states, a mixture of as many "
            "Gaussians as there are transitions.",
        ),
    )


def measure(config: Config) -> Ratios:
    """Records, learns by each loss, and looks at held-out transitions of both policies."""
    env = envs.make_env(imitation.gaussian_pendulum(), 4 * EPISODES)
    by_expert = (jnp.arange(4 * EPISODES) % 2 == 0)[:, None]

    def act(key: jax.Array, obs: jax.Array) -> jax.Array:
        torque = jax.random.uniform(key, (4 * EPISODES, 1), minval=-1.0)
        return jnp.where(by_expert, imitation.pump_and_balance(obs), torque)

    played = imitation.record(jax.random.key(config.seed), act, env)
    middle = 2 * EPISODES
    parts = (range(0, middle, 2), range(1, middle, 2), range(middle, 2 * middle))
    expert, logs, held = (imitation.take_episodes(played, part) for part in parts)
    demos = imitation.prepare(expert, logs)
    seen = imitation.prepare(held, normalizer=demos.normalizer).expert
    rows = np.random.default_rng(config.seed).integers(0, seen.obs.shape[0], HELD)
    seen = jax.tree.map(lambda x: x[rows], seen)
    data = imitation.union(demos)
    shift, scale = (jnp.asarray(x)[None] for x in demos.normalizer)

    def raw(x: jax.Array) -> jax.Array:
        return x[:, :3] / scale - shift

    truth = imitation.true_log_ratio(
        raw(seen.obs), seen.action, raw(seen.next_obs), raw(data.obs), data.action
    )
    representation = imitation.make_representation(
        demos.obs_size,
        demos.action_size,
        feature_size=config.features,
        hidden=(config.width, config.width),
    )
    found, noise_mean = {}, {}
    for name, loss in LOSSES.items():
        algorithm = imitation.make_pretraining(
            data,
            representation,
            loss=loss,
            reg_weight=10.0 if "regularized" in name else 0.0,
            learning_rate=1e-3,
            batch_size=max(BATCH, -(-config.features // 4)),
        )
        # The ranking loss is sharpest early; with many more steps it fits the batch.
        num_steps = min(config.pretraining, 1000) if name == "ranking" else config.pretraining
        params = loop.run(
            algorithm, jax.random.key(config.seed), num_steps=num_steps, chunk_size=num_steps
        ).state.params
        given = (representation, params, seen.obs, seen.action, seen.next_obs)
        noise = data.next_obs[:: max(len(data.next_obs) // 4000, 1)]
        if name == "ranking":
            found[name] = np.asarray(imitation.ranking_log_ratio(*given, noise))
            noise_mean[name] = 1.0
            continue
        found[name] = np.log(np.maximum(np.asarray(imitation.ratio(*given)), 1e-6))
        looked = imitation.diagnose(jax.random.key(1), representation, params, data)
        noise_mean[name] = float(looked["noise_mean"])
    return Ratios(np.asarray(truth), found, noise_mean)


def _draw(found: Ratios, out: pathlib.Path) -> Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(LOSSES))
        ends = [float(f(found.truth)) for f in (np.min, np.max)]
        for axis, (name, mine) in zip(axes.flat, found.found.items(), strict=True):
            axis.scatter(found.truth, mine, s=6, alpha=0.4, color=drawing.BLUE)
            axis.plot(ends, ends, "--", color=drawing.MUTED)
            axis.set(title=name, xlabel="True log ratio", ylabel="Learned log ratio")
        drawing.save(figure, out / "ratios.png")
    return Figure(
        "ratios.png",
        "Held-out transitions of the pendulum; the dashed line is the truth.",
        "Learned against true logarithms of density ratios, for three losses",
    )

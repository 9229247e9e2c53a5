"""What features are like, whether they help or not: calibration, retrieval, width."""

import pathlib
from collections.abc import Mapping

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.result import Figure, Part, Table
from experiments.imitation import Config, methods
from experiments.imitation.methods import Features
from jaxlab import imitation
from jaxlab.imitation import Demonstrations, Pretrained

LABELS = {
    "union": "all data",
    "expert": "the expert's data",
    "random": "not learned",
    "binary_nce": "logistic loss",
    "ranking_nce": "ranking loss",
}
"""What kinds of features are called in a picture."""
NUM = 512
"""Transitions that are looked at, each among the next states of all."""


def run(
    config: Config,
    found: Mapping[Features, Pretrained],
    demos: Demonstrations,
    task: str,
    title: str,
    out: pathlib.Path,
) -> Part:
    """Looks at each kind of features of a task, on transitions of expert and logs."""
    if not found:
        return Part(())
    looked = {
        _label(kind): jax.device_get(
            imitation.diagnose(
                jax.random.key(config.seed),
                methods.make_representation(config, demos, kind),
                pretrained.params,
                imitation.union(demos),
                num_samples=NUM,
            )
        )
        for kind, pretrained in found.items()
    }
    columns = ("retrieval", "positive", "negative", "noise_mean", "noise_std", "dead")
    table = Table(
        f"{title}: features",
        ("Features", "Retrieval", "h, transitions", "h, noise", "E[h]", "its std", "Dead"),
        tuple(
            (name, *(float(f"{float(one[field]):.3g}") for field in columns))
            for name, one in looked.items()
        ),
        f"Of {NUM} transitions. Retrieval: how often the own next state has the largest h of all "
        f"{NUM}. E[h] is the mean under the noise, 1 of a ratio of densities; its std is over "
        "states and actions. Dead: share of transitions with h below 1e-6. After the ranking loss "
        "h is a score.",
    )
    return Part((), (_draw(looked, task, title, out),), (table,))


def _label(features: Features) -> str:
    label = LABELS[features.kind]
    return label if features.share == 1.0 else f"{label}, {features.share:g} times as many"


def _draw(looked: Mapping[str, dict], task: str, title: str, out: pathlib.Path) -> Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 2)
        wide, found = axes.flat
        for i, (name, one) in enumerate(looked.items()):
            values = np.maximum(one["singular_values"] / one["singular_values"][0], 1e-9)
            style = "-" if i < len(drawing.COLORS) else "--"
            color = drawing.COLORS[i % len(drawing.COLORS)]
            wide.plot(np.arange(1, len(values) + 1), values, style, color=color, label=name)
        wide.set(
            title="How many directions",
            xlabel="Singular value, by rank",
            ylabel="Share of the largest",
        )
        wide.set_xscale("log")
        wide.set_yscale("log")
        y = np.arange(len(looked))[::-1]
        found.barh(y, [float(one["retrieval"]) for one in looked.values()], color=drawing.BLUE)
        found.set_yticks(y, list(looked))
        found.set(title=f"Own next state found among {NUM}", xlabel="Share", xlim=(0.0, 1.0))
        drawing.legend(figure)
        drawing.save(figure, out / f"features_{task}.png")
    return Figure(
        f"features_{task}.png",
        f"{title}: features by what they were learned from. Left: singular values of their second "
        "moments, as many as the last hidden layer is wide. Right: how often the own next state "
        f"has the largest h; by chance {1 / NUM:.2g}.",
        f"Singular values and retrieval of features in {title}",
    )

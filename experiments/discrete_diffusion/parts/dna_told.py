"""What is said of generated DNA: rows, a table, pictures, limits, and the records behind them."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from experiments.discrete_diffusion import Config
from experiments.harness import drawing, verdicts
from experiments.harness.result import Figure, Part, Row, Table
from jaxlab.rl.discrete import Surrogate, enhancers

OURS, START = ("FKL", "RKL"), "pre-trained"
COLUMNS = {
    "reward": ("Reward oracle", 2),
    "judge": ("Judging oracle", 2),
    "activity": ("Simulator", 2),
    "open_share": ("Accessible", 3),
    "trimer_correlation": ("3-mers", 3),
    "motif_correlation": ("Motifs", 3),
    "log_likelihood": ("Log-likelihood", 1),
    "distance": ("Distance", 3),
    "unique": ("Different", 3),
}
"""Numbers of a report, as the table shows them, and their digits."""


LOGOS = 4
"""Motifs whose sites are drawn."""
LETTERS = FontProperties(family="DejaVu Sans", weight="bold")
INKS = (drawing.GREEN, drawing.BLUE, drawing.ORANGE, drawing.RED)
"""Of A, C, G and T."""


class Ground(NamedTuple):
    """What all methods begin from.

    Attributes:
        priors: pre-trained parameters of the diffusion, and of the policies "factored" and
            "autoregressive".
        reward: the oracle that is optimized.
        judge: the one that is not.
        reference: `[R, L]` the most active of the corpus.
        natural: numbers of `DnaReport` of the corpus itself.
    """

    priors: dict[str, Any]
    reward: Surrogate
    judge: Surrogate
    reference: np.ndarray
    natural: dict[str, np.ndarray]


class Judged(NamedTuple):
    """One method.

    Attributes:
        report: `[seeds]` each of the numbers of `DnaReport`, by name; NaN for a seed that blew up.
        calls: calls of the reward oracle, of one seed.
        course: calls `[chunks]` and mean rewards `[chunks, seeds]` in training; empty without.
        trimers: `[64]` how often groups of three bases occur, in what all seeds drew.
        sites: `[M, W, 4]` of `enhancers.site_counts`, in what all seeds drew.
        drawn: sequences that all seeds drew.
    """

    report: dict[str, np.ndarray]
    calls: int
    course: tuple[np.ndarray, np.ndarray]
    trimers: np.ndarray
    sites: np.ndarray
    drawn: int


def tell(
    found: dict[str, Judged],
    rates: Mapping[str, float],
    ground: Ground,
    config: Config,
    out: pathlib.Path,
) -> Part:
    """Returns rows, the table of all methods, pictures of those with a seed left, and limits."""
    left = {n: one for n, one in found.items() if np.isfinite(one.report["activity"]).any()}
    return Part(
        tuple(_rows(found)),
        (_pareto(left, out), _trimers(left, ground, out), _logos(left, ground, out))
        if left
        else (),
        (_table(found, rates, ground),),
        _limits(ground, config),
    )


def _rows(found: dict[str, Judged]) -> list[Row]:
    rows = []
    for name, one in found.items():
        if name in OURS:
            rows += [
                verdicts.row(
                    "Fine-tuned sequences are truly active",
                    f"Simulated activity of {name}",
                    one.report["activity"],
                    (rival, other.report["activity"]),
                    larger_is_better=True,
                    paired=False,
                    note=f"{one.calls:,} calls of the oracle a seed; the other's {other.calls:,}.",
                )
                for rival, other in found.items()
                if rival not in (*OURS, START)
            ]
            rows.append(
                verdicts.row_alone(
                    "They stay natural",
                    f"Correlation of 3-mers with the most active of the corpus, {name}",
                    one.report["trimer_correlation"],
                    paper="0.886 (DRAKES, real data)",
                )
            )
    for name, one in found.items():
        if name != START:
            rows.append(
                verdicts.row_alone(
                    "What is gained is real",
                    f"Oracle's reward less the simulator's activity, {name}",
                    one.report["reward"] - one.report["activity"],
                    note=f"Medians; {one.calls:,} calls of the oracle a seed.",
                )
            )
    return rows


def _table(found: dict[str, Judged], rates: Mapping[str, float], ground: Ground) -> Table:
    def cells(name: str, report: Mapping[str, np.ndarray]) -> list[float | str | None]:
        values = {k: verdicts.average(np.atleast_1d(report[k])) for k in COLUMNS}
        shown = [round(values[k], digits) for k, (_, digits) in COLUMNS.items()]
        return [name, *(x if x == x else None for x in shown)]

    rows: list[tuple[float | str | None, ...]] = [(*cells("corpus", ground.natural), 0, None)]
    for name, one in found.items():
        rows.append((*cells(name, one.report), one.calls, rates.get(name)))
    return Table(
        "Generated DNA",
        ("Method", *(title for title, _ in COLUMNS.values()), "Calls", "Learning rate"),
        tuple(rows),
        "Medians of activity by the oracle that was optimized, by another, and by the simulator; "
        "share of accessible sequences; correlation of 3-mers and of motif hits with the most "
        "active of the corpus; median log-likelihood under the pre-trained policy; share of bases "
        "in which two sequences differ; different sequences over all. Means over seeds.",
    )


def _limits(ground: Ground, config: Config) -> tuple[str, ...]:
    return (
        "The truth is a simulator of this library: its activities compare with no published ones.",
        f"Sequences have {config.dna_length} bases and networks {config.dna_hidden} channels; the "
        "published task has 200 and 128.",
        f"On held-out sequences the oracles correlate {float(ground.reward.correlation):.2f} and "
        f"{float(ground.judge.correlation):.2f} with noisy labels; both learned from "
        f"{config.dna_corpus // 2:,} sequences.",
        "Corpus, oracles and pre-trained policy are common to all methods and seeds.",
        "Temperatures and prices are not tuned: 0.3 for FKL, else the methods' defaults.",
        "SVDD has as many candidates at each step as published, ten at least, and more calls of "
        "the oracle than the others where these do not suffice; rows and table say how many.",
        "The diffusion has convolutions; the autoregressive policy is a transformer of "
        f"{config.num_layers} layers of width {config.width}, pre-trained in as many steps.",
        f"Fine-tuned methods choose their learning rate of "
        f"{', '.join(f'{r:g}' for r in config.dna_rates)}, independent bases of ten times these, "
        "by the judging oracle, on "
        f"{config.tuning_seeds} seeds of their own and half of the calls."
        if config.tuning_seeds and len(config.dna_rates) > 1
        else "No method is tuned.",
    )


def _pareto(found: dict[str, Judged], out: pathlib.Path) -> Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 2)
        for axis, (k, label) in zip(
            axes[0],
            (("log_likelihood", "Log-likelihood, pre-trained"), ("reward", "Reward oracle")),
            strict=True,
        ):
            for i, (name, one) in enumerate(found.items()):
                color, marker = drawing.COLORS[i % 7], "osD"[i // 7]
                x, y = one.report[k], one.report["activity"]
                style = {"color": color, "marker": marker}
                axis.scatter(x, y, s=16, alpha=0.5, **style)
                axis.scatter(np.nanmean(x), np.nanmean(y), s=60, label=name, **style)
            axis.set_xlabel(label)
            axis.set_ylabel("Simulated activity")
        low, high = axes[0, 1].get_ylim()
        axes[0, 1].plot([low, high], [low, high], color=drawing.MUTED, lw=1, ls="--", zorder=0)
        axes[0, 0].set_title("Active, and natural?")
        axes[0, 1].set_title("Real, or found in the oracle?")
        drawing.legend(figure)
        drawing.save(figure, out / "dna.png")
    return Figure(
        "dna.png",
        "True activity against naturalness and against what the optimized oracle says; below the "
        "dashed line the oracle promises too much. Small points are seeds.",
        "Simulated activity against log-likelihood and against predicted activity, by method",
    )


def _cast(found: dict[str, Judged]) -> list[str]:
    return [name for name in (*OURS, "DRAKES") if name in found] or list(found)[:1]


def _trimers(found: dict[str, Judged], ground: Ground, out: pathlib.Path) -> Figure:
    shown = _cast(found)
    natural = np.asarray(enhancers.trimers(jnp.asarray(ground.reference)))
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(shown))
        for axis, name in zip(axes[0], shown, strict=True):
            x, y = 100 * natural / natural.sum(), found[name].trimers
            axis.scatter(x, 100 * y / y.sum(), s=16, color=drawing.BLUE)
            end = max(x.max(), (100 * y / y.sum()).max())
            axis.plot([0, end], [0, end], color=drawing.MUTED, lw=1, ls="--")
            axis.set_title(name)
            axis.set_xlabel("Most active of the corpus, %")
            axis.set_ylabel("Generated, %")
        drawing.save(figure, out / "trimers.png")
    return Figure(
        "trimers.png",
        "How often each group of three bases occurs, in natural active and in generated sequences.",
        "Scatter of the frequencies of 64 groups of three bases",
    )


def _logos(found: dict[str, Judged], ground: Ground, out: pathlib.Path) -> Figure:
    """A line for each of the motifs that are most frequent in nature, a panel for each method."""
    natural = np.asarray(enhancers.site_counts(jnp.asarray(ground.reference)))
    counts = {"natural": (natural, len(ground.reference))}
    counts |= {name: (found[name].sites, found[name].drawn) for name in _cast(found)}
    often = np.argsort(-natural[:, 0].sum(axis=-1), kind="stable")[:LOGOS]
    with plt.rc_context({**drawing.STYLE, "axes.grid": False}):
        figure, axes = drawing.panels(len(often), len(counts), height=1.5)
        for row, motif in zip(axes, often, strict=True):
            for axis, (name, (sites, number)) in zip(row, counts.items(), strict=True):
                _logo(axis, sites[motif, : enhancers.WIDTHS[motif]])
                of_hundred = 100.0 * sites[motif, 0].sum() / max(number, 1)
                axis.set_title(f"{enhancers.MOTIFS[motif]}, {name}: {of_hundred:.0f}")
        for axis in axes[:, 0]:
            axis.set_ylabel("Bits")
        drawing.save(figure, out / "logos.png")
    return Figure(
        "logos.png",
        "Sites of the motifs that are most frequent in the most active natural sequences: the "
        "height of a letter is its share times the information of its place. Behind the name, the "
        "sites in a hundred sequences.",
        "Sequence logos of motif sites in natural and in generated sequences",
    )


def _logo(axis: Axes, counts: np.ndarray) -> None:
    """Draws letters upon each other, the most frequent on top."""
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    share = counts / total
    bits = 2.0 + np.sum(share * np.log2(np.where(share > 0.0, share, 1.0)), axis=1)
    heights = share * np.where(counts.sum(axis=1) > 0, bits, 0.0)[:, None]
    for place, column in enumerate(heights):
        bottom = 0.0
        for base in np.argsort(column, kind="stable"):
            if column[base] > 0.01:
                letter = TextPath((0.0, 0.0), enhancers.BASES[base], size=1.0, prop=LETTERS)
                box = letter.get_extents()
                fit = Affine2D().translate(-box.x0, -box.y0)
                fit = fit.scale(0.9 / box.width, column[base] / box.height)
                path = fit.translate(place + 0.05, bottom).transform_path(letter)
                axis.add_patch(PathPatch(path, color=INKS[base], lw=0))
                bottom += column[base]
    axis.set(xlim=(0, len(heights)), ylim=(0.0, 2.0))
    axis.set_xticks([])

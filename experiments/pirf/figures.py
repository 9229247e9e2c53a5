"""Pictures: fields and residuals, fidelity against residual, spectra, the way down, values."""

import pathlib

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import drawing
from experiments.harness.result import Figure
from experiments.pirf import Config, methods
from experiments.pirf.methods import BASE, DATA, FIRMER, LOOSE, OURS, PUBLISHED
from experiments.pirf.rows import ZERO, Found, Looked, at, best
from experiments.pirf.tasks import Task
from experiments.pirf.values import LEVELS
from jaxlab.diffusion import edm

LEAST = 1e-4
"""Where smaller residuals are drawn."""
CAST = (DATA, BASE, OURS, FIRMER, LOOSE, PUBLISHED)
"""Who is in the pictures of fields, spectra and ways."""
INK = {
    DATA: drawing.INK,
    BASE: drawing.GRAY,
    OURS: drawing.BLUE,
    FIRMER: drawing.SKY,
    LOOSE: drawing.ORANGE,
    PUBLISHED: drawing.RED,
}


def draw(found: Found, task: Task, config: Config, out: pathlib.Path) -> tuple[Figure, ...]:
    """Draws all pictures of one law."""
    made = [fields(found, task, out), spectra(found, task, out)]
    if len(found) > 2:
        made.insert(1, pareto(found, task, config, out))
    return (*made, path(found, task, config, out))


def fields(found: Found, task: Task, out: pathlib.Path) -> Figure:
    """Draws fields of each model below each other, a panel a channel, and their residuals."""
    cast = [name for name in CAST if name in found]
    shown = [found[name][0] for name in cast]
    file = f"fields_{task.name}.png"
    with plt.rc_context({**drawing.STYLE, "axes.grid": False}):
        channels = task.law.channels
        figure, axes = drawing.panels(1, len(channels) + 1)
        figure.set_size_inches(3.6 * (len(channels) + 1), 0.78 * len(cast) + 0.6)
        for i, (axis, channel) in enumerate(zip(axes.flat, channels, strict=False)):
            tiles = [one.shown[..., i] for one in shown]
            limit = float(np.max(np.abs(tiles[0])))
            axis.imshow(_mosaic(tiles), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.set_title(f"{channel}, {-limit:.2g} (blue) to {limit:.2g}")
        left = [np.log10(np.abs(one.left) + 1e-6) for one in shown]
        axes[0][-1].imshow(_mosaic(left), cmap="magma", vmin=-3.0, vmax=0.0)
        axes[0][-1].set_title("residual, 0.001 (dark) to 1")
        for i, axis in enumerate(axes.flat):
            size = (left[0] if i == len(channels) else shown[0].shown[..., 0]).shape[1] + 1
            axis.set_xticks([])
            axis.set_yticks([size * (k + 0.5) - 1 for k in range(len(cast))], cast)
            axis.tick_params(length=0, labelcolor=drawing.INK)
            for spine in axis.spines.values():
                spine.set_visible(False)
        drawing.save(figure, out / file)
    return Figure(
        file,
        f"{task.law.name}: three fields of each model from the same noise, first seed (the data's "
        "are others), in normalized units, and the size of what is left of the law inside.",
        f"Fields of {', '.join(cast)}, and maps of their residuals",
    )


def pareto(found: Found, task: Task, config: Config, out: pathlib.Path) -> Figure:
    """Draws the residual against how far the fields are from data."""
    file = f"pareto_{task.name}.png"
    kinds = {
        "base": (drawing.INK, [BASE]),
        "PIRF": (drawing.BLUE, [OURS]),
        "PIRF, other holds, K, layers": (drawing.SKY, [n for n in methods.TUNED if n != OURS]),
        "tuned on data": (drawing.GREEN, list(methods.ON_DATA)),
        "guided": (drawing.ORANGE, list(methods.GUIDED)),
        "projected": (drawing.VIOLET, list(methods.PROJECTED)),
    }
    named = {best(found, kind, config) for kind in ("DiffusionPDE", "CoCoGen")}
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 1, height=4.6)
        figure.set_size_inches(8.2, 4.8)
        axis, texts, nameless = axes[0][0], [], []
        for label, (ink, names) in kinds.items():
            there = [name for name in names if name in found]
            if there:
                axis.plot([], [], "o", c=ink, label=label)
            for name in there:
                x = at(found, name, "spectrum", config).max(axis=1)
                y = np.maximum(at(found, name, "interior", config), LEAST)
                if not np.isfinite(np.mean(x)):
                    continue
                flagged = np.any(at(found, name, "flags", config), axis=1)
                hollow = flagged.mean() > 0.5
                place = float(np.mean(x)), float(np.mean(y))
                axis.plot(*place, "o", c=ink, mfc="white" if hollow else ink)
                if name not in methods.GUIDED or name in named:
                    texts.append((*place, name))
                else:
                    nameless.append(place)
        axis.plot([], [], "o", c=drawing.MUTED, mfc="white", label="flagged in most runs")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("Distance of log spectra to the data's, the worse channel")
        axis.set_ylabel("Mean square of the residual, inside")

        low, high = axis.get_xlim()
        ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0) if low < t < high]
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()

        drawing.legend(figure)
        drawing.save(figure, out / file, lambda: drawing.name_points(axis, texts, others=nameless))
    return Figure(
        file,
        f"{task.law.name}: how lawful fields are against how like the data they are; lower left is "
        "better. Means over seeds; hollow where the detector flags most of them; a residual below "
        "1e-4 is drawn there.",
        "Residual against the distance of spectra, a point a method",
    )


def spectra(found: Found, task: Task, out: pathlib.Path) -> Figure:
    """Draws the mean power of cosine coefficients by radius."""
    file = f"spectra_{task.name}.png"
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(task.law.channels))
        for i, (axis, channel) in enumerate(zip(axes.flat, task.law.channels, strict=True)):
            for name in (n for n in CAST if n in found):
                power = np.exp(np.mean([one.log_spectrum[:, i] for one in found[name]], axis=0))
                style = ":" if name == DATA else "-"
                axis.plot(np.arange(1, len(power) + 1), power, style, c=INK[name], label=name)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_title(f"Spectrum of {channel}")
            axis.set_xlabel("Radius of cosine coefficients")
            axis.set_ylabel("Mean power")
        drawing.legend(figure)
        drawing.save(figure, out / file)
    return Figure(
        file,
        f"{task.law.name}: what is off the data's line at the right is a spectrum's tail.",
        "Spectra of the fields of models and data",
    )


def path(found: Found, task: Task, config: Config, out: pathlib.Path) -> Figure:
    """Draws the residual of the denoised field along the sampler's way."""
    file = f"path_{task.name}.png"
    levels = edm.sigmas(config.num_steps)[:-1]
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 1)
        axis = axes[0][0]
        for name in (n for n in CAST if n in found and len(found[n][0].path)):
            y = np.stack([one.path for one in found[name]], axis=1)
            drawing.band(axis, levels, y, INK[name], name)
        axis.invert_xaxis()
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("Level of noise, from the start to the end")
        axis.set_ylabel("Mean square of R(D(x_t)), inside")
        drawing.legend(figure)
        drawing.save(figure, out / file)
    return Figure(
        file,
        f"{task.law.name}: residual of the denoised field along the way; the last point is that of "
        "the sample. Means and ranges of seeds.",
        "Residual of the denoised field against the level of noise",
    )


def values(looked: Looked, out: pathlib.Path) -> Figure:
    """Draws the value that guidance takes, and the true one, against the level of noise."""
    drawn = {pair: one for pair, one in looked.items() if np.max(one.true) > ZERO} or looked
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, len(drawn))
        for axis, ((law, source), one) in zip(axes.flat, drawn.items(), strict=True):
            for x, ink, line, label in (
                (one.taken, drawing.RED, "o-", "of the denoised field, as guidance takes it"),
                (one.true, drawing.BLUE, "o--", "mean over the fields it may become"),
            ):
                axis.plot(LEVELS, np.mean(x, axis=1), line, c=ink, label=label)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_title(f"{law}, fields of the {source}")
            axis.set_xlabel("Level of noise")
            axis.set_ylabel("Mean square of the residual")
        drawing.legend(figure)
        drawing.save(figure, out / "values.png")
    return Figure(
        "values.png",
        "The residual that a noisy state is worth, and what guidance takes for it. Data that obey "
        "a linear law are not drawn: both are zero to rounding.",
        "Two values of noisy states against the level of noise, a panel a law",
    )


def _mosaic(tiles: list[np.ndarray]) -> np.ndarray:
    """Puts fields `[K, H, W]` beside each other, models below each other, with gaps."""
    lines = [
        np.concatenate([np.pad(x, ((0, 1), (0, 1)), constant_values=np.nan) for x in one], axis=1)
        for one in tiles
    ]
    return np.concatenate(lines, axis=0)

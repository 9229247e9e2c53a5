"""What is said of macro-actions: rows, a table, a picture, limits, and the record behind them."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.discrete_diffusion import Config
from experiments.harness import drawing, verdicts
from experiments.harness.result import Figure, Part, Row, Table
from jaxlab import envs

OURS = ("F2 candidates", "R2 ratios")
RIVALS = ("PPO, factored", "PPO, autoregressive", "DQN")
TITLES = {
    "deep_sea": "deep sea",
    "breakout": "Breakout",
    "space_invaders": "Space Invaders",
    "asterix": "Asterix",
    "freeway": "Freeway",
}
SIZE = 8
"""Rows of the deep sea."""
Cell = tuple[str, int, str]
"""Game, K, method."""


class Outcome(NamedTuple):
    """One method on one game with macro-actions of one length.

    Attributes:
        final: `[seeds]` mean return of whole episodes at the end, NaN for a seed that blew up.
        curve: Steps of the game `[chunks]` and mean returns `[chunks, seeds]`.
    """

    final: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]


def tell(
    found: Mapping[Cell, Outcome],
    chosen: Mapping[Cell, Mapping[str, float]],
    config: Config,
    out: pathlib.Path,
    *,
    left_out: tuple[str, ...],
) -> Part:
    """Returns rows, a table for each game, the picture, and limits."""
    games = tuple(dict.fromkeys(game for game, _, _ in found))
    glances = set(config.control_glances) - set(config.control_games)
    return Part(
        tuple(row for g in games if g not in glances for row in _rows(g, found)),
        _draw(games, found, out),
        tuple(_table(game, found, chosen) for game in games),
        _limits(config, tuple(g for g in games if g in glances)) + left_out,
    )


def optimum(game: str) -> float | None:
    """The best return there is, where it is known."""
    return envs.deep_sea_optimum(SIZE) if game == "deep_sea" else None


def _rows(game: str, found: Mapping[Cell, Outcome]) -> list[Row]:
    title, best = TITLES[game], optimum(game)
    of_game = {(k, name): one.final for (g, k, name), one in found.items() if g == game}
    lengths = sorted({k for k, _ in of_game})
    note = "" if best is None else f"The best there is: {best:.4g}."
    rows = []
    if best is not None:
        k = lengths[-1]
        rows += [
            verdicts.row_alone(
                "The best return is found",
                f"Share of the best return of {name}, {title}, K = {k}",
                100.0 * final / best,
                unit="%",
            )
            for (length, name), final in of_game.items()
            if length == k
        ]
    for k in reversed(lengths):
        for name in OURS:
            for rival in RIVALS:
                if (k, name) in of_game and (k, rival) in of_game:
                    rows.append(
                        verdicts.row(
                            "Diffusion policies earn more than others at equal steps of a game",
                            f"Return of {name}, {title}, K = {k}",
                            of_game[k, name],
                            (rival, of_game[k, rival]),
                            larger_is_better=True,
                            paired=False,
                            note=note,
                        )
                    )
    for name in OURS:
        for k in lengths[1:]:
            if (k, name) in of_game and (lengths[0], name) in of_game:
                rows.append(
                    verdicts.row(
                        "Choices made at once are worth it",
                        f"Return of {name}, {title}, K = {k}",
                        of_game[k, name],
                        (f"K = {lengths[0]}", of_game[lengths[0], name]),
                        larger_is_better=True,
                        paired=False,
                        note=note,
                    )
                )
    return rows


def _table(
    game: str, found: Mapping[Cell, Outcome], chosen: Mapping[Cell, Mapping[str, float]]
) -> Table:
    names = tuple(dict.fromkeys(name for g, _, name in found if g == game))
    lengths = sorted({k for g, k, _ in found if g == game})

    def cell(k: int, name: str) -> float | None:
        one = found.get((game, k, name))
        value = np.nan if one is None else verdicts.average(one.final)
        return round(value, 4) if value == value else None

    def settings(name: str) -> str:
        each = [chosen[game, k, name] for k in lengths if (game, k, name) in chosen]
        setting = next(iter(each[0])).replace("_", " ")
        return f"{setting} {', '.join(f'{next(iter(x.values())):g}' for x in each)}"

    rows: list[tuple[float | str | None, ...]] = [
        (name, *(cell(k, name) for k in lengths), settings(name)) for name in names
    ]
    best = optimum(game)
    if best is not None:
        rows.append(("the best there is", *(round(best, 4) for _ in lengths), ""))
    return Table(
        f"Macro-actions, {TITLES[game]}",
        ("Method", *(f"K = {k}" for k in lengths), "Settings"),
        tuple(rows),
        "Mean return of whole episodes at the end; the setting that was chosen for each K.",
    )


def _draw(
    games: tuple[str, ...], found: Mapping[Cell, Outcome], out: pathlib.Path
) -> tuple[Figure, ...]:
    left = {cell: x.final for cell, x in found.items() if np.isfinite(x.final).any()}
    if not left:
        return ()
    with plt.rc_context(drawing.STYLE):
        columns = min(len(games), 2)
        figure, axes = drawing.panels(-(-len(games) // columns), columns)
        for axis in axes.flat[len(games) :]:
            axis.set_axis_off()
        for axis, game in zip(axes.flat, games, strict=False):
            names = tuple(dict.fromkeys(name for _, _, name in found))
            for color, name in zip(drawing.COLORS, names, strict=False):
                shown = sorted((k, x) for (g, k, n), x in left.items() if (g, n) == (game, name))
                if not shown:
                    continue
                lengths = [k for k, _ in shown]
                axis.plot(
                    lengths, [np.nanmean(x) for _, x in shown], "o-", ms=4, color=color, label=name
                )
                for k, x in shown:
                    axis.plot([k, k], [np.nanmin(x), np.nanmax(x)], color=color, lw=1, alpha=0.5)
            best = optimum(game)
            if best is not None:
                axis.axhline(best, color=drawing.MUTED, lw=1, ls="--", label="the best there is")
            lengths = sorted({k for g, k, _ in found if g == game})
            axis.set(xlabel="Choices at once K", ylabel="Return")
            axis.set_title(TITLES[game][:1].upper() + TITLES[game][1:])
            axis.set_xscale("log", base=2)
            axis.set_xticks(lengths, [str(k) for k in lengths])
            axis.minorticks_off()
        drawing.legend(figure)
        drawing.save(figure, out / "macros.png")
    return (
        Figure(
            "macros.png",
            "Returns at the end against the number of choices that are made at once; lines are the "
            "range of the seeds.",
            "Return against the length of macro-actions, by method and game",
        ),
    )


def _limits(config: Config, glances: tuple[str, ...]) -> tuple[str, ...]:
    seen = (
        f"Only looked at, with two seeds, an untuned learning rate and no verdict: "
        f"{', '.join(TITLES[name] for name in glances)}.",
    )
    return (
        *(seen if glances else ()),
        "The paper plays Atari and MinAtar with sizes that are not known; these are small.",
        f"Every method plays {config.control_frames:,} steps of a game, and of macro-actions that "
        "an episode's end cuts short all K tokens count.",
        "Policies are drawn from as they were trained; F2 plays the best of ten by its critics, "
        "DQN the best of all.",
        f"Each chooses its learning rate of {', '.join(f'{r:g}' for r in config.control_rates)} on "
        f"{config.tuning_seeds} seeds of their own and a quarter of the steps; other settings are "
        "fixed in the study, not tuned, and some are not the methods' defaults."
        if config.tuning_seeds and len(config.control_rates) > 1
        else "No method is tuned.",
    )

"""The games by name, and payoffs of one's own from a file."""

import csv
import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab import envs
from jaxlab.core import tables, text_files
from jaxlab.envs import Game


class Exact(NamedTuple):
    """A game that is played exactly.

    Attributes:
        game: The game.
        scale: Standard deviation of the logits of its starts.
        most: Starts that are enough, where a step takes long.
    """

    game: Game
    scale: float
    most: int


def exact_games(payoff: str) -> dict[str, Exact]:
    """Returns the games of exact play, or the one that a file holds."""
    if payoff:
        return {"own game": Exact(read_payoff(payoff), 1.0, 1000)}
    return {
        "climbing": Exact(envs.climbing(), 1.0, 1000),
        "penalty": Exact(envs.penalty(100.0), 1.0, 1000),
        "gold mine": Exact(envs.gold_mine(), 0.5, 64),
    }


SAMPLED = {
    "climbing": envs.climbing,
    "climbing, partly random": lambda: envs.climbing("partly"),
    "climbing, fully random": lambda: envs.climbing("fully"),
    "penalty": lambda: envs.penalty(100.0),
    "gold mine": envs.gold_mine,
}


def sampled_games(payoff: str, names: tuple[str, ...]) -> dict[str, Game]:
    """Returns the games of sampled play, or the one that a file holds.

    Raises:
        ValueError: if a name is unknown.
    """
    for name in names:
        if name not in SAMPLED:
            raise ValueError(f"games must be among {'; '.join(SAMPLED)}, got {name!r}")
    if payoff:
        return {"own game": read_payoff(payoff)}
    return {name: SAMPLED[name]() for name in names or SAMPLED}


def read_payoff(path: str) -> Game:
    """Reads a table of payoffs: a row for each action of the first agent, no header.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a cell is no finite number, or rows differ in length; the line is named.
    """
    text, _ = text_files.read_text(pathlib.Path(path), None)
    rows: list[list[float]] = []
    for line, cells in enumerate(csv.reader(text.removeprefix("\ufeff").splitlines()), start=1):
        if not any(cell.strip() for cell in cells):
            continue
        rows.append([tables.number(cell, "payoff", f"{path}, line {line}") for cell in cells])
        if len(rows[-1]) != len(rows[0]):
            raise ValueError(
                f"{path}, line {line}: rows must have equally many payoffs, got {len(rows[-1])} "
                f"after {len(rows[0])}"
            )
    if len(rows) < 2 or len(rows[0]) < 2:
        shape = f"{len(rows)} by {len(rows[0]) if rows else 0}"
        raise ValueError(f"{path}: both agents need two actions at least, got {shape}")
    return envs.matrix_game(np.array(rows), name="own game")

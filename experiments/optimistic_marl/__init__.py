"""Optimistic agents in games that punish whoever tries the best joint action alone."""

import dataclasses
from typing import Literal

SUMMARY = (
    "Optimistic multi-agent learning: how much optimism finds the best joint action, and where"
)

PartName = Literal["exact", "sampled", "stag", "ball", "cross_play", "deep"]
DeepName = Literal["spread", "predators", "stag", "overcooked", "smax"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison, on arXiv:2509.24047."""

    seed: int = 0
    """Seed of every random draw."""
    parts: tuple[PartName, ...] = ("exact", "sampled", "stag", "ball", "cross_play", "deep")
    """Exact play; sampled play with own and joint critics; stag hunt; ball; strangers; networks."""
    payoff: str = ""
    """CSV file with payoffs of one's own game, a row for each action of the first agent."""
    games: tuple[str, ...] = ()
    """Games of sampled play; all when empty."""
    betas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    """Parameters of the entropic measure, 0 among them."""
    starts: int = 200
    """Random starts of exact play, for each beta."""
    play_steps: int = 2000
    """Steps of exact play."""
    num_seeds: int = 32
    """Seeds of sampled play, for each beta."""
    updates: int = 4000
    """Updates of sampled play, each on 64 games."""
    stag_seeds: int = 10
    """Random starts of the stag hunt, for each loss and beta."""
    losses: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0)
    """What one agent alone at the stag costs."""
    ball_seeds: int = 10
    """Seeds of the ball, for each rule."""
    ball_trials: int = 1000
    """Steps of the ball, in trials of 667."""
    deep_tasks: tuple[DeepName, ...] = ("spread",)
    """What networks learn; the last two are JaxMARL's, which must be installed."""
    deep_seeds: int = 10
    """Seeds of the networks, for each method."""
    deep_steps: int = 1_000_000
    """Steps of the environments of one seed."""
    tuning_betas: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Of Op-IPPO, the best of which on seeds of their own is taken."""
    tuning_etas: tuple[float, ...] = (0.0, 0.3, 0.7)
    """Of OptiMAPPO, likewise."""
    tuning_seeds: int = 2
    """Seeds of that choice."""

    def __post_init__(self):
        least = {
            "starts": 2,
            "play_steps": 2,
            "num_seeds": 2,
            "updates": 2,
            "stag_seeds": 2,
            "ball_seeds": 2,
            "ball_trials": 1,
            "deep_seeds": 2,
            "deep_steps": 4096,
            "tuning_seeds": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if 0.0 not in self.betas or len(set(self.betas)) < 2:
            raise ValueError(f"betas must be several, with 0.0 among them, got {self.betas}")


PRESETS = {
    "smoke": Config(
        parts=("exact", "sampled"),
        games=("climbing", "climbing, fully random", "penalty", "gold mine"),
        betas=(0.0, 0.1, 0.3, 1.0),
        play_steps=800,
        updates=300,
    ),
    "cpu": Config(),
    "gpu": Config(
        parts=("deep",), deep_tasks=("spread", "overcooked", "smax"), deep_steps=10_000_000
    ),
}

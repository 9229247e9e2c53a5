"""Optimistic agents in games that punish whoever tries the best joint action alone."""

import dataclasses
from typing import Literal

SUMMARY = (
    "Optimistic multi-agent learning: how much optimism finds the best joint action, and where"
)

PartName = Literal["exact", "sampled", "rules", "stag", "ball", "cross_play", "deep"]
DeepName = Literal["spread", "predators", "stag", "overcooked", "smax"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison, on arXiv:2509.24047."""

    seed: int = 0
    """Seed of every random draw."""
    parts: tuple[PartName, ...] = (
        "exact",
        "sampled",
        "rules",
        "stag",
        "ball",
        "cross_play",
        "deep",
    )
    """Exact play; sampled play with own and joint critics; rules of Q-learning; stag hunt; ball;
    strangers; networks."""
    payoff: str = ""
    """CSV file with payoffs of one's own game, a row for each action of the first agent."""
    games: tuple[str, ...] = ()
    """Games of sampled play and of rules; all when empty."""
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
    plays: int = 40_000
    """Games of each rule of Q-learning, one at a time."""
    stag_seeds: int = 10
    """Random starts of the stag hunt, for each loss and beta."""
    losses: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0)
    """What one agent alone at the stag costs."""
    ball_seeds: int = 10
    """Seeds of the ball, for each rule."""
    ball_trials: int = 1000
    """Steps of the ball, in trials of 667."""
    deep_tasks: tuple[DeepName, ...] = ("spread", "predators")
    """What networks learn; the last two are JaxMARL's, which must be installed."""
    deep_seeds: int = 10
    """Seeds of the networks, for each method."""
    deep_steps: tuple[int, ...] = (1_000_000, 200_000)
    """Steps of the environments of one seed, for each of these tasks."""
    tuning_rates: tuple[float, ...] = (2.5e-4, 7e-4, 2e-3)
    """Learning rates of IPPO, the best of which on seeds of their own all networks take."""
    tuning_betas: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Of Op-IPPO, likewise chosen."""
    tuning_etas: tuple[float, ...] = (0.0, 0.3, 0.7)
    """Of OptiMAPPO."""
    tuning_seeds: int = 2
    """Seeds of these choices, and of those on the ball."""

    def __post_init__(self):
        least = {
            "starts": 2,
            "play_steps": 2,
            "num_seeds": 2,
            "updates": 2,
            "plays": 40,
            "stag_seeds": 2,
            "ball_seeds": 2,
            "ball_trials": 1,
            "deep_seeds": 2,
            "tuning_seeds": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if 0.0 not in self.betas or len(set(self.betas)) < 2:
            raise ValueError(f"betas must be several, with 0.0 among them, got {self.betas}")
        for name in ("tuning_rates", "tuning_betas", "tuning_etas"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if len(self.deep_steps) != len(self.deep_tasks) or min(self.deep_steps, default=0) < 4096:
            raise ValueError(
                f"deep_steps must be at least 4096 for each of {', '.join(self.deep_tasks)}, got "
                f"{self.deep_steps}"
            )


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
        parts=("deep",),
        deep_tasks=("spread", "predators", "overcooked", "smax"),
        deep_steps=(10_000_000,) * 4,
    ),
}

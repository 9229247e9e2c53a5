"""Offline imitation with features of the dynamics, beside what else imitates from the same data."""

import dataclasses
from typing import Literal

SUMMARY = "Offline imitation: features of the dynamics from any logs, then one trajectory"
Piece = Literal["identity", "ratios", "scores", "logs", "experts"]
TASKS = ("pendulum", "half_cheetah", "hopper_v5", "walker2d_v5")
"""Tasks that there are demonstrations of, or a recipe for them."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison, on arXiv:2508.14383."""

    seed: int = 0
    """Seed of every random draw."""
    num_seeds: int = 5
    """Runs a figure rests on, per method and number of trajectories, vmapped."""
    parts: tuple[Piece, ...] = ()
    """The theorem on finite processes; learned density ratios; imitation; the same by amount and
    quality of logs; experts of MuJoCo tasks, trained and recorded. When empty all but the last, by
    logs only where all methods are compared; of own data imitation alone."""
    tasks: tuple[str, ...] = ("pendulum",)
    """Tasks to compare all methods in, or to train experts of."""
    also: tuple[str, ...] = ()
    """Tasks in which ours, ValueDICE, BC and ILID are compared besides, with the fewest of the
    expert's episodes."""
    recorded: str | None = None
    """Folder of the part experts with TASK_expert.npz and TASK_logs.npz; for tasks that it has not,
    and by default, those of the repository."""
    expert: str | None = None
    """Own demonstrations, an npz file; with env, and logs beside it."""
    logs: str | None = None
    """Own transitions of any quality with the same dynamics, an npz file."""
    env: str | None = None
    """Task in which own demonstrations are judged, such as hopper_v5."""
    backend: Literal["c", "mjx", "brax", "jax"] = "c"
    """Engine of that task."""
    trajectories: tuple[int, ...] = (1, 4, 10)
    """Numbers of the expert's episodes to learn from; of own data those that there are, or all."""
    methods: tuple[str, ...] = ()
    """Methods to compare; all when empty, and of own data all but the variants of ours."""
    expert_steps: int = 300_000
    """Transitions that an expert of a MuJoCo task is trained on."""
    log_episodes: int = 60
    """Episodes of logs on the pendulum, of six qualities in equal shares."""
    features: int = 256
    """Features of the representation."""
    width: int = 128
    """Of both hidden layers of every network."""
    pretraining: int = 5000
    """Steps of the representation."""
    updates: int = 50_000
    """Steps of every method."""
    batch: int = 256
    """Transitions of a step, of either kind."""
    policy_rate: float = 1e-3
    """Learning rate of the saddle points' policies."""
    penalty_weight: float = 0.1
    """Of the saddle points' penalty on gradients; the released codes have 10."""
    evaluations: int = 10
    """During a run, evenly spaced; the last one counts."""
    episodes: int = 10
    """Of an evaluation, for each seed."""

    def __post_init__(self):
        least = {
            "num_seeds": 2,
            "log_episodes": 6,
            "features": 1,
            "width": 1,
            "pretraining": 1,
            "updates": 1,
            "batch": 1,
            "evaluations": 1,
            "episodes": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if self.updates < self.evaluations:
            raise ValueError(
                f"updates must be at least evaluations, got {self.updates} and {self.evaluations}"
            )
        if not self.trajectories or min(self.trajectories) < 1:
            raise ValueError(f"trajectories must be at least 1, got {self.trajectories}")
        if not self.policy_rate > 0.0:
            raise ValueError(f"policy_rate must be positive, got {self.policy_rate}")
        if not self.penalty_weight >= 0.0:
            raise ValueError(f"penalty_weight must be 0 or more, got {self.penalty_weight}")
        if not self.tasks or (unknown := [x for x in (*self.tasks, *self.also) if x not in TASKS]):
            given = unknown[0] if self.tasks else "none"
            raise ValueError(f"tasks must be among {', '.join(TASKS)}, got {given}")
        if "experts" in self.parts and "pendulum" in self.tasks:
            raise ValueError("the pendulum's expert is a formula; give tasks of MuJoCo to train")
        if self.expert_steps < 20_000:
            raise ValueError(f"expert_steps must be at least 20,000, got {self.expert_steps}")
        own = [name for name in ("expert", "logs", "env") if getattr(self, name) is not None]
        if own and len(own) < 3:
            raise ValueError(
                f"own data need expert, logs and env, got {', '.join(own)} alone; give all three"
            )
        if twice := set(self.tasks) & set(self.also):
            raise ValueError(f"also must name other tasks than tasks, got {min(twice)} in both")
        if own and set(self.parts) - {"scores"}:
            raise ValueError(f"own data have the part scores alone, got {', '.join(self.parts)}")

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parts of this run."""
        if self.parts:
            return self.parts
        if self.expert is not None:
            return ("scores",)
        return ("identity", "ratios", "scores", *(() if self.methods else ("logs",)))


PRESETS = {
    "smoke": Config(
        num_seeds=2,
        trajectories=(4,),
        methods=("ours", "BC"),
        log_episodes=18,
        features=32,
        width=32,
        pretraining=400,
        updates=400,
        batch=64,
        evaluations=1,
        episodes=8,
    ),
    "cpu": Config(
        tasks=("half_cheetah",),
        also=("pendulum", "hopper_v5", "walker2d_v5"),
        width=64,
        pretraining=2000,
        updates=8000,
        batch=64,
        evaluations=4,
        episodes=2,
    ),
    "gpu": Config(
        tasks=("half_cheetah",),
        features=1024,
        width=256,
        pretraining=10_000,
        updates=500_000,
        policy_rate=1e-5,
        penalty_weight=10.0,
        evaluations=100,
    ),
}

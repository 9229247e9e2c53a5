"""Flow and diffusion policies by mirror descent, beside every baseline on the same learner."""

import dataclasses
from typing import Literal

SUMMARY = (
    "FPMD: one-step flow policies against diffusion and Gaussian actors, and why one step works"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison, on arXiv:2507.23675 and arXiv:2502.00361."""

    seed: int = 0
    """Seed of every random draw."""
    num_seeds: int = 5
    """Runs a figure rests on, per task and method, vmapped."""
    tasks: tuple[str, ...] = ("pendulum", "multi_goal")
    """Tasks of the back-end."""
    backend: Literal["jax", "mjx", "c"] = "jax"
    """Physics: "jax" has the small tasks, "mjx" and "c" the nine of MuJoCo."""
    methods: tuple[str, ...] = ()
    """Methods to compare; all when empty."""
    parts: tuple[Literal["returns", "latency", "theory"], ...] = ("returns", "latency", "theory")
    """Returns of the methods; time of an action; the theory of one step on a bandit."""
    updates: int = 15_000
    """Steps of the environments, and gradient steps of the critics; a third for multi_goal."""
    num_envs: int = 5
    """Environments side by side."""
    batch_size: int = 128
    """Transitions of a gradient step."""
    warmup: int = 1000
    """Transitions by uniform actions before the first gradient step."""
    capacity: int = 100_000
    """Transitions that the replay holds."""
    width: int = 64
    """Of the three hidden layers of every network."""
    learning_rate: float = 9e-4
    """Of critics and policies; that of flow and diffusion policies falls to a tenth."""
    tuning_rates: tuple[float, ...] = (3e-4, 9e-4, 2.7e-3)
    """Learning rates that SAC, TD3 and PPO choose from; one: all keep `learning_rate`."""
    tuning_seeds: int = 2
    """Seeds of that choice, others than those of the comparison."""
    num_particles: int = 8
    """K, of which the best is taken."""
    flow_steps: int = 5
    """N of FPMD-R in training."""
    diffusion_steps: int = 10
    """Steps of the diffusion policies."""
    evaluations: int = 20
    """During a run, evenly spaced; the last one gives the final return."""
    save_every: int = 1
    """Evaluations from one checkpoint to the next."""
    eval_episodes: int = 50
    """Episodes of an evaluation, per seed."""
    theory_steps: int = 4000
    """Gradient steps of the bandit with two modes."""

    def __post_init__(self):
        least = {
            "num_seeds": 2,
            "updates": 20,
            "num_envs": 1,
            "batch_size": 1,
            "warmup": 1,
            "width": 1,
            "num_particles": 1,
            "flow_steps": 1,
            "diffusion_steps": 1,
            "eval_episodes": 1,
            "tuning_seeds": 2,
            "evaluations": 1,
            "save_every": 1,
            "theory_steps": 10,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if self.capacity % self.num_envs:
            raise ValueError(
                f"capacity must be a multiple of num_envs {self.num_envs}, got {self.capacity}"
            )


MUJOCO = (
    "half_cheetah",
    "ant",
    "hopper",
    "walker2d",
    "humanoid",
    "swimmer",
    "reacher",
    "pusher",
    "inverted_pendulum",
)
PRESETS = {
    "smoke": Config(
        num_seeds=2,
        tasks=("multi_goal",),
        methods=("FPMD-M", "SAC"),
        updates=600,
        width=32,
        batch_size=64,
        eval_episodes=10,
        theory_steps=300,
        tuning_rates=(9e-4,),
        parts=("returns", "theory"),
        evaluations=10,
    ),
    "cpu": Config(),
    "gpu": Config(
        tasks=MUJOCO,
        backend="mjx",
        updates=200_000,
        batch_size=256,
        warmup=30_000,
        capacity=1_000_000,
        width=256,
        learning_rate=3e-4,
        num_particles=32,
        flow_steps=20,
        diffusion_steps=20,
        evaluations=40,
        eval_episodes=20,
        tuning_rates=(3e-4,),
        parts=("returns", "latency"),
    ),
}

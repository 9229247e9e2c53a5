"""Fine-tuning of a field generator by the residual of what it samples, and what goes wrong."""

import dataclasses

SUMMARY = "PIRF: physics as a reward, with and without what keeps it from being hacked"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison, on arXiv:2509.20570: Poisson's equation on 16 x 16 nodes."""

    seed: int = 0
    """Seed of every random draw."""
    num_seeds: int = 5
    """Runs of the fine-tuning a figure rests on, over one base."""
    methods: tuple[str, ...] = ()
    """Methods to compare; all when empty."""
    updates: int = 80
    """Updates of the weights."""
    num_steps: int = 20
    """Steps of the sampler, N."""
    num_grad_steps: int = 6
    """Of these, the last that gradients run through, K."""
    batch: int = 16
    """Fields of an update."""
    learning_rate: float = 3e-4
    """Of Adam."""
    hold: float = 5e-2
    """Weight of the distance to the base's weights, of methods that are held."""
    fields: int = 256
    """Fields that are judged, from the same noise for all methods."""

    judged_steps: tuple[int, ...] = (10, 20, 40)
    """Steps of the samplers that a model is judged by; rows are of those nearest to num_steps."""

    def __post_init__(self):
        least = {
            "num_seeds": 1,
            "updates": 1,
            "num_steps": 2,
            "num_grad_steps": 1,
            "batch": 1,
            "fields": 2,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if self.num_grad_steps > self.num_steps:
            raise ValueError(
                "num_grad_steps must be at most num_steps, got "
                f"{self.num_grad_steps} of {self.num_steps}"
            )
        if not self.judged_steps or min(self.judged_steps) < 2:
            raise ValueError(f"judged_steps must be at least 2, got {self.judged_steps}")
        for name in ("learning_rate", "hold"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


PRESETS = {
    "smoke": Config(
        num_seeds=1,
        methods=("PIRF",),
        updates=20,
        num_steps=10,
        num_grad_steps=4,
        fields=64,
        judged_steps=(10,),
    ),
    "cpu": Config(),
    "gpu": Config(updates=500, batch=64),
}

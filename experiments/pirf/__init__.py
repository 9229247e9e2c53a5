"""Fine-tuning of a field generator by the residual of what it samples, and what goes wrong."""

import dataclasses
from typing import Literal

SUMMARY = "PIRF: physics as a reward, with and without what keeps it from being hacked"

LawName = Literal["poisson", "helmholtz", "darcy", "darcy64", "burgers", "kolmogorov"]
PartName = Literal["models", "values"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison, on arXiv:2509.20570."""

    seed: int = 0
    """Seed of every random draw."""
    num_seeds: int = 5
    """Runs of the fine-tuning a figure rests on, over one base."""
    parts: tuple[PartName, ...] = ("models", "values")
    """Tuned models beside their rivals, of own fields these alone; what the reward of a denoised
    field says of its value."""
    laws: tuple[LawName, ...] = ("poisson",)
    """Laws whose models are tuned, by all methods on the first, on the others by PIRF, with four
    times its hold, without it, by the published reward, and by what pushes samples of the base."""
    size: int = 0
    """Points a side; 0 is 16 for Poisson's equation, 64 for the flow and 32 for the others."""
    data: str = ""
    """Own fields in physical units: a file *.npz with an array `fields` [N, H, W, C]."""
    residual: str = ""
    """Their residual, module:function, `function(fields) -> [N, h, w]`, zero where they obey it."""
    solver: str = ""
    """Their solver if there is one, module:function, `function(fields) -> fields`."""
    solution: tuple[int, ...] = ()
    """Channels that the solver replaces."""
    margin: int = 1
    """Rows and columns at each side of an own residual that are left out; 0 of periodic fields."""
    methods: tuple[str, ...] = ()
    """Methods to compare on every law; all that fit when empty, see laws."""
    base_updates: int = 1500
    """Updates of a base. Those of some laws are kept, on their own grids and of 1,500 updates: they
    are trained here only where more are wanted, or another size."""
    updates: int = 80
    """Updates of the fine-tuning; rivals have as many as cost the same."""
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
    judged_steps: tuple[int, ...] = (10, 20, 40, 80)
    """Steps of the samplers that a model is judged by, on laws after the first num_steps of them at
    most, or the fewest; rows are of those nearest to num_steps."""
    sensors: int = 40
    """Nodes whose values guide samples, of every channel; 0 leaves that out."""
    value_laws: tuple[LawName, ...] = ("poisson", "darcy", "burgers", "kolmogorov")
    """Laws whose values are looked at."""

    def __post_init__(self):
        least = {
            "num_seeds": 1,
            "base_updates": 2,
            "updates": 1,
            "num_steps": 2,
            "num_grad_steps": 1,
            "batch": 1,
            "fields": 2,
            "sensors": 0,
            "margin": 0,
        }
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if self.num_grad_steps > self.num_steps:
            raise ValueError(
                "num_grad_steps must be at most num_steps, got "
                f"{self.num_grad_steps} of {self.num_steps}"
            )
        if not self.judged_steps or not 2 <= min(self.judged_steps) <= max(self.judged_steps) < 512:
            raise ValueError(f"judged_steps must be 2 to 511, got {self.judged_steps}")
        if self.size and (self.size < 8 or self.size % 2):
            raise ValueError(f"size must be even and at least 8, or 0, got {self.size}")
        for name in ("learning_rate", "hold"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.data and (self.size or "models" not in self.parts):
            raise ValueError(
                "own fields have their size, and the part models; leave out both flags"
            )
        if bool(self.data) != bool(self.residual):
            given = "data" if self.data else "residual"
            raise ValueError(f"own fields need data and residual, got {given} alone; give both")
        if not self.data and (self.solver or self.solution):
            raise ValueError("solver and solution belong to own fields; give data and residual")
        if bool(self.solver) != bool(self.solution):
            given = "solver" if self.solver else "solution"
            raise ValueError(f"a solver needs the channels it replaces, got {given} alone")
        for name in ("parts", "laws", "value_laws"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must not repeat, got {', '.join(getattr(self, name))}")


PRESETS = {
    "smoke": Config(
        num_seeds=1,
        parts=("models",),
        methods=("PIRF",),
        base_updates=150,
        updates=40,
        num_steps=10,
        num_grad_steps=4,
        batch=8,
        fields=64,
        judged_steps=(10,),
        sensors=0,
    ),
    "cpu": Config(
        laws=("poisson", "helmholtz", "darcy", "darcy64", "burgers", "kolmogorov"),
        batch=4,
        fields=80,
    ),
    "gpu": Config(
        laws=("poisson", "helmholtz", "darcy", "darcy64", "burgers", "kolmogorov"),
        size=64,
        base_updates=10_000,
        updates=500,
        num_grad_steps=2,
        batch=64,
        learning_rate=1e-4,
    ),
}

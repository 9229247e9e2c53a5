"""Attention and feed-forward apart: exactness, overlap, sizing and what a deployment achieves."""

import dataclasses
from typing import Literal

SUMMARY = "Attention-FFN disaggregation: equal bits, overlap, the ratio of workers, deployments"
PARTS = ("exactness", "overlap", "sizing", "deployments", "network", "stages")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study of disaggregation, on arXiv:2507.19427 and arXiv:2601.21351."""

    parts: tuple[str, ...] = PARTS
    """What is studied, of exactness, overlap, sizing, deployments, network, stages."""
    micro_batches: tuple[int, ...] = (1, 2, 3, 4)
    """Micro-batches whose overlap is measured; the first has to be 1, which the others beat."""
    repeats: int = 10
    """Decoding steps that are measured of each."""
    num_layers: int = 8
    """Layers of the model whose overlap is measured."""
    sleep_ms: float = 40.0
    """Milliseconds that a stage sleeps where stages sleep."""
    width: int = 2048
    """Width of the model whose matrix products are measured; 0 leaves them out."""
    requests: int = 512
    """Requests of a micro-batch there."""
    exact: Literal["few", "all"] = "all"
    """How many topologies are compared with the monolith."""
    num_steps: int = 1000
    """Tokens that every slot decodes in the simulation of the ratio."""
    draws: int = 5
    """Traces that are simulated for each law of lengths."""
    layer: Literal["small", "true"] = "small"
    """Size of the layer whose stages are timed on this device: small, or Step-3's."""
    topology: tuple[int, ...] = ()
    """NUM_ATTENTION NUM_FFN TP EP of one program over all devices of all processes of this run."""

    def __post_init__(self):
        unknown = [part for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise ValueError(f"parts must be among {', '.join(PARTS)}, got {self.parts}")
        if self.micro_batches[:1] != (1,) or len(self.micro_batches) < 2:
            raise ValueError(
                f"micro_batches must be 1 and what is compared with it, got {self.micro_batches}"
            )
        if list(self.micro_batches) != sorted(set(self.micro_batches)):
            raise ValueError(f"micro_batches must increase, got {self.micro_batches}")
        least = {"repeats": 1, "num_layers": 2, "requests": 1, "num_steps": 10, "draws": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.width < 0 or self.width % 128:
            raise ValueError(f"width must be a multiple of 128, or 0, got {self.width}")
        if self.topology and not self.width:
            raise ValueError("a run with a topology needs a width, got 0")
        if not 0.0 < self.sleep_ms < 1e4:
            raise ValueError(f"sleep_ms must be in 0 to 10,000, got {self.sleep_ms}")
        if self.topology and (len(self.topology) != 4 or min(self.topology) < 1):
            raise ValueError(f"topology must be four counts of at least 1, got {self.topology}")


PRESETS = {
    "smoke": Config(
        parts=PARTS[:-1],
        micro_batches=(1, 2),
        repeats=5,
        num_layers=4,
        sleep_ms=20.0,
        width=0,
        exact="few",
        num_steps=200,
        draws=2,
    ),
    "cpu": Config(),
    "gpu": Config(parts=("deployments", "network", "stages"), layer="true"),
}

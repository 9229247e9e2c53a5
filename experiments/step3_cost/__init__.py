"""What decoding costs: nine models on four accelerators, and deployments of Step-3."""

import dataclasses
import pathlib

SUMMARY = "Decoding cost: nine models on four accelerators, bounds, the deployment planner"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the cost study, on arXiv:2507.19427."""

    models: tuple[str, ...] = ()
    """Models to compare, by their names in `serving.cost.catalog` or `own`; all when empty."""
    accelerators: tuple[str, ...] = ()
    """Accelerators to run them on, by name; all when empty."""
    own: str = ""
    """JSON file with models and accelerators of your own, see `experiments/step3_cost/own.py`."""
    contexts: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    """Tokens of context in the curves."""
    planned: str = "Step-3"
    """Model whose deployments are searched."""
    max_servers: int = 8
    """Most servers of either kind in a deployment."""

    def __post_init__(self):
        if self.own:  # a resumed run may start elsewhere
            object.__setattr__(self, "own", str(pathlib.Path(self.own).resolve()))
        if not self.contexts or min(self.contexts) < 1:
            raise ValueError(f"contexts must be at least 1 token, got {self.contexts}")
        if self.max_servers < 1:
            raise ValueError(f"max_servers must be at least 1, got {self.max_servers}")


PRESETS = {
    "smoke": Config(contexts=(4096, 8192, 32768), max_servers=4),
    "cpu": Config(),
    "gpu": Config(max_servers=16),
}

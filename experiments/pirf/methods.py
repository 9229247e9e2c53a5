"""Methods by name: how each departs from PIRF with its defaults."""

from typing import Any

OURS, PUBLISHED = "PIRF", "published reward"
METHODS: dict[str, dict[str, Any]] = {
    OURS: {},
    PUBLISHED: {"region": "all", "bc_weight": 0.0, "repo_exact": True, "regularizer": "off"},
    "published reward, held": {"region": "all", "bc_weight": 0.0, "repo_exact": True},
    "not held": {"regularizer": "off"},
    "not held, all weights": {"regularizer": "off", "layers": "none"},
    "all weights": {"layers": "none"},
    "low resolution": {"layers": "late"},
    "distillation": {"regularizer": "distillation"},
    "N at random": {"num_steps": (10, 20, 40)},
}
"""Arguments of `physics.make_pirf`."""

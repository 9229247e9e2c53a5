"""Attention of new tokens over paged keys and values with one head."""

from .api import Call, Config, autotune, candidates, choose, heuristic, mqa_decode, why_not

__all__ = [
    "Call", "Config", "autotune", "candidates", "choose", "heuristic", "mqa_decode", "why_not",
]  # fmt: skip

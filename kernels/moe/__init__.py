"""Grouped SwiGLU, the feed-forward of a mixture of experts."""

from .api import Config, autotune, candidates, choose, grouped_swiglu, heuristic, why_not

__all__ = ["Config", "autotune", "candidates", "choose", "grouped_swiglu", "heuristic", "why_not"]

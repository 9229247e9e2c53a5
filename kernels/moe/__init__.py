"""Grouped SwiGLU, the feed-forward of a mixture of experts."""

from .api import choose, grouped_swiglu, why_not

__all__ = ["choose", "grouped_swiglu", "why_not"]

"""Queries of all heads from one low-rank vector: norm, product and rotation in one kernel."""

from .api import choose, rms_up_rope, why_not

__all__ = ["choose", "rms_up_rope", "why_not"]

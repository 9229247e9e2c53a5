"""Attention of new tokens over paged keys and values with one head."""

from .api import Call, Config, autotune, candidates, choose, heuristic, mqa_decode, why_not
from .plan import Plan, decode_plan, merge_partials

__all__ = [
    "Call",
    "Config",
    "Plan",
    "autotune",
    "candidates",
    "choose",
    "decode_plan",
    "heuristic",
    "merge_partials",
    "mqa_decode",
    "why_not",
]

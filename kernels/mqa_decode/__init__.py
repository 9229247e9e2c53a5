"""Attention of new tokens over paged keys and values with one head."""

from .api import Call, choose, mqa_decode, why_not

__all__ = ["Call", "choose", "mqa_decode", "why_not"]

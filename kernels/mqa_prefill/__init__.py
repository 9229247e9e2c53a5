"""Attention of whole prompts with one key and value head, and its derivative."""

from .api import choose, mqa_prefill, why_not

__all__ = ["choose", "mqa_prefill", "why_not"]

"""Attention of whole prompts with one key and value head, and its derivative."""

from .api import choose, mqa_prefill, mqa_prefill_paged, why_not

__all__ = ["choose", "mqa_prefill", "mqa_prefill_paged", "why_not"]

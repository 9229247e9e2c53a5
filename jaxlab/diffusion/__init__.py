"""Generative ground: rectified flow, MeanFlow, diffusion with few steps or of tokens, exact forms."""

from jaxlab.diffusion import (
    closed_form,
    ddpm,
    discrete,
    mean_flow,
    one_step,
    rectified_flow,
    reverse_sampling,
)

__all__ = [
    "closed_form",
    "ddpm",
    "discrete",
    "mean_flow",
    "one_step",
    "rectified_flow",
    "reverse_sampling",
]

"""Generative ground: flows and diffusions of vectors, images and tokens, and their exact forms."""

from jaxlab.diffusion import (
    closed_form,
    ddpm,
    discrete,
    edm,
    mean_flow,
    one_step,
    rectified_flow,
    reverse_sampling,
)

__all__ = [
    "closed_form",
    "ddpm",
    "discrete",
    "edm",
    "mean_flow",
    "one_step",
    "rectified_flow",
    "reverse_sampling",
]

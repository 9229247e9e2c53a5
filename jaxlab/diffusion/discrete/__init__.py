"""Diffusion over K tokens of a vocabulary V: by masking, and by uniform replacement.

`masked` hides tokens and is what policies of this library use; `uniform` replaces them. `sampling`
draws from a denoiser, `path` takes the probabilities of what was drawn, `exact` enumerates all that
small cases can enumerate.
"""

from jaxlab.diffusion.discrete import exact, masked, path, sampling, schedules, uniform

__all__ = ["exact", "masked", "path", "sampling", "schedules", "uniform"]

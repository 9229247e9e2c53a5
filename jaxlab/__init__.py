"""jaxlab: recent research systems as pure jitted JAX functions over pytrees."""

__version__ = "0.8.0"

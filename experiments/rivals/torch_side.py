"""What rivals in PyTorch share. Torch is in the extra `rivals`; it is imported on call."""

import contextlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

EXTRA = "rivals"


def available() -> bool:
    """Says whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def module() -> Any:
    """Imports torch, or says in which extra it is.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"this rival needs torch: pip install 'jaxlab[{EXTRA}]', or torch for CPUs alone"
        ) from error
    return torch


def version() -> str:
    """Returns the version of torch."""
    return module().__version__


def use_all_cores() -> int:
    """Lets torch use the cores that this process may use, as XLA does; returns how many."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    module().set_num_threads(count or 1)
    return count or 1


def ways(network: Any, make: Callable[[Any], Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """Returns a call of a network as it is and, where torch can compile it, "compiled".

    Torch needs a C++ compiler for that, and fails when the call is made first.

    Args:
        network: a module or function.
        make: `make(network)` returns the call.
    """
    found = {"eager": make(network)}
    with contextlib.suppress(Exception):
        call = make(module().compile(network))
        call()
        found["compiled"] = call
    return found

"""Packages that not everyone installs, imported where they are needed."""

import importlib
from typing import Any


def optional(name: str, extra: str) -> Any:
    """Imports a package of an extra of this project.

    Raises:
        ImportError: If it is not installed; names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{error.name or name} is not installed: pip install 'jaxlab[{extra}]'"
        ) from error

"""Numbers of a run that may be swept: checked by name, and kept in the state as arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

Settings = Mapping[str, Float[Array, "..."]]
"""Numbers of a run by the names of its builder's arguments; part of its state, so that runs side by
side may have their own."""


class Rule(NamedTuple):
    """What a number must be.

    Attributes:
        words: What follows "must" in the message.
        holds: `holds(x) -> bool`, for each number of an array.
        finite: Whether infinity is refused besides.
    """

    words: str
    holds: Callable[[np.ndarray], np.ndarray]
    finite: bool = True


SHARE = Rule("lie in [0, 1]", lambda x: (x >= 0.0) & (x <= 1.0))
POSITIVE_SHARE = Rule("lie in (0, 1]", lambda x: (x > 0.0) & (x <= 1.0))
POSITIVE = Rule("be positive", lambda x: x > 0.0)
NOT_NEGATIVE = Rule("not be negative", lambda x: x >= 0.0)
LIMIT = POSITIVE._replace(finite=False)  # infinity stands for no limit
ANY = Rule("be a number", lambda x: ~np.isnan(x))


def check(numbers: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Refuses numbers out of range, each with its name.

    Args:
        numbers: a number, or an array of several, by name. What is being traced is not looked at.
        rules: by name; a number without a rule must be finite.

    Raises:
        ValueError: if one is no number, or its rule does not hold.
    """
    for name, x in numbers.items():
        if isinstance(x, Tracer):
            continue
        found, rule = np.asarray(x), rules.get(name, ANY)
        if not any(jnp.issubdtype(found.dtype, kind) for kind in (jnp.floating, jnp.integer)):
            raise ValueError(f"{name} must be a number, got {x!r}")
        found = found.astype(np.float64)
        if not np.all(rule.holds(found)):
            raise ValueError(f"{name} must {rule.words}, got {x}")
        if rule.finite and not np.all(np.isfinite(found)):
            raise ValueError(f"{name} must be finite, got {x}")


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Refuses what is no whole number of at least `least`.

    Raises:
        ValueError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_given(given: Any, numbers: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Refuses settings that are no dict of numbers that there are, each in range.

    Args:
        given: settings of a run, or arrays of several runs.
        numbers: all numbers that may be set, by name.
        rules: see `check`.

    Raises:
        ValueError: if a name is unknown, or a number is out of range.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"settings must be a dict of numbers by name, got {type(given).__name__}")
    if unknown := given.keys() - numbers.keys():
        raise ValueError(
            f"settings must be among {', '.join(numbers)}, got {', '.join(sorted(unknown))}"
        )
    check(given, rules)


def fill(
    given: Any, numbers: Mapping[str, Any], rules: Mapping[str, Rule], *, arrays: Sequence[str] = ()
) -> Settings:
    """Returns all numbers as float32 arrays: those that are given, and the others as they are.

    Args:
        given: settings of one run; None for none.
        numbers: all numbers that may be set, by name.
        rules: see `check`.
        arrays: names of those that may be arrays, a number for each agent say; they may be set to
            another of the same shape, or to one number for all.

    Raises:
        ValueError: if a name is unknown, a number is out of range, or an array is not allowed
            or has another shape.
    """
    if given is not None:
        check_given(given, numbers, rules)
    shapes = {name: np.shape(x) if name in arrays else () for name, x in numbers.items()}
    numbers = dict(numbers) | dict(given or {})
    check(numbers, rules)
    values = {name: jnp.asarray(x, jnp.float32) for name, x in numbers.items()}
    for name, x in values.items():
        if x.shape not in ((), shapes[name]):
            wanted = f"one number or {shapes[name]}" if shapes[name] else "one number"
            raise ValueError(
                f"setting {name} must be {wanted}, got shape {x.shape}; "
                "learning.over_seeds gives each run its own"
            )
    return {name: jnp.broadcast_to(x, shapes[name]) for name, x in values.items()}

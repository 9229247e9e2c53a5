"""The time that micro-batches take through four stages: a formula, and a simulation by events.

A layer passes attention, the network out, the experts and the network back. A stage serves one
micro-batch at a time, in order of arrival; a micro-batch that has passed the last stage goes on to
the next layer. So one micro-batch computes while another travels.

Source: arXiv:2507.19427 (roles and micro-batches); the formula is derived here, and exact where
every stage takes the same time for every layer and micro-batch.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

STAGES = ("attention", "network out", "experts", "network back")
"""The four stages of a layer, in the order in which a micro-batch passes them."""


class StageEvent(NamedTuple):
    """One stage of one layer for one micro-batch on one instance, measured or simulated.

    Attributes:
        role: name of the stage; one of `STAGES` in a simulation.
        instance: which of the workers of this stage, from 0.
        layer: index of the layer; those of several decoding steps are numbered on.
        micro_batch: index of the micro-batch.
        start: time at which the instance begins, seconds.
        end: time at which it has finished, seconds on the same clock.
    """

    role: str
    instance: int
    layer: int
    micro_batch: int
    start: float
    end: float


def pipeline_time(stage_seconds: Sequence[float], num_micro_batches: int, num_layers: int) -> float:
    """Returns the time until the last micro-batch has left the last layer.

    With the longest stage m and the sum of the stages s of one layer: s + (M L - 1) m where the
    micro-batches fill the pipeline, M m >= s, else L s + (M - 1) m.
    """
    _check_stages(stage_seconds)
    check_counts(num_micro_batches=num_micro_batches, num_layers=num_layers)
    latency, longest = sum(stage_seconds), max(stage_seconds)
    if num_micro_batches * longest >= latency:
        return latency + (num_micro_batches * num_layers - 1) * longest
    return num_layers * latency + (num_micro_batches - 1) * longest


def time_per_token(
    stage_seconds: Sequence[float], num_micro_batches: int, num_layers: int
) -> float:
    """Returns the time between two tokens of a request in steady state."""
    _check_stages(stage_seconds)
    check_counts(num_micro_batches=num_micro_batches, num_layers=num_layers)
    return num_layers * max(num_micro_batches * max(stage_seconds), sum(stage_seconds))


def min_micro_batches(stage_seconds: Sequence[float]) -> int:
    """Returns the fewest micro-batches that keep the longest stage busy."""
    _check_stages(stage_seconds)
    return math.ceil(sum(stage_seconds) / max(stage_seconds) - 1e-9)


def simulate_pipeline(
    stage_seconds: Sequence[ArrayLike], num_micro_batches: int, num_layers: int
) -> tuple[StageEvent, ...]:
    """Simulates the stages as queues in order of arrival, and returns what each instance did when.

    An instance begins with a micro-batch once it has finished the one before and the micro-batch
    has left the stage before. It leaves a stage when the slowest of its instances has finished.
    Workers that move in lockstep are one instance, whose time is the maximum of theirs. A dummy
    micro-batch has whatever a stage takes without requests.

    Args:
        stage_seconds: for each of `STAGES` its time: a number, or `[L, M]` seconds for each layer
            and micro-batch, or `[L, M, instances]`. Axes of length one hold for all.
        num_micro_batches: number M of micro-batches.
        num_layers: number L of layers.

    Returns:
        The events by layer, micro-batch, stage and instance; the first begins at zero. The latest
        end is `pipeline_time` if the times are numbers.

    Raises:
        ValueError: if a time is negative or not finite, all are zero, or shapes do not fit.

    Example:
        >>> events = simulate_pipeline((1.0, 0.25, 1.0, 0.5), 3, 2)
        >>> max(event.end for event in events) == pipeline_time((1.0, 0.25, 1.0, 0.5), 3, 2)
        True
    """
    check_counts(num_micro_batches=num_micro_batches, num_layers=num_layers)
    num_micro_batches, num_layers = int(num_micro_batches), int(num_layers)
    seconds = _durations(stage_seconds, num_micro_batches, num_layers)
    starts = start_times(seconds)
    return tuple(
        StageEvent(role, i, layer, m, float(start[i]), float(start[i] + took[layer, m, i]))
        for layer in range(num_layers)
        for m in range(num_micro_batches)
        for role, start_of, took in zip(STAGES, starts, seconds, strict=True)
        for start in (start_of[layer, m],)
        for i in range(took.shape[2])
    )


def start_times(seconds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns when each instance begins: arrays `[L, M, instances]` like those that it is given.

    Queues in order of arrival keep the order of the micro-batches, so that the events need no
    calendar: (layer, m) follows (layer, m - 1) on every instance, and itself a layer earlier.
    """
    num_layers, num_micro_batches, _ = seconds[0].shape
    starts = [np.zeros(took.shape) for took in seconds]
    free = [np.zeros(took.shape[2]) for took in seconds]
    left = np.zeros(num_micro_batches)  # when each micro-batch left the stage before
    for layer in range(num_layers):
        for m in range(num_micro_batches):
            for s, took in enumerate(seconds):
                start = np.maximum(free[s], left[m])
                starts[s][layer, m] = start
                free[s] = start + took[layer, m]
                left[m] = free[s].max()
    return starts


def check_counts(**counts: int) -> None:
    """Checks that numbers are whole and at least 1.

    Raises:
        ValueError: that names the first that is not.
    """
    for name, count in counts.items():
        if not 1 <= count < math.inf or count != int(count):
            raise ValueError(f"{name} must be a whole number of at least 1, got {count}")


def _durations(
    stage_seconds: Sequence[ArrayLike], num_micro_batches: int, num_layers: int
) -> list[np.ndarray]:
    """Returns an array `[L, M, instances]` for each stage."""
    if len(stage_seconds) != len(STAGES):
        raise ValueError(
            f"stage_seconds must have one entry for each of {', '.join(STAGES)}, got "
            f"{len(stage_seconds)}"
        )
    found = []
    for role, given in zip(STAGES, stage_seconds, strict=True):
        took = np.asarray(given, float)
        took = took.reshape(1, 1, 1) if took.ndim == 0 else took
        took = took[..., None] if took.ndim == 2 else took
        wanted = (num_layers, num_micro_batches)
        if took.ndim != 3 or any(
            n not in (1, want) for n, want in zip(took.shape, wanted, strict=False)
        ):
            raise ValueError(
                f"stage_seconds of {role} must be a number or have the shape [L, M] or "
                f"[L, M, instances] with L = {num_layers} and M = {num_micro_batches}, got "
                f"{np.shape(given)}"
            )
        if took.shape[2] == 0 or not np.all((took >= 0.0) & (took < np.inf)):
            raise ValueError(
                f"stage_seconds of {role} must be finite, not negative, and of one instance at "
                f"least, got {given}"
            )
        found.append(np.broadcast_to(took, (*wanted, took.shape[2])))
    if not any(took.any() for took in found):
        raise ValueError("stage_seconds must not all be zero")
    return found


def _check_stages(stage_seconds: Sequence[float]) -> None:
    if not all(0.0 <= t < math.inf for t in stage_seconds) or not sum(stage_seconds) > 0.0:
        raise ValueError(
            "stage_seconds must not be negative, and one of them positive, got "
            f"{tuple(stage_seconds)}"
        )

"""What a measured pipeline did: utilization, overlap, stragglers, and the bars of a Gantt plot.

A trace is a sequence of `StageEvent`s on one clock, measured or simulated alike; drawing it is left
to the caller. Messages between hosts, whose clocks differ, are `Exchange`s: only times that one
host has measured are subtracted from each other.

Source: derived here; overlap as a share of what can be hidden.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.serving.afd.pipeline import StageEvent, pipeline_time

NOTHING_TO_HIDE = 1e-9
"""Share of the serial time below which a difference from the ideal one is rounding."""


class Overlap(NamedTuple):
    """How much of what can be hidden was hidden.

    Attributes:
        stage_seconds: time of each role for one layer and micro-batch, by name of the role.
        serial: seconds of all stages one after the other.
        ideal: seconds of the pipeline of these stages, by `pipeline_time`.
        measured: seconds from the first start to the last end of the trace.
        efficiency: (serial - measured) / (serial - ideal): 0 if nothing overlapped, 1 if all did
            that can; negative if it took longer than one after the other.
    """

    stage_seconds: dict[str, float]
    serial: float
    ideal: float
    measured: float
    efficiency: float


class Bar(NamedTuple):
    """A rectangle of a Gantt plot.

    Attributes:
        row: index of the row, from 0: one for each instance of each role.
        label: name of the row, such as "attention 0".
        start: seconds since the first event.
        seconds: length of the bar.
        layer: index of the layer.
        micro_batch: index of the micro-batch.
    """

    row: int
    label: str
    start: float
    seconds: float
    layer: int
    micro_batch: int


class Exchange(NamedTuple):
    """One message from an attention worker to an expert worker, and its answer.

    Attributes:
        attention: index of the attention worker.
        expert: index of the expert worker.
        layer: index of the layer.
        micro_batch: index of the micro-batch.
        sent: time at which the message was handed over, on the attention worker's clock, seconds.
        returned: time at which the answer was there, on the attention worker's clock.
        received: time at which the message was there, on the expert worker's clock, seconds.
        answered: time at which the answer was handed over, on the expert worker's clock.
        compute: seconds that the experts computed between these two.
    """

    attention: int
    expert: int
    layer: int
    micro_batch: int
    sent: float
    returned: float
    received: float
    answered: float
    compute: float


class Peer(NamedTuple):
    """Where the time of the messages between two workers went; times are medians in seconds.

    Attributes:
        attention: index of the attention worker.
        expert: index of the expert worker.
        count: number of messages.
        network: round trip on one clock less the time at the expert worker on the other: both ways.
        waiting: time at the expert worker without computing: other workers' messages, its queue.
        compute: time that the experts computed.
        last_to_arrive: share of messages for which the expert worker waited longest: the last of
            their layer and micro-batch there. 1 if there is one attention worker.
        last_to_return: share of answers for which the attention worker waited longest. 1 if there
            is one expert worker.
    """

    attention: int
    expert: int
    count: int
    network: float
    waiting: float
    compute: float
    last_to_arrive: float
    last_to_return: float


def read_trace(rows: Iterable[Sequence]) -> tuple[StageEvent, ...]:
    """Reads `(role, instance, layer, micro_batch, start, end)` tuples into a checked trace.

    Returns:
        The events in order of their starts.

    Raises:
        ValueError: if a row does not have six entries, an index is not a whole number from 0, a
            time is not finite, an event ends before it starts, one is there twice, an instance
            misses a layer and micro-batch that another has, or there is none.

    Example:
        >>> rows = [("attention", 0, 0, 0, 0.0, 1.0), ("experts", 0, 0, 0, 1.0, 2.5)]
        >>> utilization(read_trace(rows))
        {'attention': 0.4, 'experts': 0.6}
    """
    events = [_event(i, row) for i, row in enumerate(rows)]
    _check(events)
    return tuple(sorted(events, key=lambda event: (event.start, event.end)))


def utilization(events: Sequence[StageEvent]) -> dict[str, float]:
    """Returns for each role the share of the whole time in which its instances were busy.

    The whole time is that from the first start to the last end of all roles. Where an instance has
    several events at a time, the time counts once; several instances are averaged.
    """
    _check(events)
    begin, end = _span(events)
    busy: dict[str, dict[int, float]] = {}
    for (role, instance), served in _by_instance(events).items():
        total, until = 0.0, -math.inf
        for event in sorted(served, key=lambda event: event.start):
            total += max(0.0, event.end - max(event.start, until))
            until = max(until, event.end)
        busy.setdefault(role, {})[instance] = total / (end - begin)
    return {role: float(np.mean(list(shares.values()))) for role, shares in busy.items()}


def overlap_efficiency(
    events: Sequence[StageEvent], stage_seconds: Mapping[str, float] | None = None
) -> Overlap:
    """Returns how near a trace comes to the ideal pipeline, between it and no overlap at all.

    With L layers, M micro-batches and the time t of each role, the serial time is L M sum(t) and
    the ideal time `pipeline_time(t, M, L)`; the measured time is that from the first start to the
    last end. A role's time for one layer and micro-batch is that of its slowest instance, and t its
    median over all of them: a stall counts as time lost, not as work. Stages that slow each other
    down while they overlap have longer medians, which hides the loss: give the times of stages
    measured alone, for instance the `stage_seconds` of a trace with one micro-batch.

    Args:
        events: the trace, all on one clock.
        stage_seconds: seconds of each role, by name; the medians of the trace if None.

    Raises:
        ValueError: if the ideal time is the serial time, because there is one micro-batch or one
            role that takes time: then nothing can be hidden.
    """
    _check(events)
    cells: dict[str, dict[tuple[int, int], float]] = {}
    for event in events:
        of_role = cells.setdefault(event.role, {})
        at = (event.layer, event.micro_batch)
        of_role[at] = max(of_role.get(at, 0.0), event.end - event.start)
    if stage_seconds is None:
        stages = {role: float(np.median(list(took.values()))) for role, took in cells.items()}
    else:
        stages = dict(stage_seconds)
        if stages.keys() != cells.keys():
            raise ValueError(
                f"stage_seconds must name the roles of the trace, {sorted(cells)}, got "
                f"{sorted(stages)}"
            )
    num_layers = len({event.layer for event in events})
    num_micro_batches = len({event.micro_batch for event in events})
    times = tuple(stages.values())
    ideal = pipeline_time(times, num_micro_batches, num_layers)
    serial = num_layers * num_micro_batches * sum(times)
    if serial - ideal <= NOTHING_TO_HIDE * serial:
        raise ValueError(
            f"there is nothing to overlap: {num_micro_batches} micro-batches, {num_layers} layers "
            f"and stages of {stages} take {ideal:g} s in any order; use two micro-batches or more "
            "and two roles that take time"
        )
    begin, end = _span(events)
    efficiency = (serial - (end - begin)) / (serial - ideal)
    return Overlap(stages, serial, ideal, end - begin, efficiency)


def gantt_bars(events: Sequence[StageEvent]) -> tuple[Bar, ...]:
    """Returns the rectangles of a Gantt plot, a row for each instance of each role.

    Roles follow each other as they first start, instances by their index.
    """
    _check(events)
    begin, _ = _span(events)
    ordered = sorted(events, key=lambda event: event.start)
    roles = list(dict.fromkeys(event.role for event in ordered))
    keys = sorted(_by_instance(events), key=lambda key: (roles.index(key[0]), key[1]))
    rows = {key: row for row, key in enumerate(keys)}
    return tuple(
        Bar(
            row=rows[event.role, event.instance],
            label=f"{event.role} {event.instance}",
            start=event.start - begin,
            seconds=event.end - event.start,
            layer=event.layer,
            micro_batch=event.micro_batch,
        )
        for event in ordered
    )


def peer_table(exchanges: Sequence[Exchange]) -> tuple[Peer, ...]:
    """Returns for each pair of workers where the time of their messages went.

    Clocks of different hosts may differ by any constant: the table does not change with it. Among
    equals the last one is the one with the larger index.

    Raises:
        ValueError: if there are no exchanges, one is there twice, an answer precedes its message,
            or the experts compute longer than the message was there.
    """
    if not exchanges:
        raise ValueError("exchanges must have one message at least, got none")
    keys = [(e.attention, e.expert, e.layer, e.micro_batch) for e in exchanges]
    if len(set(keys)) < len(keys):
        raise ValueError("exchanges must have every message once, and one is there twice")
    for e in exchanges:
        if not (
            all(math.isfinite(t) for t in e[4:])
            and e.sent <= e.returned
            and 0.0 <= e.compute <= (e.answered - e.received) * (1.0 + 1e-9)
        ):
            raise ValueError(
                "an exchange must have finite times, sent <= returned on one clock and received + "
                f"compute <= answered on the other, got {e}"
            )
    arrived = _last_of(exchanges, lambda e: (e.expert, e.layer, e.micro_batch), "received")
    returned = _last_of(exchanges, lambda e: (e.attention, e.layer, e.micro_batch), "returned")
    pairs: dict[tuple[int, int], list[Exchange]] = {}
    for e in exchanges:
        pairs.setdefault((e.attention, e.expert), []).append(e)
    table = []
    for (attention, expert), found in pairs.items():
        at_expert = np.array([e.answered - e.received for e in found])
        round_trip = np.array([e.returned - e.sent for e in found])
        compute = np.array([e.compute for e in found])
        table.append(
            Peer(
                attention,
                expert,
                len(found),
                network=float(np.median(round_trip - at_expert)),
                waiting=float(np.median(at_expert - compute)),
                compute=float(np.median(compute)),
                last_to_arrive=float(np.mean([e in arrived for e in found])),
                last_to_return=float(np.mean([e in returned for e in found])),
            )
        )
    return tuple(sorted(table))


def _last_of(exchanges: Sequence[Exchange], group, field: str) -> set[Exchange]:
    """Returns the latest exchange of every group."""
    latest: dict[tuple, Exchange] = {}
    for e in sorted(exchanges, key=lambda e: (getattr(e, field), e.attention, e.expert)):
        latest[group(e)] = e
    return set(latest.values())


def _event(i: int, row: Sequence) -> StageEvent:
    if len(row) != 6:
        raise ValueError(
            "a row of a trace is (role, instance, layer, micro_batch, start, end), got "
            f"{tuple(row)} in row {i}"
        )
    role, instance, layer, micro_batch, start, end = row
    for name, index in (("instance", instance), ("layer", layer), ("micro_batch", micro_batch)):
        if not 0 <= index < math.inf or index != int(index):
            raise ValueError(f"{name} must be a whole number from 0, got {index} in row {i}")
    return StageEvent(
        str(role), int(instance), int(layer), int(micro_batch), float(start), float(end)
    )


def _check(events: Sequence[StageEvent]) -> None:
    """Checks that every instance of every role has every layer and micro-batch, once."""
    if not events:
        raise ValueError("a trace must have one event at least, got none")
    for event in events:
        if not -math.inf < event.start <= event.end < math.inf:
            raise ValueError(f"an event must have finite start <= end, got {event}")
    whole = len({e.layer for e in events}) * len({e.micro_batch for e in events})
    for (role, instance), served in _by_instance(events).items():
        cells = {(event.layer, event.micro_batch) for event in served}
        if len(cells) < len(served):
            raise ValueError(
                f"{role} {instance} has a layer and micro-batch twice; number the layers of "
                "several steps on"
            )
        if len(cells) < whole:
            raise ValueError(
                f"{role} {instance} has {len(cells)} of the {whole} layers and micro-batches of "
                "the trace; every instance must have all"
            )
    begin, end = _span(events)
    if not end > begin:
        raise ValueError("a trace must last longer than zero seconds")


def _by_instance(events: Sequence[StageEvent]) -> dict[tuple[str, int], list[StageEvent]]:
    found: dict[tuple[str, int], list[StageEvent]] = {}
    for event in events:
        found.setdefault((event.role, event.instance), []).append(event)
    return found


def _span(events: Sequence[StageEvent]) -> tuple[float, float]:
    return min(event.start for event in events), max(event.end for event in events)

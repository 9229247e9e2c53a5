"""How long the stages of one layer take on this device, the laws that fit, and what they plan."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from experiments.afd import Config, layer
from experiments.afd.layer import Sizes
from experiments.harness import units
from experiments.harness.result import Part, Row, Table
from experiments.harness.units import Unit
from jaxlab.serving.afd import planner
from jaxlab.serving.afd.planner import StageLaw, StageTimes
from jaxlab.serving.cost import catalog

PUBLISHED = 4039.0
"""Tokens a GPU and second of 2A2F at 4K on H800, arXiv:2507.19427."""
CLAIM = "Stages of a layer take a time that is linear in requests and tokens of cache"
LIMITS = (
    "Weights, tokens and caches in bfloat16, one layer, one device; the experts are the shard of "
    "one of sixteen accelerators. Networks are the data sheet's, by the planner's efficiencies.",
)


class Timed(NamedTuple):
    """A table of times: sizes, median seconds, and half the range of the middle half."""

    requests: np.ndarray
    context: np.ndarray
    seconds: np.ndarray
    spread: np.ndarray


def run(config: Config, out: pathlib.Path) -> Part:
    """Times both stages, a unit each, and plans with the laws that fit them."""
    given = layer.sizes(config.layer)
    programs = {"attention": layer.attention, "experts": layer.experts}
    settings = {"layer": config.layer, "repeats": config.repeats}
    found = units.run(
        [
            Unit(
                f"stages/{name}",
                settings,
                functools.partial(_time, program, given, config.repeats),
                Timed,
            )
            for name, program in programs.items()
        ],
        out,
        title="afd, stages",
    )
    timed = {name: found[f"stages/{name}"] for name in programs}
    laws = {name: planner.fit_stage(t.requests, t.context, t.seconds) for name, t in timed.items()}
    rows = [_fit_row(name, timed[name], laws[name]) for name in programs]
    if config.layer == "true":
        rows.append(_planned(laws))
    table = Table(
        "Stages of one layer",
        ("Stage", "Requests", "Tokens of cache", "Measured, ms", "Law, ms"),
        tuple(
            (name, int(b), int(s), 1e3 * float(t), 1e3 * laws[name](float(b), float(s)))
            for name in programs
            for b, s, t, _ in zip(*timed[name], strict=True)
        ),
    )
    return Part(rows=tuple(rows), tables=(table,), limits=LIMITS)


def _fit_row(name: str, timed: Timed, law: StageLaw) -> Row:
    told = np.array([law(b, s) for b, s in zip(timed.requests, timed.context, strict=True)])
    worst = float(np.max(np.abs(told / timed.seconds - 1.0)))
    cache = f", {1e9 * law.per_token:.3g} ns a token of cache" if law.per_token else ""
    return Row(
        CLAIM,
        f"Largest deviation of the fitted law, {name}",
        100.0 * worst,
        unit="%",
        note=f"{1e6 * law.fixed:.3g} µs fixed, {1e6 * law.per_request:.3g} µs a request{cache}; "
        f"{timed.seconds.size} sizes.",
    )


def _planned(laws: dict[str, StageLaw]) -> Row:
    """What 2A2F at 4K would achieve with these stages, in H800's place."""
    on = catalog.ACCELERATORS["H800"]
    found = planner.evaluate(
        catalog.MODELS["Step-3"],
        on,
        on,
        context=4096,
        num_attention=2,
        num_ffn=layer.SERVERS,
        batch=6144,
        measured=StageTimes(laws["attention"], {layer.SERVERS: laws["experts"]}),
    )
    return Row(
        "Measured stages in the planner forecast a deployment",
        "Throughput of 2A2F at 4K with stages measured here, bfloat16",
        found.tokens_per_gpu_second,
        paper=PUBLISHED,
        unit="tokens/GPU/s",
        note=f"{1e3 * found.tpot:.1f} ms a token, bottleneck: {found.bottleneck}. The paper's is "
        "measured on H800 in eight bits.",
    )


def _time(program: Callable, given: Sizes, repeats: int, _: pathlib.Path) -> Timed:
    where = given.attention if program is layer.attention else tuple((n, 0) for n in given.experts)
    found = []
    for batch, context in where:
        call = program(given, batch, context)
        for _warm in range(3):
            jax.block_until_ready(call())
        taken = []
        for _repeat in range(repeats):
            begin = time.perf_counter()
            jax.block_until_ready([call() for _call in range(4)])
            taken.append((time.perf_counter() - begin) / 4)
        low, middle, high = np.percentile(taken, (25, 50, 75))
        found.append((batch, context, middle, (high - low) / 2))
    return Timed(*np.array(found, float).T)

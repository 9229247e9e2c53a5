"""The cells of the accelerator suite, the most valuable first.

Their seconds are guesses until results of some device are there (`ledger.learned`): 4 s for every
program that is compiled, a second for a gigabyte that is drawn, 2 s of timing.
"""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Entry:
    """A cell: one check, or one benchmark at one shape.

    Args:
        name: Its name, unique in the suite.
        kind: A check raises when it fails and may return a dict of details; a benchmark returns
            a list of `timing.Measurement`. Either raises NotImplementedError where it cannot run.
        target: `module:function`.
        estimate_s: Seconds it takes in a process that is up, compile time included.
        args: Keyword arguments of the function.
        small: Those that differ on a CPU, where the suite is only tried out; None if it is too
            much for one.
    """

    name: str
    kind: Literal["check", "benchmark"]
    target: str
    estimate_s: float
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    small: dict[str, Any] | None = dataclasses.field(default_factory=dict)


SMALL_DECODE = {"B": 3, "S": 200, "H": 4, "C": 64, "cold_bytes": 1_000_000}


def _named(what: str, **sizes: Any) -> str:
    return ", ".join([what, *(f"{name} = {size}" for name, size in sizes.items())])


def _check_decode(impl: str, kv: str, lengths: str, B: int, S: int, **more: int) -> Entry:
    return Entry(
        _named(f"check: decode by {impl}, {kv}, {lengths}", B=B, S=S, **more),
        "check",
        "experiments.bench.mqa_decode:check",
        14.0,
        {"impl": impl, "B": B, "S": S, "lengths": lengths, "kv": kv, **more},
        {"impl": "xla"} | SMALL_DECODE,
    )


def _decode(kv: str, lengths: str, B: int, S: int, **more: int) -> Entry:
    return Entry(
        _named(f"decode, {kv}, {lengths}", B=B, S=S, **more),
        "benchmark",
        "experiments.bench.mqa_decode:cell",
        25.0 if kv == "bf16" and not more else 14.0,  # rivals run in bfloat16, a token a request
        {"B": B, "S": S, "lengths": lengths, "kv": kv, **more},
        SMALL_DECODE,
    )


def _parts(kv: str, lengths: str, B: int, S: int) -> Entry:
    return dataclasses.replace(
        _decode(kv, lengths, B, S),
        name=_named(f"plan, kernel and merge of decode, {kv}, {lengths}", B=B, S=S),
        target="experiments.bench.mqa_decode:parts",
        estimate_s=20.0,
    )


def _check_prefill(B: int, T: int, **more: int) -> Entry:
    return Entry(
        _named("check: prefill", B=B, T=T, **more),
        "check",
        "experiments.bench.mqa_prefill:check",
        18.0,
        {"B": B, "T": T, **more},
        {"B": 2, "T": 20, "H": 4, "C": 64, "dtype": "float32"},
    )


def _prefill(mode: str, B: int, T: int, start: int = 0) -> Entry:
    return Entry(
        _named(f"prefill, {mode}", B=B, T=T, **({"start": start} if start else {})),
        "benchmark",
        "experiments.bench.mqa_prefill:cell",
        16.0 if mode == "forward" else 22.0,
        {"mode": mode, "B": B, "T": T, "start": start},
        {"B": 2, "T": 64, "start": min(start, 32), "H": 4, "C": 64, "dtype": "float32"},
    )


def _experts(N: int) -> Entry:
    small = {"N": 32, "E": 8, "D": 64, "F": 48, "dtype": "float32"}
    target = "experiments.bench.projections:experts"
    return Entry(_named("experts", N=N), "benchmark", target, 16.0, {"N": N}, small)


def _queries(N: int) -> Entry:
    small = {"N": 32, "R": 64, "H": 4, "C": 64, "dtype": "float32"}
    target = "experiments.bench.projections:queries"
    return Entry(_named("query projection", N=N), "benchmark", target, 14.0, {"N": N}, small)


def _stage(stage: str, batch: int, context: int = 0) -> Entry:
    sizes = {"batch": batch} | ({"context": context} if context else {})
    small = {"size": "small", "batch": 8} | ({"context": 128} if context else {})
    target = "experiments.bench.afd_stages:cell"
    name = _named(f"disaggregated layer, {stage}", **sizes)
    return Entry(name, "benchmark", target, 14.0, {"stage": stage, "size": "true", **sizes}, small)


def _other(
    name: str, target: str, seconds: float, small: dict[str, Any] | None = None, **args: Any
) -> Entry:
    return Entry(name, "benchmark", f"experiments.bench.{target}", seconds, args, small)


SUITE = (
    _check_decode("mosaic_gpu", "bf16", "lognormal", 24, 2700),
    _check_decode("mosaic_gpu", "fp8", "lognormal", 24, 2700),
    _check_decode("mosaic_gpu", "direct", "lognormal", 24, 2700),
    _other("ceilings", "ceilings:measured", 10.0, {}),
    _decode("bf16", "uniform", 64, 8192),
    _decode("bf16", "uniform", 256, 8192),
    _decode("bf16", "uniform", 16, 32_768),
    _decode("bf16", "lognormal", 64, 8192),
    _decode("fp8", "uniform", 64, 8192),
    _decode("fp8", "uniform", 256, 8192),
    _decode("direct", "uniform", 64, 8192),
    _decode("direct", "uniform", 256, 8192),
    _check_prefill(2, 300),
    _prefill("forward", 2, 8192),
    _prefill("forward", 16, 1024),
    _prefill("forward and backward", 2, 8192),
    _experts(128),
    _experts(2048),
    _experts(8192),
    _stage("attention", 128, 4096),
    _stage("attention", 64, 8192),
    _stage("experts", 2048),
    _stage("experts", 512),
    _other("ICU Monte Carlo", "queueing:monte_carlo_gpu", 20.0, {"replications": 64}),
    _other("ZOFL, batches", "zeroth_order:batches_gpu", 25.0, {"num_instances": 100}),
    _other("RL, whole loop, paper's sizes", "rl:loops", 40.0, labels=["paper"]),
    # Nine minutes end about here.
    _parts("bf16", "uniform", 256, 8192),
    _parts("bf16", "lognormal", 64, 8192),
    _parts("bf16", "uniform", 16, 4096),
    _check_decode("mosaic_gpu", "bf16", "lognormal", 24, 2700, S_q=2),
    _check_decode("mosaic_gpu", "bf16", "bimodal", 24, 2700, S_q=4),
    _check_decode("mosaic_gpu", "bf16", "uniform", 2, 300, S_q=2, H=16, C=128),
    _check_decode("mosaic_gpu", "bf16", "lognormal", 5, 700),
    _check_decode("triton", "bf16", "lognormal", 24, 2700),
    _check_decode("triton", "fp8", "lognormal", 24, 2700),
    _check_prefill(1, 257, start=700),
    _check_prefill(2, 200, H=16, C=128),
    _queries(64),
    _queries(256),
    _queries(8192),
    _decode("bf16", "uniform", 1, 131_072),
    _decode("bf16", "uniform", 128, 4096),
    _decode("bf16", "uniform", 16, 4096),
    _decode("bf16", "uniform", 64, 131_072),
    _decode("bf16", "uniform", 1, 8192),
    _decode("bf16", "bimodal", 256, 8192),
    _decode("bf16", "lognormal", 16, 32_768),
    _decode("fp8", "uniform", 16, 32_768),
    _decode("fp8", "uniform", 128, 8192),
    _decode("direct", "uniform", 16, 32_768),
    _decode("direct", "uniform", 128, 8192),
    _decode("bf16", "uniform", 64, 8192, S_q=2),
    _decode("bf16", "uniform", 64, 8192, S_q=4),
    _decode("bf16", "uniform", 16, 32_768, S_q=2),
    _decode("bf16", "uniform", 16, 32_768, S_q=4),
    _prefill("forward", 1, 16_384),
    _prefill("forward", 8, 2048),
    _prefill("forward", 4, 4096),
    _prefill("forward", 32, 512),
    _prefill("forward and backward", 16, 1024),
    _prefill("forward", 1, 2048, 6144),
    _prefill("forward", 1, 1024, 31_744),
    _experts(512),
    _queries(16),
    _queries(1024),
    _other("ZOFL, a million variables", "zeroth_order:streamed_gpu", 20.0, {"n": 1000}),
    _other("ZOFL, rollouts", "zeroth_order:rollouts_gpu", 30.0, {"num_instances": 10}),
    _other("RL, whole loop, small", "rl:loops", 40.0, labels=["small"]),
    _other("RL, an action", "rl:acting", 25.0, {}),
    _other("RL, parts of a step", "rl:parts", 45.0),
    _other("RL, more environments", "rl:scaling", 90.0),
    _other("ICU pipeline, stays to beds", "queueing:pipeline_gpu", 90.0),
    _other("RL, against Brax", "rl:brax", 120.0),
    _other("RL, against Brax by MJX", "rl:brax_mjx", 300.0),
)
"""All cells."""

"""How long the stages of one layer take on this device, the laws that fit, and what they plan."""

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.afd import Config
from experiments.harness import units
from experiments.harness.result import Part, Row, Table
from experiments.harness.units import Unit
from jaxlab.nn.transformer import Swiglu
from jaxlab.serving.afd import planner, stages, wire
from jaxlab.serving.afd.planner import StageLaw, StageTimes
from jaxlab.serving.afd.topology import AttentionWeights, FfnShard, Topology
from jaxlab.serving.cache import paged_cache
from jaxlab.serving.cost import catalog
from jaxlab.serving.model import experts, step3
from jaxlab.serving.model.step3 import Step3Config

SERVERS, PER_SERVER = 2, 8
"""Expert servers of which one accelerator's shard is timed, and accelerators of each."""
PUBLISHED = 4039.0
"""Tokens a GPU and second of 2A2F at 4K on H800, arXiv:2507.19427."""
CLAIM = "Stages of a layer take a time that is linear in requests and tokens of cache"
LIMITS = (
    "Weights, tokens and caches in bfloat16, one layer, one device; the experts are the shard of "
    "one of sixteen accelerators. Networks are the data sheet's, by the planner's efficiencies.",
)


class Sizes(NamedTuple):
    """A layer, and what is measured of it.

    Attributes:
        config: of the model, one dense layer: the stage of attention does not compute it.
        attention: requests and tokens of cache of each.
        experts: tokens of a micro-batch.
        dtype: of weights, tokens and cache.
    """

    config: Step3Config
    attention: tuple[tuple[int, int], ...]
    experts: tuple[int, ...]
    dtype: Any


class Timed(NamedTuple):
    """A table of times: sizes, median seconds, and half the range of the middle half."""

    requests: np.ndarray
    context: np.ndarray
    seconds: np.ndarray
    spread: np.ndarray


def sizes(layer: str) -> Sizes:
    """Step-3's layer, or one of a fourteenth of its width that a CPU computes."""
    if layer == "true":
        return Sizes(
            Step3Config(num_layers=1, dense_layers=(0,), vocab=64, dense_hidden=64),
            tuple((b, s) for b in (16, 64, 128) for s in (1024, 4096, 8192)),
            (256, 1024, 2048, 4096),
            jnp.bfloat16,
        )
    small = Step3Config(
        vocab=64,
        num_layers=1,
        d_model=512,
        num_heads=8,
        head_dim=64,
        q_rank=256,
        dense_layers=(0,),
        dense_hidden=64,
        num_experts=16,
        num_active=3,
        expert_hidden=512,
    )
    return Sizes(
        small,
        tuple((b, s) for b in (8, 16, 32) for s in (128, 512, 1024)),
        (64, 128, 256, 512),
        jnp.float32,
    )


def run(config: Config, out: pathlib.Path) -> Part:
    """Times both stages, a unit each, and plans with the laws that fit them."""
    given = sizes(config.layer)
    programs = {"attention": _attention, "experts": _experts}
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
        num_ffn=SERVERS,
        batch=6144,
        measured=StageTimes(laws["attention"], {SERVERS: laws["experts"]}),
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


def _attention(given: Sizes, batch: int, context: int) -> Callable[[], Any]:
    """Returns a call of the attention stage with `batch` requests of `context` tokens."""
    config, dtype = given.config, given.dtype
    topology = Topology(1, 1, micro_batches=1)
    params = step3.init_step3(jax.random.key(0), config, dtype=dtype)
    D = config.d_model
    router = jax.random.normal(jax.random.key(1), (D, config.num_experts), dtype) / D**0.5
    weights = AttentionWeights(params.blocks[0]._replace(ffn=None), router)
    per_request = -(-(context + 1) // 64)
    cache = step3.init_step3_cache(
        config, batch * per_request + 1, batch=batch, max_pages=per_request, page=64, dtype=dtype
    )
    cache, _ = paged_cache.reserve(cache, jnp.full((batch,), context, jnp.int32))
    tokens, active = jnp.zeros((batch, 1), jnp.int32), jnp.ones((batch,), bool)
    cache, _, ((x, requests),) = jax.jit(
        functools.partial(stages.start_stage, config=config, num_micro_batches=1)
    )(params.embedding, cache, tokens, active)
    inbox = jnp.zeros((1, batch, D), dtype)

    @functools.partial(jax.jit, donate_argnums=3)
    def stage(weights: Any, x: Any, inbox: Any, cache: Any, requests: Any) -> Any:
        return stages.attention_stage(
            weights, x, inbox, cache, jnp.zeros((), jnp.int32), requests, config, topology
        )

    held = [cache]

    def call() -> Any:
        out, held[0], message = stage(weights, x, inbox, held[0], requests)
        return out, message

    return call


def _experts(given: Sizes, batch: int, context: int) -> Callable[[], Any]:
    """Returns a call of one shard's stage with a micro-batch of `batch` tokens."""
    config, dtype = given.config, given.dtype
    D, f = config.d_model, config.expert_hidden // PER_SERVER
    held, always = config.num_experts // SERVERS, config.expert_hidden // (SERVERS * PER_SERVER)
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def draw(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape, dtype) / D**0.5

    shard = FfnShard(
        Swiglu(draw(held, D, f), draw(held, D, f), draw(held, f, D)),
        Swiglu(draw(D, always), draw(D, always), draw(always, D)),
        None,
        jnp.zeros((), jnp.int32),
    )
    x = draw(batch, D) * D**0.5
    message = wire.pack(
        x, experts.route(draw(D, config.num_experts), x, config.num_active), "exact"
    )
    stage = jax.jit(lambda shard, message: stages.ffn_stage(shard, message, config, dtype))
    return lambda: stage(shard, message)


def _time(program: Callable, given: Sizes, repeats: int, _: pathlib.Path) -> Timed:
    where = given.attention if program is _attention else tuple((n, 0) for n in given.experts)
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

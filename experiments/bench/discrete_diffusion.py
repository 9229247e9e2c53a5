"""Timings of discrete diffusion: sequences a second, drawn and trained, and the whole loop."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing, torch_timing
from experiments.rivals import torch_diffusion, torch_side
from jaxlab.diffusion.discrete import sampling, schedules
from jaxlab.rl import discrete
from jaxlab.rl.discrete import convolutions, enhancers

SUMMARY = "Discrete diffusion: sequences a second, against torch and against writing with a cache"
VOCAB = 4


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of networks and batches; regulatory DNA by default, a smaller network than the published.

    Attributes:
        length: Tokens of a sequence.
        hidden: Channels of the convolutions.
        repeats: Layers of each of the five dilations.
        width: Of the transformers that draw and write.
        batch: Sequences at a time.
        num_steps: Steps of sampling, few and many.
        repeats_timed: Timed calls.
    """

    length: int = 200
    hidden: int = 48
    repeats: int = 1
    width: int = 48
    batch: int = 32
    num_steps: tuple[int, int] = (32, 128)
    repeats_timed: int = 7


def run(out: pathlib.Path, sizes: Sizes = Sizes()) -> list[timing.Measurement]:
    """Times everything on this machine; torch in the same process, where it is installed."""
    return [*drawing(sizes), *training(sizes), *writing(sizes), *loop(sizes)]


def drawing(sizes: Sizes) -> list[timing.Measurement]:
    """Ancestral sampling in few and in many steps, against the same network in torch."""
    policy, params = _network(sizes)
    found = []
    for num_steps in sizes.num_steps:
        draw = jax.jit(functools.partial(_draw, policy, sizes, num_steps))
        key = jax.random.key(0)
        memory = timing.temporary_megabytes(draw.lower(params, key).compile())
        ours = timing.Measurement(
            f"sampling in {num_steps} steps",
            _shape(sizes),
            timing.measure(draw, params, key, repeats=sizes.repeats_timed),
            work=sizes.batch,
            work_unit="sequences",
            note=f"Sampling in {num_steps} steps plans {memory:.3g} MB of temporary memory.",
        )
        found.append(
            _against_torch(
                ours,
                params,
                sizes,
                functools.partial(
                    torch_diffusion.sampler,
                    batch=sizes.batch,
                    length=sizes.length,
                    vocab=VOCAB,
                    num_steps=num_steps,
                ),
            )
        )
    return found


def training(sizes: Sizes) -> list[timing.Measurement]:
    """One gradient step on the evidence bound, against the same in torch."""
    policy, params = _network(sizes)
    corpus = enhancers.draw_corpus(jax.random.key(1), 1024, length=sizes.length)
    algorithm = discrete.pretrain(policy, corpus, batch=sizes.batch)
    state = algorithm.init(jax.random.key(2))
    ours = timing.Measurement(
        "a gradient step",
        _shape(sizes),
        timing.measure(jax.jit(algorithm.step), state, repeats=sizes.repeats_timed),
        work=sizes.batch,
        work_unit="sequences",
    )
    make = functools.partial(
        torch_diffusion.trainer,
        corpus=np.asarray(corpus),
        batch=sizes.batch,
        vocab=VOCAB,
        learning_rate=3e-4,
    )
    return [_against_torch(ours, params, sizes, make)]


def writing(sizes: Sizes) -> list[timing.Measurement]:
    """Diffusion of a transformer against the same trunk that writes with a cache."""
    small: Any = {"width": sizes.width, "num_layers": 2, "num_heads": 4}
    diffusion = discrete.make_transformer_policy(VOCAB, sizes.length, **small)
    writer = discrete.make_writing_policy(VOCAB, sizes.length, **small)
    few = sizes.num_steps[0]
    draw = jax.jit(functools.partial(_draw, diffusion, sizes, few))
    write = jax.jit(lambda params, key: writer.sample(key, params, (sizes.batch,)))
    key = jax.random.key(0)
    ours, theirs = (
        timing.measure(f, policy.init(key), key, repeats=sizes.repeats_timed)
        for f, policy in ((draw, diffusion), (write, writer))
    )
    return [
        timing.Measurement(
            f"transformer, {few} steps",
            f"{sizes.batch} x {sizes.length} tokens, width {sizes.width}, 2 layers",
            ours,
            f"autoregressive, {sizes.length} passes with a cache",
            theirs,
            work=sizes.batch,
            work_unit="sequences",
            note="The autoregressive policy has the same trunk, and is ours.",
        )
    ]


def loop(sizes: Sizes) -> list[timing.Measurement]:
    """Forward mirror descent on the enhancer simulator: drawing, rewards, updates, one program."""
    policy, _ = _network(sizes)
    algorithm = discrete.forward(
        lambda tokens: enhancers.score(tokens).activity,
        policy,
        num_steps=sizes.num_steps[0],
        batch=sizes.batch,
        num_batches=1,
    )
    step = jax.jit(algorithm.step)
    state = algorithm.init(jax.random.key(0))
    return [
        timing.Measurement(
            f"FKL, whole loop, {sizes.num_steps[0]} steps of sampling",
            _shape(sizes),
            timing.measure(step, state, repeats=sizes.repeats_timed),
            work=sizes.batch,
            work_unit="sequences",
            note="The loop draws, asks the enhancer simulator, and makes a gradient step.",
        )
    ]


def _network(sizes: Sizes) -> tuple[discrete.TokenPolicy, Any]:
    policy = discrete.make_conv_policy(
        VOCAB, sizes.length, hidden=sizes.hidden, repeats=sizes.repeats
    )
    params = policy.init(jax.random.key(0))
    # The last layer is zero at first, and would hide a wrong network.
    shaken = params["params"]["Dense_1"]["kernel"]
    shaken = 0.5 * jax.random.normal(jax.random.key(3), shaken.shape)
    heads = {**params["params"], "Dense_1": {**params["params"]["Dense_1"], "kernel": shaken}}
    return policy, {"params": heads}


def _draw(
    policy: discrete.TokenPolicy, sizes: Sizes, num_steps: int, params: Any, key: jax.Array
) -> jax.Array:
    return sampling.sample(
        key,
        policy.denoise(params),
        (sizes.batch,),
        sizes.length,
        vocab=VOCAB,
        schedule=schedules.make_schedule(num_steps),
    ).tokens


def _against_torch(
    ours: timing.Measurement, params: Any, sizes: Sizes, make: Callable[[Any], Callable[[], Any]]
) -> timing.Measurement:
    """Times torch at the same work, as it is and compiled, and keeps the faster."""
    if not torch_side.available():
        return torch_timing.missing(ours)
    network = torch_diffusion.make_network(params, dilations=convolutions.DILATIONS)
    tokens = np.asarray(
        jax.random.randint(jax.random.key(4), (4, sizes.length), 0, VOCAB + 1, jnp.int32)
    )
    policy, _ = _network(sizes)
    wanted = policy.denoise(params)(jnp.asarray(tokens), jnp.ones(4))
    error = timing.require_small(
        timing.deviation(jnp.asarray(torch_diffusion.logits(network, tokens)), wanted),
        "torch's network",
        1e-3,
    )
    return torch_timing.beside(ours, network, make, error=error, repeats=sizes.repeats_timed)


def _shape(sizes: Sizes) -> str:
    layers = len(convolutions.DILATIONS) * sizes.repeats
    return (
        f"{sizes.batch} x {sizes.length} tokens of {VOCAB}, {layers} convolutions of "
        f"{sizes.hidden} channels"
    )

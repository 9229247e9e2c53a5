"""Timings of PIRF: updates and samples, memory against K, and the generators against NumPy."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing, torch_timing
from experiments.rivals import physics as rivals
from experiments.rivals import torch_physics, torch_side
from jaxlab import nn, physics
from jaxlab.diffusion import edm
from jaxlab.physics import layers, pirf, random_fields

SUMMARY = "PIRF: updates, samples, memory against K, and generators of fields against NumPy"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is timed.

    Attributes:
        points: A side of the fields that a model draws.
        channels: Of the network, at its top.
        batch: Fields of an update.
        steps: N.
        grad_steps: Each K.
        samples: Fields of a call of the sampler.
        fields: Fields of a call of the generators of Poisson's and Darcy's data.
        grid: Points a side of theirs.
        waves: Fields of a call of the generators of Burgers' and the flow's.
        repeats: Timed calls.
    """

    points: int = 16
    channels: int = 20
    batch: int = 16
    steps: int = 20
    grad_steps: tuple[int, ...] = (1, 2, 6)
    samples: int = 64
    fields: int = 256
    grid: int = 32
    waves: int = 16
    repeats: int = 5


def run(out: pathlib.Path, sizes: Sizes = Sizes()) -> list[timing.Measurement]:
    """Times everything on this machine, rivals in the same process."""
    del out
    return [*models(sizes), *generators(sizes)]


def models(sizes: Sizes) -> list[timing.Measurement]:
    """An update for each K with the memory that it takes, and the sampler, beside torch."""
    law = physics.poisson()
    network = nn.Unet(2, sizes.channels, (1, 1), 1, attention=(), dropout=0.0)
    shape = (sizes.points, sizes.points, 2)
    params = network.init(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))
    size = f"Poisson, {sizes.points} x {sizes.points}, {sizes.channels} channels"
    found = []
    for num in sizes.grad_steps:
        tune = physics.make_pirf(
            law,
            network.apply,
            params,
            shape,
            num_steps=sizes.steps,
            num_grad_steps=num,
            batch_size=sizes.batch,
        )
        state = jax.jit(tune.init)(jax.random.key(1))
        step = jax.jit(lambda s, tune=tune: tune.step(s)[0])
        start = time.perf_counter()
        compiled = step.lower(state).compile()
        spent = time.perf_counter() - start
        memory = timing.temporary_megabytes(compiled)
        timed = timing.measure(compiled, state, repeats=sizes.repeats)
        ours = timing.Measurement(
            f"PIRF, an update, K = {num}",
            f"{size}, N = {sizes.steps}, batch {sizes.batch}",
            dataclasses.replace(timed, compile_s=spent),
            work=1.0,
            work_unit="updates",
            note=f"Temporary memory {memory:.3g} MB at K = {num}.",
        )
        train = functools.partial(
            torch_physics.trainer, batch=sizes.batch, num_steps=sizes.steps, num_grad_steps=num
        )
        found.append(_beside_torch(ours, network, params, sizes, train))
    noise = jax.random.normal(jax.random.key(2), (sizes.samples, *shape))
    draw = jax.jit(
        lambda params, noise: edm.sample(
            physics.denoiser_of(network, params), noise, num_steps=sizes.steps
        )
    )
    ours = timing.Measurement(
        "sampling, the same before and after the tuning",
        f"{size}, N = {sizes.steps}, {sizes.samples} fields",
        timing.measure(draw, params, noise, repeats=sizes.repeats),
        work=sizes.samples,
        work_unit="fields",
    )
    sample = functools.partial(torch_physics.sampler, batch=sizes.samples, num_steps=sizes.steps)
    found.append(_beside_torch(ours, network, params, sizes, sample))
    return found


def _beside_torch(
    ours: timing.Measurement,
    unet: nn.Unet,
    params: Any,
    sizes: Sizes,
    make: Callable[..., Callable[[], Any]],
) -> timing.Measurement:
    """Times `make(network, shape=)` of torch's network, whose gradients are ours."""
    if not torch_side.available():
        return torch_timing.missing(ours)
    shape = (sizes.points, sizes.points, 2)
    network = torch_physics.make_network(unet, params)
    error = timing.require_small(gradient_error(unet, params, shape), "torch's gradient", 1e-3)
    return torch_timing.beside(
        ours,
        network.call,
        lambda call: make(network._replace(call=call), shape=shape),
        error=error,
        repeats=sizes.repeats,
    )


def shaken(params: Any) -> Any:
    """Returns weights none of which begin near zero, where they would hide a wrong network."""
    keys = iter(jax.random.split(jax.random.key(6), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), params)


def gradient_error(unet: nn.Unet, params: Any, shape: tuple[int, int, int]) -> float:
    """Returns how far torch's gradient of PIRF's reward is from ours, over its largest entry.

    Of two fields, five steps and K = 2.
    """
    params = shaken(params)
    noise = jax.random.normal(jax.random.key(5), (2, *shape))

    def loss(train: Any, frozen: Any) -> jax.Array:
        whole = layers.join(train, frozen)
        learned, still = (
            physics.denoiser_of(unet, p) for p in (whole, jax.lax.stop_gradient(whole))
        )
        x, _ = pirf.truncated(learned, still, noise, 5, 2)
        return -jnp.mean(physics.reward(physics.poisson(), x))

    ours = jax.jit(jax.grad(loss))(*layers.split(params, layers.trainable_mask(params, "mask")))
    torch = torch_side.module()
    network = torch_physics.make_network(unet, params)
    given = torch.from_numpy(np.array(noise).transpose(0, 3, 1, 2).copy())
    torch_physics.loss(
        torch_physics.fields(network, given, num_steps=5, num_grad_steps=2)
    ).backward()
    theirs = torch_physics.gradients(network)
    wanted: dict[str, Any] = flax.traverse_util.flatten_dict(ours["params"], sep="/")
    pairs = [(theirs[name], x) for name, x in wanted.items() if x is not None]
    flat = [jnp.concatenate([jnp.ravel(pair[i]) for pair in pairs]) for i in range(2)]
    return timing.deviation(*flat)


def generators(sizes: Sizes) -> list[timing.Measurement]:
    """The data of four laws, in float64 on both sides, random numbers included."""
    with jax.enable_x64(True):
        return [_against(*each, repeats=sizes.repeats) for each in _generators(sizes)]


def _generators(sizes: Sizes) -> list[tuple[str, str, Callable, Callable, int]]:
    """Name, shape, ours of keys, the rival's of a generator of numbers, fields of a call."""
    grid, fields, waves = sizes.grid, sizes.fields, sizes.waves

    def white(rng: np.random.Generator, num: int) -> np.ndarray:
        return rng.normal(size=(num, grid, grid))

    def poisson(keys: jax.Array) -> jax.Array:
        f = random_fields.grf2d(keys, grid)
        return jnp.stack([f, physics.poisson_solve(f)], axis=-1)

    def darcy(keys: jax.Array) -> jax.Array:
        a = jnp.where(random_fields.grf2d(keys, grid) >= 0.0, 12.0, 3.0)
        return jnp.stack([a, physics.darcy_solve_cells(a)], axis=-1)

    def burgers(keys: jax.Array) -> jax.Array:
        return physics.burgers_solve(random_fields.burgers_start(keys, 128), num_times=128)

    def burgers_rival(rng: np.random.Generator) -> np.ndarray:
        k = np.arange(1, random_fields.BURGERS_MODES + 1)[:, None]
        angle = 2.0 * np.pi * k * np.arange(128) / 128
        modes = random_fields.burgers_std()[:, None] * np.stack([np.cos(angle), np.sin(angle)])
        weights = rng.normal(size=(waves, 2, len(k)))
        return rivals.burgers_fields(np.einsum("nck,cks->ns", weights, modes), num_times=128)

    def flow(keys: jax.Array) -> jax.Array:
        start = random_fields.periodic_field(keys, 2 * grid)
        return physics.kolmogorov_rollout(start, reynolds=100.0, num_frames=17)

    def flow_rival(rng: np.random.Generator) -> np.ndarray:
        k = np.fft.fftfreq(2 * grid, 0.5 / grid)
        square = k[:, None] ** 2 + k[None, : grid + 1] ** 2
        std = 2 * grid * 7.0**1.5 * (4.0 * np.pi**2 * square + 49.0) ** -1.25
        std[0, 0] = 0.0
        spectrum = std * np.fft.rfft2(rng.normal(size=(waves, 2 * grid, 2 * grid)))
        start = np.fft.irfft2(spectrum, (2 * grid, 2 * grid))
        return rivals.kolmogorov_frames(start, reynolds=100.0, num_frames=17)

    square, ring = f"{fields} fields, {grid} x {grid}", f"{waves} fields"
    return [
        ("Poisson", square, poisson, lambda r: rivals.poisson_fields(white(r, fields)), fields),
        ("Darcy", square, darcy, lambda r: rivals.darcy_fields(white(r, fields)), fields),
        ("Burgers", f"{ring}, 128 x 128", burgers, burgers_rival, waves),
        (
            "Kolmogorov flow, half a unit of time",
            f"{ring}, {2 * grid} x {2 * grid}",
            flow,
            flow_rival,
            waves,
        ),
    ]


def _against(
    name: str, shape: str, ours: Callable, rival: Callable, num: int, *, repeats: int
) -> timing.Measurement:
    keys: Any = jax.random.split(jax.random.key(0), num)
    return timing.Measurement(
        f"data of {name}",
        shape,
        timing.measure(jax.jit(ours), keys, repeats=repeats),
        "NumPy and SciPy",
        timing.measure(functools.partial(rival, np.random.default_rng(0)), repeats=repeats),
        work=num,
        work_unit="fields",
    )

"""How long an action takes, by method and way of acting, at the sizes of the papers."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import rl
from jaxlab.rl import critics as critics_lib

OBS, ACTION = 17, 6
"""Of HalfCheetah."""
BATCHES = (1, 4096)
SECONDS = 3.0
"""That a series of calls takes, if that is at least `FEWEST` calls."""
FEWEST, MOST = 7, 300


class Latency(NamedTuple):
    """Milliseconds of one call, from the host's point of view."""

    method: str
    mode: str
    evaluations: int
    critic_evaluations: int
    batch: int
    p50: float
    p95: float


def run() -> tuple[Latency, ...]:
    """Times every way of acting of FPMD-R, FPMD-M, DPMD and SAC, three layers of 256."""
    critics = rl.make_critics(OBS, ACTION)
    q_params = critics.init(jax.random.key(1))
    makers = {"FPMD-R": rl.make_flow, "FPMD-M": rl.make_mean_flow, "DPMD": rl.make_diffusion}
    found = []
    for name, make in makers.items():
        generator = make(OBS, ACTION)
        params = generator.init(jax.random.key(0))
        modes = ("bon", "vanilla") if name == "DPMD" else rl.MODES
        for mode in modes:
            counts = rl.num_evaluations(mode, num_steps=generator.num_steps)
            act = functools.partial(_act, generator, critics, mode)
            found += [
                Latency(name, mode, *counts, batch, *_time(act, batch, params, q_params))
                for batch in BATCHES
            ]
    policy = rl.sac(OBS, ACTION)

    def gaussian(params: Any, q_params: Any, key: jax.Array, obs: jax.Array) -> jax.Array:
        q = critics_lib.smaller(critics, q_params)
        return policy.act(key, params, obs, q, jnp.ones(()), explore=False)

    params = policy.init(jax.random.key(0))
    found += [
        Latency("SAC", "mean", 1, 0, batch, *_time(gaussian, batch, params, q_params))
        for batch in BATCHES
    ]
    return tuple(found)


def _act(
    generator: rl.Generator,
    critics: rl.Critics,
    mode: rl.Mode,
    params: Any,
    q_params: Any,
    key: jax.Array,
    obs: jax.Array,
) -> jax.Array:
    q = critics_lib.smaller(critics, q_params)
    return rl.act(key, generator, params, obs, q, mode=mode)


def _time(act: Callable, batch: int, *params: Any) -> tuple[float, float]:
    """Median and 95th percentile in milliseconds."""
    compiled = jax.jit(act)
    obs = jnp.ones((batch, OBS))
    keys = jax.random.split(jax.random.key(2), MOST)
    for key in keys[:2]:
        jax.block_until_ready(compiled(*params, key, obs))
    taken: list[float] = []
    while len(taken) < FEWEST or (sum(taken) < SECONDS and len(taken) < MOST):
        key = keys[len(taken)]
        start = time.perf_counter()
        jax.block_until_ready(compiled(*params, key, obs))
        taken.append(time.perf_counter() - start)
    p50, p95 = np.quantile(taken, (0.5, 0.95)) * 1e3
    return float(p50), float(p95)

"""What a model's fields are judged by: residual, solution, likeness to data, time, sensors."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pirf import Config, methods
from experiments.pirf.tasks import Task
from jaxlab import physics
from jaxlab.core.types import PyTree
from jaxlab.diffusion import edm
from jaxlab.physics import benchmarks, metrics
from jaxlab.physics.baselines import guidance, projection

SIGNS = ("amplitude", "boundary strip", "spectrum", "solution error", "diversity")
"""What the detector flags."""
BATCH = 64
"""Fields that are drawn at a time, at most."""
SHOWN, WATCHED, SENSED = 3, 32, 32
"""Fields that pictures show, whose way is followed, and that sensors are put on."""
MOST = 512
"""Steps of a sampler, at most."""
SENSOR_KEY = 1_000_003
"""What is folded into the key for the sensors' nodes."""


class Outcome(NamedTuple):
    """What was measured of a method; E is a figure for each number of steps in `judged_steps`.

    Attributes:
        interior: `[E]`, mean square of the residual in the interior.
        absolute: `[E]`, mean of its absolute value there.
        every: `[E]`, mean square of the published residual at every point.
        std: `[E, C]`, standard deviations over those of the data.
        solution_error: `[E]`, median over fields; NaN without a solver.
        spectrum: `[E, C]`, distances of log spectra to the data's.
        frechet: `[E]`, distance of normal laws of low cosine coefficients; NaN with few fields.
        sliced: `[E]`, sliced Wasserstein distance to the data.
        diversity: `[E]`, mean distance of two fields over that of data.
        nearest: `[E]`, mean distance to the nearest field of training, over that of new data; NaN
            where these repeat it.
        inclusion: `[E]`, share of nodes with Darcy's high coefficient; NaN of other laws.
        flags: `[E, 5]`, bool, what the detector says, see `SIGNS`.
        seconds: `[E]`, a field takes, of one core on a CPU; NaN where none was drawn.
        log_spectrum: `[R, C]`, at the number of steps nearest to that of training, as what follows.
        shown: `[3, H, W, C]`, fields.
        left: `[3, h, w]`, their residuals.
        path: `[N]`, mean square of the residual of D(x_t) at each level; empty where steps are
            pushed.
        sensor_error: `[Z]`, at each length of a step: root mean square error of fields that sensors
            guide, where there is no sensor, over the data's standard deviation; empty where that
            was left out.
        sensor_interior: `[Z]`, mean square of their residual.
    """

    interior: Any
    absolute: Any
    every: Any
    std: Any
    solution_error: Any
    spectrum: Any
    frechet: Any
    sliced: Any
    diversity: Any
    nearest: Any
    inclusion: Any
    flags: Any
    seconds: Any
    log_spectrum: Any
    shown: Any
    left: Any
    path: Any
    sensor_error: Any
    sensor_interior: Any


Judge = Callable[[str, PyTree], Outcome]
"""`judge(method, params)`, of weights to draw with."""


def make_judge(task: Task, base: PyTree, config: Config) -> Judge:
    """Makes the judge of one law's methods: all begin with the same noise.

    Programs, and fields of the base, are kept from one call to the next.

    Args:
        task: the law.
        base: weights of the base, whose faults are not held against what was tuned.
        config: settings.
    """
    key = jax.random.key(config.seed)
    noise = jax.random.normal(jax.random.fold_in(key, 0), (config.fields, *task.shape))
    size = math.ceil(config.fields / math.ceil(config.fields / BATCH))  # of equal pieces

    @functools.cache
    def program(kind: str, num_steps: int) -> Callable[..., jax.Array]:
        drawn, given = jax.jit(_drawing(task, kind, num_steps)), _given(kind, 0.0, num_steps)
        return drawn.lower(base, noise[:size], *given).compile()

    def draw(name: str, params: PyTree, num_steps: int) -> tuple[jax.Array, float]:
        given = methods.GUIDED.get(name, {})
        kind = "guided" if given else "plain"
        compiled = program(kind, num_steps if given else 2)
        arguments = _given(kind, given.get("zeta", 0.0), num_steps)
        after = _after(task, name)
        after(noise[:size])  # compiles
        clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
        start, pieces = clock(), []
        for i in range(0, len(noise), size):
            piece = noise[i : i + size]
            short = size - len(piece)
            piece = jnp.pad(piece, [(0, short), (0, 0), (0, 0), (0, 0)])
            pieces.append(after(compiled(params, piece, *arguments))[: size - short])
        x = jax.block_until_ready(jnp.concatenate(pieces))
        return x, (clock() - start) / len(noise)

    @functools.cache
    def of_base(num_steps: int) -> tuple[jax.Array, float]:
        return draw(methods.BASE, base, num_steps)

    @functools.cache
    def apart() -> float:
        return _nearest(task, jnp.asarray(task.judged()[: config.fields]))

    follow = jax.jit(functools.partial(_path, task, config.num_steps))

    @functools.cache
    def guide() -> Callable[..., Any]:
        return jax.jit(by_sensors(task, config))

    def judge(name: str, params: PyTree) -> Outcome:
        data, at = jnp.asarray(task.judged()), trained_steps(config)
        found: list[tuple] = []
        kept: dict[str, Any] = {}
        for i, num in enumerate(config.judged_steps):
            first, seconds = of_base(num)
            if name == methods.DATA:
                x, seconds = jnp.asarray(task.data()[: config.fields]), np.nan
            elif name == methods.BASE:
                x = first
            else:
                x, seconds = draw(name, params, num)
            found.append((*_figures(task, x, first, data, apart()), seconds))
            if i == at:
                kept = {
                    "log_spectrum": metrics.log_spectrum(x),
                    "shown": x[:SHOWN],
                    "left": physics.residual(task.law, x[:SHOWN]),
                }
        none = np.zeros(0)
        plain = name in (methods.BASE, *methods.TUNED, *methods.ON_DATA)
        kept["path"] = follow(params, noise[:WATCHED]) if plain else none
        kept["sensor_error"], kept["sensor_interior"] = none, none
        if config.sensors and name in (methods.BASE, methods.OURS):
            told = [guide()(params, noise, jnp.asarray(z)) for z in methods.SENSOR_ZETAS]
            kept["sensor_error"], kept["sensor_interior"] = zip(*told, strict=True)
        columns = dict(zip(Outcome._fields, zip(*found, strict=True), strict=False))
        return Outcome(**{name: np.asarray(value) for name, value in (columns | kept).items()})

    return judge


def trained_steps(config: Config) -> int:
    """Returns which of the judged numbers of steps is nearest to that of training."""
    return int(np.argmin(np.abs(np.asarray(config.judged_steps) - config.num_steps)))


def _drawing(task: Task, kind: str, num_steps: int) -> Callable[..., jax.Array]:
    """Returns how a method draws fields; a program of few, since they take long to compile.

    Without guidance the number of steps is data: Heun's steps between pairs of levels, then D.
    """

    def plain(params: PyTree, noise: jax.Array, pairs: jax.Array, count: jax.Array) -> jax.Array:
        denoiser = physics.denoiser_of(task.network, params)

        def step(i: jax.Array, x: jax.Array) -> jax.Array:
            return edm.heun_step(denoiser, x, pairs[i, 0], pairs[i, 1])

        return denoiser(jax.lax.fori_loop(0, count, step, pairs[0, 0] * noise), pairs[-1, 0])

    def guided(params: PyTree, noise: jax.Array, zeta: jax.Array) -> jax.Array:
        denoiser, norm = physics.denoiser_of(task.network, params), guidance.residual_norm(task.law)
        return guidance.guided_sample(
            denoiser, noise, lambda x: zeta * norm(x), zeta=1.0, num_steps=num_steps
        )

    return plain if kind == "plain" else guided


def _given(kind: str, zeta: float, num_steps: int) -> tuple[jax.Array, ...]:
    """Arguments of a program besides weights and noise."""
    if kind == "guided":
        return (jnp.asarray(zeta),)
    levels = edm.sigmas(num_steps)
    pairs = np.full((MOST, 2), levels[-2], np.float32)
    pairs[: num_steps - 1] = np.stack([levels[:-2], levels[1:-1]], axis=1)
    return jnp.asarray(pairs), jnp.asarray(num_steps - 1)


def _after(task: Task, name: str) -> Callable[[jax.Array], jax.Array]:
    """What is done to fields when they are drawn: a projection, or CoCoGen's corrections."""
    if name == methods.SOLVER:  # some solve on the host
        return functools.partial(projection.solved, task.law)
    if name == methods.GAUSS_NEWTON:
        return jax.jit(jax.vmap(functools.partial(projection.gauss_newton, task.law)))
    given = methods.GUIDED.get(name, {})
    if not given.get("post_steps"):
        return lambda x: x
    norm = guidance.residual_norm(task.law)
    push = jax.grad(lambda x: jnp.sum(norm(x)))

    @jax.jit
    def corrected(x: jax.Array) -> jax.Array:
        for _ in range(given["post_steps"]):
            x = x - given["zeta"] * push(x)
        return x

    return corrected


def by_sensors(
    task: Task, config: Config
) -> Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns `draw(params, noise, zeta)`, which draws fields that sensors guide and judges them.

    Sensors read new data, at the same random nodes of every channel, and push all steps but the
    first by zeta. Of `draw` comes the error where there is no sensor, and the residual, see
    `Outcome`.
    """
    truth, mask = sensed(task, min(SENSED, config.fields), config)
    norm = guidance.sensor_norm(jnp.asarray(mask), truth)
    spread = jnp.std(jnp.asarray(task.judged()), axis=(0, 1, 2))[None, None, None]

    def draw(params: PyTree, noise: jax.Array, zeta: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = guidance.guided_sample(
            physics.denoiser_of(task.network, params),
            noise[: len(truth)],
            lambda x: zeta * norm(x),
            zeta=1.0,
            num_steps=config.num_steps,
            start=0.0,
        )
        squares = jnp.where(mask[None], 0.0, ((x - truth) / spread) ** 2)
        error = jnp.sqrt(jnp.sum(squares) / (len(truth) * np.sum(~mask)))
        return error, jnp.mean(physics.residual(task.law, x) ** 2)

    return draw


def sensed(task: Task, num: int, config: Config) -> tuple[jax.Array, np.ndarray]:
    """Returns the fields that sensors read, `num` at most, and the `[H, W, C]` mask of theirs."""
    height, width, channels = task.shape
    key = jax.random.fold_in(jax.random.key(config.seed), SENSOR_KEY)
    order = np.asarray(jax.random.permutation(key, height * width))
    mask = np.zeros(height * width, bool)
    mask[order[: config.sensors]] = True
    mask = np.repeat(mask.reshape(height, width, 1), channels, axis=2)
    return jnp.asarray(task.judged()[:num]), mask


def _path(task: Task, num_steps: int, params: PyTree, noise: jax.Array) -> jax.Array:
    """Returns the `[N]` mean squares of the residual of D(x_t) at the levels of the sampler."""
    denoiser, levels = physics.denoiser_of(task.network, params), edm.sigmas(num_steps)

    def squares(x: jax.Array, level: jax.Array) -> jax.Array:
        return jnp.mean(physics.residual(task.law, denoiser(x, level)) ** 2)

    def step(x: jax.Array, pair: jax.Array) -> tuple[jax.Array, jax.Array]:
        return edm.heun_step(denoiser, x, pair[0], pair[1]), squares(x, pair[0])

    # The last step leads nowhere; what is wanted there is D alone.
    pairs = np.stack([levels[:-1], [*levels[1:-1], levels[-2]]], axis=1)
    return jax.lax.scan(step, float(levels[0]) * noise, jnp.asarray(pairs))[1]


def _figures(
    task: Task, x: jax.Array, base: jax.Array, data: jax.Array, usual: float
) -> tuple[Any, ...]:
    """The figures of fields, in the order of `Outcome`, the time aside.

    New fields are `usual` from the nearest of training.
    """
    if not bool(jnp.all(jnp.isfinite(x))):  # lost
        lost, each = np.nan, np.full(task.shape[-1], np.nan)
        flags = np.ones(len(SIGNS), bool)
        return lost, lost, lost, each, lost, each, lost, lost, lost, lost, lost, flags
    signs = physics.detect_hacking(task.law, x, data, base=base)
    every = physics.residual(task.law, x, region="all", repo_exact=True)
    inside = physics.residual(task.law, x)
    few = min(len(x), len(data)) <= 36 * task.shape[-1]
    return (
        jnp.mean(inside**2),
        jnp.mean(jnp.abs(inside)),
        jnp.mean(every**2),
        signs.amplitude,
        signs.solution_error,
        signs.spectrum,
        np.nan if few else metrics.frechet_distance(x, data),
        metrics.sliced_wasserstein(jax.random.key(0), x, data),
        signs.diversity,
        _nearest(task, x) / usual if usual > 0.0 else np.nan,
        _inclusion(task, x),
        [name in signs.flags for name in SIGNS],
    )


def _nearest(task: Task, x: jax.Array) -> float:
    """Mean distance to the nearest field of training: near zero of a model that repeats them."""
    return float(jnp.mean(metrics.nearest_distance(x, jnp.asarray(task.data()))))


def _inclusion(task: Task, x: jax.Array) -> float:
    if task.name != "darcy":
        return np.nan
    return float(jnp.mean(physics.post(task.law, x)[..., 0] > benchmarks.MIDDLE))

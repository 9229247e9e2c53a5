"""Why one step works: the bound of one Euler step, averaged modes, and MeanFlow's way out.

Both flows improve a broad policy of a bandit with two good actions, by weights exp(Q / lambda). On
the way the distance of their one-step samples from the target is held against the bound, and modes
are counted.
"""

import functools
import math
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.fpmd import Config
from experiments.harness import drawing, units, verdicts
from experiments.harness.result import Figure, Part
from jaxlab import rl
from jaxlab.diffusion import closed_form, one_step, rectified_flow
from jaxlab.rl import generators

TARGET = closed_form.Mixture(np.array([0.5, 0.5]), np.array([-0.7, 0.7]), np.array([0.1, 0.1]))
START = 0.5
"""Where the bounded Euler step begins; it ends at 1."""
OLD_STD = 0.7
"""Of the policy that is improved, normal about 0; exp(Q / lambda) is the target over it."""
SAMPLES = 4000
POINTS = 12
RADIUS = 0.3


class Course(NamedTuple):
    """What happened along the training of both flows.

    Attributes:
        step: `[points]` gradient steps.
        bound, distance: `[points, seeds]`: of one Euler step of the learned flow from the exact
            x_t at t = 1/2, by its flow matching loss, and as measured.
        wasserstein: by name, `[points, seeds]`: W2 of samples to the target.
        modes: by name, `[seeds]`: share of samples near either mode at the end.
    """

    step: np.ndarray
    bound: np.ndarray
    distance: np.ndarray
    wasserstein: dict[str, np.ndarray]
    modes: dict[str, np.ndarray]


def run(config: Config, out: pathlib.Path) -> Part:
    """Trains both flows, or reads what `out` holds, and says how they end."""
    return tell(measured(config, out), out)


def measured(config: Config, out: pathlib.Path) -> Course:
    """Returns what `train` measures, from `out` if it is there."""
    fields = {name: getattr(config, name) for name in ("seed", "num_seeds", "theory_steps")}
    unit = units.Unit("theory", fields, lambda folder: train(config), Course)
    return units.run([unit], out, title="fpmd, theory")["theory"]


def tell(course: Course, out: pathlib.Path) -> Part:
    """Returns rows and the picture of a course."""
    held = bool(np.all(course.distance <= course.bound))
    rows = [
        verdicts.row_alone(
            "The error of one Euler step is bounded by a variance",
            "W2 over its bound at the end of training",
            course.distance[-1] / course.bound[-1],
            verdict="reproduced" if held else "not reproduced",
            note=f"One step from t = 1/2; the bound holds at {'all' if held else 'not all'} "
            f"{course.step.size} points of all seeds.",
        )
    ]
    for name, share in course.modes.items():
        averaged = name == "FPMD-R, 1 step"
        right = bool(np.all(share < 0.1) if averaged else np.all(share > 0.8))
        rows.append(
            verdicts.row_alone(
                "One step of a flow is the mean of its modes, one of MeanFlow is not",
                f"Samples near either mode, {name}",
                100.0 * share,
                unit="%",
                verdict="reproduced" if right else "not reproduced",
                note="Two good actions, -0.7 and 0.7, of equal weight; nearer than 0.3.",
            )
        )
    return Part(tuple(rows), (_figure(course, out),))


def train(config: Config) -> Course:
    """Trains all seeds and measures on the way."""
    flow = generators.make_flow(1, 1, hidden=(128, 128))
    mean = generators.make_mean_flow(1, 1, hidden=(128, 128))
    network: Any = generators.TimedNetwork((128, 128), 1)
    optimizer = optax.adam(1e-3)
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    obs = jnp.zeros((512, 1))

    old = closed_form.Mixture(np.ones(1), np.zeros(1), np.full(1, OLD_STD))

    def train(state: tuple, key: jax.Array, begin: Any, end: Any, generator: rl.Generator) -> tuple:
        """Takes the steps from `begin` to `end`, traced numbers: one program for all pieces."""

        def step(i: jax.Array, state: tuple) -> tuple:
            params, opt = state
            key_data, key_loss = jax.random.split(jax.random.fold_in(key, i))
            actions = OLD_STD * jax.random.normal(key_data, (512, 1))
            weight = jnp.exp(log_density(TARGET, actions) - log_density(old, actions))[:, 0]
            grads = jax.grad(generator.loss, argnums=1)(key_loss, params, obs, actions, weight)
            updates, opt = optimizer.update(grads, opt)
            return optax.apply_updates(params, updates), opt

        return jax.lax.fori_loop(begin, end, step, state)

    def measure(flow_params: Any, mean_params: Any, key: jax.Array) -> dict[str, jax.Array]:
        key_data, key_other, key_noise, key_draw = jax.random.split(key, 4)
        data, other = draw(key_data, SAMPLES), draw(key_other, SAMPLES)
        noise = jax.random.normal(key_noise, data.shape)
        zeros = jnp.zeros((SAMPLES, 1))

        def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
            return network.apply(flow_params, zeros, x, t)

        t = jnp.full((SAMPLES,), START)
        x = rectified_flow.interpolate(data, noise, t)
        stepped = x + (1.0 - START) * velocity(x, t)
        found = {
            "bound": one_step.step_bound(velocity, data, noise, START, 1.0 - START),
            "distance": one_step.wasserstein(stepped[:, 0], other[:, 0]),
        }
        for name, generator, params, num_steps in (
            ("FPMD-R, 1 step", flow, flow_params, 1),
            ("FPMD-R, 50 steps", flow, flow_params, 50),
            ("FPMD-M, 1 step", mean, mean_params, 1),
        ):
            drawn = generators.draw(
                key_draw, generator, params, zeros[:1], num_particles=SAMPLES, num_steps=num_steps
            )[:, 0]
            found[f"w2/{name}"] = one_step.wasserstein(drawn[:, 0], other[:, 0])
            modes = jnp.asarray(TARGET.mean, jnp.float32)[:, None]
            found[f"modes/{name}"] = jnp.sum(one_step.mode_shares(drawn, modes, radius=RADIUS))
        return found

    def start(key: jax.Array, generator: rl.Generator) -> tuple[Any, Any]:
        params = generator.init(key)
        return params, optimizer.init(params)

    pieces = np.unique(np.geomspace(10, config.theory_steps, POINTS).astype(np.int32))
    both = (flow, mean)
    states = [jax.vmap(lambda k, g=g: start(k, g))(keys) for g in both]
    over_seeds = (0, 0, None, None)
    trains = [
        jax.jit(jax.vmap(functools.partial(train, generator=g), in_axes=over_seeds)) for g in both
    ]
    measures = jax.jit(jax.vmap(measure))
    measured, begin = [], np.int32(0)
    for end in pieces:
        states = [f(s, keys, begin, end) for f, s in zip(trains, states, strict=True)]
        fresh = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 2**31 - 1 - end)
        measured.append(measures(states[0][0], states[1][0], fresh))
        begin = end
    stacked = {k: np.stack([np.asarray(m[k]) for m in measured]) for k in measured[0]}
    names = [k.removeprefix("w2/") for k in stacked if k.startswith("w2/")]
    return Course(
        step=pieces,
        bound=stacked["bound"],
        distance=stacked["distance"],
        wasserstein={name: stacked[f"w2/{name}"] for name in names},
        modes={name: stacked[f"modes/{name}"][-1] for name in names},
    )


def log_density(mixture: closed_form.Mixture, x: jax.Array) -> jax.Array:
    """Returns the logarithm of a mixture's density at each element."""
    z = (x[..., None] - jnp.asarray(mixture.mean, x.dtype)) / jnp.asarray(mixture.std, x.dtype)
    log_part = jnp.log(jnp.asarray(mixture.weight / mixture.std, x.dtype)) - 0.5 * z**2
    return jax.nn.logsumexp(log_part, axis=-1) - 0.5 * math.log(2.0 * math.pi)


def draw(key: jax.Array, num: int) -> jax.Array:
    """Draws `[num, 1]` of the target."""
    key_which, key_noise = jax.random.split(key)
    which = jax.random.bernoulli(key_which, float(TARGET.weight[1]), (num, 1))
    mean = jnp.where(which, float(TARGET.mean[1]), float(TARGET.mean[0]))
    return mean + float(TARGET.std[0]) * jax.random.normal(key_noise, (num, 1))


def _figure(course: Course, out: pathlib.Path) -> Figure:
    with plt.rc_context(drawing.STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4))
        left.plot(course.step, course.bound.mean(axis=1), color=drawing.INK, label="bound")
        left.plot(course.step, course.distance.mean(axis=1), color=drawing.BLUE, label="measured")
        left.set_title("One Euler step from t = 1/2")
        left.set_ylabel("2-Wasserstein distance")
        colors = (drawing.BLUE, drawing.SKY, drawing.RED)
        for (name, distance), color in zip(course.wasserstein.items(), colors, strict=True):
            right.plot(course.step, distance.mean(axis=1), color=color, label=name)
        right.set_title("Samples of a bandit with two modes")
        for axis in (left, right):
            axis.set_xscale("log")
            axis.set_ylim(0.0)
            axis.set_xlabel("Gradient steps")
            axis.legend()
        drawing.save(figure, out / "theory.png")
    return Figure(
        "theory.png",
        "Left: the bound of one step's error by the flow matching loss, and the error. Right: one "
        "step of a flow ends between the modes, one of MeanFlow does not.",
        "Bound against measured distance, and distance of one-step samples over training",
    )

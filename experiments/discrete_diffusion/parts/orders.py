"""Orders of revealing, with a denoiser that knows every conditional exactly.

A chain of six tokens of three kinds: each is mostly the successor of the one before it, ever less
surely along the chain. Revealing the surest tokens first goes down the chain;
tokens that are revealed together know nothing of each other in any order.
"""

import itertools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments.discrete_diffusion import Config
from experiments.harness import drawing, units
from experiments.harness.result import Figure, Part, Row
from experiments.harness.units import Unit
from jaxlab.diffusion.discrete import exact, masked, path, sampling, schedules
from jaxlab.diffusion.discrete.masked import Denoise
from jaxlab.diffusion.discrete.sampling import Order

V, K = 3, 6
SURE = (0.95, 0.9, 0.8, 0.65, 0.5)
"""Probability that a token follows the one before it by one, modulo V, beyond an even draw."""
STEPS = (1, 2, 3, 4, 6)
"""Steps of sampling."""
SHOWN = 6
"""Those that are looked at one by one."""
DRAWS = 2**16
ORDERS: dict[Order, str] = {
    "ancestral": "ancestral",
    "random": "random places, as many each step",
    "largest": "the surest place first",
    "drawn": "the surest draw first",
}


class Orders(NamedTuple):
    """What each order of `ORDERS` does, by its name.

    Attributes:
        distance: `[len(STEPS)]` total variation of what is drawn from the chain's law.
        floor: the same of as many draws from the law itself.
        places: `[SHOWN, K]` share of sequences in which a place is revealed in a step, first first.
        entropy: `[SHOWN]` mean entropy of a hidden token before each step, nats.
    """

    distance: dict[str, np.ndarray]
    floor: float
    places: dict[str, np.ndarray]
    entropy: dict[str, np.ndarray]


def run(config: Config, out: pathlib.Path) -> Part:
    """Measures, or reads, then tells and draws."""
    about = {
        "seed": config.seed,
        "steps": [*STEPS, SHOWN],
        "draws": DRAWS,
        "orders": list(ORDERS),
        "sure": SURE,
        "sizes": [V, K],
    }
    unit = Unit("orders", about, lambda folder: measure(config.seed), Orders)
    found = units.run([unit], out, title="discrete_diffusion, orders")["orders"]
    return Part(_rows(found), (_draw_places(found, out), _draw_lines(found, out)))


def chain() -> np.ndarray:
    """Returns the `[V^K]` probabilities of all sequences; the first token is 0 in 9 of 10."""
    clean = exact.sequences(V, K)
    prob = np.array([0.9, 0.05, 0.05])[clean[:, 0]]
    for k, sure in enumerate(SURE):
        follows = clean[:, k + 1] == (clean[:, k] + 1) % V
        prob = prob * (sure * follows + (1.0 - sure) / V)
    return prob


def measure(seed: int) -> Orders:
    """Draws in every order and number of steps."""
    law = chain()
    denoise = exact.table_denoiser(exact.conditionals(jnp.asarray(law), vocab=V, length=K))
    keys = iter(jax.random.split(jax.random.key(seed), 1 + len(ORDERS) * len(STEPS)))

    def apart(counts: np.ndarray) -> float:
        return 0.5 * float(np.abs(counts / DRAWS - law).sum())

    drawn = jax.random.categorical(next(keys), jnp.log(jnp.asarray(law)), shape=(DRAWS,))
    floor = apart(np.bincount(drawn, minlength=V**K))
    distance, places, entropy = {}, {}, {}
    for order in ORDERS:
        errors = []
        for num in STEPS:
            one = _sample(next(keys), denoise, num, order)
            errors.append(apart(np.bincount(exact.number(one.tokens, V), minlength=V**K)))
            if num == SHOWN:
                at = np.asarray(one.reveal)
                steps = range(SHOWN, 0, -1)
                places[order] = np.stack([(at == n).mean(axis=0) for n in steps])
                entropy[order] = np.array([_entropy(denoise, one, n) for n in steps])
        distance[order] = np.array(errors)
    return Orders(distance, floor, places, entropy)


def _sample(key: jax.Array, denoise: Denoise, num_steps: int, order: Order) -> sampling.Sample:
    return sampling.sample(
        key, denoise, (DRAWS,), K, vocab=V, schedule=schedules.make_schedule(num_steps), order=order
    )


def _entropy(denoise: Denoise, drawn: sampling.Sample, n: int) -> float:
    state = path.visited(drawn.tokens, drawn.reveal, n, vocab=V)
    logp = masked.log_probs(denoise, state, jnp.full(state.shape[:1], n / SHOWN), vocab=V)
    each = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return float(jnp.mean(each, where=state == V))


def _rows(found: Orders) -> tuple[Row, ...]:
    claim = "The order of revealing changes the law that is drawn"
    return tuple(
        Row(
            claim,
            f"Total variation from the law in {num} steps, {ORDERS[order]}",
            float(found.distance[order][STEPS.index(num)]),
            baseline=("ancestral", float(found.distance["ancestral"][STEPS.index(num)])),
            note=f"A chain of {K} tokens of {V} kinds, exact conditionals; of {DRAWS:,} draws, "
            f"whose own error is {found.floor:.3f}.",
        )
        for num, order in itertools.product((2, 3, SHOWN), ORDERS)
        if order != "ancestral"
    )


def _draw_places(found: Orders, out: pathlib.Path) -> Figure:
    with plt.rc_context({**drawing.STYLE, "axes.grid": False}):
        figure, axes = drawing.panels(2, 2, height=2.6)
        for axis, (order, title) in zip(axes.flat, ORDERS.items(), strict=True):
            share = found.places[order]
            axis.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
            for step, place in np.ndindex(share.shape):
                ink = "white" if share[step, place] > 0.5 else drawing.INK
                text = f"{100 * share[step, place]:.0f}"
                axis.text(place, step, text, ha="center", va="center", fontsize=7.5, color=ink)
            axis.set_title(title[:1].upper() + title[1:])
            axis.set_xticks(range(K), [str(k + 1) for k in range(K)])
            axis.set_yticks(range(SHOWN), [str(n + 1) for n in range(SHOWN)])
            axis.set(xlabel="Place in the chain", ylabel="Step")
        drawing.save(figure, out / "orders.png")
    return Figure(
        "orders.png",
        f"In which of {SHOWN} steps the places of a chain are revealed, percent of sequences.",
        "Heat maps of the step in which each place is revealed, by order",
    )


def _draw_lines(found: Orders, out: pathlib.Path) -> Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axes = drawing.panels(1, 2)
        left, right = axes[0]
        for color, (order, title) in zip(drawing.COLORS, ORDERS.items(), strict=False):
            steps = np.arange(1, SHOWN + 1)
            left.plot(steps, found.entropy[order], "o-", ms=4, color=color, label=title)
            right.plot(STEPS, found.distance[order], "o-", ms=4, color=color, label=title)
        right.axhline(found.floor, color=drawing.MUTED, lw=1, ls="--", label="draws from the law")
        left.set(xlabel="Step", ylabel="Entropy of a hidden token, nats")
        left.set_title("What is still open")
        right.set(xlabel="Steps of sampling", ylabel="Total variation from the law", yscale="log")
        right.set_title("What it costs")
        right.set_xticks(STEPS)
        right.set_yticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
        right.minorticks_off()
        drawing.legend(figure)
        drawing.save(figure, out / "entropy.png")
    return Figure(
        "entropy.png",
        f"Mean entropy of the hidden tokens before each of {SHOWN} steps, and how far the law of "
        "what is drawn is from the chain's.",
        "Entropy by step and total variation by the number of steps, by order of revealing",
    )

"""Timings of imitation: many seeds of stage two in one program, and one alone, against loops."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.bench import ceilings, timing
from experiments.rivals import torch_imitation, torch_side
from jaxlab import envs, imitation, learning

SUMMARY = "Imitation: 32 seeds of head and policy in one program, and one alone, against loops"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of networks and batches.

    Attributes:
        label: What they are called.
        width: Of both hidden layers of every network.
        batch: Transitions of a step, of either kind.
        features: Of the representation.
        seeds: Side by side in one program.
        updates: In one timed call.
        repeats: Timed calls.
    """

    label: str
    width: int
    batch: int
    features: int
    seeds: int
    updates: int
    repeats: int = 5


SMALL = Sizes("small", 64, 64, 64, 32, 10)
PAPER = Sizes("the released code's", 256, 256, 1024, 32, 1, 2)
"""On an accelerator; a processor takes a quarter of a minute for one update of 32 seeds."""


def run(out: pathlib.Path, sizes: tuple[Sizes, ...] = ()) -> list[timing.Measurement]:
    """Times everything on this machine; torch in the same process, where it is installed."""
    del out
    large = PAPER if jax.default_backend() != "cpu" else dataclasses.replace(PAPER, seeds=2)
    return [item for one in sizes or (SMALL, large) for item in _at(one)]


def _at(sizes: Sizes) -> list[timing.Measurement]:
    """All seeds and one, each beside every rival; these train one seed after another."""
    learner = _learner(sizes)
    state = jax.jit(learner.init)(jax.random.key(0))
    step = jax.jit(learner.step).lower(state).compile()
    cost: Any = step.cost_analysis()
    rivals = {"a Python loop": timing.measure(_loop(step, state, sizes), repeats=sizes.repeats)}
    error, note = None, "torch is not installed: pip install 'jaxlab[rivals]' times it as well."
    if torch_side.available():
        error = timing.require_small(_difference(sizes, state), "torch's dual variable", 1e-3)
        note = f"torch {torch_side.version()} on {torch_side.use_all_cores()} threads."
        rivals["torch"] = timing.measure(_torch(sizes, state), repeats=sizes.repeats)
    found = []
    for num in dict.fromkeys((sizes.seeds, 1)):
        chunk, first = _program(learner, state, num, sizes.updates)
        timed = timing.measure(chunk, first, repeats=sizes.repeats)
        found += [
            timing.Measurement(
                f"stage two, {num} seed{'s' if num > 1 else ''}",
                f"{sizes.label}: width {sizes.width}, batch {sizes.batch}, "
                f"{sizes.features} features, {sizes.updates} updates",
                timed,
                name,
                dataclasses.replace(rival, median_s=num * rival.median_s, iqr_s=num * rival.iqr_s),
                work=float(cost["flops"]) * num * sizes.updates,
                work_unit="FLOP",
                ceiling=ceilings.matmul_flops("float32"),
                error=error if name == "torch" else None,
                note="A rival trains one seed; of several the time is that often its own. The "
                f"loop in Python calls our compiled update. {note}",
            )
            for name, rival in rivals.items()
        ]
    return found


def _program(
    learner: Any, state: Any, num_seeds: int, updates: int
) -> tuple[Callable[..., Any], Any]:
    """Updates of all seeds in one program; they start alike and draw apart."""
    seeds = learning.over_seeds(learner, num_seeds)
    chunk = jax.jit(lambda s: jax.lax.scan(lambda s, _: seeds.step(s), s, length=updates)[0])
    start = jax.vmap(lambda key: state._replace(key=key), out_axes=learner.seed_axes)
    return chunk, start(jax.random.split(jax.random.key(0), num_seeds))


def _loop(step: Callable[..., Any], state: Any, sizes: Sizes) -> Callable[[], Any]:
    """The same updates of one seed, each of them a call of the compiled step."""
    return lambda: functools.reduce(lambda s, _: step(s)[0], range(sizes.updates), state)


def _learner(sizes: Sizes) -> Any:
    demos = _demonstrations()
    hidden = (sizes.width, sizes.width)
    features = imitation.make_representation(
        demos.obs_size, demos.action_size, feature_size=sizes.features, hidden=hidden
    )
    params = features.init(jax.random.key(1))
    return imitation.make_value_dice(
        demos,
        imitation.make_policy(demos.obs_size, demos.action_size, hidden=hidden),
        representation=features,
        pretrained=imitation.Pretrained(params, demos.normalizer, demos.fingerprint),
        batch_size=sizes.batch,
        hidden=hidden,
    )


def _demonstrations() -> imitation.Demonstrations:
    """Episodes of a linear system of HalfCheetah's sizes, 17 numbers and 6 inputs."""
    system = imitation.random_system(0, num_states=17, num_inputs=6)
    gain = envs.riccati(system)[0]
    return imitation.prepare(
        *(
            imitation.linear_episodes(
                seed,
                system,
                imitation.LinearPolicy(gain, std),
                noise_std=0.3,
                num_episodes=4,
                num_steps=250,
                bound=100.0,
            )
            for seed, std in ((1, 0.1), (2, 0.5))
        )
    )


def _torch(sizes: Sizes, state: Any) -> Callable[[], None]:
    """The same updates of one seed in torch, from our weights."""
    demos = _demonstrations()
    params = jax.tree.map(np.asarray, state.params)
    columns = (
        [np.asarray(getattr(data, field)) for field in ("obs", "action", "next_obs")]
        for data in (demos.expert, demos.logs)
    )
    update = torch_imitation.trainer(
        params["head"], params["representation"], params["policy"], *columns, batch=sizes.batch
    )

    def call() -> None:
        for _ in range(sizes.updates):
            update()

    return call


def _difference(sizes: Sizes, state: Any) -> float:
    """Largest difference of torch's dual variable from ours, over the largest value."""
    demos, hidden = _demonstrations(), (sizes.width, sizes.width)
    features = imitation.make_representation(
        demos.obs_size, demos.action_size, feature_size=sizes.features, hidden=hidden
    )
    head = imitation.make_head(
        "paper", demos.obs_size, demos.action_size, representation=features, hidden=hidden
    )
    obs, action = demos.expert.obs[:32], demos.expert.action[:32]
    wanted = head.dual(state.params["head"], state.params["representation"], obs, action).nu
    params = jax.tree.map(np.asarray, state.params)
    nu, _ = torch_imitation.make_nu(params["head"], params["representation"], gamma=0.99)
    torch = torch_side.module()
    given = [torch.from_numpy(np.array(x)) for x in (obs, action)]
    return timing.deviation(jax.numpy.asarray(nu(*given)[0].detach().numpy()), wanted)

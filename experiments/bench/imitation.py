"""Timings of imitation: many seeds of stage two in one program, and one alone, against torch."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.bench import ceilings, timing
from experiments.rivals import torch_diffusion, torch_imitation
from jaxlab import envs, imitation, learning

SUMMARY = "Imitation: 32 seeds of head and policy in one program, and one alone, against torch"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of networks and batches.

    Attributes:
        label: What they are called.
        width: Of both hidden layers of every network.
        batch: Transitions of a step, of either kind.
        features: Of the representation.
        updates: In one timed call.
        repeats: Timed calls.
    """

    label: str
    width: int
    batch: int
    features: int
    updates: int
    repeats: int = 5


SMALL = Sizes("small", 64, 64, 64, 50)
PAPER = Sizes("the released code's", 256, 256, 1024, 1, 3)
SEEDS = 32


def run(
    out: pathlib.Path, sizes: tuple[Sizes, ...] = (SMALL, PAPER), num_seeds: int = SEEDS
) -> list[timing.Measurement]:
    """Times everything on this machine; torch in the same process, where it is installed."""
    return [
        _against_torch(each, one, num)
        for one in sizes
        for num in (num_seeds, 1)
        for each in (_ours(one, num),)
    ]


def _ours(sizes: Sizes, num_seeds: int) -> timing.Measurement:
    """`sizes.updates` updates of all seeds in one program."""
    learner = learning.over_seeds(_learner(sizes), num_seeds)
    state = jax.jit(learner.init)(jax.random.key(0))
    chunk = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: learner.step(s), s, length=sizes.updates)[0]
    )
    timed = timing.measure(chunk, state, repeats=sizes.repeats)
    cost: Any = jax.jit(learner.step).lower(state).compile().cost_analysis()
    rate = num_seeds * sizes.updates / timed.median_s
    return timing.Measurement(
        f"stage two, {num_seeds} seed{'s' if num_seeds > 1 else ''}",
        f"{sizes.label}: width {sizes.width}, batch {sizes.batch}, {sizes.features} features",
        timed,
        work=float(cost["flops"]) * sizes.updates,
        work_unit="FLOP",
        ceiling=ceilings.matmul_flops("float32"),
        note=f"{rate:.3g} updates a second of all {sizes.label} seeds together ({num_seeds}).",
    )


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


def _against_torch(ours: timing.Measurement, sizes: Sizes, num_seeds: int) -> timing.Measurement:
    """Times torch at the same work, one seed after another."""
    if not torch_diffusion.available():
        note = "torch is not installed: pip install 'jaxlab[rivals]'."
        return dataclasses.replace(
            ours, rival_name="torch: not measured", note=f"{ours.note} {note}"
        )
    state = _learner(sizes).init(jax.random.key(0))
    demos = _demonstrations()
    params = jax.tree.map(np.asarray, state.params)
    columns = (
        [np.asarray(getattr(data, field)) for field in ("obs", "action", "next_obs")]
        for data in (demos.expert, demos.logs)
    )
    update = torch_imitation.trainer(
        params["head"], params["representation"], params["policy"], *columns, batch=sizes.batch
    )
    error = timing.require_small(_difference(sizes, state), "torch's dual variable", 1e-3)
    threads = torch_diffusion.use_all_cores()
    timed = timing.measure(_repeated(update, sizes.updates), repeats=sizes.repeats)
    rival = dataclasses.replace(
        timed, median_s=num_seeds * timed.median_s, iqr_s=num_seeds * timed.iqr_s
    )
    note = (
        f"torch {torch_diffusion.version()} on {threads} threads trains one seed; of "
        f"{num_seeds} the time is that often its own."
    )
    return dataclasses.replace(
        ours, rival_name="torch", rival=rival, error=error, note=f"{ours.note} {note}"
    )


def _repeated(update: Any, times: int) -> Any:
    def call() -> None:
        for _ in range(times):
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
    torch = torch_diffusion.torch_module()
    given = [torch.from_numpy(np.array(x)) for x in (obs, action)]
    return timing.deviation(jax.numpy.asarray(nu(*given)[0].detach().numpy()), wanted)

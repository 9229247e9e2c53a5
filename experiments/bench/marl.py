"""Timings of optimistic learners: runs side by side against NumPy, Op-IPPO beside IPPO."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import timing
from experiments.rivals import marl as rivals
from jaxlab import envs, learning, marl
from jaxlab.core.types import Algorithm
from jaxlab.envs import games

SUMMARY = "Optimistic agents: a thousand runs in one program against NumPy, Op-IPPO against IPPO"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is timed.

    Attributes:
        seeds: Seeds of the sampled learner, for each beta.
        betas: Its parameters.
        updates: Updates of all its runs in one call.
        alone: Updates of the one run in NumPy, a twentieth of it game by game.
        num_envs, num_steps: Of a rollout of the networks.
        num_epochs, num_minibatches: Of its use.
        repeats: Timed calls.
    """

    seeds: int = 1000
    betas: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0)
    updates: int = 10
    alone: int = 500
    num_envs: int = 16
    num_steps: int = 128
    num_epochs: int = 4
    num_minibatches: int = 4
    repeats: int = 7


def run(out: pathlib.Path, sizes: Sizes = Sizes()) -> list[timing.Measurement]:
    """Times everything on this machine, rivals in the same process."""
    del out
    return [*tables(sizes), *networks(sizes)]


def tables(sizes: Sizes) -> list[timing.Measurement]:
    """Updates of the sampled actor-critic on climbing, 64 games each."""
    game = envs.climbing()
    env = envs.make_env(envs.game_task(game), 64)
    learner = marl.make_tabular(env, functools.partial(envs.state_of, game), 1)
    betas = jnp.repeat(jnp.asarray(sizes.betas), sizes.seeds)
    runs = learning.over_seeds(learner, betas.size, settings={"beta": betas})
    ours = timing.measure(*_chunk(runs, sizes.updates), repeats=sizes.repeats)
    work = betas.size * sizes.updates

    def rival(play: Callable, updates: int) -> timing.Timing:
        """The time of all the work, from a part of it: one run comes after the other."""
        alone = timing.measure(
            lambda: play(games.CLIMBING, 0.3, updates=updates), repeats=sizes.repeats
        )
        share = work / updates
        return timing.Timing(0.0, alone.median_s * share, alone.iqr_s * share, alone.n)

    return [
        timing.Measurement(
            "sampled learner on climbing, all runs in one program",
            f"{sizes.seeds:,} seeds x {len(sizes.betas)} beta, {sizes.updates} updates of 64 games",
            ours,
            name,
            rival(play, updates),
            work=work,
            work_unit="updates",
            note=f"NumPy's times are those of {sizes.alone} and {sizes.alone // 20} updates of one "
            "run, as many times as there is work.",
        )
        for name, play, updates in (
            ("NumPy, games as one array", rivals.play, sizes.alone),
            ("NumPy, game by game", rivals.play_one_by_one, sizes.alone // 20),
        )
    ]


def networks(sizes: Sizes) -> list[timing.Measurement]:
    """An update of Op-IPPO on simple spread beside our IPPO, and beside a loop in Python."""
    env = envs.make_env(envs.simple_spread(), sizes.num_envs)
    of_a_rollout: dict[str, Any] = {
        "num_steps": sizes.num_steps,
        "num_epochs": sizes.num_epochs,
        "num_minibatches": sizes.num_minibatches,
    }
    optimist = marl.make_op_ippo(env, beta=0.3, **of_a_rollout)
    ippo = learning.make_ppo(env, hidden=(64, 64), minibatch_of="environments", **of_a_rollout)
    ours = timing.measure(*_chunk(optimist, 1), repeats=sizes.repeats)
    plain = timing.measure(*_chunk(ippo, 1), repeats=sizes.repeats)
    loop = rivals.host_ippo(num_envs=sizes.num_envs, **of_a_rollout)
    python = timing.measure(lambda: next(loop), repeats=sizes.repeats)
    shape = (
        f"simple spread, 3 agents, {sizes.num_envs} x {sizes.num_steps} steps, "
        f"{sizes.num_epochs} epochs, width 64"
    )
    common = {"work": sizes.num_envs * sizes.num_steps, "work_unit": "environment steps"}
    note = "Python's environments are objects in NumPy; it acts and learns by compiled programs."
    return [
        timing.Measurement("Op-IPPO, an update", shape, ours, "our IPPO", plain, **common),
        timing.Measurement(
            "Op-IPPO, an update", shape, ours, "IPPO in a Python loop", python, **common, note=note
        ),
    ]


def _chunk(learner: Algorithm, length: int) -> tuple[Callable, Any]:
    """Returns a jitted chunk of steps, and a state."""

    def many(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: (learner.step(s)[0], None), state, length=length)[0]

    return jax.jit(many), jax.jit(learner.init)(jax.random.key(0))

"""Experts of MuJoCo tasks and logs of six qualities: snapshots of one training run of SAC.

Haarnoja et al. 2018, arXiv:1812.05905, on MuJoCo's C engine.
"""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import units
from experiments.harness.result import Part, Row
from experiments.harness.units import Unit
from experiments.imitation import Config
from experiments.imitation.data import QUALITIES
from jaxlab import envs, imitation, learning, rl
from jaxlab.core import loop
from jaxlab.imitation import Dataset

EXPERT_EPISODES, LOG_EPISODES, LOG_STEPS = 10, 5, 200
"""Whole episodes of the expert; of each quality, episodes of logs, cut after so many steps."""
NUM_ENVS, NUM_UPDATES, WARMUP, CHUNK = 4, 2, 10_000, 1250
HIDDEN = (256, 256)


class Trained(NamedTuple):
    """A training run's snapshots, one after each chunk and one before the first.

    Attributes:
        steps: `[S]` transitions seen.
        returns: `[S]` mean return of deterministic episodes.
        params: Leaves of the policy's parameters, `[S, ...]` each.
    """

    steps: np.ndarray
    returns: np.ndarray
    params: tuple[np.ndarray, ...]


ENOUGH = {"half_cheetah": 4500.0, "hopper_v5": 2500.0, "walker2d_v5": 2500.0}
"""Returns from which an expert is one."""


def run(config: Config, out: pathlib.Path) -> Part:
    """Trains what `out` does not hold, and writes TASK_expert.npz and TASK_logs.npz there."""
    basis = {"seed": config.seed, "expert_steps": config.expert_steps}
    todo = [
        Unit(f"experts/{name}", basis, functools.partial(train, name, config), Trained)
        for name in config.tasks
    ]
    found = units.run(todo, out, title="imitation, experts")
    told = []
    for name in config.tasks:
        trained = found[f"experts/{name}"]
        expert, logs = record(name, trained, config.seed)
        for kind, dataset in (("expert", expert), ("logs", logs)):
            arrays: dict[str, Any] = imitation.to_npz(dataset, half=True)
            del arrays["next_obs"]  # the next rows have them; an episode's last row is left out
            np.savez_compressed(out / f"{name}_{kind}.npz", **arrays)
        value, enough = float(np.mean(imitation.returns(expert))), ENOUGH[name]
        told.append(
            Row(
                "The expert is one",
                f"Return of the expert of {name}",
                value,
                note=f"Of the best snapshot in {trained.steps[-1]:,} transitions; "
                f"{'at least' if value >= enough else 'short of'} {enough:,.0f}.",
            )
        )
    return Part(tuple(told))


def make_task(name: str) -> envs.Task:
    """The task on MuJoCo's C engine."""
    return envs.make_task(name, "c")


def make_policy(task: envs.Task) -> rl.Policy:
    """The actor, of the sizes of Haarnoja et al."""
    size = len(task.action_space.low)  # pyright: ignore
    return rl.sac(task.obs_size, size, hidden=HIDDEN, activation=jax.nn.relu)


def train(name: str, config: Config, folder: pathlib.Path) -> Trained:
    """Trains SAC, or goes on with what `folder` holds; two updates for every four transitions."""
    task = make_task(name)
    env, policy = envs.make_env(task, NUM_ENVS), make_policy(task)
    critics = rl.make_critics(env.obs_size, env.action_size, hidden=HIDDEN, activation=jax.nn.relu)
    num_steps = (config.expert_steps - WARMUP) // NUM_ENVS
    learner = rl.make_learner(
        env,
        policy,
        critics=critics,
        capacity=config.expert_steps,
        warmup=WARMUP,
        num_updates=NUM_UPDATES,
        reward_scale=1.0,
    )
    act = functools.partial(_act, policy, False)
    folder.mkdir(parents=True, exist_ok=True)

    def keep(state: Any) -> dict[str, Any]:
        params = state.policy_params
        value = float(jnp.mean(learning.evaluate(jax.random.key(1), act, env, params)))
        leaves = [np.asarray(x) for x in jax.tree.leaves(params)]
        np.savez(folder / f"snapshot_{int(state.updates):08d}.npz", *leaves, value=value)
        return {"eval/return": value}

    key = jax.random.key(config.seed)
    if not list(folder.glob("snapshot_*.npz")):
        keep(jax.jit(learner.init)(key))
    loop.run(
        learner,
        key,
        num_steps=num_steps,
        chunk_size=min(CHUNK, num_steps),
        directory=folder,
        evaluate=keep,
        save_every=4,
    )
    kept = sorted(folder.glob("snapshot_*.npz"))
    files = [dict(np.load(path)) for path in kept]
    values = np.array([file.pop("value") for file in files])
    leaves = tuple(np.stack([file[k] for file in files]) for k in files[0])
    updates = np.array([int(path.stem.split("_")[1]) for path in kept])
    steps = np.where(updates > 0, WARMUP + updates * NUM_ENVS // NUM_UPDATES, 0)
    return Trained(steps, values, leaves)


def record(name: str, trained: Trained, seed: int) -> tuple[Dataset, Dataset]:
    """Records the best snapshot's episodes, and logs of those nearest to each of `QUALITIES`.

    The expert acts by the mean of its policy, logs are drawn from it. Qualities are shares of the
    way from the untrained policy's return to the expert's.
    """
    task = make_task(name)
    policy = make_policy(task)
    tree = jax.tree.structure(jax.eval_shape(policy.init, jax.random.key(0)))
    best, worse = nearest(trained.returns)

    def play(i: int, snapshot: int, task: envs.Task, num: int, explore: bool) -> Dataset:
        about = {
            "backend": "c",
            "policy": f"SAC after {int(trained.steps[snapshot])} transitions",
            "return": round(float(trained.returns[snapshot]), 1),
            "seed": seed,
        }
        return imitation.record(
            jax.random.fold_in(jax.random.key(seed), i),
            functools.partial(_act, policy, explore),
            envs.make_env(task, num),
            params=jax.tree.unflatten(tree, [jnp.asarray(x[snapshot]) for x in trained.params]),
            about=about,
        )

    expert = play(1, best, task, EXPERT_EPISODES, explore=False)
    short = task._replace(time_limit=LOG_STEPS)
    logs = [play(10 + i, x, short, LOG_EPISODES, explore=True) for i, x in enumerate(worse)]
    return expert, imitation.join(logs)


def nearest(returns: np.ndarray) -> tuple[int, list[int]]:
    """Returns the best snapshot, and the one before it that is nearest to each quality."""
    best = int(np.argmax(returns))
    goals = returns[0] + np.asarray(QUALITIES) * (returns[best] - returns[0])
    return best, [int(np.argmin(np.abs(returns[:best] - goal))) for goal in goals]


def _act(
    policy: rl.Policy, explore: bool, key: jax.Array, params: Any, obs: jax.Array
) -> jax.Array:
    # SAC's action asks neither the critics nor the temperature.
    return policy.act(key, params, obs, lambda *_: obs, jnp.ones(()), explore=explore)

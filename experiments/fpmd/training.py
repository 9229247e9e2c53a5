"""Training of one method on one task, seeds in one program, and what is looked at on the way."""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fpmd import Config
from experiments.fpmd.methods import WEIGHTINGS, Method
from jaxlab import envs, rl
from jaxlab.core import logging, loop
from jaxlab.core.types import Algorithm, Metrics
from jaxlab.envs import small_tasks
from jaxlab.learning import replay
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import generators

NFES = (1, 2, 5, 10, 20)
"""Steps of one sample, of the curve of return against network evaluations."""
STATES, PARTICLES = 256, 16
"""Of the replay, and samples in each, for spread and gap."""
EVALUATION_KEY = 2**31 - 1
"""Seed of evaluations, apart from those of training."""


class Outcome(NamedTuple):
    """One method on one task.

    Attributes:
        final, best: `[seeds]` mean returns at the end, and of the best evaluation.
        curve: transitions `[chunks]` and returns `[chunks, seeds]`.
        modes: mean returns `[seeds]` by way of acting.
        by_steps: mean returns `[seeds]` by steps of one sample, of flows.
        course: by name `[chunks]`, means over seeds: what was logged of weights and values, and of
            a flow "spread" and "gap": root of the mean variance of its samples in a state, and
            distance of one step from all steps out of the same noise.
        weights: `[seeds, STATES]` logarithms at the end, of mirror descent; else empty.
        goals: `[seeds]` effective number of goals that episodes come to, 0 if none, and the share
            of episodes that do; of the multi-goal task.
        seconds_per_step: of the environments and what is learned for it, all seeds together.
    """

    final: np.ndarray
    best: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]
    modes: dict[str, np.ndarray]
    by_steps: dict[int, np.ndarray]
    course: dict[str, np.ndarray]
    weights: np.ndarray
    goals: tuple[np.ndarray, np.ndarray]
    seconds_per_step: float


def train(
    task: envs.Task, name: str, method: Method, config: Config, folder: pathlib.Path
) -> Outcome:
    """Trains all seeds, or goes on with what `folder` holds; an ended run is only read."""
    done = folder / "outcome.json"
    settings = {"of": name, **dataclasses.asdict(config)}
    for other in ("methods", "tasks", "parts", "theory_steps", "tuning_rates", "tuning_seeds"):
        del settings[other]
    if done.exists():
        stored = json.loads(done.read_text())
        if stored["settings"] != json.loads(json.dumps(settings)):
            raise ValueError(f"{done} is of other settings: take another folder")
        return _decode(stored["outcome"])
    num_steps = config.updates // method.steps
    over_seeds = functools.partial(_over_seeds, method.axes)
    judge = over_seeds(_mean_return(task, method, config))
    looks = {k: over_seeds(f) for k, f in _looks(task, method, config).items()}

    def evaluate(state: Any) -> dict[str, Any]:
        found = {f"eval/return_{i}": x for i, x in enumerate(judge(state))}
        return found | {f"eval/{k}": jnp.mean(look(state)) for k, look in looks.items()}

    ended = loop.run(
        _mean(method.learner),
        jax.random.key(config.seed),
        num_steps=num_steps,
        chunk_size=max(num_steps // config.evaluations, 1),
        directory=folder,
        evaluate=evaluate,
        save_every=config.save_every,
        max_to_keep=1,
        config=settings,
    )
    records = logging.read_jsonl(folder / "metrics.jsonl")
    names = [f"eval/return_{i}" for i in range(config.num_seeds)]
    returns = np.array([[record[key] for key in names] for record in records])
    warmup = 0 if method.actor is None else config.warmup
    transitions = method.steps * config.num_envs
    speeds = [r["perf/steps_per_second"] for r in records if "perf/steps_per_second" in r]
    modes, by_steps = _acting(task, method, config, ended.state, returns[-1])
    logged = [k for k in records[-1] if k.startswith(("policy/", "eval/")) and k not in names]
    outcome = Outcome(
        final=returns[-1],
        best=returns.max(axis=0),
        curve=(np.array([r["step"] * transitions + warmup for r in records]), returns),
        modes=modes,
        by_steps=by_steps,
        course={k: np.array([r[k] for r in records]) for k in logged},
        weights=_weights(name, method, ended.state),
        goals=_goals(method, ended.state) if task.name == "multi_goal" else (np.zeros(0),) * 2,
        seconds_per_step=1.0 / (float(np.median(speeds)) * method.steps),
    )
    done.write_text(json.dumps({"settings": settings, "outcome": _encode(outcome)}))
    shutil.rmtree(folder / "checkpoints")  # with the replay of all seeds
    return outcome


def _encode(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return {"array": x.tolist(), "dtype": str(x.dtype)}
    if isinstance(x, dict):
        return {"items": [[key, _encode(value)] for key, value in x.items()]}
    if isinstance(x, Outcome):
        return {"outcome": [_encode(value) for value in x]}
    return {"tuple": [_encode(value) for value in x]} if isinstance(x, tuple) else x


def _decode(x: Any) -> Any:
    if not isinstance(x, dict):
        return x
    ((kind, value),) = ((k, v) for k, v in x.items() if k != "dtype")
    if kind == "array":
        return np.array(value, x["dtype"])
    if kind == "items":
        return {key: _decode(one) for key, one in value}
    decoded = tuple(_decode(one) for one in value)
    return Outcome(*decoded) if kind == "outcome" else decoded


def _over_seeds(axes: Any, of_one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return jax.jit(jax.vmap(of_one, in_axes=(axes,)))


def _mean_return(
    task: envs.Task, method: Method, config: Config, mode: str = "bon", num_steps: int | None = None
) -> Callable[[Any], jax.Array]:
    """Mean return of whole episodes, from the same starts for every method and seed."""
    env = envs.make_env(task, config.eval_episodes)

    def of_one(state: Any) -> jax.Array:
        def act(key: jax.Array, obs: jax.Array) -> jax.Array:
            if mode == "bon":  # the method's own way
                return method.act(state, key, obs, False)
            generator, params = _generator(method), state.policy_average_params
            return rl.act(key, generator, params, obs, mode=mode, num_steps=num_steps)

        return jnp.mean(rl.evaluate(jax.random.key(EVALUATION_KEY), act, env))

    return of_one


def _looks(
    task: envs.Task, method: Method, config: Config
) -> dict[str, Callable[[Any], jax.Array]]:
    """What is looked at during the training of a flow that takes several steps."""
    if not _is_flow(method) or _generator(method).num_steps == 1:
        return {}
    generator = _generator(method)

    def draw(state: rl.TrainState, num_steps: int) -> jax.Array:
        obs = _states(state)
        return generators.draw(
            jax.random.key(0),
            generator,
            state.policy_average_params,
            obs,
            num_particles=PARTICLES,
            num_steps=num_steps,
        )

    def spread(state: rl.TrainState) -> jax.Array:
        variance = jnp.var(draw(state, generator.num_steps), axis=0)
        return jnp.sqrt(jnp.mean(jnp.sum(variance, axis=-1)))

    def gap(state: rl.TrainState) -> jax.Array:
        away = draw(state, generator.num_steps) - draw(state, 1)  # out of the same noise
        return jnp.sqrt(jnp.mean(jnp.sum(away**2, axis=-1)))

    return {
        "spread": spread,
        "gap": gap,
        "one_step": _mean_return(task, method, config, "one_step"),
    }


def _acting(
    task: envs.Task, method: Method, config: Config, state: Any, whole: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[int, np.ndarray]]:
    """Returns by way of acting, of which `whole` is known, and by steps of one sample."""
    if method.actor is None or method.actor.generator is None:
        return {}, {}

    def returns(mode: str, num_steps: int | None = None) -> np.ndarray:
        judge = _mean_return(task, method, config, mode, num_steps)
        return np.asarray(_over_seeds(method.axes, judge)(state))

    if not _is_flow(method):
        return {"bon": whole, "vanilla": returns("vanilla")}, {}
    usual = _generator(method).num_steps
    by_steps = {n: returns("vanilla", n) for n in sorted({*NFES, usual})}
    modes = {"bon": whole, "vanilla": by_steps[usual], "one_step": by_steps[1]}
    return modes | {"zero_noise": returns("zero_noise")}, by_steps


def _weights(name: str, method: Method, state: Any) -> np.ndarray:
    """Logarithms of the weights that the policy's own proposals have."""
    if name not in WEIGHTINGS or method.actor is None:
        return np.zeros(0)
    policy, critics, _ = method.actor

    def of_one(state: rl.TrainState) -> jax.Array:
        obs, q = _states(state), critics_lib.smaller(critics, state.critic_params)
        alpha = jnp.exp(state.log_alpha)
        key = jax.random.key(0)
        action = policy.propose(
            key, state.policy_params, state.policy_average_params, obs, q, alpha
        )[0]
        kind = WEIGHTINGS[name]
        return jnp.log(rl.importance_weights(q(obs, action), state.stats, alpha, kind)[0])

    return np.asarray(_over_seeds(method.axes, of_one)(state))


def _goals(method: Method, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Exponential of the entropy of the goals that exploring episodes come to, and their share."""
    env = envs.make_env(envs.multi_goal(start_std=0.0), STATES)
    goals = jnp.asarray(small_tasks.GOALS)

    def of_one(state: Any) -> tuple[jax.Array, jax.Array]:
        def one(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            at, reached = carry
            action = jnp.clip(method.act(state, key, at.obs, True), -1.0, 1.0)
            at = env.step(at, action)
            away = jnp.linalg.norm(at.final_obs[:, None] - goals[None], axis=-1)
            first = (reached < 0) & at.terminated
            return (at, jnp.where(first, jnp.argmin(away, axis=1), reached)), None

        key_reset, key_steps = jax.random.split(jax.random.key(EVALUATION_KEY))
        start = (env.reset(key_reset), jnp.full((STATES,), -1))
        keys = jax.random.split(key_steps, env.time_limit)
        reached = jax.lax.scan(one, start, keys)[0][1]
        counts = jnp.sum(reached[:, None] == jnp.arange(len(goals))[None], axis=0)
        arrived = jnp.sum(counts)
        share = counts / jnp.maximum(arrived, 1)
        number = jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12))))
        return jnp.where(arrived > 0, number, 0.0), arrived / STATES

    number, arrived = _over_seeds(method.axes, of_one)(state)
    return np.asarray(number), np.asarray(arrived)


def _states(state: rl.TrainState) -> jax.Array:
    """Observations of the replay, the same rows for all."""
    return replay.sample(jax.random.key(EVALUATION_KEY), state.replay, STATES)[0].next_obs


def _generator(method: Method) -> rl.Generator:
    assert method.actor is not None and method.actor.generator is not None
    return method.actor.generator


def _is_flow(method: Method) -> bool:
    actor = method.actor
    return (
        actor is not None
        and actor.generator is not None
        and actor.generator.kind in ("flow", "mean_flow")
    )


def _mean(learner: Algorithm) -> Algorithm:
    """The learner with metrics averaged over seeds."""

    def step(state: Any) -> tuple[Any, Metrics]:
        state, metrics = learner.step(state)
        return state, jax.tree.map(jnp.mean, metrics)

    return Algorithm(learner.init, step)

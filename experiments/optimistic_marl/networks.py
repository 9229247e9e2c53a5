"""What networks learn, by which method, and how it is measured."""

import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from experiments.optimistic_marl.training import same_seeds
from jaxlab import envs, learning, marl
from jaxlab.core import logging, loop
from jaxlab.nn import orthogonal

NUM_ENVS, ROLLOUT = 16, 128
EPISODES = 128
"""Of each of both evaluations."""
OURS, PLAIN = "Op-IPPO", "IPPO"


class Method(NamedTuple):
    """A style of `marl.make_op_ippo`, and its setting that is chosen on seeds of their own."""

    style: Callable[[], marl.Optimism]
    tuned: str


METHODS: Mapping[str, Method] = {
    PLAIN: Method(marl.neutral, "learning_rate"),
    OURS: Method(marl.entropic, "beta"),
    "OptiMAPPO": Method(marl.leaky, "beta"),
}
OWN: Mapping[str, Callable[[], envs.Task]] = {
    "spread": envs.simple_spread,
    "predators": envs.predator_prey,
    "stag": lambda: envs.game_task(envs.stag_grid(5.0)),
}
ENTROPY: Mapping[str, float] = {"predators": 0.0}
"""Weight of the entropy where it is not 0.01: so rare are rewards in the hunt that even this much
outweighs them, for all methods."""


class Net(nn.Module):
    """Two layers of 64 with tanh, and a linear one that begins at `scale`: the network of IPPO."""

    out: int
    scale: float

    @nn.compact
    def __call__(self, x: Float[Array, "... O"]) -> Float[Array, "... out"]:
        for _ in range(2):
            x = nn.tanh(nn.Dense(64, kernel_init=orthogonal(2.0**0.5))(x))
        return nn.Dense(self.out, kernel_init=orthogonal(self.scale))(x)


class Deep(NamedTuple):
    """How a method learned, at all values of its setting, value by value.

    Attributes:
        sampled: `[values * seeds]` mean returns of 128 episodes after training, actions sampled.
        greedy: `[values * seeds]` likewise, with the likeliest actions.
        steps: `[points]` steps of the environments of one seed.
        returns: `[points, values * seeds]` during training.
        steps_per_second: `[]` of all runs together.
    """

    sampled: np.ndarray
    greedy: np.ndarray
    steps: np.ndarray
    returns: np.ndarray
    steps_per_second: np.ndarray


def deep(
    name: str,
    values: tuple[float, ...],
    folder: pathlib.Path,
    *,
    task: str,
    rate: float,
    seeds: int,
    steps: int,
    seed: int,
) -> Deep:
    """Trains networks at several values of the method's setting, side by side."""
    game, method = deep_task(task), METHODS[name]
    env = envs.make_env(game, NUM_ENVS)
    num = learning.distribution_of(env.action_space).num_params
    nets = learning.make_networks(env, actor=Net(num, 0.01), critic=Net(1, 1.0))
    per_update = ROLLOUT * NUM_ENVS
    updates = max(steps // per_update, 2)
    learner = marl.make_op_ippo(
        env,
        nets,
        style=method.style(),
        num_steps=ROLLOUT,
        learning_rate=rate,
        entropy_coef=ENTROPY.get(task, 0.01),
    )
    ended = loop.run(
        same_seeds(learner, {method.tuned: values}, seeds),
        jax.random.key(seed),
        num_steps=updates,
        chunk_size=-(-updates // 20),
        directory=folder,
        config={"of": name, method.tuned: list(values)},
    )
    records = logging.read_jsonl(folder / "metrics.jsonl")
    at, returns = logging.series(records, "env/return_seeds")
    speed = np.median(logging.series(records, "perf/steps_per_second")[1])
    judged = envs.make_env(game, EPISODES)

    def sample(key: jax.Array, params: Any, obs: Any, mask: Any = ()) -> jax.Array:
        return nets.sample(key, params, obs, mask)[0]

    def likeliest(key: jax.Array, params: Any, obs: Any, mask: Any = ()) -> jax.Array:
        return nets.mode(params, obs, mask)

    def returned(act: Callable) -> np.ndarray:
        """The same starts for all methods and seeds."""
        found = jax.lax.map(
            lambda params: learning.evaluate(jax.random.key(seed), act, judged, params),
            ended.state.params,
        )
        return np.asarray(found).reshape(len(found), -1).mean(axis=1)

    runs = seeds * len(values)
    return Deep(
        returned(sample), returned(likeliest), at * per_update, returns, speed * per_update * runs
    )


def deep_task(name: str) -> envs.Task:
    """Makes what networks learn.

    Raises:
        ValueError: if JaxMARL is needed and not installed.
    """
    if name in OWN:
        return OWN[name]()
    try:
        jaxmarl = importlib.import_module("jaxmarl")
    except ImportError as error:
        raise ValueError(
            f"the task {name!r} needs jaxmarl (pip install -e '.[games]'); leave it out of "
            "--deep-tasks"
        ) from error
    if name == "overcooked":
        layouts = importlib.import_module("jaxmarl.environments.overcooked").overcooked_layouts
        return envs.from_jaxmarl(jaxmarl.make("overcooked", layout=layouts["coord_ring"]))
    smax = importlib.import_module("jaxmarl.environments.smax")
    scenario = smax.map_name_to_scenario("3m")
    return envs.from_jaxmarl(jaxmarl.make("HeuristicEnemySMAX", scenario=scenario))

"""Runs IPPO of a JaxMARL checkout beside ours: returns and environment steps a second, in one run.

JaxMARL's wheel holds environments alone; its IPPO is a script of its repository, which needs
distrax besides `jaxlab[games]`:

    python -m experiments.rivals.jaxmarl_ippo --checkout JaxMARL --out jaxmarl.json

Sizes and rates are those of its own configuration for the particle environments, for all. What the
script would send to a logging service is dropped.
"""

import argparse
import importlib
import importlib.util
import json
import pathlib
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlab import envs, learning, marl
from jaxlab.core.types import Algorithm

SCRIPT = pathlib.Path("baselines", "IPPO", "ippo_ff_mpe.py")
ENVIRONMENT = "MPE_simple_spread_v3"


class Sizes(NamedTuple):
    """What all learners have in common; defaults are JaxMARL's but for its ten million steps."""

    num_envs: int = 16
    num_steps: int = 128
    num_epochs: int = 4
    num_minibatches: int = 4
    learning_rate: float = 2.5e-4
    total_steps: int = 200_000
    seeds: int = 5

    @property
    def updates(self) -> int:
        """Rollouts of a run."""
        return self.total_steps // (self.num_envs * self.num_steps)


class Run(NamedTuple):
    """Seconds of all seeds together without compilation, and `[seeds]` returns at the end."""

    seconds: float
    returns: list[float]


def load(checkout: pathlib.Path) -> Any:
    """Returns the module of JaxMARL's script, with its logging and its command line taken out.

    Raises:
        ValueError: if there is no such script, or a package that it needs is missing.
    """
    path = checkout / SCRIPT
    if not path.is_file():
        raise ValueError(f"{checkout} is no checkout of JaxMARL: there is no {SCRIPT} in it")
    silent = types.ModuleType("wandb")
    silent.log = lambda *args, **options: None  # pyright: ignore[reportAttributeAccessIssue]
    hydra, omegaconf = types.ModuleType("hydra"), types.ModuleType("omegaconf")
    hydra.main = lambda **options: lambda main: main  # pyright: ignore[reportAttributeAccessIssue]
    omegaconf.OmegaConf = None  # pyright: ignore[reportAttributeAccessIssue]
    stand_ins = {"wandb": silent, "hydra": hydra, "omegaconf": omegaconf}
    before = {name: sys.modules.get(name) for name in stand_ins}
    spec = importlib.util.spec_from_file_location("jaxmarl_ippo_ff_mpe", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.update(stand_ins)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{SCRIPT} needs {error.name}: pip install 'jaxlab[games]' distrax"
        ) from error
    finally:
        for name, old in before.items():
            sys.modules.pop(name) if old is None else sys.modules.update({name: old})
    return module


def theirs(module: Any, sizes: Sizes, num_agents: int) -> Run:
    """Trains JaxMARL's IPPO. It counts rewards once for each agent; returns here are per agent."""
    config = {
        "ENV_NAME": ENVIRONMENT,
        "ENV_KWARGS": {},
        "LR": sizes.learning_rate,
        "NUM_ENVS": sizes.num_envs,
        "NUM_STEPS": sizes.num_steps,
        "TOTAL_TIMESTEPS": sizes.updates * sizes.num_envs * sizes.num_steps,
        "UPDATE_EPOCHS": sizes.num_epochs,
        "NUM_MINIBATCHES": sizes.num_minibatches,
        "GAMMA": 0.99,
        "GAE_LAMBDA": 0.95,
        "CLIP_EPS": 0.2,
        "ENT_COEF": 0.01,
        "VF_COEF": 0.5,
        "MAX_GRAD_NORM": 0.5,
        "ACTIVATION": "tanh",
        "ANNEAL_LR": False,
    }
    train = jax.jit(jax.vmap(module.make_train(config)))
    seconds, out = _timed(train, jax.random.split(jax.random.PRNGKey(0), sizes.seeds))
    late = np.asarray(out["metrics"]["returned_episode_returns"]).reshape(sizes.seeds, -1)
    return Run(seconds, (_late(late) / num_agents).tolist())


def ours(algorithm: Algorithm, sizes: Sizes) -> Run:
    """Trains one of ours, all seeds side by side."""
    each = learning.over_seeds(algorithm, sizes.seeds)

    @jax.jit
    def train(key: jax.Array) -> Any:
        return jax.lax.scan(
            lambda state, _: each.step(state), each.init(key), length=sizes.updates
        )[1]["env/return"]

    seconds, ended = _timed(train, jax.random.key(0))
    means = np.asarray(ended.total) / np.maximum(np.asarray(ended.count), 1)
    return Run(seconds, _late(means.T).tolist())


def compare(checkout: pathlib.Path, sizes: Sizes) -> dict[str, Run]:
    """Trains JaxMARL's IPPO, ours, and Op-IPPO, one after the other.

    Raises:
        ValueError: as in `load`, or if JaxMARL is not installed.
    """
    module = load(checkout)
    try:
        jaxmarl = importlib.import_module("jaxmarl")
    except ImportError as error:
        raise ValueError("jaxmarl is not installed: pip install 'jaxlab[games]'") from error
    env = envs.make_env(envs.from_jaxmarl(jaxmarl.make(ENVIRONMENT)), sizes.num_envs)
    assert env.num_agents is not None
    common: dict[str, Any] = {
        "num_steps": sizes.num_steps,
        "num_epochs": sizes.num_epochs,
        "num_minibatches": sizes.num_minibatches,
        "learning_rate": sizes.learning_rate,
        "entropy_coef": 0.01,
    }
    ippo = learning.make_ppo(env, hidden=(64, 64), reward_scale=1.0, **common)
    return {
        "IPPO of JaxMARL": theirs(module, sizes, env.num_agents),
        "our IPPO": ours(ippo, sizes),
        "Op-IPPO, beta 0.3": ours(marl.make_op_ippo(env, beta=0.3, **common), sizes),
    }


def main() -> None:
    """Prints and writes what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkout", type=pathlib.Path, required=True, help="folder of JaxMARL")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON to write")
    parser.add_argument("--steps", type=int, default=Sizes().total_steps, help="of a seed")
    parser.add_argument("--seeds", type=int, default=Sizes().seeds, help="side by side")
    given = parser.parse_args()
    sizes = Sizes(total_steps=given.steps, seeds=given.seeds)
    if sizes.updates < 1 or sizes.seeds < 1:
        parser.error(f"--steps must be at least {sizes.num_envs * sizes.num_steps}, --seeds 1")
    try:
        found = compare(given.checkout, sizes)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    work = sizes.updates * sizes.num_envs * sizes.num_steps * sizes.seeds
    for name, run in found.items():
        mean, spread = np.mean(run.returns), np.std(run.returns)
        print(f"{name:18} {work / run.seconds:10,.0f} steps/s, return {mean:.2f} +- {spread:.2f}")
    rows = {name: run._asdict() for name, run in found.items()}
    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    given.out.write_text(json.dumps({**about, "sizes": sizes._asdict(), "runs": rows}, indent=1))


def _timed(train: Callable, key: jax.Array) -> tuple[float, Any]:
    compiled = train.lower(key).compile()
    start = time.perf_counter()
    out = jax.block_until_ready(compiled(key))
    return time.perf_counter() - start, out


def _late(returns: np.ndarray) -> np.ndarray:
    """Mean of the last tenth, `[seeds]`."""
    return returns[:, -max(returns.shape[1] // 10, 1) :].mean(axis=1)


if __name__ == "__main__":
    main()

"""Timings of reinforcement learning: whole loops, their parts, and one step against twenty."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import timing
from jaxlab import envs, rl
from jaxlab.core.types import Algorithm
from jaxlab.learning import replay
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import weights

SUMMARY = (
    "Reinforcement learning: the jitted loop against Python's and Brax's, one step against twenty"
)
PAPER = {"batch_size": 256, "num_particles": 32, "hidden": (256, 256, 256)}
"""Sizes of the released code of arXiv:2507.23675, with five environments."""
SMALL = {"batch_size": 128, "num_particles": 8, "hidden": (64, 64, 64)}
"""Sizes of the experiment on a CPU."""
OBS, ACTION = 17, 6
"""Of HalfCheetah, for what needs no environment."""
GENERATORS = {"FPMD-R": rl.make_flow, "FPMD-M": rl.make_mean_flow, "DPMD": rl.make_diffusion}
"""Methods that act by a generator, with its defaults: three layers of 256."""


class Way(NamedTuple):
    """A way of acting.

    Attributes:
        act: `act(key, obs, params) -> action`, of `[B, OBS]` observations.
        params: Parameters of policy and critics.
        evaluations: How often an action takes the policy's network, and the critics'.
    """

    act: Callable[[jax.Array, jax.Array, Any], jax.Array]
    params: Any
    evaluations: tuple[int, int]


def way_of_acting(method: str, mode: str) -> Way:
    """Makes what is timed here and by fpmd's `latency`: a mode of `GENERATORS`, or SAC's mean."""
    critics, policy = rl.make_critics(OBS, ACTION), rl.sac(OBS, ACTION)
    critic_params = critics.init(jax.random.key(1))

    def gaussian(key: jax.Array, obs: jax.Array, params: Any) -> jax.Array:
        q = critics_lib.smaller(critics, params[1])
        return policy.act(key, params[0], obs, q, jnp.ones(()), explore=False)

    if method == "SAC":
        return Way(gaussian, (policy.init(jax.random.key(0)), critic_params), (1, 0))
    generator = GENERATORS[method](OBS, ACTION)

    def act(key: jax.Array, obs: jax.Array, params: Any) -> jax.Array:
        q = critics_lib.smaller(critics, params[1])
        return rl.act(key, generator, params[0], obs, q, mode=mode)  # pyright: ignore

    counts = rl.num_evaluations(mode, num_steps=generator.num_steps)  # pyright: ignore
    return Way(act, (generator.init(jax.random.key(0)), critic_params), counts)


def run(out: pathlib.Path) -> list[timing.Measurement]:
    """Times everything on this machine, rivals in the same process."""
    return [*loops(), *brax(), *acting(), *simulating(), *parts()]


def loops(labels: Sequence[str] = ("paper", "small")) -> list[timing.Measurement]:
    """FPMD-M on pendulums, the loop on the device against a loop in Python."""
    sizes = {"paper": ("paper's sizes", PAPER, 40), "small": ("small", SMALL, 400)}
    return [_loop(*sizes[label]) for label in labels]


def _loop(label: str, sizes: dict[str, Any], updates: int) -> timing.Measurement:
    from experiments.rivals import rl as rivals

    task, hidden = envs.pendulum(), sizes["hidden"]
    generator = rl.make_mean_flow(task.obs_size, task.action_size, hidden=hidden)
    policy = rl.make_mirror_descent(generator, num_particles=sizes["num_particles"])
    critics = rl.make_critics(task.obs_size, task.action_size, hidden=hidden)
    batch = sizes["batch_size"]
    learner = rl.make_learner(
        envs.make_env(task, 5),
        policy,
        critics=critics,
        batch_size=batch,
        capacity=100_000,
        warmup=1000,
    )
    ours = timing.measure(*_chunk(learner, updates // 2), repeats=7)
    loop = rivals.host_loop(policy, critics, num_envs=5, batch_size=batch, learning_rate=3e-4)
    rival = _repeat(functools.partial(rivals.seconds, loop, updates), repeats=7)
    K, width = sizes["num_particles"], hidden[0]
    return timing.Measurement(
        "FPMD-M, whole loop",
        f"pendulum, {label}: batch {batch}, K {K}, width {width}",
        ours,
        "Python loop, replay in NumPy",
        rival,
        work=updates,
        work_unit="gradient steps",
        note="Five environments, one gradient step of the critics for each of their steps.",
    )


def brax() -> list[timing.Measurement]:
    """SAC with the networks of Brax's on its environment, against Brax's SAC."""
    return [_brax(_brax_pendulum(), envs.pendulum(), "pendulum", 64, 8)]


def brax_mjx() -> list[timing.Measurement]:
    """The same on Brax's half-cheetah by MJX, an entry of the accelerator suite."""
    from brax import envs as brax_envs

    env = brax_envs.get_environment("halfcheetah", backend="mjx")
    task = envs.make_task("halfcheetah", "brax")
    return [_brax(env, task, "halfcheetah by MJX", 256, 8)]


def _brax(env: Any, task: envs.Task, label: str, num_envs: int, updates: int) -> timing.Measurement:
    from experiments.rivals import rl as rivals

    hidden, steps, epochs = (256, 256), num_envs * 50, 5
    times = rivals.brax_sac(
        env, num_envs=num_envs, grad_updates=updates, hidden=hidden, steps=steps, epochs=epochs
    )
    spread = float(np.subtract(*np.quantile(times, [0.75, 0.25])))
    rival = timing.Timing(0.0, float(np.median(times)), spread, len(times))
    ours_env = envs.make_env(task, num_envs)
    size = (ours_env.obs_size, ours_env.action_size)
    policy = rl.sac(*size, hidden=hidden, activation=jax.nn.relu)
    critics = rl.make_critics(*size, hidden=hidden, activation=jax.nn.relu)
    learner = rl.make_learner(
        ours_env,
        policy,
        critics=critics,
        capacity=num_envs * 1000,
        warmup=num_envs * 64,
        num_updates=updates,
    )
    ours = timing.measure(*_chunk(learner, 50), repeats=7)
    return timing.Measurement(
        "SAC, whole loop",
        f"{label}, {num_envs} environments, {updates} gradient steps each",
        ours,
        "Brax",
        rival,
        work=50 * updates,
        work_unit="gradient steps",
        note="Brax's SAC with two layers of 256 on both sides, batches of 256; its time is that of "
        "its own epochs, without evaluation.",
    )


def _brax_pendulum() -> Any:
    """Our pendulum as Brax wants an environment; its actions are in [-1, 1]."""
    from brax.envs.base import Env, State

    task = envs.pendulum()

    class Pendulum(Env):
        @property
        def observation_size(self) -> int:
            return task.obs_size

        @property
        def action_size(self) -> int:
            return task.action_size

        @property
        def backend(self) -> str:
            return "jax"

        def reset(self, rng: jax.Array) -> State:
            physics, obs = task.reset(rng)
            return State(physics, obs, jnp.zeros(()), jnp.zeros(()))

        def step(self, state: State, action: jax.Array) -> State:
            physics, obs, reward, ended = task.step(state.pipeline_state, 2.0 * action)
            done = ended.astype(jnp.float32)
            return dataclasses.replace(
                state, pipeline_state=physics, obs=obs, reward=reward, done=done
            )

    return Pendulum()


def scaling() -> list[timing.Measurement]:
    """FPMD-M with more environments and as many gradient steps a transition; for accelerators."""
    task, measured = envs.pendulum(), []
    policy = rl.fpmd_m(task.obs_size, task.action_size)
    for num_envs in (5, 10, 80, 640, 2560):
        updates = max(num_envs // 5, 1)
        learner = rl.make_learner(
            envs.make_env(task, num_envs),
            policy,
            capacity=128_000,
            warmup=12_800,
            num_updates=updates,
        )
        length = 512 // max(updates, policy.policy_every)
        transitions = length * rl.env_steps_per_step(
            envs.make_env(task, num_envs), policy, num_updates=updates
        )
        measured.append(
            timing.Measurement(
                "FPMD-M, more environments",
                f"pendulum, {num_envs:,} environments, 512 updates",
                timing.measure(*_chunk(learner, length), repeats=5),
                work=transitions,
                work_unit="transitions",
            )
        )
    return measured


def acting() -> list[timing.Measurement]:
    """One action of a flow policy at batch 1, in one step and in twenty."""

    def timed(mode: str, *, calls: int) -> timing.Timing:
        way = way_of_acting("FPMD-R", mode)

        def act(i: jax.Array, obs: jax.Array, params: Any, keys: jax.Array) -> jax.Array:
            return obs.at[:, :ACTION].set(way.act(keys[i], obs, params))

        keys = jax.random.split(jax.random.key(2), calls)
        return timing.measure_chain(act, jnp.ones((1, OBS)), way.params, keys, calls=calls)

    ones = {
        "one step": timed("one_step", calls=400),
        "one step from zero": timed("zero_noise", calls=400),
    }
    shape = f"batch 1, {OBS} observations, {ACTION} actions, three layers of 256"
    note = "Time in the program, without the host's call, which is the same for all."
    rivals = {
        "20 steps": timed("vanilla", calls=100),
        "best of 32, 20 steps": timed("bon", calls=20),
    }
    return [
        timing.Measurement(
            f"an action in {way}", shape, one, name, rival, work=1.0, work_unit="actions", note=note
        )
        for way, one in ones.items()
        for name, rival in rivals.items()
    ]


def simulating() -> list[timing.Measurement]:
    """A step of five environments, new episodes included, on the device and by the C engine."""
    measured = []
    for task, label in (
        (envs.pendulum(), "pendulum"),
        (envs.make_task("half_cheetah", "c"), "half_cheetah by c"),
    ):
        env = envs.make_env(task, 5)
        state, action = env.reset(jax.random.key(0)), jnp.zeros((5, env.action_size))
        timed = timing.measure(jax.jit(env.step), state, action)
        measured.append(
            timing.Measurement(
                "simulate five environments", label, timed, work=5.0, work_unit="transitions"
            )
        )
    return measured


def parts() -> list[timing.Measurement]:
    """The parts of a step of FPMD-R and FPMD-M at the paper's sizes."""
    return [
        *_parts("FPMD-R, N = 20", rl.make_flow(OBS, ACTION)),
        *_parts("FPMD-M, N = 1", rl.make_mean_flow(OBS, ACTION)),
    ]


def _parts(label: str, generator: rl.Generator) -> list[timing.Measurement]:
    policy, critics = rl.make_mirror_descent(generator), rl.make_critics(OBS, ACTION)
    B = PAPER["batch_size"]
    key, stats = jax.random.key(0), weights.init_stats()
    params, q_params = policy.init(key), critics.init(key)
    obs, action = jnp.ones((B, OBS)), jnp.zeros((B, ACTION))
    ended, ones = jnp.zeros((B,), bool), jnp.ones((B,))
    ring = replay.init(100_000, {"obs": jnp.zeros((2 * OBS + ACTION + 2,))})
    ring = ring._replace(size=jnp.asarray(100_000))
    alpha = jnp.asarray(0.54)

    def propose(params: Any, q_params: Any, obs: jax.Array) -> jax.Array:
        q = critics_lib.smaller(critics, q_params)
        return policy.propose(key, params, params, obs, q, alpha)[0]

    def learn_critics(q_params: Any) -> Any:
        data = critics_lib.Transitions(obs, action, ones, ended, obs, action, jnp.zeros((B,)))
        slope = jax.grad(critics.loss, argnums=1, has_aux=True)
        return slope(key, q_params, q_params, data, 0.99)[0]

    def learn_policy(params: Any, q_params: Any) -> Any:
        q = critics_lib.smaller(critics, q_params)
        context = rl.Context(
            obs, action, obs, ended, action, (), q, q, q, alpha, stats, jnp.zeros((), jnp.int32)
        )
        return jax.grad(policy.loss, argnums=1, has_aux=True)(key, params, context)[0]

    timings = {
        "draw a batch": timing.measure(jax.jit(lambda r: replay.sample(key, r, B)), ring),
        "propose (sampler, best of K)": timing.measure(jax.jit(propose), params, q_params, obs),
        "gradient of the critics": timing.measure(jax.jit(learn_critics), q_params),
        "gradient of the policy": timing.measure(jax.jit(learn_policy), params, q_params),
        "act in five environments": timing.measure(jax.jit(propose), params, q_params, obs[:5]),
    }
    return [
        timing.Measurement(f"{label}: {part}", f"batch {B}, K 32, three layers of 256", timed)
        for part, timed in timings.items()
    ]


def _chunk(learner: Algorithm, length: int) -> tuple[Callable, Any]:
    """Returns a jitted chunk of steps and the state it starts from, filled and trained a little."""
    chunk = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: learner.step(s), state, length=length)[0]
    )
    return chunk, jax.jit(learner.init)(jax.random.key(0))


def _repeat(timed: Callable[[], float], *, repeats: int) -> timing.Timing:
    """Repeats what returns its own seconds, once more than counts: the first compiles."""
    start = time.perf_counter()
    timed()
    compile_s = time.perf_counter() - start
    taken = [timed() for _ in range(repeats)]
    spread = float(np.subtract(*np.quantile(taken, [0.75, 0.25])))
    return timing.Timing(compile_s, float(np.median(taken)), spread, repeats)

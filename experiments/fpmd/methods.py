"""The methods that are compared, with networks of one size and the same critics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.fpmd import Config
from jaxlab import learning, rl
from jaxlab.core.types import Algorithm
from jaxlab.diffusion import ddpm
from jaxlab.envs import Env
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import generators

OURS = ("FPMD-R", "FPMD-M")
TUNED = ("SAC", "SAC, best of K", "TD3", "TD3, best of K", "PPO")
"""Baselines whose learning rate is chosen, on seeds of their own."""
WEIGHTINGS: dict[str, rl.Weighting] = {
    "FPMD-R": "clip_std",
    "FPMD-M": "clip_std",
    "DPMD": "clip_std",
    "FPMD-R, released weights": "clip_release",
}
"""Of the methods whose weights are looked at."""


class Actor(NamedTuple):
    """An actor of the common learner.

    Attributes:
        policy: see `rl.Policy`.  critics: see `rl.Critics`.
        generator: of the policy, where it is a flow or a diffusion; None otherwise.
    """

    policy: rl.Policy
    critics: rl.Critics
    generator: rl.Generator | None = None


class Method(NamedTuple):
    """A way of learning, seeds side by side.

    Attributes:
        learner: Trains all seeds; its `axes` say where they lie in its state.
        act: `act(state, key, obs, explore) -> action`, of one seed.
        steps: Steps of the environments in a step of the learner.
        actor: The actor of the common learner; None for PPO, which has its own.
    """

    learner: Algorithm
    act: Callable[[Any, jax.Array, jax.Array, bool], jax.Array]
    steps: int
    actor: Actor | None


def make_method(name: str, env: Env, config: Config) -> Method:
    """Makes a method by its name."""
    if name == "PPO":
        return _ppo(env, config)
    actor = make_actor(name, env, config)
    policy, critics, _ = actor
    learner = rl.make_learner(
        env,
        policy,
        critics=critics,
        batch_size=config.batch_size,
        capacity=config.capacity,
        warmup=config.warmup,
        critic_learning_rate=config.learning_rate,
    )

    def act(state: rl.TrainState, key: jax.Array, obs: jax.Array, explore: bool) -> jax.Array:
        params = state.policy_average_params if policy.act_with_average else state.policy_params
        q = critics_lib.smaller(critics, state.critic_params)
        return policy.act(key, params, obs, q, jnp.exp(state.log_alpha), explore=explore)

    seeds = rl.over_seeds(learner, config.num_seeds)
    steps = rl.env_steps_per_step(env, policy) // env.num_envs
    return Method(seeds, act, steps, actor)


def _ppo(env: Env, config: Config) -> Method:
    hidden, length = (config.width,) * 3, min(400, max(config.updates // 5, 1))
    total = length * env.num_envs
    minibatches = max((n for n in range(1, 33) if total % n == 0 and n < total), default=1)
    networks = learning.make_networks(env, hidden=hidden)
    learner = learning.make_ppo(
        env,
        networks,
        num_steps=length,
        num_minibatches=minibatches,
        learning_rate=config.learning_rate,
    )

    def act(state: learning.PpoState, key: jax.Array, obs: jax.Array, explore: bool) -> jax.Array:
        if explore:
            return networks.sample(key, state.params, obs, ())[0]
        return networks.mode(state.params, obs, ())

    seeds = rl.over_seeds(learner, config.num_seeds)
    return Method(seeds, act, length, None)


def make_actor(name: str, env: Env, config: Config) -> Actor:
    """Makes an actor of the common learner by its name."""
    return TABLE[name](_Sizes(env.obs_size, env.action_size, (config.width,) * 3, config))


class _Sizes(NamedTuple):
    obs: int
    action: int
    hidden: tuple[int, ...]
    config: Config

    def optimizer(self) -> optax.GradientTransformation:
        """Falls to a tenth; begins after an eighth of the updates and takes a quarter of them."""
        rate, updates = self.config.learning_rate, self.config.updates
        return rl.decaying_adam(rate, end=rate / 10, begin=updates // 8, over=updates // 4)

    def alpha_every(self) -> int:
        return max(self.config.updates // 800, 1)

    def critics(self, gaussian: bool = False) -> rl.Critics:
        make = rl.make_gaussian_critics if gaussian else rl.make_critics
        return make(self.obs, self.action, hidden=self.hidden)

    def schedule(self) -> ddpm.Schedule:
        return ddpm.linear_schedule(self.config.diffusion_steps)


def _mirror(make: Callable[[_Sizes], rl.Generator], **options) -> Callable[[_Sizes], Actor]:
    def method(s: _Sizes) -> Actor:
        generator = make(s)
        policy = rl.make_mirror_descent(
            generator,
            optimizer=s.optimizer(),
            alpha_every=s.alpha_every(),
            **{"num_particles": s.config.num_particles, **options},
        )
        return Actor(policy, s.critics(), generator)

    return method


def _flow(s: _Sizes, num_steps: int = 0, init_noise: float = 1.0) -> rl.Generator:
    return generators.make_flow(
        s.obs,
        s.action,
        num_steps=num_steps or s.config.flow_steps,
        init_noise=init_noise,
        hidden=s.hidden,
    )


def _mean_flow(s: _Sizes) -> rl.Generator:
    return generators.make_mean_flow(s.obs, s.action, hidden=s.hidden)


def _diffusion(s: _Sizes) -> rl.Generator:
    return generators.make_diffusion(s.obs, s.action, schedule=s.schedule(), hidden=s.hidden)


def _common(s: _Sizes) -> dict:
    return {
        "hidden": s.hidden,
        "schedule": s.schedule(),
        "num_particles": s.config.num_particles,
        "optimizer": s.optimizer(),
        "alpha_every": s.alpha_every(),
    }


def _sdac(s: _Sizes) -> Actor:
    policy = rl.sdac(s.obs, s.action, num_samples=2 * s.config.num_particles, **_common(s))
    return Actor(policy, s.critics(), _diffusion(s))


def _qvpo(s: _Sizes) -> Actor:
    policy = rl.qvpo(
        s.obs,
        s.action,
        entropy_steps=s.config.updates,
        num_samples=2 * s.config.num_particles,
        **_common(s),
    )
    return Actor(policy, s.critics(), _diffusion(s))


def _dipo(s: _Sizes) -> Actor:
    """With its own hundred steps where diffusions have the papers' twenty."""
    full = s.config.diffusion_steps >= 20
    schedule = ddpm.cosine_schedule(100) if full else s.schedule()
    policy = rl.dipo(s.obs, s.action, hidden=s.hidden, schedule=schedule, optimizer=s.optimizer())
    generator = generators.make_diffusion(s.obs, s.action, schedule=schedule, hidden=s.hidden)
    return Actor(policy, s.critics(), generator)


def _dacer(s: _Sizes) -> Actor:
    policy = rl.dacer(
        s.obs,
        s.action,
        hidden=s.hidden,
        schedule=s.schedule(),
        optimizer=s.optimizer(),
        alpha_every=max(s.config.updates // 20, 2),
    )
    return Actor(policy, s.critics(gaussian=True), _diffusion(s))


def _dime(s: _Sizes) -> Actor:
    rate = s.config.learning_rate
    policy = rl.dime(s.obs, s.action, hidden=s.hidden, learning_rate=rate, alpha_learning_rate=rate)
    return Actor(policy, s.critics(gaussian=True))


def _qsm(s: _Sizes) -> Actor:
    policy = rl.qsm(s.obs, s.action, hidden=s.hidden, learning_rate=s.config.learning_rate)
    return Actor(policy, s.critics())


def _sac(num_particles: bool) -> Callable[[_Sizes], Actor]:
    def method(s: _Sizes) -> Actor:
        rate = s.config.learning_rate
        policy = rl.sac(
            s.obs,
            s.action,
            hidden=s.hidden,
            learning_rate=rate,
            alpha_learning_rate=rate,
            num_particles=s.config.num_particles if num_particles else 1,
        )
        return Actor(policy, s.critics())

    return method


def _td3(num_particles: bool) -> Callable[[_Sizes], Actor]:
    def method(s: _Sizes) -> Actor:
        policy = rl.td3(
            s.obs,
            s.action,
            hidden=s.hidden,
            learning_rate=s.config.learning_rate,
            num_particles=s.config.num_particles if num_particles else 1,
        )
        return Actor(policy, s.critics())

    return method


TABLE: dict[str, Callable[[_Sizes], Actor]] = {
    "FPMD-R": _mirror(_flow),
    "FPMD-M": _mirror(_mean_flow),
    "DPMD": _mirror(_diffusion),
    "SDAC": _sdac,
    "QVPO": _qvpo,
    "DIPO": _dipo,
    "DACER": _dacer,
    "DIME": _dime,
    "QSM": _qsm,
    "SAC": _sac(False),
    "SAC, best of K": _sac(True),
    "TD3": _td3(False),
    "TD3, best of K": _td3(True),
    "FPMD-R, uniform": _mirror(_flow, weighting="uniform"),
    "FPMD-R, released weights": _mirror(_flow, weighting="clip_release"),
    "FPMD-R, noise 0.5": _mirror(lambda s: _flow(s, init_noise=0.5)),
    "FPMD-R, N = 1": _mirror(lambda s: _flow(s, num_steps=1)),
    "FPMD-R, K = 1": _mirror(_flow, num_particles=1),
    "FPMD-R, no exploration": _mirror(_flow, noise_scale=0.0),
}
"""Actors by name: the paper's, its baselines, and ablations of FPMD-R."""
NAMES = (*TABLE, "PPO")

"""The methods that are compared, with networks of one size and the same critics."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from experiments.fpmd import Config
from jaxlab import rl
from jaxlab.diffusion import ddpm
from jaxlab.envs import Env
from jaxlab.rl import generators

OURS = ("FPMD-R", "FPMD-M")


class Method(NamedTuple):
    """An actor and its critics.

    Attributes:
        policy: see `rl.Policy`.  critics: see `rl.Critics`.
        generator: of the policy, where it is a flow or a diffusion; None otherwise.
    """

    policy: rl.Policy
    critics: rl.Critics
    generator: rl.Generator | None = None


def make_method(name: str, env: Env, config: Config) -> Method:
    """Makes a method by its name.

    Raises:
        ValueError: if there is no such method.
    """
    if name not in TABLE:
        raise ValueError(f"methods must be among {', '.join(TABLE)}, got {name!r}")
    sizes = _Sizes(env.obs_size, env.action_size, (config.width,) * 3, config)
    return TABLE[name](sizes)


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


def _mirror(make: Callable[[_Sizes], rl.Generator], **options) -> Callable[[_Sizes], Method]:
    def method(s: _Sizes) -> Method:
        generator = make(s)
        policy = rl.make_mirror_descent(
            generator, optimizer=s.optimizer(), alpha_every=s.alpha_every(),
            **{"num_particles": s.config.num_particles, **options},
        )  # fmt: skip
        return Method(policy, s.critics(), generator)

    return method


def _flow(s: _Sizes) -> rl.Generator:
    return generators.make_flow(s.obs, s.action, num_steps=s.config.flow_steps, hidden=s.hidden)


def _mean_flow(s: _Sizes) -> rl.Generator:
    return generators.make_mean_flow(s.obs, s.action, hidden=s.hidden)


def _diffusion(s: _Sizes) -> rl.Generator:
    return generators.make_diffusion(s.obs, s.action, schedule=s.schedule(), hidden=s.hidden)


def _common(s: _Sizes) -> dict:
    return {
        "hidden": s.hidden, "schedule": s.schedule(), "num_particles": s.config.num_particles,
        "optimizer": s.optimizer(), "alpha_every": s.alpha_every(),
    }  # fmt: skip


def _sdac(s: _Sizes) -> Method:
    return Method(rl.sdac(s.obs, s.action, **_common(s)), s.critics(), _diffusion(s))


def _qvpo(s: _Sizes) -> Method:
    policy = rl.qvpo(s.obs, s.action, entropy_steps=s.config.updates, **_common(s))
    return Method(policy, s.critics(), _diffusion(s))


def _dipo(s: _Sizes) -> Method:
    policy = rl.dipo(
        s.obs, s.action, hidden=s.hidden, schedule=s.schedule(), optimizer=s.optimizer()
    )
    return Method(policy, s.critics(), _diffusion(s))


def _dacer(s: _Sizes) -> Method:
    policy = rl.dacer(
        s.obs, s.action, hidden=s.hidden, schedule=s.schedule(), optimizer=s.optimizer(),
        alpha_every=max(s.config.updates // 20, 2),
    )  # fmt: skip
    return Method(policy, s.critics(gaussian=True), _diffusion(s))


def _dime(s: _Sizes) -> Method:
    rate = s.config.learning_rate
    policy = rl.dime(
        s.obs, s.action, hidden=s.hidden, learning_rate=rate, alpha_learning_rate=rate
    )  # fmt: skip
    return Method(policy, s.critics(gaussian=True))


def _qsm(s: _Sizes) -> Method:
    policy = rl.qsm(s.obs, s.action, hidden=s.hidden, learning_rate=s.config.learning_rate)
    return Method(policy, s.critics())


def _sac(num_particles: bool) -> Callable[[_Sizes], Method]:
    def method(s: _Sizes) -> Method:
        rate = s.config.learning_rate
        policy = rl.sac(
            s.obs, s.action, hidden=s.hidden, learning_rate=rate, alpha_learning_rate=rate,
            num_particles=s.config.num_particles if num_particles else 1,
        )  # fmt: skip
        return Method(policy, s.critics())

    return method


def _td3(num_particles: bool) -> Callable[[_Sizes], Method]:
    def method(s: _Sizes) -> Method:
        policy = rl.td3(
            s.obs, s.action, hidden=s.hidden, learning_rate=s.config.learning_rate,
            num_particles=s.config.num_particles if num_particles else 1,
        )  # fmt: skip
        return Method(policy, s.critics())

    return method


TABLE: dict[str, Callable[[_Sizes], Method]] = {
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
    "FPMD-R, K = 1": _mirror(_flow, num_particles=1),
    "FPMD-R, no noise": _mirror(_flow, noise_scale=0.0),
}
"""By name: the paper's methods, its baselines, and its ablations."""

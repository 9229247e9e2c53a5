"""From datasets to what learners take: normalized, with absorbing states, on the device.

Kostrikov et al. 2019, arXiv:1809.02925, for absorbing states; 2020, arXiv:1912.05032.
"""

import hashlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlab.imitation.data import dataset as dataset_lib
from jaxlab.imitation.data.dataset import Dataset

ABSORBING_STEPS = 10
"""Steps in the absorbing state that are added to a terminated episode of logs, at most."""


class Transitions(NamedTuple):
    """Transitions on the device, in the order of time within an episode.

    Attributes:
        obs: `[N, O + 1]` float32, normalized; the last number is 1 in the absorbing state.
        action: `[N, A]` float32 in [-1, 1].
        next_obs: `[N, O + 1]` float32.
        terminated: `[N]` bool; False everywhere with absorbing states, which episodes go on in.
        episode: `[N]` int32, ids of the episodes.
    """

    obs: Float[Array, "N O"]
    action: Float[Array, "N A"]
    next_obs: Float[Array, "N O"]
    terminated: Bool[Array, " N"]
    episode: Int[Array, " N"]


class Normalizer(NamedTuple):
    """Observations are seen as (obs + shift) scale.

    Attributes:
        shift, scale: `[O]` float32.
    """

    shift: Float[np.ndarray, " O"]
    scale: Float[np.ndarray, " O"]


class Demonstrations(NamedTuple):
    """What every method of this room learns from.

    Attributes:
        expert: Transitions of the expert.
        logs: Transitions of any quality with the same dynamics, or None.
        first_obs: `[E, O + 1]`, the first observation of each of the expert's episodes.
        normalizer: What observations went through.
        fingerprint: Digest of data and preparation.
    """

    expert: Transitions
    logs: Transitions | None
    first_obs: Float[Array, "E O"]
    normalizer: Normalizer
    fingerprint: str

    @property
    def obs_size(self) -> int:
        """O + 1, numbers of an observation with its flag."""
        return self.expert.obs.shape[1]

    @property
    def action_size(self) -> int:
        """A, numbers of an action."""
        return self.expert.action.shape[1]


def prepare(
    expert: Dataset,
    logs: Dataset | None = None,
    *,
    absorbing: bool = True,
    norm_from: Literal["expert", "union"] = "expert",
    max_scale: float = 10.0,
    normalizer: Normalizer | None = None,
    seed: int = 0,
) -> Demonstrations:
    """Checks, normalizes and completes demonstrations.

    Observations are shifted by minus the mean and multiplied by 1 / (std + 1e-3), at most
    `max_scale`; then a flag is appended, 0 for real states. Actions are scaled to [-1, 1]. With
    absorbing states a terminated episode goes on: its last step leads to the absorbing state, where
    it stays, one step for the expert (action 0), up to ten for logs (random actions).

    Args:
        expert: what shall be imitated.
        logs: other data of the same dynamics; none for methods that need none.
        absorbing: whether terminated episodes end in an absorbing state. Without it learners of
            values do not look beyond a termination.
        norm_from: whose mean and std normalize, the expert's or those of both together. One
            trajectory of an expert may hardly move in some dimension, hence `max_scale`.
        max_scale: largest factor of an observation.
        normalizer: takes the place of the last two; that of a representation, say.
        seed: of the random actions in absorbing states.

    Raises:
        ValueError: if a dataset is not sound, the two are of different dynamics, one terminates
            where the other is cut by time, episodes of the expert are in the logs too, or a last
            observation is unknown without absorbing states.

    Example:
        >>> expert, logs = map(imitation.read_npz, ("demo.npz", "logs.npz"))
        >>> demos = imitation.prepare(expert, logs)
    """
    if norm_from not in ("expert", "union"):
        raise ValueError(f"norm_from must be expert or union, got {norm_from!r}")
    if not max_scale > 0.0:
        raise ValueError(f"max_scale must be positive, got {max_scale}")
    given = {"expert": expert} if logs is None else {"expert": expert, "logs": logs}
    for name, dataset in given.items():
        dataset_lib.check_dataset(dataset, name)
        if not absorbing and np.isnan(dataset.next_obs).any():
            raise ValueError(
                f"{name}: next_obs of a termination is unknown; use absorbing states, which do not "
                "ask for it"
            )
    if logs is not None:
        dataset_lib.check_same_process(expert, logs, names=("expert", "logs"))
        dataset_lib.check_time_limits(expert, logs, names=("expert", "logs"))
        if leaks := dataset_lib.leaking_episodes(expert, logs):
            mine, theirs = next(iter(leaks.items()))
            raise ValueError(
                f"logs must not hold the expert's episodes, got {len(leaks)} of them there, as "
                f"episode {mine} in episode {theirs}; take them out with take_episodes"
            )
    if normalizer is None:
        seen = list(given.values()) if norm_from == "union" else [expert]
        normalizer = _normalizer(np.concatenate([x.obs for x in seen]), max_scale)
    else:
        _check_normalizer(normalizer, expert.obs.shape[1:])
    rng = np.random.default_rng(seed)
    made = {
        name: _transitions(dataset, normalizer, absorbing, rng if name == "logs" else None)
        for name, dataset in given.items()
    }
    first_obs = _with_flag(normalizer, expert.obs[dataset_lib.starts(expert)])
    recipe = f"{absorbing} {seed} " + " ".join(x.tobytes().hex() for x in normalizer)
    digest = hashlib.sha256((dataset_lib.fingerprint(*given.values()) + recipe).encode())
    return Demonstrations(
        made["expert"],
        made.get("logs"),
        jnp.asarray(first_obs),
        normalizer,
        digest.hexdigest()[:16],
    )


def union(demos: Demonstrations) -> Transitions:
    """Returns the expert's transitions and then those of the logs."""
    if demos.logs is None:
        return demos.expert
    offset = jnp.max(demos.expert.episode) + 1
    logs = demos.logs._replace(episode=demos.logs.episode + offset)
    return jax.tree.map(lambda *x: jnp.concatenate(x), demos.expert, logs)


def observe(normalizer: Normalizer, obs: Float[Array, "... O"]) -> Float[Array, "... P"]:
    """Returns what a policy of this room sees: the normalized observation and the flag 0."""
    lead = (1,) * (obs.ndim - 1)
    shift, scale = (jnp.asarray(x).reshape(*lead, -1) for x in normalizer)
    seen = (obs.astype(jnp.float32) + shift) * scale
    return jnp.concatenate([seen, jnp.zeros((*obs.shape[:-1], 1), jnp.float32)], axis=-1)


def acting(
    mode: Callable[[Any, jax.Array], jax.Array], normalizer: Normalizer
) -> Callable[[jax.Array, Any, jax.Array], jax.Array]:
    """Makes `act(key, params, obs)` for `learning.evaluate` of a policy's mode."""

    def act(key: jax.Array, params: Any, obs: jax.Array) -> jax.Array:
        return mode(params, observe(normalizer, obs))

    return act


def _normalizer(obs: np.ndarray, max_scale: float) -> Normalizer:
    obs = obs.astype(np.float64)
    scale = np.minimum(1.0 / (obs.std(axis=0) + 1e-3), max_scale)
    return Normalizer((-obs.mean(axis=0)).astype(np.float32), scale.astype(np.float32))


def _check_normalizer(normalizer: Normalizer, shape: tuple[int, ...]) -> None:
    if found := [np.shape(x) for x in normalizer if np.shape(x) != shape]:
        raise ValueError(f"normalizer must be of {shape[0]} numbers, got {found[0]}")
    if not np.all(np.isfinite(normalizer)) or not np.all(normalizer.scale > 0.0):
        raise ValueError(
            f"normalizer must be finite and its scale positive, got {normalizer.shift.tolist()} "
            f"and {normalizer.scale.tolist()}"
        )


def _with_flag(normalizer: Normalizer, obs: np.ndarray) -> np.ndarray:
    seen = (obs + normalizer.shift) * normalizer.scale
    return np.concatenate([seen, np.zeros((len(obs), 1))], axis=1).astype(np.float32)


def _transitions(
    dataset: Dataset, normalizer: Normalizer, absorbing: bool, rng: np.random.Generator | None
) -> Transitions:
    """Makes the arrays; a generator means logs, whose absorbing steps have random actions."""
    low, high = dataset.action_low, dataset.action_high
    action = np.clip(2.0 * (dataset.action - low) / (high - low) - 1.0, -1.0, 1.0)
    obs, next_obs = (_with_flag(normalizer, x) for x in (dataset.obs, dataset.next_obs))
    terminated, episode = dataset.terminated, dataset.episode_id
    if absorbing and terminated.any():
        state = np.zeros(obs.shape[1], np.float32)
        state[-1] = 1.0
        last = np.flatnonzero(terminated)
        next_obs[last] = state
        row = np.repeat(last, _absorbing_steps(dataset, last) if rng else 1)
        stay = np.broadcast_to(state, (len(row), len(state)))
        shape = (len(row), len(low))
        move = rng.uniform(-1.0, 1.0, shape) if rng else np.zeros(shape)
        order = np.argsort(np.concatenate([np.arange(len(obs)), row + 0.5]), kind="stable")
        obs, next_obs = (np.concatenate([x, stay])[order] for x in (obs, next_obs))
        action = np.concatenate([action, move])[order]
        episode = np.concatenate([episode, episode[row]])[order]
    if absorbing:
        terminated = np.zeros(len(obs), bool)
    columns = (obs, action.astype(np.float32), next_obs, terminated, episode.astype(np.int32))
    return Transitions(*map(jnp.asarray, columns))


def _absorbing_steps(dataset: Dataset, last: np.ndarray) -> np.ndarray:
    """Returns how long each terminated episode of logs stays: no longer than time would let it."""
    limit = dataset.about.get("time_limit")
    if limit is None or not np.isfinite(limit):
        return np.full(len(last), ABSORBING_STEPS)
    length = dict(
        zip(
            dataset.episode_id[dataset_lib.starts(dataset)].tolist(),
            dataset_lib.lengths(dataset).tolist(),
            strict=True,
        )
    )
    left = [int(limit) - length[i] for i in dataset.episode_id[last].tolist()]
    return np.clip(left, 1, ABSORBING_STEPS)

"""Stage one: features of the dynamics from all transitions there are, and where they are kept."""

import pathlib
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from jaxlab.core import checkpoint
from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.envs import spaces
from jaxlab.imitation import representation as representation_lib
from jaxlab.imitation.data.preparing import Normalizer, Transitions
from jaxlab.imitation.representation import Representation
from jaxlab.learning import settings as settings_lib

Loss = Literal["spectral", "binary_nce", "ranking_nce"]
FEATURES_PER_ROW = 4
"""The paper's 1024 features at batches of 256: more cannot be told apart by a batch."""


class PretrainState(NamedTuple):
    """All that evolves.

    Attributes:
        params: Parameters of the representation.
        opt_state: State of their optimizer.
        key: PRNG key of all draws to come.
    """

    params: PyTree
    opt_state: PyTree
    key: Array


class Pretrained(NamedTuple):
    """A representation as it is kept and used: parameters, and what they are good for.

    Attributes:
        params: Parameters of the representation.
        normalizer: What its observations went through.
        fingerprint: Digest of the data that it was learned from.
    """

    params: PyTree
    normalizer: Normalizer
    fingerprint: str


def make_pretraining(
    data: Transitions,
    representation: Representation,
    *,
    loss: Loss = "spectral",
    batch_size: int = 256,
    learning_rate: float = 3e-4,
    reg_weight: float = 10.0,
    clip_positive: bool = False,
    num_noise: float = 1.0,
    temperature: float = 1.0,
    smooth_sigma: float = 0.0,
) -> Algorithm:
    """Makes the learner of a representation; the noise is the law of the data's next states.

    Args:
        data: `union(demos)`, or the expert's alone.
        representation: what is learned.
        loss: which, see `spectral_loss`, `binary_nce_loss` and `ranking_loss`.
        batch_size: B transitions, and B draws of the noise, each met by each.
        learning_rate: of Adam.
        reg_weight, clip_positive: of the spectral loss.
        num_noise: of the binary loss.
        temperature: of the ranking loss.
        smooth_sigma: standard deviation of noise on every next state but its flag, which makes a
            density of deterministic dynamics; in normalized units.

    Returns:
        The algorithm; its state is a `PretrainState`. The paper runs 10,000 steps.

    Raises:
        ValueError: if sizes do not fit, there are more features than a batch or the data can tell
            apart, or a number is out of range.

    Example:
        >>> demos = imitation.prepare(expert, logs)
        >>> features = imitation.make_representation(demos.obs_size, demos.action_size)
        >>> algorithm = imitation.make_pretraining(imitation.union(demos), features)
        >>> result = loop.run(algorithm, jax.random.key(0), num_steps=10_000, chunk_size=1000)
    """
    size = data.obs.shape[0]
    if loss not in get_args(Loss):
        raise ValueError(f"loss must be one of {', '.join(get_args(Loss))}, got {loss!r}")
    if not spaces.is_count(batch_size):
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; give an integer")
    _check_sizes(data, representation)
    k, limit = representation.feature_size, min(FEATURES_PER_ROW * batch_size, size)
    if k > limit:
        raise ValueError(
            f"feature_size must be at most {limit}, {FEATURES_PER_ROW} for each row of a batch and "
            f"one for each transition, got {k} with batches of {batch_size} of {size}; take fewer "
            "features, or larger batches"
        )
    settings_lib.check(
        {
            "learning_rate": learning_rate,
            "reg_weight": reg_weight,
            "num_noise": num_noise,
            "temperature": temperature,
            "smooth_sigma": smooth_sigma,
        },
        {
            "learning_rate": settings_lib.POSITIVE,
            "reg_weight": settings_lib.NOT_NEGATIVE,
            "num_noise": settings_lib.POSITIVE,
            "temperature": settings_lib.POSITIVE,
            "smooth_sigma": settings_lib.NOT_NEGATIVE,
        },
    )
    optimizer = optax.adam(learning_rate)

    def init(key: jax.Array) -> PretrainState:
        key, key_init = jax.random.split(key)
        params = representation.init(key_init)
        return PretrainState(params, optimizer.init(params), key)

    def smooth(key: jax.Array, next_obs: jax.Array) -> jax.Array:
        if smooth_sigma == 0.0:
            return next_obs
        noise = smooth_sigma * jax.random.normal(key, next_obs.shape, next_obs.dtype)
        return next_obs + noise.at[:, -1].set(0.0)

    def loss_of(
        params: PyTree, pair: tuple, next_obs: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        features = representation.phi(params, *pair)
        reached = representation.mu(params, next_obs)
        if loss == "ranking_nce":
            scores = features @ reached.T
            own = jnp.diagonal(scores)
            value = representation_lib.ranking_loss(scores, temperature=temperature)
            return value, {
                "ratio/positive": jnp.mean(own),
                "ratio/retrieval": jnp.mean(own >= jnp.max(scores, axis=1)),
            }
        positive = jnp.sum(features * reached, axis=1)
        negative = features @ representation.mu(params, noise).T
        if loss == "spectral":
            value = representation_lib.spectral_loss(
                positive, negative, reg_weight=reg_weight, clip_positive=clip_positive
            )
        else:
            value = representation_lib.binary_nce_loss(positive, negative, num_noise=num_noise)
        each = jnp.mean(negative, axis=1)
        return value, {
            "ratio/positive": jnp.mean(positive),
            "ratio/noise_mean": jnp.mean(each),
            "ratio/noise_std": jnp.std(each),
            "ratio/dead": jnp.mean(positive < representation_lib.LEAST_RATIO),
        }

    def step(state: PretrainState) -> tuple[PretrainState, Metrics]:
        key, key_rows, key_noise, *keys = jax.random.split(state.key, 5)
        rows, others = (
            jax.random.randint(k, (batch_size,), 0, size) for k in (key_rows, key_noise)
        )
        next_obs, noise = (
            smooth(k, data.next_obs[x]) for k, x in zip(keys, (rows, others), strict=True)
        )
        pair = (data.obs[rows], data.action[rows])
        (value, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, pair, next_obs, noise
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return PretrainState(params, opt_state, key), {"train/loss": value, **metrics}

    return Algorithm(init, step, name=f"pretraining_{loss}")


def save_representation(folder: str | pathlib.Path, pretrained: Pretrained) -> None:
    """Keeps a representation in a folder of its own, apart from the heads that will use it.

    Raises:
        ValueError: if the folder has files.
        OSError: if it cannot be written.
    """
    if pathlib.Path(folder).is_dir() and any(pathlib.Path(folder).iterdir()):
        raise ValueError(f"{folder} must be empty or new, got one with files; give another")
    manager = checkpoint.open_manager(folder, max_to_keep=1)
    state = _stored(pretrained.params, *map(jnp.asarray, pretrained.normalizer))
    config = {"fingerprint": pretrained.fingerprint}
    try:
        checkpoint.save(manager, 1, state, algorithm="representation", config=config)
    finally:
        checkpoint.close(manager)


def load_representation(
    folder: str | pathlib.Path, representation: Representation, *, fingerprint: str | None = None
) -> Pretrained:
    """Reads what `save_representation` kept.

    Args:
        folder: where it is.
        representation: networks of the same sizes.
        fingerprint: of the data that it must have been learned from; None for any.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the networks are of other sizes, or the data were others.
    """
    if not pathlib.Path(folder).is_dir() or not any(pathlib.Path(folder).iterdir()):
        raise FileNotFoundError(f"no representation in {folder}; save_representation makes one")
    sizes = jnp.zeros((representation.obs_size - 1,), jnp.float32)
    like = jax.eval_shape(lambda: _stored(representation.init(jax.random.key(0)), sizes, sizes))
    manager = checkpoint.open_manager(folder, max_to_keep=1)
    try:
        found = checkpoint.restore(manager, like, algorithm="representation")
    finally:
        checkpoint.close(manager)
    stored = found.config["fingerprint"]
    if fingerprint not in (None, stored):
        raise ValueError(
            f"{folder} holds a representation of the data {stored}, these are {fingerprint}; "
            "pretrain on these, or ask for it without a fingerprint"
        )
    normalizer = Normalizer(*(np.asarray(found.state[x]) for x in ("shift", "scale")))
    return Pretrained(found.state["params"], normalizer, stored)


def _stored(params: PyTree, shift: jax.Array, scale: jax.Array) -> PyTree:
    return {"params": params, "shift": shift, "scale": scale}


def _check_sizes(data: Transitions, representation: Representation) -> None:
    found = (data.obs.shape[1], data.action.shape[1])
    if found != (representation.obs_size, representation.action_size):
        raise ValueError(
            f"representation must be of {found[0]} and {found[1]} numbers of observation and "
            f"action, got {representation.obs_size} and {representation.action_size}"
        )

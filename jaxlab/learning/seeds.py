"""Seeds, and sweeps of settings, side by side in one program."""

import functools
import inspect

import jax
import jax.numpy as jnp

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.envs import spaces


def over_seeds(
    algorithm: Algorithm, num_seeds: int, *, axes: PyTree = None, settings: PyTree = None
) -> Algorithm:
    """Trains several seeds of any algorithm side by side, as one whose metrics are `[num_seeds]`.

    Seed i starts from `fold_in(key, i)`, whatever the number of seeds is.

    Args:
        algorithm: what is trained. With `settings` its `init` takes `(key, settings)`, and keeps
            them in its state, where `step` finds them; its `check`, if any, looks at them first.
        num_seeds: how many, at least 1.
        axes: where the seeds lie in the state, as `jax.vmap` takes it; None in it stands for what
            all seeds share, such as a count. By default the algorithm's own `seed_axes`, which is
            a leading axis for every leaf unless the algorithm says otherwise.
        settings: arrays with a leading axis `[num_seeds]`, one value a seed: a sweep of learning
            rates or temperatures. `step` sees them in the state alone, so that one compiled step
            serves all values. A checkpoint holds those that it was made with: name them in the
            `config` of `loop.run`, which then refuses to go on with others.

    Returns:
        The algorithm of all seeds; its `axes` say where they lie.

    Raises:
        ValueError: if there is no seed, or the settings are not arrays of `[num_seeds, ...]`, not
            what the algorithm takes, or out of range.

    Example:
        `loop.run(over_seeds(rl.make_learner(env, policy), 5), jax.random.key(0), num_steps=1000,
        chunk_size=100)`
    """
    if not spaces.is_count(num_seeds):
        raise ValueError(f"num_seeds must be at least 1, got {num_seeds}; give an integer")
    if settings is not None:
        _check_settings(algorithm, num_seeds, settings)
    axes = algorithm.seed_axes if axes is None else axes
    given = () if settings is None else (settings,)

    def init(key: jax.Array) -> PyTree:
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(num_seeds))
        return jax.vmap(algorithm.init, out_axes=axes)(keys, *given)

    @functools.wraps(algorithm.step)  # whose name checkpoints know
    def step(state: PyTree) -> tuple[PyTree, Metrics]:
        return jax.vmap(algorithm.step, in_axes=(axes,), out_axes=(axes, 0))(state)

    return Algorithm(init, step, axes, name=algorithm.name)


def _check_settings(algorithm: Algorithm, num_seeds: int, settings: PyTree) -> None:
    for path, leaf in jax.tree.leaves_with_path(settings):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != num_seeds:
            raise ValueError(
                f"settings{jax.tree_util.keystr(path)} must have a leading axis of {num_seeds}, "
                f"one value for each seed, got shape {shape}; give an array, no list or number"
            )
    try:
        inspect.signature(algorithm.init).bind(None, settings)
    except TypeError:
        raise ValueError(
            "the algorithm takes no settings: its init must take (key, settings), and keep them in "
            "the state"
        ) from None
    if algorithm.check is not None:
        algorithm.check(settings)

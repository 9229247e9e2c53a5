"""Gymnasium on the host: any `gymnasium.make` id, a function, or a vector environment.

The episodes live in Gymnasium's own objects, outside of the arrays that JAX sees, and JAX calls
them in order. What that means is said at `from_gymnasium`.

Source: the vector API of Gymnasium 1.1 and later (Towers et al. 2024, arXiv:2407.17032).
"""

import functools
import threading
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jaxlab.envs import spaces
from jaxlab.envs.episodes import Env, State, check_action, select_rows
from jaxlab.envs.extras import optional


def from_gymnasium(
    make: Any, num_envs: int, *, time_limit: int | None = None, actor_part: str | None = None
) -> Env:
    """Makes an environment of N episodes that Gymnasium plays on the host.

    Observations are flattened to float32, choices to one-hot, as `gymnasium.spaces.flatten` does;
    a Dict is joined to one array, or kept apart by its keys if `actor_part` names one of them.
    Whatever the autoreset mode of a vector environment, a step gives the same `State`: an episode
    that ends has its last observation in `final_obs` and the first of the next in `obs`, and no
    step is spent on a reset.

    The state of the episodes is not in `State`, whose `physics` is a ticket: a checksum of the seed
    and of all actions since. A step from a state that is not the host's present one (an older one,
    one of a checkpoint that another process wrote, one before an evaluation with the same `Env`)
    cannot be computed: all its episodes count as `failed` and begin anew. So a run resumes from a
    checkpoint, with new episodes, and not bit for bit; give evaluation an `Env` of its own. The
    same key and the same actions give the same episodes. `jax.vmap` over seeds is refused: make an
    `Env` for each.

    Args:
        make: An id for `gymnasium.make`, a function without arguments that makes one
            `gymnasium.Env`, or a `gymnasium.vector.VectorEnv` of `num_envs` environments.
        num_envs: N, episodes side by side.
        time_limit: Steps after which an episode is truncated; by default what Gymnasium knows of
            the environment, which must then know it.
        actor_part: The key of a Dict observation that the actor sees.

    Returns:
        An `Env`. Boxes of any shape become `[D]` actions in [-1, 1]; Discrete, MultiDiscrete and
        MultiBinary spaces become choices counted from 0.

    Raises:
        ValueError: If a space has no counterpart here, a bound is infinite, the time limit is
            unknown, a start is not finite, or a vector environment cannot begin single episodes.
        ImportError: If Gymnasium is not installed; names the extra.

    Example:
        >>> env = envs.from_gymnasium("CartPole-v1", 4)
        >>> state = env.reset(jax.random.key(0))
        >>> state = env.step(state, jnp.ones(4, jnp.int32))
    """
    gymnasium = optional("gymnasium", "envs")
    if not spaces.is_count(num_envs):
        raise ValueError(f"num_envs must be an integer of at least 1, got {num_envs!r}")
    name, vector = _vector(gymnasium, make, num_envs, time_limit)
    limit = _time_limit(name, _spec(gymnasium, vector), time_limit)
    action_space, to_host = _actions(gymnasium, name, vector.single_action_space)
    read = _reader(gymnasium, name, vector.single_observation_space, actor_part)
    host = _host(gymnasium, name, vector, limit, read, to_host)
    _, start = host.reset(np.uint32(0))
    obs_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), start)
    for path, x in jax.tree.leaves_with_path(start):
        if not np.all(np.isfinite(x)):
            raise ValueError(
                f"{name}: reset must be finite, got a number that is not in "
                f"obs{jax.tree_util.keystr(path)}"
            )
    seen = start if actor_part is None else start[actor_part]
    ticket_shape = jax.ShapeDtypeStruct((num_envs,), jnp.uint32)
    flag_shape = jax.ShapeDtypeStruct((num_envs,), bool)
    reward_shape = jax.ShapeDtypeStruct((num_envs,), jnp.float32)

    def reset(key: jax.Array) -> State:
        key_state, key_seed = jax.random.split(key)
        seed = _alone(jax.random.bits(key_seed, (), jnp.uint32))
        ticket, obs = io_callback(host.reset, (ticket_shape, obs_shapes), seed, ordered=True)
        no = jnp.zeros((num_envs,), bool)
        return State(
            physics=ticket,
            obs=obs,
            reward=jnp.zeros((num_envs,)),
            terminated=no,
            truncated=no,
            final_obs=obs,
            failed=no,
            time=jnp.zeros((num_envs,), jnp.int32),
            key=jax.random.split(key_state, num_envs),
        )

    def step(state: State, action: jax.Array) -> State:
        check_action(action_space, (num_envs,), action)
        time = state.time + 1
        # An engine may take NaN for a reason to begin anew unasked: it gets the middle instead.
        finite = jnp.isfinite(action)
        action = jnp.where(finite, action, jnp.zeros_like(action))
        action, valid = jax.vmap(lambda a: spaces.to_task(action_space, a))(action)
        valid &= jnp.all(finite.reshape(num_envs, -1), axis=1)
        ticket, obs, reward, terminated, cut, final_obs, failed = io_callback(
            host.step,
            (
                ticket_shape,
                obs_shapes,
                reward_shape,
                flag_shape,
                flag_shape,
                obs_shapes,
                flag_shape,
            ),
            *_alone((state.physics, action, valid, time)),
            ordered=True,
        )
        terminated = terminated & ~failed
        truncated = (cut & ~terminated) | failed
        return State(
            physics=ticket,
            obs=obs,
            reward=jnp.where(failed, 0.0, reward).astype(jnp.result_type(float)),
            terminated=terminated,
            truncated=truncated,
            final_obs=select_rows(failed, state.obs, final_obs),
            failed=failed,
            time=jnp.where(terminated | truncated, 0, time),
            key=state.key,
        )

    return Env(
        name, num_envs, seen.shape[1], action_space, limit, reset, step, actor_part=actor_part
    )


class _Host(NamedTuple):
    """What JAX calls, in NumPy: `reset(seed)` and `step(ticket, action, valid, time)`."""

    reset: Callable[..., tuple]
    step: Callable[..., tuple]


def _host(
    gymnasium: Any, name: str, vector: Any, limit: int, read: Callable, to_host: Callable
) -> _Host:
    """Makes the two functions that step a vector environment in any autoreset mode."""
    mode = _mode(gymnasium, vector)
    same_step = mode == "SAME_STEP"
    by_row = _begins_single_episodes(gymnasium, vector)
    lock, now = threading.Lock(), {"ticket": -1}

    def read_all(obs: Any) -> Any:
        rows = [read(x) for x in gymnasium.vector.utils.iterate(vector.observation_space, obs)]
        return jax.tree.map(lambda *x: np.stack(x), *rows)

    def stamped(ticket: int) -> np.ndarray:
        now["ticket"] = ticket
        return np.full(vector.num_envs, ticket, np.uint32)

    def begin(seed: int) -> tuple[np.ndarray, Any]:
        obs, _ = vector.reset(seed=seed % 2**31)
        return stamped(zlib.crc32(seed.to_bytes(4, "little"))), read_all(obs)

    def reset(seed: Any) -> tuple[np.ndarray, Any]:
        with lock:
            return begin(int(seed))

    def step(ticket: Any, action: Any, valid: Any, time: Any) -> tuple:
        ticket, action, valid, time = (np.asarray(x) for x in (ticket, action, valid, time))
        no = np.zeros(vector.num_envs, bool)
        with lock:
            if int(ticket[0]) != now["ticket"]:
                fresh, obs = begin(int(ticket[0]))
                return fresh, obs, no.astype(np.float32), no, no, obs, ~no
            raw, reward, terminated, truncated, info = vector.step(to_host(action))
            obs = final = read_all(raw)
            ended = np.asarray(terminated) | np.asarray(truncated)
            if same_step and ended.any():
                final = jax.tree.map(np.copy, obs)
                for i in np.flatnonzero(ended).tolist():
                    _put_row(final, i, read(_row(info["final_obs"], i)))
            with np.errstate(over="ignore"):
                reward = np.asarray(reward).astype(np.float32)
            failed = ~valid | ~np.isfinite(reward)
            for x in jax.tree.leaves(final):
                failed |= ~np.all(np.isfinite(x), axis=1)
            cut = np.asarray(truncated) | (time >= limit)
            anew = failed | cut | np.asarray(terminated)
            anew &= ~ended if same_step else True
            if anew.any():
                if not by_row:
                    raise RuntimeError(
                        f"{name}: an episode must end here, by time_limit or because it broke, "
                        "and this vector environment cannot begin a single one anew; use its own "
                        "limit, or autoreset_mode DISABLED"
                    )
                first = read_all(vector.reset(options={"reset_mask": anew})[0])
                obs = jax.tree.map(
                    lambda new, old: np.where(anew.reshape(-1, 1), new, old), first, obs
                )
            fresh = stamped(zlib.crc32(action.tobytes(), int(ticket[0])))
            return fresh, obs, reward, np.asarray(terminated), cut, final, failed

    return _Host(reset, step)


def _row(obs: Any, i: int) -> Any:
    """Row i of final observations: an array of objects, or a batch by key."""
    return {k: _row(v, i) for k, v in obs.items()} if isinstance(obs, dict) else obs[i]


def _put_row(tree: Any, i: int, row: Any) -> None:
    for x, new in zip(jax.tree.leaves(tree), jax.tree.leaves(row), strict=True):
        x[i] = new


def _vector(gymnasium: Any, make: Any, num_envs: int, time_limit: int | None) -> tuple[str, Any]:
    """Returns the name and the vector environment, made if it is not one already."""
    function: Any = make
    if isinstance(make, str):
        options = {} if time_limit is None else {"max_episode_steps": time_limit}
        function = functools.partial(gymnasium.make, make, **options)
    elif isinstance(make, gymnasium.vector.VectorEnv):
        function = lambda: make  # noqa: E731
    elif not callable(make) or isinstance(make, gymnasium.Env):
        raise ValueError(
            "make must be an id, a function that makes an environment, or a vector environment, "
            f"got {make!r}; write lambda: gymnasium.make(...)"
        )
    first: Any = function()
    vector: Any = first
    if not isinstance(first, gymnasium.vector.VectorEnv):
        vector = gymnasium.vector.SyncVectorEnv(
            [lambda: first] + [function] * (num_envs - 1),
            autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED,
        )
        if len({id(env.unwrapped) for env in vector.envs}) < num_envs:
            raise ValueError(
                f"{type(first.unwrapped).__name__}: the function must make a new environment at "
                "each call, got the same one again; write lambda: gymnasium.make(...)"
            )
    spec = _spec(gymnasium, vector)
    name = type(first.unwrapped).__name__ if spec is None else spec.id
    if vector.num_envs != num_envs:
        raise ValueError(f"{name}: num_envs is {num_envs}, got {vector.num_envs} environments")
    if _mode(gymnasium, vector) == "NEXT_STEP" and not _begins_single_episodes(gymnasium, vector):
        raise ValueError(
            f"{name}: {type(vector.unwrapped).__name__} resets in the step after an episode's end "
            "and cannot begin single episodes; give the id, make_vec(..., "
            'vectorization_mode="sync"), or one with autoreset_mode SAME_STEP or DISABLED'
        )
    return name, vector


def _mode(gymnasium: Any, vector: Any) -> str:
    """Returns NEXT_STEP, SAME_STEP or DISABLED; the first is what Gymnasium supposes."""
    modes = gymnasium.vector.AutoresetMode
    mode = vector.metadata.get("autoreset_mode", modes.NEXT_STEP)
    return (mode if isinstance(mode, modes) else modes(mode)).name


def _begins_single_episodes(gymnasium: Any, vector: Any) -> bool:
    """Says whether `reset_mask` is obeyed: by contract where disabled, and by Gymnasium's own.

    Of those, processes without shared memory forget in it that they were to reset by themselves.
    """
    if _mode(gymnasium, vector) == "DISABLED":
        return True
    inner = vector.unwrapped
    if isinstance(inner, gymnasium.vector.AsyncVectorEnv):
        return _mode(gymnasium, vector) == "SAME_STEP" or bool(inner.shared_memory)
    return isinstance(inner, gymnasium.vector.SyncVectorEnv)


def _spec(gymnasium: Any, vector: Any) -> Any:
    """Returns what Gymnasium has registered of the environments, or None."""
    own = (gymnasium.vector.SyncVectorEnv, gymnasium.vector.AsyncVectorEnv)
    if vector.spec is None and isinstance(vector.unwrapped, own):
        return vector.unwrapped.get_attr("spec")[0]
    return vector.spec


def _time_limit(name: str, spec: Any, time_limit: int | None) -> int:
    known = None if spec is None else spec.max_episode_steps
    limits = [x for x in (time_limit, known) if x is not None]
    if not limits:
        raise ValueError(f"{name}: the time limit is unknown to Gymnasium; give time_limit")
    if not all(map(spaces.is_count, limits)):
        raise ValueError(f"{name}: time_limit must be an integer of at least 1, got {time_limit!r}")
    return min(limits)


def _actions(gymnasium: Any, name: str, space: Any) -> tuple[spaces.Space, Callable]:
    """Returns the space here, and what turns a batch of its actions into Gymnasium's."""
    theirs = gymnasium.spaces
    shape: Any = getattr(space, "shape", None)
    dtype: Any = getattr(space, "dtype", None)
    if isinstance(space, theirs.Discrete):
        return spaces.Discrete(int(space.n)), lambda a: a.astype(dtype) + space.start
    if isinstance(space, theirs.MultiDiscrete):
        ours = spaces.MultiDiscrete(tuple(int(n) for n in space.nvec.ravel()))
        return ours, lambda a: a.astype(dtype).reshape(-1, *shape) + space.start
    if isinstance(space, theirs.MultiBinary):
        ours = spaces.MultiDiscrete((2,) * int(np.prod(shape)))
        return ours, lambda a: a.astype(dtype).reshape(-1, *shape)
    if isinstance(space, theirs.Box) and np.issubdtype(dtype, np.floating):
        low, high = (tuple(map(float, x.ravel())) for x in (space.low, space.high))
        ours = spaces.Box(low, high)
        spaces.check(ours, name)
        return ours, lambda a: a.astype(dtype).reshape(-1, *shape)
    raise ValueError(
        f"{name}: an action must be a Box of floats, Discrete, MultiDiscrete or MultiBinary, got "
        f"{space}; wrap the environment"
    )


def _reader(gymnasium: Any, name: str, space: Any, actor_part: str | None) -> Callable:
    """Returns what flattens one observation to float32, by part where the actor has one."""
    parts = {None: space}
    if actor_part is not None:
        if not isinstance(space, gymnasium.spaces.Dict) or actor_part not in space.spaces:
            raise ValueError(f"{name}: observations have no part {actor_part!r}, got {space}")
        parts = dict(space.spaces)
    for part in parts.values():
        if not part.is_np_flattenable:
            raise ValueError(f"{name}: observations cannot be flattened, got {part}; wrap them")

    def flat(space: Any, x: Any) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.asarray(gymnasium.spaces.flatten(space, x)).astype(np.float32)

    def read(x: Any) -> Any:
        if actor_part is None:
            return flat(space, x)
        return {key: flat(part, x[key]) for key, part in parts.items()}

    return read


@jax.custom_batching.custom_vmap
def _alone(x: Any) -> Any:
    """Passes on what goes to the host, which has one state and cannot be vmapped."""
    return x


@_alone.def_vmap
def _refuse(axis_size: int, in_batched: Any, x: Any) -> Any:
    raise ValueError(
        f"a Gymnasium environment has one state, on the host, and cannot be vmapped (over "
        f"{axis_size}); make an Env for each seed"
    )

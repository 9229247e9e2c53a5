"""What is imitated: experts with logs of six qualities, or one's own files."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.imitation import Config
from jaxlab import envs, imitation
from jaxlab.envs.backends import Backend
from jaxlab.imitation import Dataset, Demonstrations, Transitions

QUALITIES = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the expert's torque in the logs; the rest is noise."""
MOST = 20
"""Episodes of the pendulum's expert that there are."""
RECORDED = pathlib.Path(__file__).parent / "recorded"
"""Where demonstrations of MuJoCo tasks lie in the repository."""
OWN = "own"
"""Stands for the task of one's own files."""


class Source(NamedTuple):
    """Where demonstrations come from, and what a policy is judged by.

    Attributes:
        title: Name of the task in words.
        expert: All episodes of the expert.
        logs: Transitions of any quality.
        env: Environment of an evaluation, so many episodes for each seed.
        random: Mean return of uniformly random actions.
    """

    title: str
    expert: Dataset
    logs: Dataset
    env: envs.Env
    random: float


def make_source(config: Config, name: str) -> Source:
    """Records the pendulum, or reads files: those of a task, or one's own (`OWN`).

    Raises:
        ValueError: if files are unsound, fewer episodes are in them than are asked for, or the
            pendulum's logs cannot be of six qualities in equal shares.
        FileNotFoundError: if there is no such file.
    """
    key = jax.random.key(config.seed)
    if name == "pendulum":
        if config.log_episodes % len(QUALITIES):
            raise ValueError(f"log_episodes must be a multiple of 6, got {config.log_episodes}")
        task, title = imitation.gaussian_pendulum(), "Gaussian pendulum"
        expert = imitation.record(
            jax.random.fold_in(key, 1),
            lambda _, obs: imitation.pump_and_balance(obs),
            envs.make_env(task, MOST),
            about={"policy": "pump_and_balance", "seed": config.seed},
        )
        logs = _imperfect(jax.random.fold_in(key, 10), task, config.log_episodes)
    else:
        files, task_name, backend = _files(config, name)
        expert, logs = map(imitation.read_npz, files)
        task, title = envs.make_task(task_name, backend), task_name
    num = len(np.unique(expert.episode_id))
    if name != OWN and max(config.trajectories) > num:
        raise ValueError(
            f"trajectories must be at most {num}, the episodes of the expert, got "
            f"{max(config.trajectories)}"
        )
    env = envs.make_env(task, config.num_seeds * config.episodes)
    if (env.obs_size, env.action_size) != (expert.obs.shape[1], expert.action.shape[1]):
        raise ValueError(
            f"{title} has observations of {env.obs_size} and actions of {env.action_size} numbers, "
            f"the demonstrations {expert.obs.shape[1]} and {expert.action.shape[1]}"
        )
    if name == OWN:  # all of the expert's episodes, of which a comparison may take few
        imitation.prepare(expert, logs)
    for kind, dataset in (("expert", expert), ("logs", logs)):
        if "time_limit" not in dataset.about:  # what the task says of it
            limited = dataset._replace(about={**dataset.about, "time_limit": env.time_limit})
            imitation.check_dataset(limited, kind)
    space = env.action_space
    for field in ("low", "high"):
        theirs, ours = getattr(expert, f"action_{field}"), np.asarray(getattr(space, field))
        if not np.allclose(theirs, ours, rtol=1e-5):
            raise ValueError(
                f"{title} has actions with action_{field} {ours.tolist()}, the demonstrations "
                f"{theirs.tolist()}; say their range in the file's header"
            )
    shape = (env.num_envs, env.action_size)
    played = imitation.record(
        jax.random.fold_in(key, 2), lambda k, _: jax.random.uniform(k, shape, minval=-1.0), env
    )
    return Source(title, expert, logs, env, float(imitation.returns(played).mean()))


def counts(config: Config, source: Source) -> tuple[int, ...]:
    """Numbers of episodes to learn from: those of the settings that there are, or all there are."""
    num = len(np.unique(source.expert.episode_id))
    return tuple(n for n in config.trajectories if n <= num) or (num,)


def held_out(source: Source, num: int, seed: int, demos: Demonstrations) -> Transitions | None:
    """The expert's episodes that `demonstrations` left out, seen as its policies see them."""
    ids = np.random.default_rng(seed).permutation(np.unique(source.expert.episode_id))[num:]
    if not len(ids):
        return None
    left = imitation.take_episodes(source.expert, ids)
    rows = imitation.prepare(left, normalizer=demos.normalizer).expert
    return jax.tree.map(lambda x: x[rows.obs[:, -1] == 0.0], rows)  # no absorbing states


def demonstrations(
    source: Source, num: int, seed: int, logs: Dataset | None = None
) -> Demonstrations:
    """Takes `num` of the expert's episodes, the same for every method, and all logs or these."""
    ids = np.random.default_rng(seed).permutation(np.unique(source.expert.episode_id))
    expert = imitation.take_episodes(source.expert, ids[:num])
    return imitation.prepare(expert, source.logs if logs is None else logs)


def some_logs(logs: Dataset) -> dict[str, Dataset]:
    """Parts of logs whose episodes are sorted by quality, six qualities in equal shares.

    A fifth and two fifths of every quality, and the episodes of two qualities out of six.
    """
    ids = np.unique(logs.episode_id).reshape(len(QUALITIES), -1)
    each = ids.shape[1]
    few, more = (ids[:, : max(round(share * each), 1)] for share in (0.2, 0.4))
    chosen = {
        f"{few.size} episodes": few,
        f"{more.size} episodes": more,
        "worst third": ids[:2],
        "middle third": ids[2:4],
        "best third": ids[4:],
    }
    return {name: imitation.take_episodes(logs, kept.ravel()) for name, kept in chosen.items()}


def has_rewards(source: Source) -> bool:
    """Whether the expert's returns are known, which scores are normalized by."""
    return bool(np.isfinite(imitation.returns(source.expert)).any())


def normalized(source: Source, returns: np.ndarray) -> np.ndarray:
    """Returns 100 (J - J_random) / (J_expert - J_random); J_expert of the recorded episodes.

    It is J itself where these have no rewards.
    """
    if not has_rewards(source):
        return np.asarray(returns)
    expert = float(np.nanmean(imitation.returns(source.expert)))
    return 100.0 * (np.asarray(returns) - source.random) / (expert - source.random)


def _files(config: Config, name: str) -> tuple[tuple[pathlib.Path, ...], str, Backend]:
    """Both files of a task, its name, and its engine."""
    if name == OWN:
        assert config.expert is not None and config.logs is not None and config.env is not None
        return (pathlib.Path(config.expert), pathlib.Path(config.logs)), config.env, config.backend
    given = () if config.recorded is None else (pathlib.Path(config.recorded),)
    for folder in (*given, RECORDED):
        files = tuple(folder / f"{name}_{kind}.npz" for kind in ("expert", "logs"))
        if all(path.exists() for path in files):
            return files, name, "c"
    raise FileNotFoundError(
        f"no demonstrations {name}_expert.npz and {name}_logs.npz in {(*given, RECORDED)[0]}; make "
        f"them by --parts experts --tasks {name}, and give that run's folder as --recorded"
    )


def _imperfect(key: jax.Array, task: envs.Task, num: int) -> Dataset:
    """Episodes of all qualities, in equal shares."""
    share = jnp.repeat(jnp.asarray(QUALITIES), num // len(QUALITIES))[:, None]

    def act(key: jax.Array, obs: jax.Array) -> jax.Array:
        noise = jax.random.uniform(key, (num, 1), minval=-1.0)
        return jnp.where(jnp.abs(noise) < share, imitation.pump_and_balance(obs), noise)

    about = {"policy": "pump_and_balance in 0 to 0.8 of the steps"}
    return imitation.record(key, act, envs.make_env(task, num), about=about)

"""MuJoCo's tasks against Gymnasium: same state and action, same observation, reward and end."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs
from jaxlab.envs import mujoco_physics, mujoco_tasks

gymnasium = pytest.importorskip("gymnasium")
mujoco = pytest.importorskip("mujoco")

GYM = {
    "half_cheetah": "HalfCheetah-v4",
    "ant": "Ant-v4",
    "ant_v5": "Ant-v5",
    "hopper": "Hopper-v4",
    "hopper_v5": "Hopper-v5",
    "walker2d": "Walker2d-v4",
    "walker2d_v5": "Walker2d-v5",
    "humanoid": "Humanoid-v4",
    "humanoid_v5": "Humanoid-v5",
    "swimmer": "Swimmer-v4",
    "reacher": "Reacher-v4",
    "reacher_v5": "Reacher-v5",
    "pusher": "Pusher-v5",
    "inverted_pendulum": "InvertedPendulum-v4",
}


@pytest.fixture(autouse=True)
def mujoco_promotes():
    """MJX mixes dtypes and ranks, which this suite forbids otherwise."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def reference(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gymnasium.make(GYM[name]).unwrapped


def task_and_gym(name, backend):
    task, gym = envs.make_task(name, backend), reference(name)
    if backend == "mjx" and gym.model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        gym.model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON  # the one that MJX has
    return task, gym


def at_gym(state, gym):
    """A state with the positions, velocities and warm start of Gymnasium's."""
    data = gym.data
    return state._replace(
        qpos=jnp.asarray(data.qpos, jnp.float32),
        qvel=jnp.asarray(data.qvel, jnp.float32),
        warmstart=jnp.asarray(data.qacc_warmstart, jnp.float32),
        derived={name: jnp.asarray(getattr(data, name), jnp.float32) for name in state.derived},
    )


def assert_steps_agree(name, backend, *, num_steps, atol, restart=True):
    task, gym = task_and_gym(name, backend)
    rng = np.random.default_rng(3)
    gym.reset(seed=0)
    state, _ = jax.jit(task.reset)(jax.random.key(0))
    step = jax.jit(task.step)
    state = at_gym(state, gym)
    low, high = np.asarray(task.action_space.low), np.asarray(task.action_space.high)
    for _ in range(num_steps):
        if restart:
            state = at_gym(state, gym)
        action = rng.uniform(low, high).astype(np.float32)
        want_obs, want_reward, want_end, _, _ = gym.step(action)
        state, obs, reward, end = step(state, jnp.asarray(action))
        scale = np.maximum(1.0, np.abs(want_obs))  # forces are of the order of 100
        np.testing.assert_allclose(obs / scale, want_obs / scale, atol=atol, err_msg=name)
        np.testing.assert_allclose(reward, want_reward, atol=atol * max(1, abs(want_reward)))
        assert bool(end) == want_end
    return task


@pytest.mark.parametrize("name", GYM)
def test_c_engine_is_gymnasium(name):
    """One step from each of twenty states that Gymnasium visits."""
    task = assert_steps_agree(name, "c", num_steps=20, atol=1e-4)
    gym = reference(name)
    assert task.obs_size == gym.observation_space.shape[0]
    assert task.action_size == gym.action_space.shape[0]
    np.testing.assert_allclose(task.action_space.low, gym.action_space.low, rtol=1e-6)
    np.testing.assert_allclose(task.action_space.high, gym.action_space.high, rtol=1e-6)
    assert task.time_limit == gymnasium.spec(GYM[name]).max_episode_steps


@pytest.mark.parametrize(
    "name, index, low, high",
    [
        ("ant", 2, 0.0, 1.3),
        ("ant_v5", 2, 0.0, 1.3),
        ("walker2d", 1, 0.6, 2.3),
        ("walker2d_v5", 1, 0.6, 2.3),
        ("hopper_v5", 2, -0.4, 0.4),
        ("walker2d", 2, -1.4, 1.4),
        ("hopper", 1, 0.4, 1.3),
        ("hopper", 2, -0.4, 0.4),
        ("humanoid", 2, 0.7, 2.3),
        ("humanoid_v5", 2, 0.7, 2.3),
        ("inverted_pendulum", 1, -0.4, 0.4),
    ],
)
def test_c_engine_ends_where_gymnasium_does(name, index, low, high):
    """Bodies lifted, lowered and tilted across the bounds of health."""
    task, gym = task_and_gym(name, "c")
    gym.reset(seed=0)
    start, _ = task.reset(jax.random.key(0))
    step, ends = jax.jit(task.step), []
    for at in np.linspace(low, high, 24):
        qpos = gym.init_qpos.copy()
        qpos[index] = at
        gym.set_state(qpos, gym.init_qvel)
        state = at_gym(start, gym)
        want_obs, want_reward, want_end, _, _ = gym.step(np.zeros(task.action_size, np.float32))
        _, obs, reward, end = step(state, jnp.zeros(task.action_size))
        np.testing.assert_allclose(obs, want_obs, atol=1e-3 * max(1.0, np.abs(want_obs).max()))
        np.testing.assert_allclose(reward, want_reward, atol=1e-3 * max(1.0, abs(want_reward)))
        assert bool(end) == want_end
        ends.append(want_end)
    assert 2 < sum(ends) < 22


@pytest.mark.parametrize("name", ["half_cheetah", "swimmer", "reacher"])
def test_c_engine_keeps_to_gymnasium(name):
    """Twenty steps of its own: single precision between steps is all that differs."""
    assert_steps_agree(name, "c", num_steps=20, atol=1e-2, restart=False)


def test_mjx_is_gymnasium():
    assert_steps_agree("inverted_pendulum", "mjx", num_steps=3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(GYM) - {"inverted_pendulum"}))
def test_mjx_is_gymnasium_on_every_task(name):
    """The ant lands within the first steps, where engines differ most: one step of it."""
    ant = name.startswith("ant")
    assert_steps_agree(name, "mjx", num_steps=1 if ant else 5, atol=1e-3 if ant else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["half_cheetah", "swimmer", "reacher"])
def test_mjx_keeps_to_gymnasium(name):
    assert_steps_agree(name, "mjx", num_steps=20, atol=1e-2, restart=False)


@pytest.mark.parametrize("name", sorted(GYM))
def test_starts_are_gymnasium_s(name):
    """Means and spreads of a thousand starts of each, dimension by dimension."""
    task, gym = envs.make_task(name, "c"), reference(name)
    spec = mujoco_tasks.TASKS[name]
    model = mujoco_physics.load_model(spec.xml)
    constants = mujoco_tasks.Constants(np.array(model.qpos0), model.nv, 0.1, np.ones(1), {})
    keys = jax.random.split(jax.random.key(1), 4000)
    ours = [np.asarray(x) for x in jax.vmap(lambda k: spec.start(constants, k))(keys)]
    theirs = []
    for seed in range(400):
        gym.reset(seed=seed)
        theirs.append((gym.data.qpos.copy(), gym.data.qvel.copy()))
    for mine, other in zip(ours, zip(*theirs, strict=True), strict=True):
        other = np.stack(other)
        error = 5 * (other.std(axis=0) / np.sqrt(400) + mine.std(axis=0) / np.sqrt(4000))
        assert np.all(np.abs(mine.mean(axis=0) - other.mean(axis=0)) <= error + 1e-6)
        np.testing.assert_allclose(mine.std(axis=0), other.std(axis=0), rtol=0.2, atol=1e-6)
        assert mine.max() <= other.max() + 0.2 and mine.min() >= other.min() - 0.2
    _state, obs = task.reset(jax.random.key(5))
    assert np.all(np.isfinite(obs))


def test_pusher_starts_away_from_its_goal():
    spec = mujoco_tasks.TASKS["pusher"]
    constants = mujoco_tasks.Constants(np.zeros(11), 11, 0.05, np.ones(1), {})
    qpos, _ = jax.vmap(lambda k: spec.start(constants, k))(
        jax.random.split(jax.random.key(0), 5000)
    )
    assert np.linalg.norm(qpos[:, -4:-2], axis=1).min() > 0.17


@pytest.mark.parametrize("backend", ["c", pytest.param("mjx", marks=pytest.mark.slow)])
def test_batches_are_their_members(backend):
    """And the callback's batch under a second vmap, over seeds, is the same once more."""
    options = {"num_threads": 2} if backend == "c" else {}
    task = envs.make_task("inverted_pendulum", backend, **options)
    keys = jax.random.split(jax.random.key(2), 3)
    action = jnp.asarray([[0.3], [-2.0], [1.5]])

    @jax.jit
    def run(keys, action):
        state, _ = jax.vmap(task.reset)(keys)
        state, obs, _reward, _end = jax.vmap(task.step)(state, action)
        twice = jax.vmap(jax.vmap(task.step))(
            *jax.tree.map(lambda x: jnp.stack([x, x]), (state, action))
        )
        return obs, jax.vmap(task.step)(state, action)[1], twice[1]

    obs, second, twice = run(keys, action)
    np.testing.assert_allclose(twice, np.stack([second, second]), atol=1e-6)
    alone = jax.jit(lambda key, action: task.step(task.reset(key)[0], action)[1])
    for i in range(3):
        np.testing.assert_allclose(alone(keys[i], action[i]), obs[i], atol=1e-5)


def test_a_state_that_falls_apart_is_started_anew_and_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the engine would write its log
    env = envs.make_env(envs.make_task("inverted_pendulum", "c"), 3)
    state = env.reset(jax.random.key(0))
    broken = state._replace(physics=state.physics._replace(qvel=state.physics.qvel.at[1].set(1e12)))
    after = jax.jit(env.step)(broken, jnp.zeros((3, 1)))
    np.testing.assert_array_equal(after.failed, [False, True, False])
    np.testing.assert_array_equal(after.truncated, [False, True, False])
    assert not after.terminated.any() and after.reward[1] == 0.0
    np.testing.assert_array_equal(after.final_obs[1], state.obs[1])
    assert np.all(np.isfinite(after.obs)) and np.abs(after.obs[1]).max() < 0.011
    assert after.time.tolist() == [1, 0, 1]
    assert not list(tmp_path.iterdir())


def test_every_episode_may_have_its_own_model():
    """Masses drawn at a reset last for the episode."""

    def masses(key, model):
        scale = jax.random.uniform(key, minval=0.5, maxval=2.0)
        return {"body_mass": jnp.asarray(model.body_mass, jnp.float32) * scale}

    task = envs.make_task("inverted_pendulum", "mjx", randomize=masses)
    state, _ = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), 2))
    mass = np.asarray(state.model["body_mass"])
    assert not np.allclose(mass[0], mass[1])
    same = state._replace(
        qpos=jnp.zeros_like(state.qpos),
        qvel=jnp.zeros_like(state.qvel),
        warmstart=jnp.zeros_like(state.warmstart),
    )
    after, obs, _, _ = jax.jit(jax.vmap(task.step))(same, jnp.full((2, 1), 3.0))
    np.testing.assert_array_equal(after.model["body_mass"], mass)
    lighter = int(mass[1].sum() < mass[0].sum())
    assert abs(obs[lighter, 2]) > abs(obs[1 - lighter, 2])  # the same force moves it faster


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("half_cheetah", "gpu"), "backend must be"),
        (("centipede", "mjx"), "has no task 'centipede'"),
        (("half_cheetah", "jax"), "it has pendulum"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        envs.make_task(*arguments)


def test_bad_options():
    with pytest.raises(ValueError, match="num_threads"):
        envs.make_task("hopper", "c", num_threads=0)
    with pytest.raises(ValueError, match="hopper by c takes num_threads, got randomize"):
        envs.make_task("hopper", "c", randomize=lambda key, model: {})
    with pytest.raises(ValueError, match="pendulum by jax takes time_limit, got num_threads"):
        envs.make_task("pendulum", "jax", num_threads=2)
    with pytest.raises(ValueError, match="solver_iterations"):
        envs.make_task("hopper", "mjx", solver_iterations=0)
    with pytest.raises(ValueError, match="jax, warp"):
        envs.make_task("hopper", "mjx", impl="cuda")
    with pytest.raises(FileNotFoundError, match="neither a model"):
        mujoco_physics.load_model("nowhere.xml")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Brax System")
def test_brax_tasks_take_the_protocol():
    """Brax's pendulum: its own step, and ours through the adapter, from the same key."""
    brax_envs = pytest.importorskip("brax.envs")
    with pytest.raises(ValueError, match="brax has no task"):
        envs.make_task("centipede", "brax")
    task = envs.make_task("inverted_pendulum", "brax")
    env = brax_envs.get_environment("inverted_pendulum", backend="generalized")
    key = jax.random.key(4)
    action = jnp.asarray([0.7])

    @jax.jit
    def both(key):
        theirs = env.step(env.reset(key), action)
        state, _ = task.reset(key)
        return theirs.obs, theirs.reward, *task.step(state, action)[1:]

    obs, reward, ours_obs, ours_reward, end = both(key)
    np.testing.assert_array_equal(obs, ours_obs)
    assert reward == ours_reward and not end
    batch = envs.make_env(task, 2)
    state = jax.jit(batch.step)(jax.jit(batch.reset)(key), jnp.zeros((2, 1)))
    assert np.all(np.isfinite(state.obs)) and state.time.tolist() == [1, 1]


def test_model_is_not_changed_by_mjx():
    model = mujoco_physics.load_model("humanoid.xml")
    before = model.opt.iterations, model.opt.ls_iterations, model.opt.solver
    mujoco_physics.mjx_physics(model, frame_skip=1)
    assert before == (model.opt.iterations, model.opt.ls_iterations, model.opt.solver)

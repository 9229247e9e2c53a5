"""Adapters of JAX libraries on small fakes that keep each library's protocol, against plain loops.

The libraries themselves are in `test_real_libraries.py`.
"""

import collections
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs

Space = collections.namedtuple("Space", "shape dtype")
Discrete = collections.namedtuple("Discrete", "n shape dtype", defaults=((), jnp.int32))
Box = collections.namedtuple("Box", "low high shape dtype", defaults=(jnp.float32,))
STEPS = 40


def replaced(record, **changes):
    return record._replace(**changes)


def played(env, key, action):
    """States before and after each of some steps, actions by `action(key)`."""

    def one(state, key):
        after = env.step(state, action(key))
        return after, (state, action(key), after)

    return jax.lax.scan(one, jax.jit(env.reset)(key), jax.random.split(key, STEPS))[1]


# --- gymnax ------------------------------------------------------------------------------------


class GymnaxState(NamedTuple):
    time: Any
    x: Any


GymnaxParams = collections.namedtuple("GymnaxParams", "max_steps_in_episode goal", defaults=(7, 3))


class FakeGymnax:
    """A walk of -1, 0, 1 with random pushes; the goal terminates, seven steps truncate."""

    name = "Fake-walk"
    default_params = GymnaxParams()

    def action_space(self, params):
        return Discrete(3)

    def reset_env(self, key, params):
        state = GymnaxState(0, jax.random.randint(key, (), 0, 2))
        return self.observe(state), state

    def observe(self, state):
        return jnp.eye(2, dtype=bool)[None] & (state.x > 0)

    def step_env(self, key, state, action, params):
        push = jax.random.bernoulli(key, 0.5).astype(jnp.int32)
        state = GymnaxState(state.time + 1, state.x + action - 1 + push)
        return self.observe(state), state, 2 * state.x, state.x >= params.goal, {"discount": 1.0}

    def is_truncated(self, state, params):
        return state.time >= params.max_steps_in_episode


def test_gymnax_s_own_steps_clock_and_ends(key):
    fake = FakeGymnax()
    task = envs.from_gymnax(fake)
    assert (task.obs_size, task.action_space, task.time_limit) == (4, envs.Discrete(3), 7)
    env = envs.make_env(task, 3)
    before, actions, after = played(env, key, lambda k: jax.random.randint(k, (3,), 0, 3))
    state, keys = jax.tree.map(np.asarray, before.physics[0]), before.physics[1]
    push = jax.vmap(jax.vmap(lambda k: jax.random.bernoulli(jax.random.split(k)[1], 0.5)))(keys)
    x = state.x + np.asarray(actions) - 1 + np.asarray(push)
    np.testing.assert_array_equal(after.reward, 2.0 * x)
    np.testing.assert_array_equal(after.terminated, x >= 3)
    np.testing.assert_array_equal(after.truncated, (state.time + 1 >= 7) & (x < 3))
    np.testing.assert_array_equal(after.final_obs, (x > 0)[..., None] * np.float32([1, 0, 0, 1]))
    assert after.terminated.any() and after.truncated.any() and not after.failed.any()
    np.testing.assert_array_equal(before.time, state.time)  # our clock goes with theirs
    shorter = envs.from_gymnax(fake, GymnaxParams(goal=1), time_limit=5)
    assert shorter.time_limit == 5


def test_gymnax_boxes_keep_their_shape(key):
    class Boxes(FakeGymnax):
        def action_space(self, params):
            return Box(-2.0, jnp.asarray([[4.0], [2.0]]), (2, 1))

        def step_env(self, key, state, action, params):
            assert action.shape == (2, 1)
            obs, state, *_ = super().step_env(key, state, 0, params)
            return obs, state, jnp.sum(action), False, {}

    env = envs.make_env(envs.from_gymnax(Boxes()), 2)
    assert env.action_space == envs.Box((-2.0, -2.0), (4.0, 2.0))
    after = jax.jit(env.step)(jax.jit(env.reset)(key), jnp.asarray([[1.0, 0.5], [-1.0, 0.0]]))
    np.testing.assert_allclose(after.reward, [4.0 + 1.0, -2.0 + 0.0])


def test_gymnax_below_one_is_refused():
    class Old(FakeGymnax):
        is_truncated = property()

    with pytest.raises(ValueError, match="gymnax below 1.0 does not tell"):
        envs.from_gymnax(Old())

    class Odd(FakeGymnax):
        def action_space(self, params):
            return Space((), jnp.int32)

    with pytest.raises(ValueError, match="Fake-walk: an action must be Box, Discrete or Multi"):
        envs.from_gymnax(Odd())


# --- brax and MuJoCo Playground ----------------------------------------------------------------


class Carried(NamedTuple):
    """The fields of brax's State, and of Playground's with `data` for `pipeline_state`."""

    pipeline_state: Any
    obs: Any
    reward: Any
    done: Any
    metrics: Any
    info: Any


class FakeBrax:
    """x moves by the action; beyond 1 it is done; at an even count the info says truncated."""

    action_size = 2

    def reset(self, rng):
        x = jax.random.uniform(rng, (2,), minval=-0.5, maxval=0.5)
        # Integers and booleans where floats follow: what brax's own resets do here and there.
        return Carried(x, self.observe(x), 0, False, {"speed": 0}, {"count": 0, "truncation": 0})

    def observe(self, x):
        return x

    def step(self, state, action):
        x = state.pipeline_state + action
        count = state.info["count"] + 1
        done = jnp.max(jnp.abs(x)) > 1.0
        info = {"count": count, "truncation": jnp.where(done & (count % 2 == 0), 1.0, 0.0)}
        metrics = {"speed": jnp.sum(action)}
        return Carried(x, self.observe(x), x[0], done.astype(x.dtype), metrics, info)

    unwrapped = property(lambda self: self)


class FakePlayground(FakeBrax):
    _config = {"episode_length": 9, "ctrl_dt": 0.02}

    def observe(self, x):
        return {"state": x[:1], "privileged_state": jnp.concatenate([x, x])[None]}


def uniform(key):
    return jax.random.uniform(key, (3, 2), minval=-1.0, maxval=1.0)


@pytest.mark.parametrize("fake", [FakeBrax(), FakePlayground()], ids=["brax", "playground"])
def test_carried_states_are_stepped_and_started_anew(fake, key):
    is_dict = isinstance(fake, FakePlayground)
    task = envs.from_playground(fake) if is_dict else envs.from_brax(fake, time_limit=9)
    assert task.time_limit == 9 and task.obs_size == (1 if is_dict else 2)
    assert task.actor_part == ("state" if is_dict else None) and task.name == type(fake).__name__
    env = envs.make_env(task, 3)
    before, actions, after = played(env, key, uniform)
    x = np.asarray(before.physics.pipeline_state) + np.asarray(actions)
    count = np.asarray(before.physics.info["count"]) + 1
    done = np.abs(x).max(axis=-1) > 1.0
    np.testing.assert_allclose(envs.actor_obs(env, after.final_obs), x[..., : task.obs_size])
    np.testing.assert_allclose(after.reward, x[..., 0])
    np.testing.assert_array_equal(after.terminated, done & (count % 2 == 1))
    np.testing.assert_array_equal(after.truncated, (done & (count % 2 == 0)) | (count == 9) & ~done)
    assert after.terminated.any() and after.truncated.any() and not after.failed.any()
    if is_dict:
        np.testing.assert_allclose(after.final_obs["privileged_state"], np.concatenate([x, x], -1))


def test_wrapped_and_unknown_environments_are_refused():
    class VmapWrapper(FakeBrax):
        def __init__(self, env):
            self.env = env

    class Harmless(VmapWrapper):
        pass

    with pytest.raises(ValueError, match="batches and starts anew by itself, got VmapWrapper"):
        envs.from_brax(Harmless(VmapWrapper(FakeBrax())))
    assert envs.from_brax(Harmless(FakeBrax())).name == "FakeBrax"
    with pytest.raises(ValueError, match="must be one of privileged_state, state, got None"):
        envs.from_brax(FakePlayground())
    with pytest.raises(ValueError, match="no episode_length.*give time_limit"):
        fake = FakePlayground()
        fake._config = {"ctrl_dt": 0.02}
        envs.from_playground(fake)


# --- JaxMARL -----------------------------------------------------------------------------------


class MarlState(NamedTuple):
    step: Any
    x: Any
    replace = replaced


class FakeMarl:
    """Agents push a stone; at 4 the game is won. Its clock says done too, as JaxMARL's do."""

    name = "FakeMarl"
    max_steps = 6
    agents = ("left", "right")
    nums = {"left": 3, "right": 3}
    sizes = {"left": 2, "right": 2}
    masks = True

    def action_space(self, agent):
        return Discrete(self.nums[agent])

    def observe(self, state):
        obs = {a: jnp.full((self.sizes[a], 1), state.x + i) for i, a in enumerate(self.agents)}
        return {**obs, "world_state": state.x[None]}

    def reset(self, key):
        state = MarlState(0, jax.random.randint(key, (), 0, 2))
        return self.observe(state), state

    def step_env(self, key, state, actions):
        push = actions["left"] + actions["right"] - 1
        state = state.replace(step=state.step + 1, x=state.x + push)
        over = (state.x >= 4) | (state.step >= self.max_steps)
        paid = state.x.astype(jnp.float32)
        reward = {"left": paid, "right": -paid}
        return self.observe(state), state, reward, {"__all__": over, "left": over}, {}

    def get_avail_actions(self, state):
        if not self.masks:
            raise NotImplementedError
        free = {a: jnp.arange(n) < jnp.where(state.x > 2, 1, n) for a, n in self.nums.items()}
        return {a: mask.astype(jnp.uint8) for a, mask in free.items()}


def both(num):
    return lambda key: jax.random.randint(key, (3, 2), 0, num)


def test_agents_masks_and_the_clock_that_is_no_end(key):
    env = envs.make_env(envs.from_jaxmarl(FakeMarl()), 3)
    assert (env.num_agents, env.obs_size, env.action_space) == (2, 2, envs.Discrete(3))
    before, actions, after = played(env, key, both(3))
    x = np.asarray(before.physics[0].x) + np.asarray(actions).sum(axis=-1) - 1
    time = np.asarray(before.time) + 1
    np.testing.assert_array_equal(after.reward, np.stack([x, -x], axis=-1))
    np.testing.assert_array_equal(after.terminated, x >= 4)
    np.testing.assert_array_equal(after.truncated, (time == 6) & (x < 4))
    assert after.terminated.any() and after.truncated.any()
    want = np.stack([x, x + 1], axis=-1)[..., None] * np.ones(2)
    np.testing.assert_array_equal(after.final_obs, want)
    allowed = np.arange(3) < np.where(x > 2, 1, 3)[..., None]
    np.testing.assert_array_equal(after.final_action_mask, np.stack([allowed, allowed], axis=-2))
    won_at_the_limit = (time == 6) & (x >= 4)
    assert won_at_the_limit.any() and after.terminated[won_at_the_limit].all()


def test_a_longer_clock_and_the_world_state(key):
    """A nested state, as JaxMARL's games against an enemy have; twelve steps of a game of six."""

    class Nested(FakeMarl):
        def reset(self, key):
            obs, state = super().reset(key)
            return obs, Outer(state)

        def step_env(self, key, state, actions):
            quiet = dict.fromkeys(self.agents, jnp.zeros((), jnp.int32))
            obs, inner, *rest = super().step_env(
                key, state.state, {**quiet, "left": jnp.ones((), int)}
            )
            return obs, Outer(inner), *rest

        def get_avail_actions(self, state):
            return super().get_avail_actions(state.state)

    env = envs.make_env(envs.from_jaxmarl(Nested(), time_limit=12, world_state=True), 2)
    assert env.actor_part == "agents" and env.obs_size == 2
    state = jax.jit(env.reset)(key)
    step = jax.jit(env.step)
    for t in range(1, 13):
        state = step(state, jnp.zeros((2, 2), jnp.int32))
        assert state.truncated.tolist() == [t == 12] * 2 and not state.terminated.any()
    seen = state.final_obs
    np.testing.assert_array_equal(seen["world_state"][:, 0], seen["agents"][:, 0, 0])


class Outer(NamedTuple):
    state: Any
    replace = replaced


def test_unequal_agents_are_filled_up_only_if_asked(key):
    fake = FakeMarl()
    fake.nums, fake.sizes, fake.masks = {"left": 2, "right": 3}, {"left": 1, "right": 3}, False
    with pytest.raises(ValueError, match=r"left: 1 and Discrete\(num=2\).*pass pad=True"):
        envs.from_jaxmarl(fake)
    env = envs.make_env(envs.from_jaxmarl(fake, pad=True), 3)
    assert env.action_space == envs.Discrete(3) and env.obs_size == 3
    state = jax.jit(env.reset)(key)
    np.testing.assert_array_equal(state.action_mask[0], [[True, True, False], [True] * 3])
    assert np.all(state.obs[:, 0, 1:] == 0.0)
    after = jax.jit(env.step)(state, jnp.asarray([[1, 2], [2, 0], [0, 0]]))
    assert after.failed.tolist() == [False, True, False]  # left has no choice 2
    fake.nums = {"left": 3, "right": 3}
    assert envs.from_jaxmarl(fake, pad=True).action_mask is None


@pytest.mark.parametrize(
    "changes, options, message",
    [
        ({"max_steps": None}, {}, "no max_steps; give time_limit"),
        (
            {"observe": lambda s: {"left": s.x[None], "right": s.x[None]}},
            {"world_state": True},
            "no world_state",
        ),
    ],
)
def test_bad_games(changes, options, message):
    fake = FakeMarl()
    vars(fake).update(changes)
    with pytest.raises(ValueError, match=message):
        envs.from_jaxmarl(fake, **options)


@pytest.mark.parametrize("name", ["hopper", "inverted_pendulum"])
def test_a_missing_package_names_its_extra(name, monkeypatch):
    from jaxlab.envs import extras

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'jaxlab\[envs\]'"):
        envs.make_task(name, "brax" if name == "hopper" else "c")
    with pytest.raises(ImportError, match=r"gymnasium is not installed.*jaxlab\[envs\]"):
        envs.from_gymnasium("CartPole-v1", 2)

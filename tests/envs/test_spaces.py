"""Spaces, masks, agents and parts: their stream against a loop in NumPy; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs
from jaxlab.envs import spaces

A, NUMS = 2, (3, 2)


def rooms(**changes):
    """Two agents on a line of rooms 0 to 6; each chooses a move and whether to shout.

    A move is 0 (stay), 1 (right) or 2 (left, forbidden in room 0); shouting is forbidden in room 3.
    Each agent is paid its room. Both in one room beyond 3 terminates; room 6 truncates.
    """

    def observe(x):
        place = x["place"].astype(jnp.float32)
        return {"own": place[:, None] * jnp.asarray([[1.0, -1.0]]), "all": jnp.sum(place)[None]}

    def reset(key):
        x = {"place": jnp.asarray([1, 0]), "best": jnp.full((3,), -jnp.inf)}
        return x, observe(x)

    def step(x, action):
        move = jnp.where(action[:, 0] == 1, 1, jnp.where(action[:, 0] == 2, -1, 0))
        place = jnp.clip(x["place"] + move, 0, 6)
        x = {"place": place, "best": x["best"]}
        together = (place[0] == place[1]) & (place[0] > 3)
        reward = place.astype(jnp.bfloat16) + action[:, 1].astype(jnp.bfloat16)
        return x, observe(x), reward, together, jnp.any(place == 6)

    def action_mask(x):
        allowed = jnp.ones((A, 5), bool)
        return allowed.at[:, 2].set(x["place"] > 0).at[:, 4].set(x["place"] != 3)

    task = envs.Task(
        "rooms",
        2,
        envs.MultiDiscrete(NUMS),
        7,
        reset,
        step,
        num_agents=A,
        action_mask=action_mask,
        actor_part="own",
    )
    return task._replace(**changes)


def numpy_mask(place):
    return np.asarray([[True, True, p > 0, True, p != 3] for p in place])


def test_the_stream_is_that_of_a_loop(key):
    """Forty steps of three rows: rewards, both ends, last observations and both masks."""
    env = envs.make_env(rooms(), 3)
    rng = np.random.default_rng(0)
    actions = np.stack([rng.integers(0, n, (40, 3, A)) for n in NUMS], axis=-1).astype(np.int32)
    actions[..., 0] = np.where(rng.random((40, 3, A)) < 0.6, 1, actions[..., 0])  # to the right
    _, states = jax.lax.scan(
        lambda s, a: ((after := env.step(s, a)), after), env.reset(key), jnp.asarray(actions)
    )
    place, time = np.tile([1, 0], (3, 1)), np.zeros(3, int)
    seen = set()
    for t in range(40):
        move = np.array([0, 1, -1])[actions[t, ..., 0]]
        place, time = np.clip(place + move, 0, 6), time + 1
        terminated = (place[:, 0] == place[:, 1]) & (place[:, 0] > 3)
        truncated = ((place == 6).any(axis=1) | (time == 7)) & ~terminated
        at = jax.tree.map(lambda x, t=t: np.asarray(x[t]), states._replace(key=()))
        np.testing.assert_array_equal(at.reward, place + actions[t, ..., 1])
        np.testing.assert_array_equal(at.terminated, terminated)
        np.testing.assert_array_equal(at.truncated, truncated)
        np.testing.assert_array_equal(at.final_obs["own"], place[..., None] * [1.0, -1.0])
        np.testing.assert_array_equal(at.final_obs["all"][:, 0], place.sum(axis=1))
        final = np.stack([numpy_mask(row) for row in place])
        np.testing.assert_array_equal(at.final_action_mask, final)
        seen |= {
            (bool(a), bool(b), int(c)) for a, b, c in zip(terminated, truncated, time, strict=True)
        }
        done = terminated | truncated
        place, time = np.where(done[:, None], [1, 0], place), np.where(done, 0, time)
        np.testing.assert_array_equal(at.obs["own"], place[..., None] * [1.0, -1.0])
        mask = np.stack([numpy_mask(row) for row in place])
        np.testing.assert_array_equal(at.action_mask, mask)
        np.testing.assert_array_equal(at.time, time)
        assert not at.failed.any()  # though a number of the physics is infinite
    early = {x for x in seen if x[2] < 7}
    assert {(True, False), (False, True)} <= {x[:2] for x in early}  # the task's own ends
    assert states.reward.dtype == jnp.float32 and states.reward.shape == (40, 3, A)
    np.testing.assert_array_equal(envs.actor_obs(env, states.obs), states.obs["own"])
    assert env.action_size == 2 and spaces.num_logits(env.action_space) == 5


def test_a_choice_out_of_range_fails_its_step_and_no_other(key):
    paid = []

    def step(x, action):
        paid.append(action.dtype)
        return x + 1.0, x + 1.0, action.astype(x.dtype), jnp.zeros((), bool)

    start = jnp.zeros(1)
    task = envs.Task("tab", 1, envs.Discrete(3), 9, lambda key: (start, start), step)
    env = envs.make_env(task, 5)
    state = env.step(env.reset(key), jnp.zeros(5, jnp.int32))
    after = jax.jit(env.step)(state, jnp.asarray([0, 3, -1, 2, 2**30]))
    assert after.failed.tolist() == [False, True, True, False, True]
    assert after.truncated.tolist() == after.failed.tolist() and not after.terminated.any()
    assert after.reward.tolist() == [0.0, 0.0, 0.0, 2.0, 0.0]  # neither clamped nor paid
    assert after.final_obs[:, 0].tolist() == [2.0, 1.0, 1.0, 2.0, 1.0]
    assert after.obs[:, 0].tolist() == [2.0, 0.0, 0.0, 2.0, 0.0]
    assert all(dtype == jnp.int32 for dtype in paid)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64])
def test_ranges_are_right_in_every_integer_type(dtype, x64):
    """Numbers that would wrap around into the range of 200 choices are out of it all the same."""
    space = envs.MultiDiscrete((200, 3))
    info = np.iinfo(dtype)
    values = [0, 1, 2, 3, 100, 199, 200, -1, -127, 2**32 + 1, 2**32 - 1, info.max, info.min]
    values = [v for v in values if info.min <= v <= info.max]
    pairs = np.asarray([(a, b) for a in values for b in (0, 2, 3) if b <= info.max], dtype)
    action, valid = jax.vmap(lambda a: spaces.to_task(space, a))(jnp.asarray(pairs))
    want = [0 <= int(a) < 200 and 0 <= int(b) < 3 for a, b in pairs]
    assert valid.tolist() == want and action.dtype == jnp.int32
    np.testing.assert_array_equal(action[valid], pairs[want])
    assert np.all(np.asarray(action) >= 0) and np.all(np.asarray(action) < [200, 3])


def test_bounds_are_mapped_for_every_agent():
    space = envs.Box((-2.0, 0.0), (4.0, 1.0))
    action = jnp.asarray([[-1.0, 1.0], [0.0, 0.5], [1.5, 0.0]])
    got, valid = spaces.to_task(space, action)
    np.testing.assert_allclose(got, [[-2.0, 1.0], [1.0, 0.75], [5.5, 0.5]])
    assert valid


def test_samples_are_uniform_among_what_is_allowed(key):
    space = envs.MultiDiscrete((3, 2))
    mask = jnp.asarray([[True, False, True, True, True], [True, True, True, False, True]])
    keys = jax.random.split(key, 4000)
    drawn = np.asarray(jax.vmap(lambda k: spaces.sample(k, space, (2,), mask))(keys))
    assert drawn.dtype == np.int32 and drawn.shape == (4000, 2, 2)
    shares = [[np.bincount(drawn[:, i, k], minlength=3) / 4000 for k in (0, 1)] for i in (0, 1)]
    third, half = 1 / 3, 1 / 2  # five standard deviations of a share are 0.04
    np.testing.assert_allclose(shares[0], [[half, 0, half], [half, half, 0]], atol=0.04)
    np.testing.assert_allclose(shares[1], [[third] * 3, [0, 1, 0]], atol=0.04)
    assert np.all((drawn[:, 0, 0] != 1) & (drawn[:, 1, 1] == 1))
    single = spaces.sample(key, envs.Discrete(4), (5000,))
    np.testing.assert_allclose(np.bincount(single, minlength=4) / 5000, 0.25, atol=0.035)
    real = spaces.sample(key, envs.Box((0.0,), (1.0,)), (4000,))
    assert real.shape == (4000, 1) and abs(float(real.mean())) < 0.05 and real.min() < -0.99


def quiet(**changes):
    """One number that stays; the reward is 100000."""
    start = {"x": jnp.zeros(2), "best": jnp.asarray(-jnp.inf)}

    def step(physics, action):
        return physics, physics["x"], jnp.asarray(1e5), jnp.zeros((), bool)

    task = envs.Task(
        "quiet", 2, envs.Box((-1.0,), (1.0,)), 9, lambda key: (start, start["x"]), step
    )
    return task._replace(**changes)


def test_infinities_in_the_physics_are_fine_and_nan_is_not(key):
    action = jnp.zeros((2, 1))
    env = envs.make_env(quiet(), 2)
    after = env.step(env.reset(key), action)
    assert not after.failed.any() and after.reward.tolist() == [1e5, 1e5]
    assert np.all(np.isinf(after.physics["best"]))
    broken = {
        "physics": lambda p: ({**p, "best": p["best"] * 0.0}, p["x"], 1.0, False),  # -inf 0 is NaN
        "obs": lambda p: (p, p["x"] + jnp.inf, 1.0, False),
        "reward": lambda p: (p, p["x"], -jnp.inf, False),
    }
    for part, outcome in broken.items():
        env = envs.make_env(quiet(step=lambda p, a, outcome=outcome: outcome(p)), 2)
        after = jax.jit(env.step)(env.reset(key), action)
        assert after.failed.all() and after.truncated.all(), part
        assert after.reward.tolist() == [0.0, 0.0] and np.all(after.final_obs == 0.0)


@pytest.mark.usefixtures("float16")
@pytest.mark.parametrize("x64", [False, True])
def test_rewards_do_not_take_the_type_of_observations(key, x64):
    """In float16, 100000 would be infinite, and every step a failure."""
    with jax.enable_x64(x64):
        x = jnp.zeros(2, jnp.float16)

        def step(physics, action):
            reward = jnp.asarray(1e5, jnp.result_type(float))
            return physics, x, reward, jnp.zeros((), bool)

        env = envs.make_env(quiet(reset=lambda key: (x, x), step=step), 2)
        state = jax.jit(env.reset)(key)
        after = jax.jit(env.step)(state, jnp.zeros((2, 1), jnp.float32))
        assert after.obs.dtype == jnp.float16 and after.reward.tolist() == [1e5, 1e5]
        want = jnp.float64 if x64 else jnp.float32
        assert state.reward.dtype == after.reward.dtype == want and not after.failed.any()


@pytest.mark.parametrize(
    "reset, message",
    [
        (lambda x: ({"x": x, "best": jnp.log(x[0] - 1.0)}, x), r"NaN in physics\['best'\]"),
        (lambda x: ({"x": x, "best": x[0]}, x / 0.0), "not finite in obs"),
    ],
)
def test_a_start_that_is_not_finite_is_refused_before_training(reset, message):
    task = quiet(reset=lambda key: reset(jax.random.uniform(key, (2,))))
    with pytest.raises(ValueError, match=f"quiet: reset must be finite.*{message}"):
        envs.make_env(task, 2)


def test_an_environment_may_be_made_under_a_trace(key):
    """With numbers of the task that are traced: a sweep over them, say."""

    def one(scale):
        start = jnp.full(2, scale)
        task = quiet(reset=lambda key: ({"x": start, "best": scale}, start))
        env = envs.make_env(task, 1)
        return env.step(env.reset(key), jnp.zeros((1, 1))).obs

    got = jax.jit(jax.vmap(one))(jnp.asarray([1.0, 2.0]))
    np.testing.assert_array_equal(got, [[[1.0, 1.0]], [[2.0, 2.0]]])


def test_keys_may_be_part_of_the_physics(key):
    def step(physics, action):
        following, now = jax.random.split(physics)
        return following, jax.random.normal(now, (2,)), jnp.zeros(()), jnp.zeros((), bool)

    env = envs.make_env(quiet(reset=lambda key: (key, jnp.zeros(2)), step=step), 2)
    _, drawn = jax.lax.scan(
        lambda s, a: ((after := env.step(s, a)), after.final_obs),
        env.reset(key),
        jnp.zeros((30, 2, 1)),
    )
    assert len(np.unique(np.asarray(drawn))) == 120


def test_environments_of_other_libraries_are_named_with_their_adapter():
    gymnasium = pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match=r"got gymnasium\..*use envs\.from_gymnasium"):
        envs.make_env(gymnasium.make("Pendulum-v1"), 4)
    with pytest.raises(ValueError, match="a batch already"):
        envs.make_env(envs.make_env(envs.pendulum(), 2), 2)
    with pytest.raises(ValueError, match=r"make_task\('hopper'\)"):
        envs.make_env("hopper", 2)
    with pytest.raises(ValueError, match=r"got builtins\.object; write one.*envs\.from_brax"):
        envs.make_env(object(), 2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"obs_size": 3}, r"observation of 3 floats, shape \(2, 3\), got float32 \(2, 2\)"),
        ({"obs_size": 2.0}, "obs_size must be an integer of at least 1, got 2.0"),
        ({"num_agents": 0}, "num_agents must be an integer of at least 1, got 0"),
        ({"num_agents": 3}, r"shape \(3, 2\)"),
        ({"time_limit": True}, "time_limit must be an integer"),
        ({"action_space": (3, 2)}, "must be Box, Discrete or MultiDiscrete"),
        ({"action_space": envs.MultiDiscrete((3, 0))}, "integers of at least 1"),
        ({"action_space": envs.MultiDiscrete([3, 2])}, "tuple of integers"),
        ({"action_space": envs.MultiDiscrete(())}, "tuple of integers"),
        ({"action_space": envs.Discrete(2.0)}, "num must be an integer"),
        ({"action_space": envs.MultiDiscrete((3, 3))}, r"bool \(2, 6\)"),
        ({"action_space": envs.Box((-1.0,) * 2, (1.0,) * 2)}, "a box has no action_mask"),
        ({"action_space": envs.Box([-1.0], [1.0])}, "must be tuples of floats, got list"),
        ({"action_space": envs.Box((), ())}, "at least one dimension"),
        ({"actor_part": None}, "or name the actor_part"),
        ({"actor_part": "mine"}, r"the part 'mine' that the actor sees, got \['all', 'own'\]"),
        ({"action_mask": lambda x: jnp.ones((2, 5))}, r"bool \(2, 5\), got .*float32"),
        ({"action_mask": lambda x: jnp.ones(5, bool)}, r"bool \(2, 5\)"),
        ({"action_mask": lambda x: jnp.zeros((2, 5), bool)}, "allow a choice of each component"),
        ({"reset": lambda key: jnp.zeros(2)}, r"reset must return \(physics, obs\)"),
    ],
)
def test_bad_tasks(changes, message):
    with pytest.raises(ValueError, match=message):
        envs.make_env(rooms(**changes), 2)


@pytest.mark.parametrize(
    "outcome, message",
    [
        ((jnp.zeros(3), False), r"the reward of each agent its own \(2,\); got \(3,\), \(\)"),
        ((jnp.zeros(2), jnp.zeros(2, bool)), r"scalars.*got \(2,\), \(2,\)"),
        ((jnp.zeros(2), False, jnp.zeros(1, bool)), r"truncated.*got \(2,\), \(\), \(1,\)"),
        ((jnp.zeros(2), False, False, {}), r"terminated\) or the same and truncated"),
        ((jnp.zeros(2, bool), False), "reward must be a number, got bool"),
    ],
)
def test_bad_outcomes(outcome, message):
    good = rooms()

    def step(x, action):
        return (*good.step(x, action)[:2], *outcome)

    with pytest.raises(ValueError, match=message):
        envs.make_env(good._replace(step=step), 2)


def test_bad_parts_and_actions(key):
    good = rooms()

    def reset(key):
        physics, obs = good.reset(key)
        return physics, {**obs, "all": obs["all"].astype(jnp.int32)}

    with pytest.raises(ValueError, match="got int32 .* for 'all'; cast integers"):
        envs.make_env(good._replace(reset=reset), 2)
    with pytest.raises(ValueError, match="num_envs must be an integer of at least 1, got 2.0"):
        envs.make_env(good, 2.0)
    env = envs.make_env(good, 2)
    state = env.reset(key)
    with pytest.raises(ValueError, match=r"action must be \(2, 2, 2\), got \(2, 2\)"):
        env.step(state, jnp.zeros((2, 2), jnp.int32))
    with pytest.raises(ValueError, match="must be integers for MultiDiscrete.*got float32"):
        env.step(state, jnp.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="no discrete choices"):
        spaces.num_logits(envs.Box((0.0,), (1.0,)))
    with pytest.raises(ValueError, match="must be Box"):
        spaces.size((3,))

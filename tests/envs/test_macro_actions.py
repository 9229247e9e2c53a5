"""Macro-actions and the deep sea, against plain loops over the tasks that they are made of."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, learning

V, LIMIT, GAMMA = 3, 7, 0.9


class Chain:
    """A walk on 0 .. 9 in Python: choices go 1, 2, 3 up, 9 ends it, seven steps truncate."""

    def __init__(self):
        self.x, self.time, self.done = 0, 0, False

    def step(self, choice):
        self.x, self.time = min(self.x + choice + 1, 9), self.time + 1
        terminated = self.x == 9
        truncated = self.time == LIMIT and not terminated
        self.done = terminated or truncated
        return self.x + 0.5 * choice, terminated, truncated


def chain(**changes):
    def reset(key):
        return jnp.zeros((), jnp.int32), jnp.zeros((1,))

    def step(x, action):
        x = jnp.minimum(x + action + 1, 9)
        obs = x.astype(jnp.float32)
        return x, obs[None], obs + 0.5 * action.astype(jnp.float32), x == 9

    return envs.Task("chain", 1, envs.Discrete(V), LIMIT, reset, step)._replace(**changes)


def played(task, tokens):
    """Plays actions `[T, N, ...]`; returns the states after each, as one program."""
    env = envs.make_env(task, tokens.shape[1])
    start = env.reset(jax.random.key(0))
    return env, jax.jit(
        lambda: jax.lax.scan(lambda s, a: (env.step(s, a),) * 2, start, tokens)[1]
    )()


@pytest.mark.parametrize("length", [1, 3, 4, 16])
def test_a_plain_loop_over_the_chain(length):
    """Rewards, both ends, durations, last observations and new starts; ends at the first token."""
    tokens = np.random.default_rng(length).integers(0, V, (12, 5, length))
    task = envs.macro(chain(), length, gamma=GAMMA)
    env, states = played(task, jnp.asarray(tokens))
    assert env.action_space == envs.MultiDiscrete((V,) * length)
    seen = {"early": 0, "truncated": 0}
    for i in range(5):
        own = Chain()
        for t in range(12):
            total, count = 0.0, 0
            while count < length and not own.done:
                reward, terminated, truncated = own.step(tokens[t, i, count])
                total += GAMMA**count * reward
                count += 1
            assert float(states.reward[t, i]) == pytest.approx(total, rel=1e-6)
            assert int(states.duration[t, i]) == count
            assert bool(states.terminated[t, i]) == terminated
            assert bool(states.truncated[t, i]) == truncated
            assert float(states.final_obs[t, i, 0]) == own.x
            mask = envs.executed(states.duration[t], length)[i]
            assert mask.tolist() == [k < count for k in range(length)]
            seen["early"] += count < length
            seen["truncated"] += truncated
            if own.done:
                own = Chain()
            assert float(states.obs[t, i, 0]) == own.x
    assert seen["early"] > 3 or length == 1


def test_a_macro_action_of_one_is_the_task_itself(key):
    """Step by step, with keys in the state and masks, from the same reset."""

    def reset(key):
        key, key_x = jax.random.split(key)
        x = jax.random.uniform(key_x)
        return (x, key), x[None]

    def step(physics, action):
        key, key_x = jax.random.split(physics[1])
        x = physics[0] + jax.random.normal(key_x) * (1.0 + action.astype(jnp.float32))
        return (x, key), x[None], x, jnp.abs(x) > 3.0, jnp.abs(x) > 2.5

    walk = envs.Task("walk", 1, envs.Discrete(2), 9, reset, step)
    walk = walk._replace(action_mask=lambda p: jnp.stack([p[0] > -9.0, p[0] > 0.0]))
    tokens = jax.random.randint(key, (60, 4), 0, 2)
    states = played(walk, tokens)[1]
    ours = played(envs.macro(walk, 1, gamma=0.5), tokens[..., None])[1]
    assert states.terminated.any() and states.truncated.any()
    for name in ("obs", "reward", "terminated", "truncated", "final_obs", "failed", "time"):
        found, want = (np.asarray(getattr(x, name), float) for x in (ours, states))
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(ours.action_mask, states.action_mask)
    np.testing.assert_allclose(ours.physics.physics[0], states.physics[0], rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(ours.duration) == 1) and states.duration == ()
    wider = envs.make_env(envs.macro(walk, 3, gamma=1.0), 2).reset(key).action_mask
    assert wider.shape == (2, 6) and wider[:, 2:].all()


def test_returns_of_random_tokens_do_not_depend_on_their_number():
    """Exactly: over all 3^4 tokens of episodes of four steps, whether looked at or not."""
    tokens = np.asarray(list(itertools.product(range(V), repeat=4)))
    returns = []
    for length in (1, 2, 3, 4, 8):
        task = envs.macro(chain(time_limit=4), length, gamma=1.0)
        rest = -4 % length  # the clock strikes inside the last macro-action
        filled = np.pad(tokens, [(0, 0), (0, rest)]).reshape(len(tokens), -1, length)
        env, states = played(task, jnp.asarray(filled.swapaxes(0, 1)))
        assert env.time_limit == -(-4 // length)
        ended = np.cumsum(states.terminated | states.truncated, axis=0)
        first = np.concatenate([np.zeros_like(ended[:1]), ended[:-1]]) == 0
        assert np.all(ended[-1] >= 1)
        returns.append(np.sum(np.where(first, states.reward, 0.0), axis=0))
    for found in returns[1:]:
        np.testing.assert_allclose(found, returns[0], rtol=1e-6)


def test_one_broken_step_breaks_the_whole_macro_action():
    """Even where the next step hides it, and even where it would have ended the episode."""

    def step(x, action):
        bad = jnp.where(action == 2, jnp.inf, 0.0)
        x = x + 1.0
        return x, x[None] + bad, jnp.asarray(1.0), x > 5.0

    def reset(key):
        return jnp.zeros(()), jnp.zeros((1,))

    task = envs.Task("glitch", 1, envs.Discrete(V), 9, reset, step)
    tokens = jnp.asarray([[[0, 2, 0], [0, 1, 0], [2, 2, 2]]])
    state = played(envs.macro(task, 3, gamma=1.0), tokens)[1]
    assert state.failed[0].tolist() == [True, False, True]
    assert state.reward[0].tolist() == [0.0, 3.0, 0.0]
    assert state.truncated[0].tolist() == [True, False, True] and not state.terminated.any()
    np.testing.assert_array_equal(state.final_obs[0, :, 0], [0.0, 3.0, 0.0])
    wrong = played(envs.macro(chain(), 2, gamma=1.0), jnp.asarray([[[0, 3], [0, 2]]]))[1]
    assert wrong.failed[0].tolist() == [True, False]


def test_one_program_for_all_values_and_rows_of_a_vmap_apart():
    traced = []

    def step(x, action):
        traced.append(None)
        return chain().step(x, action)

    env = envs.make_env(envs.macro(chain(step=step), 3, gamma=GAMMA), 2)
    start = env.reset(jax.random.key(0))
    tokens = jnp.asarray([[[0, 0, 0], [2, 2, 2]], [[2, 2, 2], [0, 1, 2]]])
    rewards = [env.step(start, tokens[0]).reward]
    count = len(traced)
    rewards.append(env.step(start, tokens[1]).reward)
    assert len(traced) == count
    both = jax.vmap(env.step, in_axes=(None, 0))(start, tokens)
    np.testing.assert_allclose(both.reward, jnp.stack(rewards), rtol=1e-6)
    assert both.terminated.tolist() == [[False, True], [True, False]]


def test_agents_have_a_token_each():
    def step(x, action):
        x = x + action
        return x, x[:, None].astype(jnp.float32), x.astype(jnp.float32), jnp.any(x > 3)

    def reset(key):
        return jnp.zeros((2,), jnp.int32), jnp.zeros((2, 1))

    pair = envs.Task("pair", 1, envs.Discrete(V), 9, reset, step, num_agents=2)
    tokens = jnp.asarray([[[[1, 1, 1], [2, 0, 2]]]])
    state = played(envs.macro(pair, 3, gamma=0.5), tokens)[1]
    np.testing.assert_allclose(state.reward[0, 0], [1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 2 + 0.25 * 4])
    assert state.terminated.all() and int(state.duration[0, 0]) == 3


def test_values_count_gamma_to_the_steps_that_were_carried_out():
    """PPO's own rollout: the value of a start under V = 0 but for what truncation leads to."""
    env = envs.make_env(envs.macro(chain(time_limit=5), 4, gamma=GAMMA), 1)
    networks = learning.Networks(
        init=lambda key_policy, key_value: {"w": jnp.zeros(())},
        sample=lambda key, params, obs, mask: (
            jnp.zeros((*obs.shape[:-1], 4), jnp.int32),
            jnp.zeros(obs.shape[:-1]) + params["w"],
        ),
        evaluate=lambda params, obs, mask, action: (params["w"] + 0.0 * obs[..., 0],) * 2,
        mode=lambda params, obs, mask: jnp.zeros((*obs.shape[:-1], 4), jnp.int32),
        value=lambda params, obs: 2.0 * obs[..., 0] + 0.0 * params["w"],
    )
    # Tokens go up by one: V(s) = 2 s, R = 1 + .9 2 + .81 3 + .729 4, then 5 alone, truncated.
    first = sum(GAMMA**i * (i + 1) for i in range(4)) + GAMMA**4 * 8.0
    second = 5.0 + GAMMA * 10.0
    want = np.asarray([first + GAMMA**4 * (second - 8.0), second])  # lambda = 1

    def loss(outputs, samples, settings):
        found = {"early": jnp.min(samples.target), "late": jnp.max(samples.target)}
        return jnp.sum(outputs.value) * 0.0, found

    algorithm = learning.make_ppo(
        env,
        networks,
        num_steps=2,
        num_epochs=1,
        num_minibatches=1,
        gamma=GAMMA,
        gae_lambda=1.0,
        reward_scale=1.0,
        loss=loss,
    )
    with jax.numpy_dtype_promotion("standard"):
        _, metrics = algorithm.step(algorithm.init(jax.random.key(0)))
    np.testing.assert_allclose(sorted([metrics["early"], metrics["late"]]), sorted(want), rtol=1e-6)


@pytest.mark.parametrize(
    "change, length, gamma, message",
    [
        ({}, 0, 0.9, "length must be an integer of at least 1, got 0"),
        ({}, 2, 1.5, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"action_space": envs.Box((-1.0,), (1.0,))}, 2, 0.9, "made of single choices .* Box"),
        ({"duration": lambda x: x}, 2, 0.9, "take one step, got .* and a duration"),
    ],
)
def test_refusals(change, length, gamma, message):
    with pytest.raises(ValueError, match=message):
        envs.macro(chain(**change), length, gamma=gamma)
    with pytest.raises(ValueError, match="macro takes an envs.Task, got Env"):
        envs.macro(envs.make_env(chain(), 1), 2, gamma=0.9)
    with pytest.raises(ValueError, match="duration must give an int32 scalar"):
        envs.make_env(chain(duration=lambda x: 1.0 * x.astype(jnp.float32)), 1)


# --- deep sea ----------------------------------------------------------------------------------


def every_return(size, seed, gamma):
    """Returns of all 2^N sequences, `[2^N, N]` and `[2^N]`, as whole macro-actions."""
    tokens = np.asarray(list(itertools.product(range(2), repeat=size)))
    task = envs.macro(envs.deep_sea(size, seed=seed), size, gamma=gamma)
    state = played(task, jnp.asarray(tokens)[None])[1]
    assert state.terminated.all() and not state.final_obs.any()
    return tokens, np.asarray(state.reward[0])


@pytest.mark.parametrize("size, seed, gamma", [(1, 3, 1.0), (4, 0, 0.9), (7, 5, 1.0), (5, 1, 0.2)])
def test_the_best_of_all_dives(size, seed, gamma):
    tokens, returns = every_return(size, seed, gamma)
    rights = envs.deep_sea_rights(size, seed=seed)
    best = envs.deep_sea_optimum(size, gamma=gamma)
    assert returns.max() == pytest.approx(best, abs=1e-7)
    if best > 0.0:
        assert np.sum(returns > 0.0) == 1  # the needle
        np.testing.assert_array_equal(tokens[returns.argmax()], np.diag(rights))
    costs = {"free": np.sum(returns == 0.0), "paid": np.sum(returns < 0.0)}
    assert costs["paid"] == 2**size - costs["free"] - (best > 0.0)


def test_the_deep_sea_of_gymnax():
    """Its own steps under its own mapping, all sequences of four choices; only where installed."""
    gymnax = pytest.importorskip("gymnax", reason="pip install 'jaxlab[games]'")
    N, seed = 4, 2
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs, params = gymnax.make("DeepSea-bsuite", size=N)
        rights = jnp.asarray(envs.deep_sea_rights(N, seed=seed))
        start = theirs.reset_env(jax.random.key(0), params)[1].replace(action_mapping=rights)

        def one(state, action):
            key = jax.random.key(0)
            obs, state, reward, terminated, _ = theirs.step_env(key, state, action, params)
            carried = jax.tree.map(
                lambda x, like: jnp.asarray(x, jnp.asarray(like).dtype), state, start
            )
            return carried, (obs.reshape(-1), reward, terminated)

        tokens = np.asarray(list(itertools.product(range(2), repeat=N)))
        begin = jax.tree.map(jnp.asarray, start)
        want = jax.vmap(lambda row: jax.lax.scan(one, begin, row)[1])(jnp.asarray(tokens))
    states = played(envs.deep_sea(N, seed=seed), jnp.asarray(tokens.T))[1]
    found = (states.final_obs, states.reward, states.terminated)
    for ours, other in zip(found, want, strict=True):
        np.testing.assert_allclose(jnp.moveaxis(ours, 0, 1), other, atol=1e-7)


def test_bad_sizes():
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        envs.deep_sea(0)
    with pytest.raises(ValueError, match="gamma lie in"):
        envs.deep_sea_optimum(3, gamma=1.1)

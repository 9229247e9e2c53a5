"""The learner on a task of choices with masks: a table of values against value iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import envs, rl
from jaxlab.envs import spaces

pytestmark = pytest.mark.usefixtures("optax_promotes")
STATES, CHOICES, GAMMA = 6, 3, 0.8
MOVES = np.array([-1, 1, 2])
COSTS = np.array([1.0, 1.0, 1.5])
ALLOWED = np.array([[s > 0, True, s % 2 == 0] for s in range(STATES)])
"""No way left of the first state; jumps from even states alone."""


def chain():
    """Every move costs something until the last state, where the episode ends."""
    moves, costs, allowed = (jnp.asarray(x) for x in (MOVES, COSTS, ALLOWED))

    def observe(s):
        return jax.nn.one_hot(s, STATES)

    def reset(key):
        s = jax.random.randint(key, (), 0, STATES - 1, jnp.int32)
        return s, observe(s)

    def step(s, action):
        after = jnp.clip(s + moves[action].astype(jnp.int32), 0, STATES - 1)
        paid = jnp.where(allowed[s, action], -costs[action], 100.0)  # what is forbidden would pay
        return after, observe(after), paid, after == STATES - 1

    return envs.Task(
        "chain", STATES, envs.Discrete(CHOICES), 4, reset, step, action_mask=lambda s: allowed[s]
    )


def best_values():
    """Value iteration: the discounted return of each allowed choice."""
    q = np.zeros((STATES, CHOICES))
    for _ in range(200):
        value = np.where(ALLOWED, q, -np.inf).max(axis=1)
        value[-1] = 0.0
        after = np.clip(np.arange(STATES)[:, None] + MOVES, 0, STATES - 1)
        q = -COSTS + GAMMA * value[after]
    return q


def tables():
    """Two critics that are tables, `[2, STATES, CHOICES]`."""

    def apply(params, obs, action):
        rows = jnp.einsum("...s,csa->c...a", obs, params)
        chosen = jax.nn.one_hot(action, CHOICES)
        return jnp.sum(rows * chosen[None], axis=-1)

    def loss(key, params, target_params, data, gamma):
        q = apply(params, data.obs, data.action)
        next_q = jnp.min(apply(target_params, data.next_obs, data.next_action), axis=0)
        discount = gamma * (1.0 - data.terminated.astype(next_q.dtype))
        target = rl.td_target(next_q + data.bonus, data.reward, discount)
        return jnp.sum(jnp.mean((q - target[None]) ** 2, axis=1)), q

    return rl.Critics(lambda key: jnp.zeros((2, STATES, CHOICES)), apply, loss)


def greedy():
    """The best allowed choice by the critics; every second action any allowed one."""

    def best(obs, q, mask):
        values = jnp.stack([q(obs, jnp.full(obs.shape[:1], a)) for a in range(CHOICES)], axis=-1)
        return jnp.argmax(jnp.where(mask, values, -jnp.inf), axis=-1).astype(jnp.int32)

    def act(key, params, obs, q, alpha, *, explore, mask):
        chosen = best(obs, q, mask)
        if not explore:
            return chosen
        key_any, key_which = jax.random.split(key)
        any_ = spaces.sample(key_any, envs.Discrete(CHOICES), chosen.shape, mask)
        return jnp.where(jax.random.bernoulli(key_which, 0.5, chosen.shape), any_, chosen)

    def propose(key, params, target_params, obs, q, alpha, *, mask):
        return best(obs, q, mask), jnp.zeros(obs.shape[:1]), {}

    def loss(key, params, context):
        legal = jnp.take_along_axis(context.action_mask, context.action[:, None], axis=1)
        next_legal = jnp.take_along_axis(
            context.next_action_mask, context.next_action[:, None], axis=1
        )
        share = jnp.mean((legal & next_legal).astype(jnp.float32))
        values = context.q(context.obs, context.action)
        return 0.0 * params, rl.Improvement(values, jnp.zeros(()), {"legal": share})

    return rl.Policy(
        action_size=1,
        init=lambda key: jnp.zeros(()),
        act=act,
        propose=propose,
        loss=loss,
        optimizer=optax.sgd(1.0),
        policy_every=1,
        alpha_every=0,
        obs_size=STATES,
    )


def test_values_of_choices_are_those_of_value_iteration(key):
    """Masks at both ends of a transition: a forbidden choice would look far better than any."""
    env = envs.make_env(chain(), 8)
    learner = rl.make_learner(
        env,
        greedy(),
        critics=tables(),
        gamma=GAMMA,
        tau=0.2,
        batch_size=64,
        capacity=2000,
        warmup=400,
        reward_scale=1.0,
        critic_learning_rate=0.02,
    )

    @jax.jit
    def train(key):
        return jax.lax.scan(lambda s, _: learner.step(s), learner.init(key), length=1200)

    state, metrics = train(key)
    data = jax.tree.map(np.asarray, state.replay.data)
    assert data.action.dtype == np.int32 and state.replay.size == 2000
    place = data.obs.argmax(axis=1)
    assert np.all(ALLOWED[place, data.action]) and np.all(data.reward < 0.0)
    np.testing.assert_array_equal(data.action_mask, ALLOWED[place])
    np.testing.assert_array_equal(data.next_action_mask, ALLOWED[data.next_obs.argmax(axis=1)])
    assert data.truncated.any() and np.all(metrics["legal"] == 1.0)
    want = best_values()
    seen = ALLOWED.copy()
    seen[-1] = False  # episodes end there
    for table in np.asarray(state.critic_params):
        np.testing.assert_allclose(table[seen], want[seen], atol=0.05)
        assert not np.any(table[~seen])
    ended = metrics["env/return"]
    mean = np.sum(ended.total[-200:]) / np.sum(ended.count[-200:])
    assert -4.0 < mean < -1.0  # half of its actions are any


def test_critics_of_choices_must_be_given():
    env = envs.make_env(chain(), 2)
    with pytest.raises(ValueError, match="give critics for the choices of chain"):
        rl.make_learner(env, greedy(), batch_size=4, capacity=8, warmup=4)

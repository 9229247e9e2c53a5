"""Networks for every space: which part who sees, whose parameters they are, what masks forbid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxlab import envs
from jaxlab.learning import actor_critic, distributions
from jaxlab.nn import Mlp

HIDDEN = (8,)
THREE = envs.Discrete(3)


def game(space=THREE, *, num_agents=2, own_reward=False, state=(3,)):
    """Agents see four numbers each; their critics may see a state of other shape."""
    lead = () if num_agents is None else (num_agents,)

    def look(key):
        own, whole = jax.random.split(key)
        return {"own": jax.random.normal(own, (*lead, 4)), "state": jax.random.normal(whole, state)}

    def reset(key):
        return key, look(key)

    def step(key, action):
        reward = jnp.ones(lead if own_reward else ())
        return key, look(key), reward, jnp.ones((), bool)

    mask = None
    if not isinstance(space, envs.Box):
        allowed = jnp.arange(envs.spaces.num_logits(space)) != 1
        mask = lambda key: jnp.broadcast_to(allowed, (*lead, *allowed.shape))  # noqa: E731
    task = envs.Task("game", 4, space, 1, reset, step, num_agents, mask, "own")
    return envs.make_env(task, 5)


def build(env, key, **options):
    made = actor_critic.make_networks(env, hidden=HIDDEN, **options)
    networks = actor_critic.Networks(*map(jax.jit, made))
    params = networks.init(*jax.random.split(key))
    return networks, params, jax.jit(env.reset)(key)


@pytest.mark.parametrize("shared", [True, False])
def test_agents_share_parameters_or_have_their_own(key, shared):
    """Against the networks applied to one agent after the other."""
    env = game()
    networks, params, state = build(env, key, share_parameters=shared)
    own, mask = np.asarray(state.obs["own"]), state.action_mask
    action, logp = networks.sample(key, params, state.obs, mask)
    again, entropy = networks.evaluate(params, state.obs, mask, action)
    value, mode = networks.value(params, state.obs), networks.mode(params, state.obs, mask)
    assert not np.any(np.asarray(action) == 1)
    for agent in range(2):
        policy, critic = (
            params[k] if shared else jax.tree.map(lambda x, i=agent: x[i], params[k])
            for k in ("policy", "value")
        )
        logits = np.array(Mlp(HIDDEN, 3).apply(policy, own[:, agent]), np.float64)
        logits[:, 1] = -np.inf
        p = scipy.special.softmax(logits, axis=1)
        want = np.log(p[np.arange(5), action[:, agent]])
        for found in (logp, again):
            np.testing.assert_allclose(found[:, agent], want, rtol=1e-4)
        want = scipy.special.entr(p).sum(axis=1)
        np.testing.assert_allclose(entropy[:, agent], want, rtol=1e-4)
        np.testing.assert_array_equal(mode[:, agent], p.argmax(axis=1))
        want = Mlp(HIDDEN, 1).apply(critic, own[:, agent])[:, 0]
        np.testing.assert_allclose(value[:, agent], want, rtol=1e-4, atol=1e-6)
    if not shared:  # drawn apart, not copied
        kernel = params["policy"]["params"]["layer_0"]["kernel"]
        assert np.abs(kernel[0] - kernel[1]).min() > 0


@pytest.mark.parametrize(
    "own_reward, state, heads, seen",
    [
        (False, (3,), (5,), (5, 3)),  # one state, one return
        (True, (3,), (5, 2), (5, 3)),  # one state, a return for each agent
        (True, (2, 7), (5, 2), (5, 2, 7)),  # a state for each agent
        (False, (2,), (5,), (5, 2)),  # one state of as many numbers as there are agents
    ],
    ids=["common", "own", "each", "two"],
)
def test_what_the_critic_sees_and_says(key, own_reward, state, heads, seen):
    env = game(own_reward=own_reward, state=state)
    networks, params, start = build(env, key, critic_part="state")
    value = networks.value(params, start.obs)
    assert value.shape == heads and start.obs["state"].shape == seen
    want = Mlp(HIDDEN, 2 if heads != (5,) and len(seen) == 2 else 1).apply(
        params["value"], start.obs["state"]
    )
    np.testing.assert_allclose(value, want if want.shape == heads else want[..., 0], rtol=1e-6)
    changed = start.obs | {"own": start.obs["own"] + 1.0}
    np.testing.assert_array_equal(networks.value(params, changed), value)


def test_a_box_has_a_standard_deviation_of_its_own(key):
    """Drawn beyond the bounds with the density of what was drawn; the mode stays within."""
    env = game(envs.Box((-5.0, 0.0), (5.0, 1.0)), num_agents=None)
    networks, params, state = build(env, key)
    params |= {"log_std": jnp.asarray([0.5, -1.0])}
    action, logp = networks.sample(key, params, state.obs, ())
    mean = np.asarray(Mlp(HIDDEN, 2).apply(params["policy"], state.obs["own"]), np.float64)
    std = np.exp([0.5, -1.0])
    z = (np.asarray(action) - mean) / std
    want = np.sum(-0.5 * z**2 - np.log(std) - 0.5 * np.log(2 * np.pi), axis=1)
    np.testing.assert_allclose(logp, want, rtol=1e-4)
    assert np.abs(action).max() > 1.0
    far = jax.tree.map(lambda x: 10.0 * x, params)
    mode = networks.mode(far, state.obs, ())
    assert np.abs(mode).max() == 1.0
    squashed, params, _ = build(env, key, distribution=distributions.squashed_gaussian(2))
    out = Mlp(HIDDEN, 4).apply(params["policy"], state.obs["own"])
    np.testing.assert_allclose(squashed.mode(params, state.obs, ()), np.tanh(out[:, :2]), rtol=1e-5)
    assert "log_std" not in params


def test_a_mask_that_allows_nothing_is_left_out(key):
    """An agent that is gone: its action is any, and nothing is NaN, backwards neither."""
    env = game(envs.MultiDiscrete((2, 3)))
    networks, params, state = build(env, key)
    mask = state.action_mask.at[0, 1].set(False)

    def total(params):
        logp, entropy = networks.evaluate(params, state.obs, mask, jnp.zeros((5, 2, 2), jnp.int32))
        return jnp.sum(logp) + jnp.sum(entropy)

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value) and all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


def test_networks_of_ones_own(key):
    """Any pair of init and apply; here a table for the policy, and a critic of images."""

    class Table:
        def init(self, key, obs):
            return jnp.arange(3.0)

        def apply(self, params, obs):
            return jnp.broadcast_to(params, (*obs.shape[:-1], 3))

    class Pixels:
        def init(self, key, obs):
            return jnp.ones(obs.shape)

        def apply(self, params, obs):
            return jnp.sum(params * obs, axis=(-3, -2, -1), keepdims=True)[..., 0, 0]

    env = game(num_agents=None, state=(4, 4, 1))
    with pytest.raises(ValueError, match=r"\(4, 4, 1\), which is not flat; give a critic"):
        actor_critic.make_networks(env, critic_part="state")
    with jax.numpy_rank_promotion("allow"):
        networks, params, state = build(
            env, key, actor=Table(), critic=Pixels(), critic_part="state"
        )
        value = networks.value(params, state.obs)
        np.testing.assert_allclose(value, np.sum(state.obs["state"], axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(networks.mode(params, state.obs, state.action_mask), [2] * 5)


def test_bad_arguments_are_refused():
    env = game()
    with pytest.raises(
        ValueError, match="critic_part 'map' is no part of observations: own, state"
    ):
        actor_critic.make_networks(env, critic_part="map")
    plain = envs.make_env(envs.pendulum(), 2)
    with pytest.raises(ValueError, match="critic_part 'map' is no part of observations: one array"):
        actor_critic.make_networks(plain, critic_part="map")
    with pytest.raises(ValueError, match="share_parameters=False needs agents"):
        actor_critic.make_networks(plain, share_parameters=False)

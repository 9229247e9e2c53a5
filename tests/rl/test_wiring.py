"""Who is given what: which parameters act, which critics judge, which observation a loss sees.

Stubs leak what they were given through metrics; fields that a method must not look at are NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import envs, learning, rl
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import weights

pytestmark = pytest.mark.usefixtures("optax_promotes")
SMALL = (8,)
RATE = 0.25


def walk():
    """x goes up by one each step from 0, five times; every step pays 7."""

    def reset(key):
        return jnp.zeros(()), jnp.zeros(1)

    def step(x, action):
        return x + 1.0, (x + 1.0)[None], jnp.asarray(7.0), jnp.zeros((), bool)

    return envs.Task("walk", 1, envs.Box((-1.0,), (1.0,)), 5, reset, step)


def leaking_critics():
    """Values are c + x, the first critic's five more; the loss is the targets' c."""

    def apply(params, obs, action):
        value = params["c"] + obs[..., 0]
        return jnp.stack([value + 5.0, value])

    def loss(key, params, target_params, data, gamma):
        value = params["c"] - jax.lax.stop_gradient(params["c"]) + target_params["c"]
        return value, jnp.stack([data.reward, data.reward])

    return rl.Critics(lambda key: {"c": jnp.zeros(())}, apply, loss)


def leaking_policy(**options):
    """Its parameter falls by one at each step, and is what it acts with, a hundredth of it."""

    def act(key, params, obs, q, alpha, *, explore):
        return jnp.broadcast_to(params["w"] / 100.0, (*obs.shape[:-1], 1))

    def propose(key, params, target_params, obs, q, alpha):
        action = jnp.full((*obs.shape[:-1], 1), 0.125)
        judged = jnp.mean(q(obs, action) - obs[:, 0])
        found = {"proposed_at": jnp.mean(obs), "judged_by": judged, "average": target_params["w"]}
        return action, jnp.zeros(obs.shape[:1]), found

    def loss(key, params, context):
        zero = jnp.zeros((1, 1))
        found = {
            "obs": jnp.mean(context.obs),
            "next_obs": jnp.mean(context.next_obs),
            "action": jnp.mean(context.next_action),
            "q": context.q(zero, zero)[0],
            "q_first": context.q_first(zero, zero)[0],
            "q_target": context.q_target(zero, zero)[0],
        }
        return params["w"], rl.Improvement(jnp.zeros(3), jnp.zeros(()), found)

    policy = rl.Policy(
        1, lambda key: {"w": jnp.zeros(())}, act, propose, loss, optax.sgd(1.0), policy_every=1
    )
    return policy._replace(**options)


def make(**options):
    env = envs.make_env(walk(), 2)
    return rl.make_learner(
        env,
        leaking_policy(**options),
        critics=leaking_critics(),
        batch_size=16,
        capacity=40,
        warmup=20,
        critic_learning_rate=RATE,
        tau=0.5,
    )


def test_everyone_is_given_his_own(key):
    algorithm = make()
    state = jax.jit(algorithm.init)(key)
    state = state._replace(
        critic_params={"c": jnp.asarray(3.0)}, target_critic_params={"c": jnp.asarray(-2.0)}
    )
    after, found = jax.jit(algorithm.step)(state)
    assert found["critic/loss"] == -2.0  # the targets bootstrap
    np.testing.assert_allclose(found["critic/q"], 0.2 * 7.0, rtol=1e-6)  # the reward's scale
    assert found["judged_by"] == 3.0  # online critics choose, before their step
    np.testing.assert_allclose(found["q"], 3.0 - RATE, rtol=1e-5)  # Adam's first step
    np.testing.assert_allclose(found["q_first"], 8.0 - RATE, rtol=1e-5)
    assert found["q_target"] == -2.0 and found["action"] == 0.125
    assert found["next_obs"] == found["obs"] + 1.0 == found["proposed_at"]
    np.testing.assert_allclose(
        after.target_critic_params["c"], 0.5 * (-2.0 + 3.0 - RATE), rtol=1e-5
    )
    assert after.policy_params["w"] == -1.0 and after.policy_average_params["w"] == -0.5


@pytest.mark.parametrize("average", [True, False])
def test_who_acts(key, average):
    algorithm = make(act_with_average=average)
    state = jax.jit(algorithm.init)(key)
    step = jax.jit(algorithm.step)
    state, _ = step(state)
    state, found = step(state)  # acts after one update: policy -1, average -0.5
    acted = np.asarray(state.replay.data.action)[22:24, 0]
    np.testing.assert_allclose(acted, -0.005 if average else -0.01, rtol=1e-6)
    assert found["average"] == -0.5


def test_online_critics_judge_what_is_tried_in_acting(key):
    def act(key, params, obs, q, alpha, *, explore):
        value = (q(obs, jnp.zeros((2, 1))) + alpha) / 100.0
        return value[:, None] if explore else jnp.full((2, 1), jnp.nan)

    algorithm = make(act=act)
    state = jax.jit(algorithm.init)(key)
    state = state._replace(
        critic_params={"c": jnp.asarray(3.0)}, target_critic_params={"c": jnp.asarray(-2.0)}
    )
    after, _ = jax.jit(algorithm.step)(state)
    row = slice(20, 22)  # ten steps of the two environments before it: x is 0 again
    assert not np.any(after.replay.data.obs[row]) and not np.any(state.env.obs)
    np.testing.assert_allclose(after.replay.data.action[row, 0], (3.0 + 5.0) / 100.0, rtol=1e-6)


def test_loss_of_the_critics_by_hand(key):
    """From the batch that was sampled and the rule of the task: reward, end, bonus, discount."""

    def reset(key):
        x = jax.random.uniform(key, (2,))
        return x, x

    def step(x, action):
        after = 0.5 * x + 0.25 * action
        return after, after, x[0] + 2.0 * action[0], after[1] > 0.3

    def propose(key, params, target_params, obs, q, alpha):
        return jnp.tanh(obs[:, :1]), obs[:, 0] - obs[:, 1], {}

    def loss(key, params, context):
        names = ("obs", "action", "next_obs", "next_action", "terminated")
        seen = {name: getattr(context, name).astype(jnp.float32) for name in names}
        return params["w"], rl.Improvement(jnp.zeros(3), jnp.zeros(()), seen)

    env = envs.make_env(envs.Task("rule", 2, envs.Box((-1.0,), (1.0,)), 3, reset, step), 2)
    critics = rl.make_critics(2, 1, hidden=SMALL)
    algorithm = rl.make_learner(
        env,
        leaking_policy(propose=propose, loss=loss),
        critics=critics,
        batch_size=64,
        capacity=200,
        warmup=100,
        gamma=0.8,
        reward_scale=0.5,
    )
    state = jax.jit(algorithm.init)(key)
    state = state._replace(target_critic_params=critics.init(jax.random.fold_in(key, 1)))
    step = jax.jit(algorithm.step)
    swept = {"gamma": jnp.asarray(0.3), "reward_scale": jnp.asarray(2.0)}
    for gamma, scale, changes in ((0.8, 0.5, {}), (0.3, 2.0, swept)):
        _, found = step(state._replace(settings=state.settings | changes))
        obs, action, next_obs, next_action, ended = (
            np.asarray(found[k]) for k in ("obs", "action", "next_obs", "next_action", "terminated")
        )
        np.testing.assert_allclose(next_obs, 0.5 * obs + 0.25 * action, atol=1e-6)
        np.testing.assert_array_equal(ended, next_obs[:, 1] > 0.3)
        assert 0.1 < ended.mean() < 0.9
        np.testing.assert_allclose(next_action, np.tanh(next_obs[:, :1]), rtol=1e-5)
        q = np.asarray(critics.apply(state.critic_params, obs, action))
        after = np.asarray(critics.apply(state.target_critic_params, next_obs, next_action)).min(
            axis=0
        )
        after = (1.0 - ended) * (after + next_obs[:, 0] - next_obs[:, 1])
        target = scale * (obs[:, 0] + 2.0 * action[:, 0]) + gamma * after
        want = np.mean((q - target) ** 2, axis=1).sum()
        np.testing.assert_allclose(found["critic/loss"], want, rtol=1e-4)
        np.testing.assert_allclose(found["critic/q"], q.mean(), rtol=1e-4, atol=1e-6)


def test_bootstrap_is_the_smaller_target_critic_at_the_next_state(key):
    critics = rl.make_critics(2, 1, hidden=SMALL)
    keys = jax.random.split(key, 6)
    online, target = critics.init(keys[0]), critics.init(keys[1])
    obs, next_obs = (jax.random.normal(k, (5, 2)) for k in keys[2:4])
    action, next_action = (jax.random.normal(k, (5, 1)) for k in keys[4:])
    ended = jnp.asarray([False, True, False, False, True])
    reward, bonus = jnp.arange(5.0), 0.1 * jnp.arange(5.0)
    data = critics_lib.Transitions(obs, action, reward, ended, next_obs, next_action, bonus)
    loss, values = critics.loss(key, online, target, data, 0.9)
    q, q_next = (
        np.asarray(critics.apply(p, o, a), np.float64)
        for p, o, a in ((online, obs, action), (target, next_obs, next_action))
    )
    want = np.arange(5.0) + 0.9 * ~np.asarray(ended) * (q_next.min(axis=0) + 0.1 * np.arange(5.0))
    np.testing.assert_allclose(loss, np.sum(np.mean((q - want) ** 2, axis=1)), rtol=1e-5)
    np.testing.assert_allclose(values, q, rtol=1e-5)


def parts():
    """The actor sees where it stands, critics the time besides; both count up from 1."""

    def observe(n):
        return {"at": jnp.stack([n, -n]), "time": 100.0 + n[None]}

    def reset(key):
        return jnp.ones(()), observe(jnp.ones(()))

    def step(n, action):
        return n + 1.0, observe(n + 1.0), n, jnp.zeros((), bool)

    box = envs.Box((-1.0,), (1.0,))
    return envs.Task("parts", 2, box, 5, reset, step, actor_part="at")


def test_critics_see_all_parts_and_the_actor_its_own(key):
    """Critics are given one array, the actor's part first; its network looks at that alone."""
    env = envs.make_env(parts(), 2)
    policy = rl.td3(2, 1, hidden=SMALL)
    seen = []

    def act(key, params, obs, q, alpha, *, explore):
        seen.append(obs.shape)
        return policy.act(key, params, obs, q, alpha, explore=explore)

    learner = rl.make_learner(
        env,
        policy._replace(act=act),
        critics=rl.make_critics(rl.joined_size(env), 1, hidden=SMALL),
        batch_size=8,
        capacity=40,
        warmup=20,
        normalize_obs=True,
        obs_dtype={"time": jnp.uint8},
    )
    before = jax.jit(learner.init)(key)
    after, found = jax.jit(learner.step)(before)
    assert seen == [(2, 3)] and np.isfinite(found["critic/loss"])
    data = after.replay.data.obs
    assert data["time"].dtype == jnp.uint8 and data["at"].dtype == jnp.float32
    np.testing.assert_array_equal(data["time"][:24, 0], 100 + data["at"][:24, 0])
    np.testing.assert_allclose(after.obs_stats["at"].mean, [3.0, -3.0], atol=0.5)
    np.testing.assert_allclose(after.obs_stats["time"].mean, [103.0], atol=0.5)
    joined = rl.join_obs(env, env.reset(key).obs)
    np.testing.assert_array_equal(joined, [[1.0, -1.0, 101.0]] * 2)
    action = policy.act(key, before.policy_params, joined, None, 1.0, explore=False)
    alone = policy.act(key, before.policy_params, joined[:, :2], None, 1.0, explore=False)
    np.testing.assert_array_equal(action, alone)
    with pytest.raises(ValueError, match="for observations of 3 numbers, in parts it sees 2"):
        rl.make_learner(env, rl.td3(3, 1, hidden=SMALL), batch_size=4, capacity=8, warmup=4)


def finite_at(value, slope=1.0):
    """A critic that knows observations of this value alone."""
    return lambda obs, action: jnp.where(
        jnp.abs(obs[..., 0] - value) < 1e-6, slope * action[..., 0], jnp.nan
    )


def no_critic(obs, action):
    return jnp.full(jnp.broadcast_shapes(obs.shape[:-1], action.shape[:-1]), jnp.nan)


def flow(**options):
    return rl.make_mirror_descent(
        rl.make_flow(1, 1, num_steps=2, hidden=SMALL), num_particles=2, num_samples=2, **options
    )


DDPM = {"hidden": SMALL, "num_particles": 2}
PROPOSED = {"next_obs", "next_action", "q"}
LOSSES = {
    "mirror descent": (lambda: flow(), PROPOSED),
    "softmax": (lambda: flow(weighting="softmax"), {"next_obs", "q"}),
    "through one step": (lambda: flow(gradient_weight=0.1), PROPOSED | {"obs", "q_target"}),
    "SDAC": (lambda: rl.sdac(1, 1, num_samples=2, **DDPM), {"obs", "q"}),
    "QVPO": (lambda: rl.qvpo(1, 1, num_samples=2, num_uniform=1, **DDPM), {"obs", "q"}),
    "SAC": (lambda: rl.sac(1, 1, hidden=SMALL), {"obs", "q"}),
    "TD3": (lambda: rl.td3(1, 1, hidden=SMALL), {"obs", "q_first"}),
    "QSM": (lambda: rl.qsm(1, 1, hidden=SMALL), {"obs", "action", "q"}),
    "DIPO": (lambda: rl.dipo(1, 1, hidden=SMALL), {"obs", "extras", "q"}),
    "DACER": (lambda: rl.dacer(1, 1, hidden=SMALL, init_noise=0.1), {"obs", "q"}),
    "DIME": (lambda: rl.dime(1, 1, hidden=SMALL), {"obs", "q"}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_looks_at_its_own_state_and_critics(key, name):
    """All that a loss must not see is NaN: observations, actions, and critics elsewhere."""
    make_policy, allowed = LOSSES[name]
    policy = make_policy()
    fields = {
        "obs": jnp.full((3, 1), 2.0 if "obs" in allowed else jnp.nan),
        "next_obs": jnp.full((3, 1), 3.0 if "next_obs" in allowed else jnp.nan),
        **{
            k: jnp.full((3, 1), x if k in allowed else jnp.nan)
            for k, x in (("action", 0.25), ("next_action", 0.5), ("extras", 0.75))
        },
        "q": finite_at(3.0 if "next_obs" in allowed else 2.0) if "q" in allowed else no_critic,
        "q_first": finite_at(2.0) if "q_first" in allowed else no_critic,
        "q_target": finite_at(2.0) if "q_target" in allowed else no_critic,
    }
    context = rl.Context(
        terminated=jnp.zeros(3, bool),
        alpha=jnp.asarray(0.5),
        stats=weights.init_stats(),
        updates=jnp.zeros((), jnp.int32),
        **fields,
    )
    params = policy.init(key)
    (value, found), grads = jax.jit(
        lambda params: jax.value_and_grad(policy.loss, argnums=1, has_aux=True)(
            key, params, context
        )
    )(params)
    assert np.isfinite(value) and np.all(np.isfinite(found.values))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(grads))
    assert any(np.any(np.asarray(x) != 0.0) for x in jax.tree.leaves(grads))


def test_a_step_through_the_sampler_climbs_the_target_critics(key):
    """mf2: with no weight on the flow its gradient is that of minus q_target of a sample."""
    policy = rl.make_mirror_descent(
        rl.make_mean_flow(1, 1, hidden=(16,)), num_particles=1, gradient_weight=0.0
    )
    obs, params = jnp.full((64, 1), 2.0), policy.init(key)

    def q_target(obs, action):
        return -((action[..., 0] - 0.75) ** 2)

    zeros = jnp.zeros((64, 1))
    context = rl.Context(
        obs,
        zeros,
        zeros,
        jnp.zeros(64, bool),
        zeros,
        (),
        lambda o, a: 0.0 * a[..., 0],
        lambda o, a: 0.0 * a[..., 0],
        q_target,
        jnp.asarray(0.5),
        weights.init_stats(),
        jnp.zeros((), jnp.int32),
    )

    adam = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def one(carry, key):
            params, state = carry
            grads = jax.grad(lambda p: policy.loss(key, p, context)[0])(params)
            steps, state = adam.update(grads, state)
            return (optax.apply_updates(params, steps), state), None

        start = (params, adam.init(params))
        return jax.lax.scan(one, start, jax.random.split(key, 500))[0][0]

    action = policy.act(
        key, train(params), obs, lambda o, a: 0.0 * a[..., 0], jnp.ones(()), explore=False
    )
    np.testing.assert_allclose(np.mean(action), 0.75, atol=0.05)


@pytest.mark.parametrize("target, sign", [(-6.0, 1.0), (4.0, -1.0)])
def test_temperature_of_dacer_goes_against_its_entropy(key, target, sign):
    """The gap is entropy less target, so that alpha falls where there is more than enough."""
    policy = rl.dacer(
        1, 1, hidden=SMALL, entropy_per_dim=target, num_samples=30, num_states=2, alpha_every=10
    )
    zeros = jnp.zeros((3, 1))
    context = rl.Context(
        zeros,
        zeros,
        zeros,
        jnp.zeros(3, bool),
        zeros,
        (),
        *(lambda o, a: a[..., 0],) * 3,
        jnp.ones(()),
        weights.init_stats(),
        jnp.asarray(10, jnp.int32),
    )
    _, found = jax.jit(lambda p: policy.loss(key, p, context))(policy.init(key))
    assert sign * float(found.entropy_gap) > 1.0


def test_ppo_finds_the_best_action(key):
    env = envs.make_env(envs.bandit(lambda action: -((action[0] - 0.5) ** 2)), 16)
    networks = learning.make_networks(env, hidden=SMALL)
    algorithm = rl.make_ppo(
        env, networks, num_steps=16, num_epochs=4, num_minibatches=4, learning_rate=3e-3
    )
    state, metrics = jax.jit(
        lambda key: jax.lax.scan(lambda s, _: algorithm.step(s), algorithm.init(key), length=80)
    )(key)
    found = networks.mode(state.params, jnp.zeros((1, 1)), ())
    np.testing.assert_allclose(found, 0.5, atol=0.1)
    returns = metrics["env/return"].total / metrics["env/return"].count
    assert returns[-10:].mean() > returns[:10].mean()

"""Op-IPPO against an IPPO written here, and recurrent networks against their own memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import envs, learning, marl
from jaxlab.core import risk
from jaxlab.envs.task import QUICK
from jaxlab.learning import policy_gradient, returns
from jaxlab.marl import networks

T, E, GAMMA, LAMBDA = 6, 4, 0.9, 0.8


@pytest.fixture(autouse=True)
def promotes(optax_promotes):
    """Optax mixes types."""


def mine(time_limit=4):
    return envs.make_env(envs.game_task(envs.gold_mine(time_limit=time_limit)), E)


def uncentered_ippo(env, nets):
    """One update of IPPO, advantages divided by their standard deviation and not centered."""

    def update(key, given):
        optimizer = optax.chain(
            optax.clip_by_global_norm(given["max_grad_norm"]),
            optax.adam(given["learning_rate"], eps=1e-5),
        )
        key, key_policy, key_value, key_env = jax.random.split(key, 4)
        params, state = nets.init(key_policy, key_value), env.reset(key_env)
        opt_state = optimizer.init(params)
        _, key_rollout, key_epochs = jax.random.split(key, 3)

        def act(state, key):
            action, logp = nets.sample(key, params, state.obs, ())
            after = env.step(state, action)
            done = after.terminated | after.truncated
            discount = jnp.where(after.terminated, 0.0, given["gamma"])
            seen = state.obs, action, logp, after.reward, discount, done, after.final_obs
            return after, seen

        _, data = jax.lax.scan(act, state, jax.random.split(key_rollout, T))
        obs, action, logp_old, reward, discount, done, next_obs = data
        value = nets.value(params, obs)
        over = lambda x: jnp.broadcast_to(x[..., None], logp_old.shape)  # noqa: E731
        both = lambda x: x if x.ndim == 3 else over(x)  # noqa: E731
        value, next_value = both(value), both(nets.value(params, next_obs))
        advantage, target = returns.gae(
            over(reward),
            value,
            next_value,
            over(discount),
            over(done),
            gae_lambda=given["gae_lambda"],
        )
        advantage = advantage / (jnp.sqrt(jnp.mean((advantage - jnp.mean(advantage)) ** 2)) + 1e-8)

        def loss(params, batch):
            obs, action, logp_old, advantage, target = batch
            logp, entropy = nets.evaluate(params, obs, (), action)
            gain = policy_gradient.clipped_surrogate(
                logp, logp_old, advantage, clip_eps=given["clip_eps"]
            )
            error = target - both(nets.value(params, obs))
            critic = given["value_coef"] * jnp.mean(0.5 * error**2)
            return -jnp.mean(gain) + critic - given["entropy_coef"] * jnp.mean(entropy)

        def minibatch(carry, index):
            params, opt_state = carry
            batch = tuple(x[:, index] for x in (obs, action, logp_old, advantage, target))
            grads = jax.grad(loss)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        def epoch(carry, key):
            order = jax.random.permutation(key, E).reshape(2, -1)
            return jax.lax.scan(minibatch, carry, order)

        return jax.lax.scan(epoch, (params, opt_state), jax.random.split(key_epochs, 2))[0][0]

    return update


@pytest.mark.parametrize("shared", [True, False], ids=["one network", "a network each"])
def test_without_optimism_it_is_ippo(shared, key):
    """Oracle 14, with beta a traced number: an update of four minibatches, in one program."""
    env = mine()
    nets = learning.make_networks(env, hidden=(8,), share_parameters=shared)
    ours = marl.make_op_ippo(
        env,
        nets,
        num_steps=T,
        num_epochs=2,
        num_minibatches=2,
        learning_rate=0.01,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        scale_rewards=False,
        beta=0.3,
    )
    update = uncentered_ippo(env, nets)

    def both(key, beta):
        start = ours.init(key, {"beta": beta})
        return ours.step(start)[0].params, update(key, start.settings)

    # Unoptimized, so that little is contracted here and not there. With jax 0.10 bits are equal; a
    # later compiler rounds one of the parameters otherwise.
    both = jax.jit(both).lower(key, 0.0).compile(compiler_options=QUICK)
    found, expected = both(key, 0.0)
    rounding = 0.0 if jax.__version_info__ < (0, 11) else 1e-6
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rounding, atol=1e-2 * rounding)
    optimist, _ = both(key, 0.3)
    assert any(
        np.max(np.abs(a - b)) > 1e-4
        for a, b in zip(*map(jax.tree.leaves, (optimist, found)), strict=True)
    )


def test_agents_apart_learn_as_if_alone(key):
    """Own betas and rates: an agent's update is that of a team that has them all; exactly, since
    nothing of what the others learn reaches it."""
    env = mine()
    nets = learning.make_networks(env, hidden=(8,), share_parameters=False)
    learner = marl.make_op_ippo(
        env, nets, beta=(0.3, 0.3), learning_rate=(0.01, 0.01), num_steps=T, num_epochs=2
    )
    betas = jnp.asarray([[0.0, 1.5], [0.0, 0.0], [1.5, 1.5]])
    rates = jnp.asarray([[0.01, 0.03], [0.01, 0.01], [0.03, 0.03]])

    @jax.jit
    @jax.vmap
    def updated(beta, rate):
        state = learner.init(key, {"beta": beta, "learning_rate": rate})
        return learner.step(state)[0].params

    for leaf in jax.tree.leaves(updated(betas, rates)):
        np.testing.assert_allclose(leaf[0, 0], leaf[1, 0], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(leaf[0, 1], leaf[2, 1], rtol=1e-5, atol=1e-7)
        assert np.max(np.abs(leaf[1] - leaf[2])) > 1e-3


@pytest.mark.parametrize("shared", [True, False], ids=["one network", "a network each"])
def test_memory_is_emptied_where_an_episode_begins_and_learning_sees_what_acting_saw(shared, key):
    env = mine(time_limit=4)  # episodes begin at steps 0, 4 and 8
    nets = marl.gru_networks(env, width=5, share_parameters=shared)
    key_policy, key_obs = jax.random.split(key)
    params = nets.init(key_policy, key_policy)
    steps = 10
    obs = jax.random.normal(key_obs, (steps, E, 2, 5))
    first = jnp.broadcast_to((jnp.arange(steps) % 4 == 0)[:, None], (steps, E))
    action = jnp.zeros((steps, E, 2), jnp.int32)
    start = jnp.ones((E, 2, 5))

    @jax.jit
    def acting(obs, memory):
        found = []
        for t in range(steps):
            memory, outputs, value = nets.step(params, memory, first[t], obs[t], ())
            found.append((nets.evaluate(outputs, action[t])[0], value))
        return jax.tree.map(lambda *x: jnp.stack(x), *found)

    @jax.jit
    def learned(obs):
        return networks.replay(nets, params, start, first, obs, (), action)

    logp, value = acting(obs, start)
    logp_again, _, value_again = learned(obs)
    np.testing.assert_allclose(logp_again, logp, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value_again, value, rtol=1e-5, atol=1e-6)
    # What was seen at step 2 is remembered at step 3, and forgotten from step 4 on.
    other = learned(obs.at[2].add(1.0))[2]
    assert np.all(np.any(np.asarray(other[3] != value_again[3]), axis=-1))
    np.testing.assert_array_equal(other[4:], value_again[4:])
    np.testing.assert_array_equal(other[:2], value_again[:2])
    # The memory from before the first step is emptied too, since an episode begins there.
    np.testing.assert_array_equal(acting(obs, start)[1], acting(obs, 0.0 * start)[1])


def test_the_rollout_of_a_recurrent_learner_flags_its_episodes(key):
    """The ratio of the first minibatch is 1: log-probabilities learned from are those acted by."""
    env = mine(time_limit=4)
    learner = marl.make_op_ippo(
        env, marl.gru_networks(env, width=5), num_steps=7, num_epochs=1, num_minibatches=1
    )
    step = jax.jit(learner.step)
    state = learner.init(key)
    for t in range(1, 4):  # episodes of 4 and rollouts of 7 meet in all ways
        state, metrics = step(state)
        assert metrics["policy/kl"] < 1e-9 and metrics["policy/clipped"] == 0.0
        np.testing.assert_array_equal(state.first, np.full(E, (7 * t) % 4 == 0))


def test_beta_from_a_divergence_and_from_a_schedule(key):
    env = mine()
    given = {"num_steps": T, "num_epochs": 1, "num_minibatches": 1}
    learner = marl.make_op_ippo(env, beta=20.0, target_kl=0.2, **given)
    _, metrics = jax.jit(learner.step)(learner.init(key))
    np.testing.assert_allclose(metrics["policy/tilt"], 0.2, rtol=1e-3)
    assert 0.0 < metrics["policy/beta"] < 20.0
    constant = envs.make_env(envs.game_task(envs.matrix_game(np.ones((2, 2)))), E)
    learner = marl.make_op_ippo(constant, beta=1.0, beta_end=0.0, anneal_steps=2, **given)
    state, betas = learner.init(key), []
    for _ in range(4):
        state, metrics = jax.jit(learner.step)(state)
        betas.append(float(metrics["policy/beta"]))
    np.testing.assert_allclose(betas, [1.0, 0.5, 0.0, 0.0], atol=1e-7)
    assert metrics["critic/scale"] == 1.0  # rewards that do not vary are not scaled


def test_rewards_are_scaled_in_any_unit(key):
    learner = marl.make_op_ippo(mine(), num_steps=T, num_epochs=1, num_minibatches=1)
    step = jax.jit(learner.step)
    one, small = (
        step(learner.init(key, {"reward_scale": scale}))[1]["critic/scale"] for scale in (1.0, 1e-6)
    )
    np.testing.assert_allclose(small / one, 1e6, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"style": marl.of_measure(risk.cvar), "beta": 2.0}, r"alpha must lie in \[-1, 1\]"),
        ({"beta": float("nan")}, "beta must be a number, got nan"),
        ({"num_minibatches": 3}, "num_minibatches must divide the 4 environments, got 3"),
        ({"states": "tilted"}, "states must be one of policy, weighted, got 'tilted'"),
        ({"beta": 0.1, "beta_end": 1.0, "anneal_steps": 3}, "is the schedule reversed"),
        ({"target_kl": 0.1, "style": marl.leaky()}, "target_kl finds beta of the entropic style"),
        ({"style": marl.leaky(), "beta": 2.0}, r"beta must lie in \[0, 1\], got 2.0"),
        ({"style": marl.entropic}, r"style must be an Optimism, such as marl.entropic\(\)"),
        ({"learning_rate": (0.1, 0.2)}, "a learning rate for each agent needs networks of their"),
        ({"beta": (0.1, 0.2), "target_kl": 0.1}, "nor a beta for each agent with it"),
    ],
)
def test_refusals(given, message):
    with pytest.raises(ValueError, match=message):
        marl.make_op_ippo(mine(), **given)


def test_refusals_of_environments():
    single = envs.make_env(envs.pendulum(), 2)
    with pytest.raises(ValueError, match="there must be agents"):
        marl.make_op_ippo(single)
    with pytest.raises(ValueError, match="a GRU needs agents with choices"):
        marl.gru_networks(single)

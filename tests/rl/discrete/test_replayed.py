"""Replay of rollouts: what is kept, judged anew and compared with the policy that played."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs
from jaxlab.diffusion.discrete import exact
from jaxlab.rl import discrete
from jaxlab.rl.discrete import replayed, rollouts

V, K, T, E, STATES = 3, 2, 20, 5, 4
ALL = exact.sequences(V, K)


def joint():
    """A policy that is a table of all macro-actions in every state."""

    def given(obs):
        def conditionals(params, tokens):
            state = obs[..., 0].astype(jnp.int32)
            law = jax.nn.softmax(params)[state].reshape(*state.shape, V, V)
            law = jnp.broadcast_to(law, (*tokens.shape[:-1], V, V))
            second = jnp.take_along_axis(law, tokens[..., :1, None], axis=-2)[..., 0, :]
            first = jnp.sum(law, axis=-1)
            shares = jnp.stack([first, second], axis=-2)
            return jnp.log(shares / jnp.sum(shares, axis=-1, keepdims=True))

        def sample(key, params, batch):
            state = obs[..., 0].astype(jnp.int32)
            logp = jnp.broadcast_to(jax.nn.log_softmax(params)[state], (*batch, V**K))
            drawn = jax.random.categorical(key, logp)
            at = jnp.take_along_axis(logp, drawn[..., None], axis=-1)[..., 0]
            return jnp.asarray(ALL)[drawn], at

        return discrete.WritingPolicy(V, K, init, sample, lambda *_: None, conditionals)

    def init(key):
        return jnp.zeros((STATES, V**K))

    return discrete.StatePolicy(V, K, init, given)


class Table:
    """Values of states by number."""

    @staticmethod
    def init(key, obs):
        return jnp.zeros((STATES,))

    @staticmethod
    def apply(params, obs):
        return params[obs[..., 0].astype(jnp.int32)][..., None]


def rolled(rng, number):
    """A rollout whose rewards tell every macro-action from all others."""
    state = rng.integers(0, STATES, (T, E))
    return rollouts.Rollout(
        obs=state[..., None].astype(np.float32),
        tokens=ALL[rng.integers(0, V**K, (T, E))].astype(np.int32),
        reveal=np.broadcast_to(np.array([2, 1], np.int32), (T, E, K)),
        executed=np.stack([np.ones((T, E), bool), rng.random((T, E)) < 0.7], axis=-1),
        mask=(),
        reward=(number + np.arange(T * E).reshape(T, E) / 1000.0).astype(np.float32),
        discount=np.where(rng.random((T, E)) < 0.2, 0.0, 0.9).astype(np.float32),
        done=rng.random((T, E)) < 0.3,
        final_obs=rng.integers(0, STATES, (T, E, 1)).astype(np.float32),
    )


def logp_of(params, one):
    """Log-probability of what was carried out, by sums over the table."""
    law = np.exp(params) / np.exp(params).sum(axis=1, keepdims=True)
    law = law.reshape(STATES, V, V)[one.obs[..., 0].astype(int)]
    first = np.take_along_axis(law.sum(axis=-1), one.tokens[..., :1], axis=-1)[..., 0]
    row = np.take_along_axis(law, one.tokens[..., :1, None], axis=-2)[..., 0, :]
    both = np.take_along_axis(row, one.tokens[..., 1:], axis=-1)[..., 0]
    return np.log(np.where(one.executed[..., 1], both, first))


def judged(values, one, lam):
    """Advantages and lambda-returns by a plain loop, backwards in time."""
    now, then = (values[x[..., 0].astype(int)] for x in (one.obs, one.final_obs))
    advantage, following = np.zeros((T, E)), np.zeros(E)
    for t in reversed(range(T)):
        error = one.reward[t] + one.discount[t] * then[t] - now[t]
        following = error + one.discount[t] * lam * np.where(one.done[t], 0.0, following)
        advantage[t] = following
    return advantage, advantage + now


def test_what_is_kept_is_judged_by_present_values_and_compared_with_who_played():
    rng = np.random.default_rng(0)
    memory = replayed.make_memory(
        joint(), Table(), num_kept=2, count=1, compare=True, standardize=False
    )
    rolls = [rolled(rng, number) for number in range(3)]
    params = [
        {"policy": rng.normal(size=(STATES, V**K)), "value": rng.normal(size=STATES)} for _ in rolls
    ]
    kept, settings = memory.init(jax.random.key(0), rolls[0]), {"gae_lambda": jnp.asarray(0.8)}
    recall = jax.jit(memory.recall)
    for i, (one, at) in enumerate(zip(rolls, params, strict=True)):
        at = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), at)
        kept, played = recall(jax.random.key(1 + i), kept, at, one, settings)
        assert int(kept.count) == min(i + 1, 2)
        if i == 0:  # the newest alone, which the present policy has played
            np.testing.assert_allclose(played.log_ratio, 0.0, atol=1e-6)
    np.testing.assert_array_equal(kept.rolled.reward, [rolls[2].reward, rolls[1].reward])
    want = {"advantage": [], "target": [], "log_ratio": [], "obs": [], "tokens": []}
    for one, own in ((rolls[2], params[2]), (rolls[1], params[1])):
        advantage, target = judged(params[2]["value"], one, 0.8)
        want["advantage"].append(advantage)
        want["target"].append(target)
        want["log_ratio"].append(logp_of(params[2]["policy"], one) - logp_of(own["policy"], one))
        want["obs"].append(one.obs)
        want["tokens"].append(one.tokens)
    want = {k: np.stack(x).reshape(2 * T * E, *x[0].shape[2:]) for k, x in want.items()}
    # Which rows they are, by the targets, which are all different.
    rows = np.array(
        [np.abs(want["target"] - y).argmin() for y in np.asarray(played.target, np.float64)]
    )
    for name, x in want.items():
        np.testing.assert_allclose(getattr(played, name), x[rows], rtol=1e-4, atol=1e-4)
    assert np.abs(want["log_ratio"][T * E :]).max() > 1.0
    assert abs((rows < T * E).mean() - 0.5) < 5 * 0.5 / np.sqrt(T * E)


def counted():
    """Two choices, paid 1, 2, 3 each whatever went before; the second ends it."""

    def step(x, action):
        x = x + 1
        return x, x.astype(jnp.float32)[None], action.astype(jnp.float32) + 1.0, x == 2

    reset = lambda key: (jnp.zeros((), jnp.int32), jnp.zeros((1,)))  # noqa: E731
    return envs.Task("counted", 1, envs.Discrete(V), 9, reset, step)


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    "largest_ratio", [2.0, pytest.param(None, marks=pytest.mark.slow)], ids=["ratio", "none"]
)
def test_what_a_far_policy_drew_weighs_nothing_unless_no_ratio_is_asked_for(largest_ratio):
    """A bound of -50 nats: the one that played was sure of it, the present one is not."""
    env = envs.make_env(envs.macro(counted(), K, gamma=1.0), 8)
    policy = discrete.make_state_heads((1,), V, K, hidden=(4,))

    algorithm = discrete.forward_replay(
        env,
        policy,
        discrete.StateValue((1,), (4,)),
        num_steps=1,
        rollout=8,
        num_kept=2,
        num_epochs=1,
        num_minibatches=1,
        temperature=1e6,  # advantages make no difference
        learning_rate=1e-9,
        largest_ratio=largest_ratio,
    )
    step = jax.jit(algorithm.step)
    state, _ = step(jax.jit(algorithm.init)(jax.random.key(0)))
    apart = state._replace(kept=state.kept._replace(bound=state.kept.bound - 50.0))
    near, far = (float(step(x)[1]["policy/ess"]) for x in (state, apart))
    assert near == pytest.approx(64.0, rel=1e-3)
    if largest_ratio is None:
        assert far == near
    else:  # noise that both see leaves a ratio of one; about half of them are the newest
        assert 16 < far < 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kept": 0}, "num_kept must be at least 1, got 0"),
        ({"weighting": "best"}, "weighting must be one of advantage, imitation, got 'best'"),
        ({"largest_ratio": 0.0}, "largest_ratio must be positive"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"num_steps": None}, "num_steps must be given"),
    ],
)
def test_refusals(change, message):
    env = envs.make_env(envs.macro(counted(), K, gamma=1.0), 2)
    policy = discrete.make_state_heads((1,), V, K, hidden=(4,))
    with pytest.raises(ValueError, match=message):
        discrete.forward_replay(env, policy, Table(), **{"num_steps": 1} | change)

"""The rivals: their losses by hand and by their fixed points, and all of them through one loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxlab import imitation, learning
from jaxlab.core import loop
from jaxlab.imitation import learner as learner_lib
from jaxlab.imitation.baselines import demodice, dwbc, ilid, iq_learn, smodice

GAMMA = 0.9
rng = np.random.default_rng(7)


def deterministic():
    """Next states and starts of a process in which each of 5 x 2 pairs leads to one state."""
    return rng.integers(0, 5, 10), np.array([0, 0, 3, 4]), rng.normal(size=10)


def flow_gap(weights, after, start):
    """How far weighted pairs are from an occupancy, state by state."""
    mass = weights / len(weights)
    out = np.bincount(np.repeat(np.arange(5), 2), mass, 5)
    into = np.bincount(after, mass, 5)
    return out - (1 - GAMMA) * np.bincount(start, minlength=5) / len(start) - GAMMA * into


@pytest.mark.parametrize(
    "loss, weights",
    [
        (lambda e, s: demodice.dual_loss(e, s, gamma=GAMMA), demodice.weights_of),
        (
            lambda e, s: demodice.dual_loss(e, s, gamma=GAMMA, alpha=0.7),
            lambda e: demodice.weights_of(e, alpha=0.7),
        ),
        (lambda e, s: smodice.dual_loss(e, s, gamma=GAMMA), smodice.weights_of),
    ],
    ids=["demodice", "demodice_alpha", "smodice"],
)
def test_weights_at_the_least_dual_are_an_occupancy(x64, loss, weights):
    after, start, reward = deterministic()
    pairs = np.repeat(np.arange(5), 2)

    def error(nu):
        return jnp.asarray(reward) + GAMMA * nu[after] - nu[pairs]

    value = jax.jit(jax.value_and_grad(lambda nu: loss(error(nu), nu[start])))
    found = scipy.optimize.minimize(
        lambda nu: [np.asarray(x) for x in value(nu)], np.zeros(5), jac=True, tol=1e-12
    )
    w = np.asarray(weights(error(jnp.asarray(found.x))))
    np.testing.assert_allclose(flow_gap(w, after, start), 0.0, atol=1e-6)
    np.testing.assert_allclose(w.mean(), 1.0)
    assert w.std() > 0.1


def test_chi2_weights_are_an_occupancy_where_none_is_cut_off(x64):
    after, start, _ = deterministic()
    pairs, reward = np.repeat(np.arange(5), 2), 0.05 * rng.normal(size=10)
    moves = np.zeros((10, 5))
    moves[np.arange(10), pairs] -= 1.0
    moves[np.arange(10), after] += GAMMA
    # The loss is quadratic: its least point solves a linear system.
    linear = moves.T @ (1 + reward) / 10 + (1 - GAMMA) * np.bincount(start, minlength=5) / 4
    nu = np.linalg.solve(moves.T @ moves / 10, -linear)

    def loss(x):
        e = jnp.asarray(reward) + GAMMA * x[after] - x[pairs]
        return smodice.dual_loss(e, x[start], gamma=GAMMA, divergence="chi2")

    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(nu)), 0.0, atol=1e-12)
    e = reward + moves @ nu
    w = np.asarray(smodice.weights_of(jnp.asarray(e), divergence="chi2"))
    np.testing.assert_array_equal(w, np.maximum(1 + e, 0.0))
    if np.all(1 + e > 0.0):
        np.testing.assert_allclose(flow_gap(w, after, start), 0.0, atol=1e-12)
    assert smodice.weights_of(jnp.asarray([-3.0, 0.5]), divergence="chi2").tolist() == [0.0, 1.5]


def test_reward_of_demodice_by_hand(x64):
    logit = np.linspace(-12.0, 12.0, 9)
    p = 1.0 / (1.0 + np.exp(-logit))
    want = -np.log(1.0 / (p + 1e-3) - 1.0 + 1e-3)
    np.testing.assert_allclose(demodice.reward_of(jnp.asarray(logit)), want, rtol=1e-9)


def test_losses_of_dwbc_by_hand(x64):
    expert, other = rng.uniform(0.1, 0.9, (2, 20))
    logp = rng.normal(size=(2, 20))
    found = dwbc.discriminator_loss(jnp.asarray(expert), jnp.asarray(other), eta=0.4)
    want = 0.0
    for d, o in zip(expert, other, strict=True):
        want += (-np.log(d) - np.log(1 - o) / 0.4 + np.log(1 - d)) / 20
    np.testing.assert_allclose(found, want)
    want = 0.0
    for e, o, d, c in zip(*logp, expert, other, strict=True):
        want += (7.5 * -e - -e * (0.4 / (d * (1 - d)) + 1)) / 20
        want += -o * (1 / (1 - c) - 1 if c >= 0.5 else 0.0) / 20
    args = [jnp.asarray(x) for x in (*logp, expert, other)]
    np.testing.assert_allclose(dwbc.policy_loss(*args, alpha=7.5, eta=0.4), want)
    held = jax.grad(dwbc.policy_loss, argnums=(2, 3))(*args, alpha=7.5, eta=0.4)
    np.testing.assert_array_equal(held, 0.0)
    seen = dwbc.seen_of(jnp.asarray([-30.0, -20.0, -5.0, 10.0, 40.0]))
    np.testing.assert_allclose(seen, [0.0, 0.0, 0.5, 1.0, 1.0])


def test_iq_loss_and_its_best_reward(x64):
    q, value, after = rng.normal(size=(3, 30))
    r = q - after
    want = -r.mean() + (value - after).mean() + (r**2).mean() / 2.0
    found = iq_learn.iq_loss(*map(jnp.asarray, (q, value, after)), alpha=0.5)
    np.testing.assert_allclose(found, want)
    # With the values held, a reward of 2 alpha everywhere is best.
    slope = jax.grad(
        lambda x: iq_learn.iq_loss(x, jnp.asarray(value), jnp.asarray(after), alpha=0.7)
    )
    np.testing.assert_allclose(slope(jnp.asarray(after + 1.4)), 0.0, atol=1e-15)


def test_selection_looks_ahead_within_the_episode():
    good = rng.uniform(size=60) < 0.1
    episode = np.repeat(np.arange(6), 10)
    for rollback, decay in ((1, 1.0), (4, 0.5), (12, 0.9)):
        want = np.zeros(60)
        for t in range(60):
            for j in range(rollback):
                if t + j < 60 and episode[t + j] == episode[t] and good[t + j]:
                    want[t] = decay**j
                    break
        found = ilid.selection_weights(
            jnp.asarray(good), jnp.asarray(episode), rollback=rollback, decay=decay
        )
        np.testing.assert_allclose(found, want, rtol=1e-6)


def test_told_apart_is_least_at_the_share_of_the_expert(x64):
    """Of a state that is three times as common with the expert, 3 / 4."""

    def loss(p):
        rare = jnp.asarray(0.3)
        mine, other = jnp.stack([p, p, p, rare]), jnp.stack([p, rare, rare, rare])
        return ilid.told_apart(mine, other)

    np.testing.assert_allclose(jax.grad(loss)(0.75), 0.0, atol=1e-12)
    want = -(3 * np.log(0.6) + np.log(0.3)) / 4 - (np.log(0.4) + 3 * np.log(0.7)) / 4
    np.testing.assert_allclose(loss(jnp.asarray(0.6)), want)


def test_cloning_finds_the_gain(linear, optax_promotes):
    """A linear policy by least squares: what scipy finds, and the expert's gain to 5 sigma."""
    _, gain, expert, _ = linear
    demos = imitation.prepare(expert)
    policy = imitation.make_policy(4, 2, hidden=())
    algorithm = imitation.make_bc(demos, policy, loss="mse", learning_rate=3e-3, batch_size=200)
    state = loop.run(algorithm, jax.random.key(0), num_steps=3000, chunk_size=3000).state
    layer = state.policy_params["params"]["layer_0"]
    kernel, bias = np.asarray(layer["kernel"])[:3, :2], np.asarray(layer["bias"])[:2]
    own = kernel * demos.normalizer.scale[:, None] * 10.0
    x, u = expert.obs.astype(np.float64), expert.action.astype(np.float64)
    fit = scipy.optimize.least_squares(
        lambda w: (10 * np.tanh((x @ w[:6].reshape(3, 2) + w[6:]) / 10.0) - u).ravel(), np.zeros(8)
    )
    np.testing.assert_allclose(own, fit.x[:6].reshape(3, 2), atol=0.02)
    spread = 0.1 * np.sqrt(np.diag(np.linalg.inv(x.T @ x)))
    assert np.all(np.abs(own + gain.T) < 5 * spread[:, None] + 0.02)
    assert np.all(np.isfinite(bias))


def test_cloning_by_likelihood_matches_the_noise(linear, optax_promotes):
    """The standard deviation comes to that of the expert's actions, 0.1 of bounds of 10."""
    demos = imitation.prepare(linear[2])
    policy = imitation.make_policy(4, 2, hidden=())
    algorithm = imitation.make_bc(demos, policy, learning_rate=1e-2, batch_size=200)
    state = loop.run(algorithm, jax.random.key(0), num_steps=5000, chunk_size=5000).state
    law = policy.law(state.policy_params, demos.expert.obs)
    np.testing.assert_allclose(np.median(np.exp(law[:, 2:])), 0.01, rtol=0.1)


SMALL = {"hidden": (8,), "batch_size": 32}
METHODS = {
    "bc": lambda d, p: imitation.make_bc(d, p, batch_size=32, orthogonality_weight=1e-4),
    "bc_union": lambda d, p: imitation.make_bc(d, p, data="union", batch_size=32, noise_std=0.1),
    "value_dice": lambda d, p: imitation.make_value_dice(
        d, p, head="mlp", policy_learning_rate=1e-3, **SMALL
    ),
    "demodice": lambda d, p: imitation.make_demodice(d, p, **SMALL),
    "smodice": lambda d, p: imitation.make_smodice(d, p, discriminator_steps=20, **SMALL),
    "smodice_chi2": lambda d, p: imitation.make_smodice(
        d, p, match="state_action", divergence="chi2", discriminator_steps=20, **SMALL
    ),
    "dwbc": lambda d, p: imitation.make_dwbc(d, p, discriminator_every=3, **SMALL),
    "iq_learn": lambda d, p: imitation.make_iq_learn(d, p, **SMALL),
    "ilid": lambda d, p: imitation.make_ilid(
        d, p, discriminator_steps=50, discriminator_learning_rate=1e-3, **SMALL
    ),
}


@pytest.fixture(scope="module")
def program(linear):
    """Demonstrations, policy, and two seeds of a method by its name, `init` and `step`."""
    demos = imitation.prepare(linear[2], linear[3])
    policy = imitation.make_policy(4, 2, hidden=(8,))

    @functools.cache
    def of(name):
        both = learning.over_seeds(METHODS[name](demos, policy), 2)
        return demos, policy, jax.jit(both.init), jax.jit(both.step)

    return of


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_one_signature(program, name, optax_promotes):
    """Two seeds side by side: finite, different, and the actor has moved; then it acts."""
    demos, policy, init, step = program(name)
    first = init(jax.random.key(0))
    state, metrics = step(first)
    for x in jax.tree.leaves((metrics, state.params)):
        assert np.all(np.isfinite(x))
    before, now = (s.policy_params["params"]["layer_0"]["kernel"] for s in (first, state))
    assert not np.array_equal(before, now) and not np.array_equal(now[0], now[1])
    act = imitation.acting(policy.mode, demos.normalizer)
    params = jax.tree.map(lambda x: x[0], state.policy_params)
    raw = demos.expert.obs[:5, :3] / demos.normalizer.scale - demos.normalizer.shift
    action = act(jax.random.key(1), params, raw)
    np.testing.assert_allclose(action, policy.mode(params, demos.expert.obs[:5]), atol=1e-5)


def test_networks_that_wait(program, optax_promotes):
    """DWBC's discriminator moves in the steps 0, 3 and 6, the policy in all."""
    _, _, init, step = program("dwbc")
    state, moved = init(jax.random.key(0)), []
    for _ in range(7):
        after, _ = step(state)
        moved.append(
            [
                not np.array_equal(*(jax.tree.leaves(s.params[name])[0] for s in (state, after)))
                for name in ("discriminator", "policy")
            ]
        )
        state = after
    np.testing.assert_array_equal(moved, [[t % 3 == 0, True] for t in range(7)])


def test_selection_is_empty_or_all(linear, optax_promotes):
    """With no state above the bar ILID clones the expert alone; what is selected comes first."""
    demos = imitation.prepare(linear[2], linear[3])
    policy = imitation.make_policy(4, 2, hidden=(8,))
    options = {"discriminator_steps": 1, "discriminator_learning_rate": 1e-9, **SMALL}
    shares = []
    for bar in (0.11, 0.9):
        algorithm = imitation.make_ilid(demos, policy, bar=bar, rollback=1, **options)
        state = jax.jit(algorithm.init)(jax.random.key(0))
        count = int(state.fixed["count"])
        weight = np.asarray(state.fixed["weight"])
        assert count == np.sum(weight > 0.0)
        np.testing.assert_array_equal(
            np.sort(state.fixed["order"][:count]), np.flatnonzero(weight > 0.0)
        )
        shares.append(count / len(weight))
    assert shares[0] > 0.9 and shares[1] < 0.1
    _, metrics = jax.jit(algorithm.step)(state)  # nothing is selected: finite all the same
    assert np.isfinite(metrics["policy/loss"])
    np.testing.assert_allclose(metrics["selection/share"], shares[1], rtol=1e-6)


def test_decay_is_that_of_a_loss(optax_promotes):
    """The gradient of 0.5 c |W|^2 is added before Adam."""
    optimizer = learner_lib.adam_with_decay(1e-3, 0.5)
    W = jnp.asarray([3.0, -2.0])
    updates, _ = optimizer.update(jnp.asarray([-1.4, 1.1]), optimizer.init(W), W)
    np.testing.assert_allclose(updates, -1e-3 * np.sign([0.1, 0.1]), rtol=1e-4)


def test_bad_settings_are_refused(linear):
    demos, alone = imitation.prepare(linear[2], linear[3]), imitation.prepare(linear[2])
    for make, options, message in (
        (imitation.make_bc, {"data": "logs"}, "data must be expert or union"),
        (imitation.make_bc, {"loss": "l1"}, "loss must be log_prob or mse"),
        (imitation.make_bc, {"noise_std": -1.0}, "noise_std must not be negative"),
        (imitation.make_demodice, {"gamma": 1.0}, "gamma must lie in"),
        (imitation.make_demodice, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (imitation.make_smodice, {"match": "action"}, "match must be state or state_action"),
        (imitation.make_smodice, {"divergence": "js"}, "divergence must be kl or chi2"),
        (imitation.make_smodice, {"discriminator_steps": 0}, "must be at least 1, got 0"),
        (imitation.make_dwbc, {"eta": 0.0}, "eta must be positive"),
        (imitation.make_iq_learn, {"alpha": 0.0}, "alpha must be positive"),
        (imitation.make_ilid, {"bar": 0.95}, "bar in"),
        (imitation.make_ilid, {"rollback": 0}, "must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make(demos, **options)
    for make, name in (
        (imitation.make_demodice, "DemoDICE"),
        (imitation.make_smodice, "SMODICE"),
        (imitation.make_dwbc, "DWBC"),
        (imitation.make_ilid, "ILID"),
    ):
        with pytest.raises(ValueError, match=f"{name} needs logs beside the expert's data"):
            make(alone)
    with pytest.raises(ValueError, match="data='union' needs logs"):
        imitation.make_bc(alone, data="union")

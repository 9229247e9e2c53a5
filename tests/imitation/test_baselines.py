"""The rivals: their losses by hand and by their fixed points, and all of them through one loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    assert np.all(1 + e > 0.0)
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
    "bc": lambda d, p: imitation.make_bc(d, p, batch_size=32, orthogonality_weight=0.1),
    "bc_union": lambda d, p: imitation.make_bc(d, p, data="union", batch_size=32, noise_std=0.1),
    "demodice": lambda d, p: imitation.make_demodice(d, p, **SMALL),
    "smodice": lambda d, p: imitation.make_smodice(d, p, discriminator_steps=20, **SMALL),
    "smodice_chi2": lambda d, p: imitation.make_smodice(
        d,
        p,
        match="state_action",
        divergence="chi2",
        discriminator_steps=20,
        learning_rate=1e-2,
        **SMALL,
    ),
    "dwbc": lambda d, p: imitation.make_dwbc(d, p, discriminator_every=3, **SMALL),
    "iq_learn": lambda d, p: imitation.make_iq_learn(d, p, **SMALL),
    "ilid": lambda d, p: imitation.make_ilid(
        d,
        p,
        bar=0.45,
        rollback=1,
        discriminator_steps=300,
        discriminator_learning_rate=1e-2,
        **SMALL,
    ),
}
FIXED = ("count", "order", "weight")


@pytest.fixture(scope="module")
def program(linear):
    """Demonstrations, policy, and two seeds of a method by its name, `init` and `step`.

    Every third row is a termination, as there are where there are no absorbing states.
    """
    demos = imitation.prepare(linear[2], linear[3])
    demos = demos._replace(
        expert=demos.expert._replace(terminated=jnp.arange(200) % 3 == 0),
        logs=demos.logs._replace(terminated=jnp.arange(500) % 3 == 0),
    )
    policy = imitation.make_policy(4, 2, hidden=(8,))

    @functools.cache
    def of(name):
        both = learning.over_seeds(METHODS[name](demos, policy), 2)
        return demos, policy, jax.jit(both.init), jax.jit(both.step)

    return of


def forward(params, *inputs, activation=jax.nn.relu):
    """A perceptron with one output, layer by layer."""
    x, layers = jnp.concatenate(inputs, axis=-1), params["params"]
    for i in range(len(layers)):
        x = x @ layers[f"layer_{i}"]["kernel"] + layers[f"layer_{i}"]["bias"]
        x = activation(x) if i < len(layers) - 1 else x
    return x[..., 0]


def drawn(key, data):
    rows = jax.random.randint(key, (32,), 0, len(data.obs))
    return jax.tree.map(lambda x: x[rows], data)


def discount(rows):
    return 0.99 * (1.0 - rows.terminated)


def steepness(value, *inputs):
    """Norms of the gradient, row by row."""

    def one(*row):
        slopes = jax.grad(value, argnums=tuple(range(len(row))))(*row)
        return jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes) + 1e-12)

    return jax.vmap(one)(*inputs)


def starts_of(key, data):
    first = data.obs[np.append(True, np.diff(data.episode) != 0)]
    return first[jax.random.randint(key, (32,), 0, len(first))]


def losses_of_bc(demos, policy, key, state):
    x = drawn(jax.random.split(key)[0], demos.expert)

    def cloning(params):
        fitted = -jnp.mean(policy.log_prob(params, x.obs, x.action))
        return fitted + 0.1 * imitation.orthogonality(params)

    return {"policy": cloning}


def losses_of_demodice(demos, policy, key, state):
    data = imitation.union(demos)
    keys = jax.random.split(key, 4)
    expert, x, start = drawn(keys[0], demos.expert), drawn(keys[1], data), starts_of(keys[2], data)
    u = jax.random.uniform(keys[3], (32, 1))
    middle = [u * a + (1 - u) * b for a, b in ((expert.obs, x.obs), (expert.action, x.action))]

    def reward(params, *pair):
        p = 1 / (1 + jnp.exp(-forward(params, *pair)))
        return -jnp.log(1 / (p + 1e-3) - 1 + 1e-3)

    def advantage(params):
        r = reward(state.params["discriminator"], x.obs, x.action)
        return r + discount(x) * forward(params, x.next_obs) - forward(params, x.obs)

    def telling(params):
        p = jax.nn.sigmoid(forward(params, expert.obs, expert.action))
        q = jax.nn.sigmoid(forward(params, x.obs, x.action))
        away = steepness(lambda *z: reward(params, *z), *middle) - 1
        return -jnp.mean(jnp.log(p)) - jnp.mean(jnp.log(1 - q)) + 0.1 * jnp.mean(away**2)

    def dual(params):
        steep = steepness(lambda z: forward(params, z), x.obs)
        spread = jnp.log(jnp.mean(jnp.exp(advantage(params))))
        return spread + 0.01 * jnp.mean(forward(params, start)) + 1e-4 * jnp.mean(steep**2)

    def cloning(params):
        w = jnp.exp(advantage(state.params["value"]))
        return -jnp.mean(w / jnp.mean(w) * policy.log_prob(params, x.obs, x.action))

    return {"discriminator": telling, "value": dual, "policy": cloning}


def losses_of_smodice(demos, policy, key, state, *, chi2=False):
    data = imitation.union(demos)
    key_rows, key_start, key_act = jax.random.split(key, 3)
    x, start = drawn(key_rows, data), starts_of(key_start, data)

    def told(rows):
        seen = (rows.obs, rows.action) if chi2 else (rows.obs,)
        return jax.nn.sigmoid(forward(state.fixed, *seen, activation=jnp.tanh))

    if chi2:  # the discriminator that was trained before takes the expert's for the expert's
        assert jnp.mean(told(demos.expert)) > jnp.mean(told(data)) + 0.01

    def error(params):
        r = jnp.log(told(x)) - jnp.log(1 - told(x))
        return r + discount(x) * forward(params, x.next_obs) - forward(params, x.obs)

    def dual(params):
        e = error(params)
        spread = jnp.mean(e + e**2 / 2) if chi2 else jnp.log(jnp.mean(jnp.exp(e)))
        return 0.01 * jnp.mean(forward(params, start)) + spread + 0.5e-4 * squares(params)

    def entropy(params):
        return -jnp.mean(policy.draw(key_act, params, x.obs)[1])

    def cloning(params):
        e = error(state.params["value"])
        w = jnp.maximum(1 + e, 0) if chi2 else jnp.exp(e) / jnp.mean(jnp.exp(e))
        logp = policy.log_prob(params, x.obs, x.action)
        return -jnp.mean(w * logp) - jnp.exp(state.params["log_temperature"]) * entropy(params)

    def temperature(log_temperature):  # up where there is less entropy than -A
        return log_temperature * (entropy(state.params["policy"]) + 2.0)

    return {"value": dual, "policy": cloning, "log_temperature": temperature}


def squares(params):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def losses_of_dwbc(demos, policy, key, state):
    x, y = (
        drawn(k, data)
        for k, data in zip(jax.random.split(key), (demos.expert, demos.logs), strict=True)
    )

    def logp(params, rows):
        return policy.log_prob(params, rows.obs, rows.action)

    def prob(params, rows):
        seen = (jnp.clip(logp(state.params["policy"], rows), -20.0, 10.0) + 20.0) / 30.0
        d = jax.nn.sigmoid(forward(params, rows.obs, rows.action, seen[:, None]))
        return jnp.clip(d, 0.1, 0.9)

    def telling(params):
        d, e = prob(params, x), prob(params, y)
        found = jnp.mean(-jnp.log(d) + jnp.log(1 - d) - jnp.log(1 - e) / 0.5)
        return found + 0.5 * 5e-3 * squares(params)

    def cloning(params):
        d, e = (prob(state.params["discriminator"], rows) for rows in (x, y))
        e = jnp.where(e < 0.5, 0.0, e)
        first = (7.5 - 0.5 / (d * (1 - d)) - 1) * logp(params, x)
        found = -jnp.mean(first + (1 / (1 - e) - 1) * logp(params, y))
        return found + 0.5 * 5e-3 * squares(params)

    return {"discriminator": telling, "policy": cloning}


def losses_of_iq_learn(demos, policy, key, state):
    key_rows, key_now, key_next, key_act = jax.random.split(key, 4)
    x = drawn(key_rows, demos.expert)

    def soft(key, params, actor, obs):
        action, logp = policy.draw(key, actor, obs)
        return forward(params, obs, action) - 1e-2 * logp

    def critic(params):
        actor = state.params["policy"]
        now, then = soft(key_now, params, actor, x.obs), soft(key_next, params, actor, x.next_obs)
        r = forward(params, x.obs, x.action) - discount(x) * then
        return -jnp.mean(r) + jnp.mean(now - discount(x) * then) + jnp.mean(r**2) / 2

    def acting(params):
        return -jnp.mean(soft(key_act, state.params["critic"], params, x.obs))

    return {"critic": critic, "policy": acting}


def losses_of_ilid(demos, policy, key, state):
    chosen = np.flatnonzero(state.fixed["weight"])
    rows = np.concatenate([np.arange(200), 200 + chosen])
    data = imitation.union(demos)
    shares = [jax.random.uniform(k, (32,)) for k in jax.random.split(key)]
    both = rows[(np.asarray(shares[0]) * len(rows)).astype(int)]
    picked = chosen[(np.asarray(shares[1]) * len(chosen)).astype(int)]

    def prob(at):
        d = jax.nn.sigmoid(forward(state.fixed["pairs"], data.obs[at], data.action[at]))
        return jnp.clip(d, 0.1, 0.9)

    assert 0 < len(chosen) < 500
    assert jnp.mean(jnp.log(prob(np.arange(200)))) + jnp.mean(jnp.log(1 - prob(rows))) > -1.386

    def cloning(params):
        d = prob(both)
        found = d / (1 - d) * policy.log_prob(params, data.obs[both], data.action[both])
        picks = policy.log_prob(params, demos.logs.obs[picked], demos.logs.action[picked])
        return -jnp.mean(found) - jnp.mean(picks) + 0.5 * 5e-3 * squares(params)

    return {"policy": cloning}


LOSSES = {
    "bc": losses_of_bc,
    "demodice": losses_of_demodice,
    "smodice": losses_of_smodice,
    "smodice_chi2": functools.partial(losses_of_smodice, chi2=True),
    "dwbc": losses_of_dwbc,
    "iq_learn": losses_of_iq_learn,
    "ilid": losses_of_ilid,
}


@pytest.mark.parametrize("name", METHODS)
def test_first_step_is_that_of_the_losses_by_hand(program, name, optax_promotes):
    """Two seeds side by side, finite and different: Adam's first moment is a tenth of the slope."""
    demos, policy, init, step = program(name)
    first = init(jax.random.key(0))
    state, metrics = step(first)
    for x in jax.tree.leaves((metrics, state.params)):
        assert np.all(np.isfinite(x))
    before, now = (s.policy_params["params"]["layer_0"]["kernel"] for s in (first, state))
    assert not np.array_equal(before, now) and not np.array_equal(now[0], now[1])
    if name not in LOSSES:
        return
    one = jax.tree.map(lambda x: x[1], (first._replace(opt_states={}), state.opt_states))
    begun, opt_states = one
    losses = LOSSES[name](demos, policy, jax.random.split(begun.key)[1], begun)
    assert set(losses) == set(opt_states)
    wanted = jax.jit(lambda params: {x: jax.grad(losses[x])(params[x]) for x in losses})(
        {x: begun.params[x] for x in losses}
    )
    for network, slope in wanted.items():
        found = optax.tree_utils.tree_get(opt_states[network], "mu")
        for a, b in zip(*map(jax.tree.leaves, (found, slope)), strict=True):
            np.testing.assert_allclose(10.0 * a, b, rtol=2e-3, atol=2e-4 * np.abs(b).max() + 1e-6)


def test_policies_act_on_what_the_environment_shows(program, optax_promotes):
    demos, policy, *_ = program("bc")
    act = imitation.acting(policy.mode, demos.normalizer)
    params = policy.init(jax.random.key(0))
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


def test_selection_leads_to_the_expert_s_states(program, optax_promotes):
    """What is selected comes first; states on the way there are nearer to the expert's."""
    demos, _, init, step = program("ilid")
    state = init(jax.random.key(0))
    good = []
    for count, order, weight in zip(*(np.asarray(state.fixed[x]) for x in FIXED), strict=True):
        assert count == np.sum(weight > 0.0)
        np.testing.assert_array_equal(np.sort(order[:count]), np.flatnonzero(weight))
        square = np.sum(np.asarray(demos.logs.next_obs) ** 2, axis=1)
        good.append(square[weight == 1.0].mean() / square[weight < 1.0].mean())
    assert max(good) < 0.8
    # With nothing selected ILID clones the expert alone: finite all the same.
    none = {x: jnp.zeros_like(state.fixed[x]) for x in ("count", "weight")}
    _, metrics = step(state._replace(fixed={**state.fixed, **none}))
    assert np.all(np.isfinite(metrics["policy/loss"]))
    np.testing.assert_array_equal(metrics["selection/share"], 0.0)


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
        (imitation.make_dwbc, {"eta": np.inf}, "eta must be finite"),
        (imitation.make_dwbc, {"discriminator_every": 0}, "discriminator_every must be at least 1"),
        (imitation.make_smodice, {"target_entropy": np.nan}, "target_entropy must be a number"),
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

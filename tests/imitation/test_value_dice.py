"""The saddle point's losses against NumPy, what is frozen and what is not, and a run of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import imitation, learning

GAMMA = 0.9


@pytest.fixture(scope="module")
def demos(linear):
    _, _, expert, logs = linear
    return imitation.prepare(expert, logs)


def features(key=0, size=6):
    representation = imitation.make_representation(4, 2, feature_size=size, hidden=(7,))
    return representation, representation.init(jax.random.key(key))


def batch(key, num=9):
    """Transitions of random numbers, float64 under x64."""
    keys = jax.random.split(key, 3)
    obs, next_obs = (jax.random.normal(k, (num, 4)) for k in keys[:2])
    action = jax.random.uniform(keys[2], (num, 2), minval=-1.0, maxval=1.0)
    return imitation.Transitions(obs, action, next_obs, jnp.zeros(num, bool), jnp.arange(num))


def network(params, *inputs, activation=lambda x: np.maximum(x, 0.0)):
    x = np.concatenate([np.asarray(y) for y in inputs], axis=-1)
    layers = [params["params"][f"layer_{i}"] for i in range(len(params["params"]))]
    for i, layer in enumerate(layers):
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer.get("bias", 0.0))
        x = activation(x) if i < len(layers) - 1 else x
    return x


def elu(x):
    return np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0)))


@pytest.mark.parametrize("kind", ["paper", "repo", "linear", "mlp"])
def test_heads_by_hand(x64, kind):
    representation, params = features()
    expert = batch(jax.random.key(1))
    head = imitation.make_head(
        kind, 4, 2, representation=representation, gamma=GAMMA, hidden=(5, 5)
    )
    own = head.init(jax.random.key(2), params, expert)
    phi = network(params["phi"], expert.obs, expert.action, activation=elu) / np.sqrt(6)
    mu = network(params["mu"], expert.obs, activation=elu) / np.sqrt(6)
    if kind == "paper":
        np.testing.assert_allclose(own["theta"], GAMMA * phi.mean(axis=0))
        # Ratios of both signs, so that some are clamped.
        own = own | {"theta": jnp.asarray([3.0, -2.0, 1.0, -3.0, 2.0, 0.5])}
    want = 0.0
    if kind != "mlp":
        want = phi @ np.asarray(own["omega"])
        assert 0.0 < np.std(np.asarray(own["omega"])) < 0.03
    f = 0.0
    if kind != "linear":
        activation = {"activation": elu} if kind != "mlp" else {}
        f = network(own["network"], expert.obs, expert.action, **activation)[:, 0]
        want = want + f
    reached = mu @ np.asarray(own.get("theta", np.zeros(6))) + 1.0 - GAMMA
    if kind == "paper":
        want = np.log(np.maximum(reached, 1.0 - GAMMA)) - want
    found = head.dual(own, params, expert.obs, expert.action)
    np.testing.assert_allclose(found.nu, want, rtol=1e-9)
    if kind in ("paper", "repo"):
        np.testing.assert_allclose(found.correction, f)
    if kind == "paper":
        np.testing.assert_array_equal(found.clamped, reached < 1.0 - GAMMA)
        assert 0 < found.clamped.sum() < 9


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_objective_is_a_log_mean_of_exponentials(x64, alpha):
    rng = np.random.default_rng(0)
    expert, start, replay = rng.normal(size=(3, 40))
    found = imitation.estimate(*map(jnp.asarray, (expert, start, replay)), gamma=GAMMA, alpha=alpha)
    mean = (1 - alpha) * np.mean(np.exp(expert)) + alpha * np.mean(np.exp(replay))
    linear = (1 - alpha) * (1 - GAMMA) * start.mean() + alpha * replay.mean()
    np.testing.assert_allclose(found, np.log(mean) - linear, rtol=1e-12)
    # Its gradient is that of the softmax held still: sum p x.
    x = np.concatenate([expert, replay])
    w = np.repeat([(1 - alpha) / 40, alpha / 40], 40) * np.exp(x - x.max())
    p = w / w.sum()
    slopes = jax.grad(
        lambda e, r: imitation.estimate(e, jnp.asarray(start), r, gamma=GAMMA, alpha=alpha),
        argnums=(0, 1),
    )(jnp.asarray(expert), jnp.asarray(replay))
    np.testing.assert_allclose(slopes[0], p[:40], atol=1e-15)
    np.testing.assert_allclose(slopes[1], p[40:] - alpha / 40, atol=1e-15)
    # No overflow, and chi2 by hand, with its conjugate held below -1.
    big = imitation.estimate(jnp.full(3, 900.0), jnp.zeros(3), gamma=GAMMA)
    np.testing.assert_allclose(big, 900.0)
    found = imitation.estimate(
        *map(jnp.asarray, (expert, start, replay)), gamma=GAMMA, alpha=alpha, divergence="chi2"
    )
    conjugate = [np.where(y < -1, -0.5, y + y**2 / 2).mean() for y in (expert, replay)]
    np.testing.assert_allclose(found, (1 - alpha) * conjugate[0] + alpha * conjugate[1] - linear)


def test_penalty_and_its_points(x64):
    """Both sets of pairs, one share a row; the gradient of both inputs by differences."""
    head = imitation.make_head("mlp", 4, 2, hidden=(6, 6))
    expert, replay = batch(jax.random.key(1)), batch(jax.random.key(2))
    params = head.init(jax.random.key(3), None, expert)
    ones = jnp.full((9, 2), 0.3)
    pairs = imitation.draw_pairs(
        jax.random.key(4), lambda key, obs: ones * obs[:, :2], expert, replay, expert.obs
    )
    obs, action = imitation.between(jax.random.key(5), pairs)
    share = np.asarray(jax.random.uniform(jax.random.key(5), (9, 1)))
    for part, mine, theirs in (
        (slice(0, 9), (expert.obs, expert.action), (replay.obs, replay.action)),
        (
            slice(9, 18),
            (expert.next_obs, 0.3 * expert.next_obs[:, :2]),
            (replay.next_obs, 0.3 * replay.next_obs[:, :2]),
        ),
    ):
        for found, a, b in zip((obs, action), mine, theirs, strict=True):
            want = share * np.asarray(a) + (1 - share) * np.asarray(b)
            np.testing.assert_allclose(found[part], want)

    def nu(obs, action):
        return head.dual(params, None, obs, action).nu

    z, h = np.concatenate([obs, action], axis=1), 1e-6
    slope = np.stack(
        [
            (network(params["network"], z + step) - network(params["network"], z - step))[:, 0]
            for step in h * np.eye(6)
        ],
        axis=1,
    ) / (2 * h)
    want = np.mean((np.sqrt(np.sum(slope**2, axis=1)) - 1.0) ** 2)
    np.testing.assert_allclose(imitation.gradient_penalty(nu, obs, action), want, rtol=1e-6)
    alone = imitation.draw_pairs(jax.random.key(4), lambda key, obs: ones, expert, None, expert.obs)
    obs, action = imitation.between(jax.random.key(5), alone)
    np.testing.assert_allclose(action[:9], share * expert.action + (1 - share) * 0.3)
    flat = jax.grad(lambda c: imitation.gradient_penalty(lambda s, a: c * s[:, 0], obs, action))
    assert np.isfinite(flat(0.0))  # at a gradient of nothing


@pytest.mark.parametrize("live", [True, False])
def test_features_are_frozen_and_their_inputs_live(x64, live):
    representation, params = features()
    expert = batch(jax.random.key(1))
    head = imitation.make_head(
        "paper", 4, 2, representation=representation, gamma=GAMMA, hidden=(5,), phi_input_grad=live
    )
    own = head.init(jax.random.key(2), params, expert)
    own["network"] = jax.tree.map(jnp.zeros_like, own["network"])
    slope = jax.grad(lambda a: jnp.sum(head.dual(own, params, expert.obs, a).nu))(expert.action)
    if live:
        assert np.all(np.abs(slope) > 0.0)
    else:
        np.testing.assert_array_equal(slope, 0.0)


def numpy_objective(params, policy, policy_params, key, expert, replay):
    """ValueDICE's loss as a loop over rows, with the actions that these keys draw."""
    keys = jax.random.split(key, 3)
    next_action, start_action, replay_action = (
        np.asarray(policy.sample(k, policy_params, obs))
        for k, obs in zip(keys, (expert.next_obs, expert.obs, replay.next_obs), strict=True)
    )

    def nu(*x):
        return network(params, *x)[:, 0]

    change = nu(expert.obs, expert.action) - GAMMA * nu(expert.next_obs, next_action)
    other = nu(replay.obs, replay.action) - GAMMA * nu(replay.next_obs, replay_action)
    total = 0.0
    for i in range(len(change)):
        total += (0.9 * np.exp(change[i]) + 0.1 * np.exp(other[i])) / len(change)
    linear = 0.9 * (1 - GAMMA) * nu(expert.obs, start_action).mean() + 0.1 * other.mean()
    return np.log(total) - linear


def test_first_step_is_value_dice_by_hand(demos, optax_promotes):
    """The loss of a batch from known weights, in NumPy."""
    policy = imitation.make_policy(4, 2, hidden=(6,))
    algorithm = imitation.make_value_dice(
        demos, policy, head="mlp", gamma=GAMMA, alpha=0.1, batch_size=40, hidden=(6, 6)
    )
    state = algorithm.init(jax.random.key(0))
    _, metrics = jax.jit(algorithm.step)(state)
    draws, key_act, _ = drawn(demos, state, 40)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params["head"]["network"])
    want = numpy_objective(params, policy, state.params["policy"], key_act, *draws)
    np.testing.assert_allclose(metrics["dual/objective"], want, atol=1e-5)


def test_other_starts_and_another_divergence(demos, optax_promotes):
    """Episodes from the expert's first states, and chi2's conjugate, in NumPy."""
    policy = imitation.make_policy(4, 2, hidden=(6,))
    algorithm = imitation.make_value_dice(
        demos,
        policy,
        head="mlp",
        alpha=0.1,
        divergence="chi2",
        init_states="first",
        batch_size=12,
        hidden=(6, 6),
    )
    state = algorithm.init(jax.random.key(3))
    _, metrics = jax.jit(algorithm.step)(state)
    (expert, replay), key_act, _ = drawn(demos, state, 12)
    key_start = jax.random.split(jax.random.split(state.key)[1], 5)[2]
    start = demos.first_obs[jax.random.randint(key_start, (12,), 0, 8)]
    pairs = imitation.draw_pairs(
        key_act, lambda k, obs: policy.sample(k, state.params["policy"], obs), expert, replay, start
    )
    nu = [network(state.params["head"]["network"], *pair)[:, 0] for pair in pairs]
    changes = [nu[0] - 0.99 * nu[1], nu[3] - 0.99 * nu[4]]
    spread = [np.mean(np.maximum(y, -1.0) + np.maximum(y, -1.0) ** 2 / 2) for y in changes]
    want = 0.9 * spread[0] + 0.1 * spread[1] - 0.9 * 0.01 * nu[2].mean() - 0.1 * changes[1].mean()
    np.testing.assert_allclose(metrics["dual/objective"], want, atol=1e-5)


def drawn(demos, state, size):
    """The batches of the first step, and its keys of actions and of points between."""
    _, key = jax.random.split(state.key)
    key_expert, key_logs, _, key_act, key_between = jax.random.split(key, 5)
    draws = []
    for k, data in ((key_expert, demos.expert), (key_logs, demos.logs)):
        rows = np.asarray(jax.random.randint(k, (size,), 0, len(data.obs)))
        draws.append(jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], data))
    return draws, key_act, key_between


def compare_slopes(head, features, policy, state, after, draws, keys):
    """Adam's first moments are a tenth of the slopes, in functions that other tests look at.

    Down for the head, penalty and correction included; up for the policy, with orthogonality.
    """
    expert, replay = draws

    def pairs_of(params):
        return imitation.draw_pairs(
            keys[0], lambda k, obs: policy.sample(k, params, obs), expert, replay, expert.obs
        )

    middle = imitation.between(keys[1], pairs_of(state.params["policy"]))

    def objective(own, params):
        pairs = pairs_of(params)
        nu = [head.dual(own, features, *pair).nu for pair in pairs]
        changes = (nu[0] - 0.99 * nu[1], nu[2], nu[3] - 0.99 * nu[4])
        return imitation.estimate(*changes, gamma=0.99, alpha=0.05)

    def of_head(own):
        f = head.dual(own, features, expert.obs, expert.action).correction
        steep = imitation.gradient_penalty(lambda *z: head.dual(own, features, *z).nu, *middle)
        return objective(own, state.params["policy"]) + 10.0 * steep + 0.1 * jnp.mean(f**2)

    def of_policy(params):
        return 0.2 * imitation.orthogonality(params) - objective(state.params["head"], params)

    @jax.jit
    def slopes(own, params):
        return {"head": jax.grad(of_head)(own), "policy": jax.grad(of_policy)(params)}

    for name, slope in slopes(state.params["head"], state.params["policy"]).items():
        found = optax.tree_utils.tree_get(after.opt_states[name], "mu")
        for a, b in zip(*map(jax.tree.leaves, (found, slope)), strict=True):
            np.testing.assert_allclose(10.0 * a, b, rtol=2e-3, atol=1e-3 * np.abs(b).max() + 1e-6)


@pytest.fixture(scope="module")
def on_features(demos):
    """The learner on random features, frozen, and its step compiled once."""
    representation, params = features()
    kept = imitation.Pretrained(params, demos.normalizer, demos.fingerprint)
    made = {
        finetune: imitation.make_value_dice(
            demos,
            imitation.make_policy(4, 2, hidden=(8,)),
            representation=representation,
            pretrained=kept,
            batch_size=16,
            hidden=(8,),
            orthogonality_weight=0.2,
            finetune=finetune,
        )
        for finetune in (False, True)
    }
    steps = {finetune: jax.jit(x.step, donate_argnums=0) for finetune, x in made.items()}
    return representation, kept, made, steps


def test_only_what_learns_moves(demos, on_features, optax_promotes):
    """And it moves down the slopes of the published weights, 10 and .1, logs with .05."""
    representation, kept, made, steps = on_features
    for finetune in (False, True):
        state = made[finetune].init(jax.random.key(0))
        before = jax.tree.map(jnp.array, state)
        after, metrics = steps[finetune](state)
        for name in ("head", "policy", "representation"):
            both = (before.params[name], after.params[name])
            pairs = zip(*map(jax.tree.leaves, both), strict=True)
            moved = [not np.array_equal(a, b) for a, b in pairs]
            assert any(moved) == (name != "representation" or finetune)
        assert np.isfinite(metrics["dual/penalty"])
        np.testing.assert_array_equal(after.step, 1)
    draws, *keys = drawn(demos, before, 16)
    head = imitation.make_head("paper", 4, 2, representation=representation, hidden=(8,))
    policy = imitation.make_policy(4, 2, hidden=(8,))
    compare_slopes(head, kept.params, policy, before, after, draws, keys)


def test_seeds_share_frozen_features_or_have_their_own(demos, on_features, optax_promotes):
    representation, kept, made, steps = on_features
    algorithm, params = made[False], kept.params
    both = learning.over_seeds(algorithm, 2)
    state, _ = jax.jit(both.step)(both.init(jax.random.key(0)))
    assert jax.tree.leaves(state.params["representation"])[0].ndim == 1
    first = algorithm.init(jax.random.fold_in(jax.random.key(0), 1))
    alone, _ = steps[False](first)
    # What a loop is given to overwrite is a copy.
    assert not any(x.is_deleted() for x in jax.tree.leaves(kept.params))
    for a, b in zip(
        *map(jax.tree.leaves, (alone.params["head"], state.params["head"])), strict=True
    ):
        np.testing.assert_allclose(a, b[1], atol=1e-6)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2.0 * x]), params)
    apart = learning.over_seeds(algorithm, 2, settings=stacked, axes=0)
    state = apart.init(jax.random.key(0))
    phi = representation.phi(
        jax.tree.map(lambda x: 2.0 * x, params), demos.expert.obs, demos.expert.action
    )
    np.testing.assert_allclose(state.params["head"]["theta"][1], 0.99 * phi.mean(axis=0), rtol=1e-4)


def test_policy_is_a_squashed_gaussian_with_bounded_spread(x64):
    policy = imitation.make_policy(4, 2, hidden=(5,))
    params = jax.tree.map(lambda x: 3.0 * x + 0.2, policy.init(jax.random.key(0)))
    obs = jax.random.normal(jax.random.key(1), (6, 4))
    mean, raw = np.split(network(params, obs), 2, axis=1)
    std = np.exp(-5.0 + 0.5 * 7.0 * (np.tanh(raw) + 1.0))
    action = jnp.asarray([[0.3, -0.9]] * 5 + [[1.0, -1.0]])
    clipped = np.clip(np.asarray(action), -1 + 1e-6, 1 - 1e-6)
    x = np.arctanh(clipped)
    density = -0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    want = np.sum(density - np.log(1 - clipped**2), axis=1)
    np.testing.assert_allclose(policy.log_prob(params, obs, action), want, rtol=1e-9)
    np.testing.assert_allclose(policy.mode(params, obs), np.tanh(mean))
    keys = jax.random.split(jax.random.key(2), 4000)
    drawn = np.arctanh(np.asarray(jax.vmap(lambda k: policy.sample(k, params, obs[0]))(keys)))
    np.testing.assert_allclose(drawn.mean(axis=0), mean[0], atol=5 * std[0].max() / np.sqrt(4000))
    weights = {"params": {"a": {"kernel": jnp.asarray([[1.0, 2.0], [3.0, 4.0]])}}}
    np.testing.assert_allclose(imitation.orthogonality(weights), 2 * 14.0**2)


def test_bad_settings_are_refused(demos, linear):
    representation, params = features()
    kept = imitation.Pretrained(params, demos.normalizer, demos.fingerprint)
    given = {"representation": representation, "pretrained": kept}
    alone = imitation.prepare(linear[2])
    for options, message in (
        ({**given, "head": "deep"}, "head must be one of paper, repo, linear, mlp, got 'deep'"),
        ({}, "head 'paper' needs a representation"),
        ({"representation": representation}, "head 'paper' needs pretrained features"),
        ({**given, "gamma": 1.0}, "gamma must lie in"),
        ({**given, "alpha": 1.5}, "alpha must lie in"),
        ({**given, "batch_size": 0}, "batch_size must be at least 1"),
        ({**given, "divergence": "js"}, "divergence must be kl or chi2"),
        ({**given, "init_states": "all"}, "init_states must be expert_all or first"),
        ({"head": "mlp", "finetune": True}, "finetune needs features"),
        ({**given, "least": 0.0}, "least must be positive, got 0.0"),
        ({**given, "policy": imitation.make_policy(4, 1)}, "policy must be of 4 and 2 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            imitation.make_value_dice(demos, **options)
    with pytest.raises(ValueError, match=r"alpha = 0.05 needs logs"):
        imitation.make_value_dice(alone, alpha=0.05, head="mlp")
    other = kept._replace(normalizer=imitation.Normalizer(*(2.0 * x for x in demos.normalizer)))
    with pytest.raises(ValueError, match="must be normalized alike"):
        imitation.make_value_dice(demos, representation=representation, pretrained=other)
    imitation.make_value_dice(alone, head="mlp")  # alpha is 0 without logs
    wider = imitation.make_representation(4, 2, feature_size=8, hidden=(7,))
    with pytest.raises(
        ValueError, match="must hold the parameters of representation, got .6,. for"
    ):
        imitation.make_value_dice(demos, representation=wider, pretrained=kept)
    with pytest.raises(ValueError, match="gamma must lie in"):
        imitation.make_head("mlp", 4, 2, gamma=2.0)
    with pytest.raises(ValueError, match="alpha = 0.1 of the logs needs replay_change"):
        imitation.estimate(jnp.zeros(3), jnp.zeros(3), gamma=GAMMA, alpha=0.1)

"""Losses of the representation where everything can be enumerated, and the first stage itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import envs, imitation
from jaxlab.core import loop

rng = np.random.default_rng(4)
COUNTS = rng.multinomial(8, np.full(5, 0.2), size=6)  # P of six (s, a), in eighths
NOISE = np.array([2, 1, 2, 1, 2])  # in eighths
TRUTH = COUNTS / NOISE


def rows(h):
    """Ratios `[6, 5]` as samples whose frequencies are the laws exactly."""
    own = [jnp.repeat(h[i], COUNTS[i], total_repeat_length=8) for i in range(6)]
    return jnp.concatenate(own), jnp.repeat(h, NOISE, axis=1, total_repeat_length=8)


def singular():
    """SVD of sqrt(rho) (P / p) sqrt(p)."""
    return np.linalg.svd(TRUTH * np.sqrt(1 / 6) * np.sqrt(NOISE / 8))


def spectral(h):
    return imitation.spectral_loss(*rows(h), reg_weight=0.0)


def test_spectral_loss_is_least_at_the_ratio(x64):
    U, sigma, V = singular()
    np.testing.assert_allclose(spectral(jnp.asarray(TRUTH)), -np.sum(sigma**2), atol=1e-12)
    np.testing.assert_allclose(jax.grad(spectral)(jnp.asarray(TRUTH)), 0.0, atol=1e-12)
    for r in (1, 2, 3):
        phi, mu = U[:, :r] * sigma[:r] / np.sqrt(1 / 6), V[:r].T / np.sqrt(NOISE / 8)[:, None]
        h = jnp.asarray(phi @ mu.T)
        np.testing.assert_allclose(spectral(h), -np.sum(sigma[:r] ** 2), atol=1e-12)
        slope = jax.grad(lambda p, m: spectral(p @ m.T), argnums=(0, 1))(
            *map(jnp.asarray, (phi, mu))
        )
        for part in slope:
            np.testing.assert_allclose(part, 0.0, atol=1e-12)
        noise = [jnp.asarray(rng.normal(size=(30, *x.shape))) for x in (phi, mu)]
        others = jax.vmap(lambda p, m, phi=phi, mu=mu: spectral((phi + p) @ (mu + m).T))(*noise)
        assert np.all(others >= -np.sum(sigma[:r] ** 2))


def test_regularizer_by_hand(x64):
    """Clipping is in the logarithm alone, unless the linear term is clipped too."""
    positive, negative = jnp.asarray([0.5, -2.0, 3.0]), jnp.asarray([[1.0, -1.0]])
    logs = np.mean([np.log(0.5) ** 2, np.log(1e-6) ** 2, np.log(3.0) ** 2])
    found = imitation.spectral_loss(positive, negative, reg_weight=10.0)
    np.testing.assert_allclose(found, 1.0 - 2 * 0.5 + 10 * logs, rtol=1e-12)
    clipped = imitation.spectral_loss(positive, negative, reg_weight=10.0, clip_positive=True)
    np.testing.assert_allclose(clipped, 1.0 - 2 * (3.5 + 1e-6) / 3 + 10 * logs, rtol=1e-12)
    slopes = [
        jax.grad(lambda x, c=c: imitation.spectral_loss(x, negative, clip_positive=c))(positive)[1]
        for c in (False, True)
    ]
    np.testing.assert_allclose(slopes, [-2 / 3, 0.0], atol=1e-15)
    # Where dynamics are deterministic a transition rests at h = 10 log h.
    at = jax.grad(lambda h: imitation.spectral_loss(h[None], jnp.zeros((1, 1))))
    np.testing.assert_allclose(at(jnp.asarray(1.1183256)), 0.0, atol=1e-5)


@pytest.mark.parametrize("num_noise", [1, 5])
def test_logistic_loss_is_least_at_the_ratio(x64, num_noise):
    positive = np.maximum(TRUTH, 1e-3)  # zeros are at the clip, where there is no gradient
    seen = COUNTS > 0

    def loss(h):
        return imitation.binary_nce_loss(*rows(h), num_noise=num_noise)

    slope = np.asarray(jax.grad(loss)(jnp.asarray(positive)))
    np.testing.assert_allclose(slope[seen], 0.0, atol=1e-12)
    assert np.all(slope[~seen] > 0.0)  # what never comes goes down
    logit = np.log(np.maximum(TRUTH, 1e-6) / num_noise)
    softplus = np.logaddexp(0.0, -logit), np.logaddexp(0.0, logit)
    want = np.sum(COUNTS / 48 * softplus[0]) + num_noise * np.sum(NOISE / 48 * softplus[1])
    np.testing.assert_allclose(loss(jnp.asarray(TRUTH)), want, rtol=1e-12)


def test_ranking_loss_does_not_see_what_a_row_has_in_common(x64):
    scores = rng.normal(size=(7, 7))
    want = 0.0
    for i in range(7):
        z = scores[i] / 0.5
        want -= (z[i] - np.log(np.sum(np.exp(z)))) / 7
    found = imitation.ranking_loss(jnp.asarray(scores), temperature=0.5)
    np.testing.assert_allclose(found, want, rtol=1e-12)
    shifted = jnp.asarray(scores + rng.normal(size=(7, 1)))
    np.testing.assert_allclose(imitation.ranking_loss(shifted, temperature=0.5), want, rtol=1e-12)


def test_ranking_s_ratio_has_the_mean_one(x64):
    representation = imitation.make_representation(4, 1, feature_size=6, hidden=(5,))
    params = representation.init(jax.random.key(0))
    obs, action = jnp.asarray(rng.normal(size=(3, 4))), jnp.asarray(rng.normal(size=(3, 1)))
    noise = jnp.asarray(rng.normal(size=(9, 4)))
    for i in range(3):
        same = [jnp.broadcast_to(x[i], (9, x.shape[1])) for x in (obs, action)]
        logs = imitation.ranking_log_ratio(
            representation, params, *same, noise, noise, temperature=0.2
        )
        np.testing.assert_allclose(np.exp(logs).mean(), 1.0)
        h = imitation.ratio(representation, params, *same, noise)
        np.testing.assert_allclose(logs - h / 0.2, logs[0] - h[0] / 0.2)


@pytest.fixture(scope="module")
def demos():
    """Eight episodes of the pendulum's expert, and eight of random torques."""
    env = envs.make_env(imitation.gaussian_pendulum(50), 8)
    expert = imitation.record(
        jax.random.key(1), lambda _, obs: imitation.pump_and_balance(obs), env
    )
    logs = imitation.record(
        jax.random.key(2), lambda key, obs: jax.random.uniform(key, (8, 1), minval=-1.0), env
    )
    return imitation.prepare(expert, logs)


def test_networks_are_as_the_paper_s(x64):
    """Two layers of ELU, no bias at the end of phi, outputs over the root of K."""
    representation = imitation.make_representation(4, 1, feature_size=6, hidden=(5, 5))
    params = jax.tree.map(
        lambda x: x + 0.1, representation.init(jax.random.key(0))
    )  # biases are 0 at first
    obs, action = rng.normal(size=(3, 4)), rng.normal(size=(3, 1))

    def forward(weights, x):
        layers = [jax.tree.map(np.asarray, weights["params"][f"layer_{i}"]) for i in range(3)]
        for layer in layers[:2]:
            x = x @ layer["kernel"] + layer["bias"]
            x = np.where(x > 0.0, x, np.expm1(np.minimum(x, 0.0)))
        return (x @ layers[2]["kernel"] + layers[2].get("bias", 0.0)) / np.sqrt(6)

    found = representation.phi(params, jnp.asarray(obs), jnp.asarray(action))
    np.testing.assert_allclose(found, forward(params["phi"], np.hstack([obs, action])), rtol=1e-10)
    np.testing.assert_allclose(
        representation.mu(params, jnp.asarray(obs)), forward(params["mu"], obs)
    )
    # Products with weights, which never make the features.
    w = rng.normal(size=6)
    given = (params, jnp.asarray(obs), jnp.asarray(action), jnp.asarray(w))
    np.testing.assert_allclose(representation.phi_dot(*given), np.asarray(found) @ w, rtol=1e-10)
    np.testing.assert_allclose(
        representation.mu_dot(params, *given[1::2]), forward(params["mu"], obs) @ w, rtol=1e-10
    )
    assert "bias" not in params["phi"]["params"]["layer_2"]
    reached = forward(params["mu"], obs)
    h = imitation.ratio(representation, params, *map(jnp.asarray, (obs, action, obs)))
    np.testing.assert_allclose(h, np.sum(found * reached, axis=1))
    kernel = representation.init(jax.random.key(0))["mu"]["params"]["layer_1"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(5), atol=1e-10)


def test_training_calibrates_and_is_kept_apart(demos, tmp_path, optax_promotes):
    """The spectral loss without its regularizer: E[h] comes to 1; then through files and back."""
    representation = imitation.make_representation(4, 1, feature_size=32, hidden=(32, 32))
    data = imitation.union(demos)
    algorithm = imitation.make_pretraining(
        data, representation, reg_weight=0.0, learning_rate=3e-3, batch_size=128
    )
    result = loop.run(algorithm, jax.random.key(0), num_steps=400, chunk_size=400)
    params = result.state.params
    found = imitation.diagnose(jax.random.key(3), representation, params, data, num_samples=400)
    np.testing.assert_allclose(found["noise_mean"], 1.0, atol=0.2)
    assert found["positive"] > 2.0 * found["negative"]

    key_pair, key_noise = jax.random.split(jax.random.key(3))
    pair, other = (np.asarray(jax.random.randint(k, (400,), 0, 800)) for k in (key_pair, key_noise))
    phi = np.asarray(representation.phi(params, data.obs[pair], data.action[pair]), np.float64)
    noise, own = (np.asarray(representation.mu(params, data.next_obs[x])) for x in (other, pair))
    np.testing.assert_allclose(found["noise_std"], (phi @ noise.T).mean(axis=1).std(), rtol=1e-4)
    scores = phi @ own.T
    # Rows that were drawn twice tie; a tie is no error.
    first = np.diagonal(scores) >= scores.max(axis=1) * (1.0 - 1e-6)
    np.testing.assert_allclose(found["retrieval"], np.mean(first))
    values = np.linalg.svd(phi / 20.0, compute_uv=False) ** 2
    np.testing.assert_allclose(found["singular_values"], values, rtol=1e-3, atol=1e-6)

    kept = imitation.Pretrained(params, demos.normalizer, demos.fingerprint)
    imitation.save_representation(tmp_path / "features", kept)
    with pytest.raises(ValueError, match="must be empty or new"):
        imitation.save_representation(tmp_path / "features", kept)
    read = imitation.load_representation(
        tmp_path / "features", representation, fingerprint=demos.fingerprint
    )
    jax.tree.map(np.testing.assert_array_equal, read.params, params)
    np.testing.assert_array_equal(read.normalizer.scale, demos.normalizer.scale)
    with pytest.raises(ValueError, match="holds a representation of the data"):
        imitation.load_representation(tmp_path / "features", representation, fingerprint="other")
    wider = imitation.make_representation(4, 1, feature_size=33, hidden=(32, 32))
    with pytest.raises(ValueError, match="layer_2"):
        imitation.load_representation(tmp_path / "features", wider)
    with pytest.raises(FileNotFoundError, match="no representation in"):
        imitation.load_representation(tmp_path / "nowhere", representation)


def test_noise_on_next_states_leaves_the_flag(demos, optax_promotes):
    """Whatever the sigma is, mu sees a flag of 0: its rows of weights for it get no gradient."""
    representation = imitation.make_representation(4, 1, feature_size=8, hidden=(8,))
    algorithm = imitation.make_pretraining(
        imitation.union(demos), representation, smooth_sigma=0.5, batch_size=16
    )
    state = algorithm.init(jax.random.key(0))
    after, _ = jax.jit(algorithm.step)(state)
    before, now = (s.params["mu"]["params"]["layer_0"]["kernel"] for s in (state, after))
    np.testing.assert_array_equal(before[-1], now[-1])
    assert np.all(np.abs(before[:3] - now[:3]) > 0.0)


def test_bad_settings_are_refused_before_tracing(demos):
    data = imitation.union(demos)
    make = imitation.make_representation
    small = make(4, 1, feature_size=8)
    for options, message in (
        ({"loss": "nce"}, "loss must be one of spectral, binary_nce, ranking_nce, got 'nce'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"reg_weight": -1.0}, "reg_weight must not be negative"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            imitation.make_pretraining(data, small, **options)
    with pytest.raises(ValueError, match="feature_size must be at most 64, .* got 65 with batches"):
        imitation.make_pretraining(data, make(4, 1, feature_size=65), batch_size=16)
    with pytest.raises(ValueError, match="feature_size must be at most 800"):
        imitation.make_pretraining(data, make(4, 1, feature_size=1024), batch_size=256)
    with pytest.raises(ValueError, match="representation must be of 4 and 1 numbers"):
        imitation.make_pretraining(data, make(3, 1, feature_size=8))
    with pytest.raises(ValueError, match="must be at least 1, got 4, 1 and 0"):
        make(4, 1, feature_size=0)

"""Policies with states, each held against itself in one state alone, and against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact
from jaxlab.rl import discrete

V, K, S = 3, 3, 4
RNG = np.random.default_rng(0)
SMALL = {"width": 8, "num_layers": 2, "num_heads": 2, "num_prefix": 2}
ALL = exact.sequences(V, K)


def shaken(policy):
    """Random parameters, the head's too, which are zero at first."""
    params = jax.jit(policy.init)(jax.random.key(1))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(
        tree, [x + 0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


@pytest.mark.parametrize("shape", [pytest.param((5,), marks=pytest.mark.slow), (4, 3, 2)])
def test_a_denoiser_of_many_states_is_that_of_each(shape):
    """Candidates before states; masked and shown tokens; images and vectors."""
    policy = discrete.make_state_policy(shape, V, K, **SMALL)
    params = shaken(policy)
    obs = jnp.asarray(RNG.normal(size=(S, np.prod(shape))), jnp.float32)
    tokens = jnp.asarray(RNG.integers(0, V + 1, (2, 5, S, K)), jnp.int32)
    level = jnp.ones(tokens.shape[:-1])

    def one(at):
        obs, tokens = at
        return policy.given(obs).denoise(params)(tokens, jnp.ones(tokens.shape[:-1]))

    found, alone = jax.jit(
        lambda obs: (
            policy.given(obs).denoise(params)(tokens, level),
            jnp.moveaxis(jax.lax.map(one, (obs, jnp.moveaxis(tokens, 2, 0))), 0, 2),
        )
    )(obs)
    assert found.shape == (2, 5, S, K, V)
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)
    assert np.ptp(np.asarray(found[0, 0]), axis=0).min() > 1e-3  # states matter


def test_what_is_written_has_the_probability_that_one_pass_says():
    """The cache behind the state's tokens against whole sequences; all sum to 1 in every state."""
    policy = discrete.make_state_writer((5,), V, K, **SMALL)
    params = shaken(policy)
    obs = jnp.asarray(RNG.normal(size=(S, 5)), jnp.float32)
    changed = ALL.copy()
    changed[:, 2] = (changed[:, 2] + 1) % V

    @jax.jit
    def look(obs):
        here = policy.given(obs)
        tokens, logp = here.sample(jax.random.key(3), params, (4000, S))
        every = jnp.asarray(np.concatenate([ALL, changed]))[:, None]
        every = jnp.broadcast_to(every, (2 * len(ALL), S, K))
        again, laws = jnp.split(here.log_prob(params, jnp.concatenate([tokens, every])), [4000])
        before = jnp.split(here.conditionals(params, every), 2)
        return tokens, logp, again, laws[: len(ALL)], before

    tokens, logp, again, laws, before = look(obs)
    np.testing.assert_allclose(logp, again, rtol=1e-4, atol=1e-5)
    law = np.exp(np.asarray(laws, np.float64))
    np.testing.assert_allclose(law.sum(axis=0), 1.0, rtol=1e-5)
    assert np.abs(law[:, 0] - law[:, 1]).max() > 0.02
    number = np.asarray(exact.number(tokens, V))
    for i in range(S):  # 27 shares of 4000 draws, each within five standard errors
        share = np.bincount(number[:, i], minlength=V**K) / 4000
        assert np.all(np.abs(share - law[:, i]) < 5 * np.sqrt(law[:, i] / 4000) + 1e-3)
    np.testing.assert_allclose(before[0][..., :3, :], before[1][..., :3, :], rtol=1e-6)


def test_heads_see_the_state_and_no_token():
    policy = discrete.make_state_heads((5,), V, K, hidden=(8,))
    params = shaken(policy)
    obs = jnp.asarray(RNG.normal(size=(S, 5)), jnp.float32)
    tokens = jnp.asarray(RNG.integers(0, V + 1, (6, S, K)), jnp.int32)
    logits = policy.given(obs).denoise(params)(tokens, jnp.ones((6, S)))
    assert logits.shape == (6, S, K, V)
    np.testing.assert_array_equal(logits, np.broadcast_to(logits[:1], logits.shape))
    layers, obs = jax.tree.map(np.asarray, (params["params"]["Mlp_0"], obs))
    hidden = np.maximum(obs @ layers["layer_0"]["kernel"] + layers["layer_0"]["bias"], 0.0)
    want = hidden @ layers["layer_1"]["kernel"] + layers["layer_1"]["bias"]
    np.testing.assert_allclose(logits[0], want.reshape(S, K, V), rtol=1e-5, atol=1e-6)


def test_the_encoder_of_images_is_one_convolution_and_a_layer():
    network = discrete.StateEncoder((4, 3, 2), 5, (7,))
    obs = jnp.asarray(RNG.normal(size=(2, 24)), jnp.float32)
    params = network.init(jax.random.key(0), obs[0])["params"]
    found = network.apply({"params": params}, obs)
    params = jax.tree.map(np.asarray, params)
    image, kernel = np.asarray(obs).reshape(2, 4, 3, 2), np.asarray(params["Conv_0"]["kernel"])
    rows = [
        [np.einsum("bhwc,hwco->bo", image[:, i : i + 3, j : j + 3], kernel) for j in range(1)]
        for i in range(2)
    ]
    x = np.maximum(np.asarray(rows).transpose(2, 0, 1, 3) + params["Conv_0"]["bias"], 0.0)
    for name in ("layer_0", "layer_1"):
        layer = params["Mlp_0"][name]
        x = x.reshape(2, -1) @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0.0) if name == "layer_0" else x
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: discrete.make_state_policy((4, 4), V, K), r"obs_shape must be \(O,\) or"),
        (lambda: discrete.make_state_writer((2, 4, 1), V, K), "H and W at least 3, got"),
        (lambda: discrete.make_state_heads((4,), 0, K), "must be at least 1, got"),
        (lambda: discrete.make_state_policy((4,), V, K, num_prefix=0), "must be at least 1, got"),
        (lambda: discrete.make_state_policy((4,), V, K, width=10), "even number times num_heads"),
        (
            lambda: discrete.StateValue((3, 3, 1)).init(jax.random.key(0), jnp.zeros((2, 8))),
            r"states must be \[..., 9\], .* got \(2, 8\)",
        ),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()

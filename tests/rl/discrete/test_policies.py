"""Networks over tokens: what they see, and exact probabilities of the one that writes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact
from jaxlab.rl import discrete

V, K = 3, 3
SMALL = {"width": 16, "num_layers": 2, "num_heads": 2}


def awake(params, seed=0):
    """The same parameters with a head that is not zero."""
    head = jax.random.normal(jax.random.key(seed), params.head.shape)
    return params._replace(head=head)


@pytest.mark.parametrize("make", ["mlp", "transformer"])
def test_a_denoiser_sees_every_visible_token_at_every_place(make):
    if make == "mlp":
        policy = discrete.make_mlp_policy(V, K, hidden=(16,))
        params = jax.jit(policy.init)(jax.random.key(1))
    else:
        policy = discrete.make_transformer_policy(V, K, **SMALL)
        params = awake(jax.jit(policy.init)(jax.random.key(1)))
    tokens = jnp.asarray([[V, 0, V], [V, 1, V], [V, V, V], [0, 0, V]])
    logits = jax.jit(policy.denoise(params))(tokens, jnp.ones(4))
    assert logits.shape == (4, K, V)
    for other in (1, 2, 3):
        assert (jnp.abs(logits[0] - logits[other]).max(axis=-1) > 1e-4).all()


@pytest.mark.parametrize("make", ["mlp", "conv", "transformer", "table", "factored"])
def test_one_hot_tokens_are_read_as_tokens_and_soft_ones_have_gradients(make):
    options = {"mlp": {"hidden": (16,)}, "conv": {"hidden": 8, "repeats": 1}, "transformer": SMALL}
    policy = getattr(discrete, f"make_{make}_policy")(V, K, **options.get(make, {}))
    params = jax.jit(policy.init)(jax.random.key(1))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [x + jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    denoise = jax.jit(policy.denoise(jax.tree.unflatten(tree, leaves)))
    tokens = jnp.asarray([[V, 0, V], [V, 1, 2], [V, V, V], [0, 2, V]])
    soft = jax.nn.one_hot(tokens, V + 1)
    logits = denoise(tokens, jnp.ones(4))
    np.testing.assert_allclose(denoise(soft, jnp.ones(4)), logits, rtol=1e-4, atol=1e-4)
    slope = jax.grad(lambda x: jnp.sum(denoise(x, jnp.ones(4)) ** 2))(soft)
    assert jnp.isfinite(slope).all()
    assert make == "factored" or (jnp.abs(slope).max(axis=-1) > 1e-5).all()


def test_a_table_blends_what_soft_tokens_may_be(x64):
    table = np.random.default_rng(0).normal(size=((V + 1) ** 2, 2, V))
    soft = np.random.default_rng(1).dirichlet(np.ones(V + 1), (5, 2))
    expected = np.einsum("bi,bj,ijkv->bkv", soft[:, 0], soft[:, 1], table.reshape(4, 4, 2, V))
    denoise = exact.table_denoiser(jnp.asarray(table))
    np.testing.assert_allclose(denoise(jnp.asarray(soft), jnp.ones(5)), expected, rtol=1e-12)


def test_a_factored_policy_sees_nothing():
    policy = discrete.make_factored_policy(V, K)
    params = jax.random.normal(jax.random.key(0), (K, V))
    tokens = jnp.asarray(exact.sequences(V + 1, K))
    logits = policy.denoise(params)(tokens, jnp.ones(tokens.shape[0]))
    np.testing.assert_array_equal(logits, np.broadcast_to(params, logits.shape))


def test_a_transformer_starts_even():
    policy = discrete.make_transformer_policy(V, K, **SMALL)
    tokens = jnp.asarray(exact.sequences(V + 1, K))
    logits = policy.denoise(policy.init(jax.random.key(0)))(tokens, jnp.ones(tokens.shape[0]))
    np.testing.assert_array_equal(logits, 0.0)


def test_probabilities_of_what_is_written_are_exact():
    policy = discrete.make_writing_policy(V, K, **SMALL)
    params = awake(jax.jit(policy.init)(jax.random.key(2)))
    log_prob = jax.jit(policy.log_prob)
    law = np.exp(np.asarray(log_prob(params, jnp.asarray(exact.sequences(V, K)))))
    assert law.sum() == pytest.approx(1.0, abs=1e-5) and law.std() > 1e-3
    tokens, logp = jax.jit(lambda key: policy.sample(key, params, (100, 200)))(jax.random.key(3))
    number = np.asarray(exact.number(tokens, V)).ravel()
    np.testing.assert_allclose(np.exp(np.asarray(logp)).ravel(), law[number], rtol=1e-3)
    share = np.bincount(number, minlength=V**K) / number.size
    np.testing.assert_array_less(
        abs(share - law), 5 * np.sqrt(law * (1 - law) / number.size) + 1e-6
    )


def test_what_is_written_depends_on_what_came_before_alone():
    policy = discrete.make_writing_policy(V, K, **SMALL)
    params = awake(jax.jit(policy.init)(jax.random.key(2)))
    log_prob = jax.jit(policy.log_prob)
    logs = np.asarray(log_prob(params, jnp.asarray(exact.sequences(V, K))))
    law = np.exp(logs).reshape(V, V, V)
    first = law.sum(axis=(1, 2))
    assert first.std() > 1e-3  # and not even
    slope = jax.jit(jax.grad(lambda p: policy.log_prob(p, jnp.asarray([[0, 1, 2]]))[0]))(params)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(slope))


@pytest.mark.parametrize(
    "call",
    [
        lambda: discrete.make_mlp_policy(0, 3),
        lambda: discrete.make_table_policy(2, 0),
        lambda: discrete.make_factored_policy(0, 0),
        lambda: discrete.make_transformer_policy(4, 4, num_layers=0),
        lambda: discrete.make_writing_policy(4, 0),
    ],
)
def test_sizes_below_one_are_refused(call):
    with pytest.raises(ValueError, match="at least 1"):
        call()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads"):
        discrete.make_transformer_policy(4, 4, width=20, num_heads=3)

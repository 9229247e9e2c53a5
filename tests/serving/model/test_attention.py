"""Identities between attention layers, and jax.nn's attention as an independent one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxlab.nn.transformer import rotary
from jaxlab.serving.model import attention, factorized, latent

B, T, D = 2, 6, 24
MFA = factorized.MfaConfig(D, 5, 8, 10)
MLA = {"q_rank": 10, "kv_rank": 12, "head_dim": 8, "rope_dim": 4}
LAYERS = {
    "MHA": lambda: attention.make_gqa(D, 4, head_dim=8),
    "GQA": lambda: attention.make_gqa(D, 4, num_kv_heads=2, head_dim=8),
    "MQA": lambda: attention.make_gqa(D, 4, num_kv_heads=1, head_dim=8),
    "MLA": lambda: latent.make_mla(D, 3, **MLA),
    "MLA absorbed": lambda: latent.make_mla(D, 3, absorbed=True, **MLA),
    "MFA": lambda: factorized.make_mfa(MFA),
    "MFA-KR": lambda: factorized.make_mfa(MFA._replace(key_reuse=True)),
    "MFA-KR unabsorbed": lambda: factorized.make_mfa(MFA._replace(key_reuse=True, absorbed=False)),
}


def draw(layer, key):
    """Parameters, with every vector that starts at 0 or 1 moved away from it."""
    params = layer.init(key)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        x + 0.5 * jax.random.normal(k, x.shape, x.dtype) if x.ndim == 1 else x
        for k, x in zip(keys, leaves, strict=True)
    )


@pytest.fixture
def tokens(x64, key):
    x = jax.random.normal(key, (B, T, D), float)
    return x, jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))


@pytest.mark.parametrize("name", LAYERS)
def test_token_by_token_is_all_at_once(name, tokens, key):
    """Without a cache, with one, one token at a time, and with all positions shifted."""
    layer, (x, pos) = LAYERS[name](), tokens

    @jax.jit
    def everything(params):
        whole, _ = layer.apply(params, x, pos)
        prefill, cache = layer.apply(params, x, pos, layer.init_cache(B, 9, float))
        steps, grown = [], layer.init_cache(B, 9, float)
        for t in range(T):
            y, grown = layer.apply(params, x[:, t : t + 1], pos[:, t : t + 1], grown)
            steps.append(y)
        shifted, _ = layer.apply(params, x, pos + 17)
        return whole, prefill, jnp.concatenate(steps, 1), shifted, cache, grown

    whole, prefill, steps, shifted, cache, grown = everything(draw(layer, key))
    for other in (prefill, steps, shifted):
        np.testing.assert_allclose(other, whole, atol=1e-13)
    for a, b in zip(cache, grown, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)
    assert sum(x[0, 0].size for x in cache) == layer.cached


@pytest.mark.parametrize("name, other", [("MLA", "MLA absorbed"), ("MFA-KR", "MFA-KR unabsorbed")])
def test_absorbed_forms_are_the_same_function(name, other, tokens, key):
    x, pos = tokens
    params = draw(LAYERS[name](), key)
    a, b = (jax.jit(LAYERS[n]().apply)(params, x, pos)[0] for n in (name, other))
    np.testing.assert_allclose(a, b, atol=1e-13)


def test_key_reuse_without_gate_is_values_equal_to_keys(tokens, key):
    """At the start of training, MFA-KR is attention whose values are its unrotated keys."""
    x, pos = tokens
    config = MFA._replace(key_reuse=True)
    params = factorized.make_mfa(config).init(key)
    q = factorized.project_q(params, x, pos, config)
    keys = x @ params.key
    rotated = rotary.rotate(keys, pos, theta=config.theta)
    out = attention.attend(q, rotated[:, :, None], keys[:, :, None], pos, pos, scale=config.scale)
    want = jnp.einsum("bthc,hcd->btd", out, params.out)
    np.testing.assert_allclose(factorized.make_mfa(config).apply(params, x, pos)[0], want)


def test_mfa_is_attention_with_one_key_head(key):
    """Against jax.nn, which computes its softmax in float32."""
    layer = factorized.make_mfa(MFA)
    x = jax.random.normal(key, (B, T, D))
    pos = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))

    @jax.jit
    def both(params):
        q = factorized.project_q(params, x, pos, MFA)
        k, v = factorized.project_kv(params, x, pos, MFA)
        out = jax.nn.dot_product_attention(q, k[:, :, None], v[:, :, None], is_causal=True)
        theirs = jnp.einsum("bthc,hcd->btd", out, params.out)
        return layer.apply(params, x, pos)[0], theirs

    np.testing.assert_allclose(*both(draw(layer, key)), atol=1e-5)


def test_mfa_is_mha_with_repeated_keys(tokens, key):
    """Keys and values of one head, written out for all: an ordinary MHA."""
    x, pos = tokens
    config = MFA._replace(inner_norm=False)
    params = draw(factorized.make_mfa(config), key)
    H, C = config.num_heads, config.head_dim
    query = jnp.einsum("dr,rhc->dhc", params.query_down, params.query_up).reshape(D, H * C)
    mha = attention.GqaParams(
        query,
        *(jnp.tile(w, (1, H)) for w in (params.key, params.value)),
        params.out.reshape(H * C, D),
    )
    want, _ = attention.make_gqa(D, H, head_dim=C, theta=config.theta).apply(mha, x, pos)
    got, _ = factorized.make_mfa(config).apply(params, x, pos)
    np.testing.assert_allclose(got, want, atol=1e-13)


def test_norm_commutes_with_the_projection(tokens, key):
    """Queries in one kernel, step by step, with folded weights: the same, gradients too."""
    x, pos = tokens
    params = draw(factorized.make_mfa(MFA), key)
    folded = factorized.fold_norm(params)
    assert folded.query_norm is None and factorized.fold_norm(folded) is folded

    def queries(params, x, **options):
        return factorized.project_q(params, x, pos, MFA, **options)

    want = jax.jit(lambda p, x: queries(p, x, fused=False))(params, x)
    np.testing.assert_allclose(jax.jit(queries)(params, x), want, atol=1e-13)
    np.testing.assert_allclose(jax.jit(queries)(folded, x), want, atol=1e-13)
    np.testing.assert_allclose(
        jax.jit(lambda p, x: queries(p, x, fused=False))(folded, x), want, atol=1e-13
    )
    grads = [
        jax.jit(jax.grad(lambda p, x, f=f: jnp.sum(jnp.sin(queries(p, x, fused=f))), (0, 1)))
        for f in (True, False)
    ]
    for a, b in zip(*(jax.tree.leaves(g(params, x)) for g in grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_rank_of_a_head_is_that_of_its_space(tokens, key):
    """x W_h x' with W_h = S_q Q_h S_k': rank C at most, although x has D dimensions."""
    params = factorized.make_mfa(MFA).init(key)
    for h in range(MFA.num_heads):
        W = params.query_down @ params.query_up[:, h] @ params.key.T
        assert np.linalg.matrix_rank(np.asarray(W)) == MFA.head_dim < D


@pytest.mark.parametrize("spoiled", ["k", "v"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_spoils_later_tokens_alone(spoiled, value, key):
    """Token 9 of 12, one group of two: rows before it are what they were, gradients too."""
    drawn = jax.random.normal(key, (3, 1, 12, 2, 4))
    pos = jnp.arange(12, dtype=jnp.int32)[None]

    def attend(q, k, v):
        return attention.attend(q, k, v, pos, pos, scale=0.5)

    bad = list(drawn)
    index = "qkv".index(spoiled)
    bad[index] = bad[index].at[0, 9, 1, 2].set(value)
    want, got = np.asarray(attend(*drawn)), np.asarray(attend(*bad))
    np.testing.assert_array_equal(got[:, :9], want[:, :9])
    np.testing.assert_array_equal(got[:, :, 0], want[:, :, 0])
    assert np.isnan(got[:, 9:, 1]).all()
    grads = [
        jax.grad(lambda *x: jnp.sum(attend(*x)[:, :9] ** 2), argnums=(0, 1, 2))(*x)
        for x in (drawn, bad)
    ]
    for a, b in zip(*grads, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", ["GQA", "MLA", "MFA", "MFA-KR"])
def test_positions_are_checked(name, key):
    """Concrete ones are refused; traced ones outside leave nothing, and are seen by checkify."""
    layer = LAYERS[name]()
    params, x = layer.init(key), jax.random.normal(key, (1, 3, D))
    pos = jnp.asarray([[0, 1, 2]], jnp.int32)
    for wrong in (pos[:, :1], pos.astype(jnp.float32), jnp.zeros((2, 3), jnp.int32)):
        with pytest.raises(ValueError, match="pos integers"):
            layer.apply(params, x, wrong)
    cache = layer.init_cache(1, 3)
    for wrong in (pos - 1, pos + 1):
        with pytest.raises(ValueError, match="pos must be in 0 to 2"):
            layer.apply(params, x, wrong, cache)
    with pytest.raises(ValueError, match="init_cache"):
        layer.apply(params, x, pos, layer.init_cache(2, 3))
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        layer.init_cache(1, 3, jnp.float8_e4m3fn)
    apply = checkify.checkify(layer.apply, errors=checkify.user_checks)
    error, (_, left) = jax.jit(apply)(params, x, jnp.asarray([[-1, 1, 5]], jnp.int32), cache)
    assert "pos must be in 0 to 2" in error.get()
    for array in left:
        assert np.any(array[0, 1]) and not np.any(array[0, 2]) and not np.any(array[0, 0])


def test_key_reuse_maps_averages_not_the_output_matrix(key):
    """2 H C^2 FLOPs a token; folding the map into the output costs 2 C^2 H D every time."""
    config = factorized.MfaConfig(256, 2, 64, 16, key_reuse=True)
    layer, plain = (
        factorized.make_mfa(config),
        factorized.make_mfa(config._replace(key_reuse=False)),
    )
    x, pos = jnp.ones((1, 1, 256)), jnp.zeros((1, 1), jnp.int32)

    def flops(layer):
        compiled = jax.jit(layer.apply).lower(layer.init(key), x, pos).compile()
        return compiled.cost_analysis()["flops"]

    fold = 2 * 64**2 * 2 * 256
    assert flops(layer) < flops(plain) + fold / 4
    params = draw(layer, key)
    absorbed = factorized.absorb(params)
    assert absorbed.value is None and factorized.absorb(absorbed) is absorbed
    x = jax.random.normal(key, (2, 5, 256))
    pos = jnp.broadcast_to(jnp.arange(5, dtype=jnp.int32), (2, 5))
    want = layer.apply(params, x, pos)[0]
    np.testing.assert_allclose(layer.apply(absorbed, x, pos)[0], want, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="key reuse"):
        factorized.absorb(plain.init(key))


def test_frequencies_are_those_of_double_precision():
    """To half a digit of float32, at any base."""
    for theta in (1e4, 500_000):
        cos, sin = rotary.angles(jnp.ones(1, jnp.int32), 256, theta=theta)
        angle = np.float32(float(theta) ** (-np.arange(128) / 128)).astype(np.float64)
        np.testing.assert_allclose(cos[0], np.cos(angle), atol=1e-7)
        np.testing.assert_allclose(sin[0] / angle, np.sin(angle) / angle, rtol=2e-7)


def test_what_is_masked_may_be_anything(key):
    """NaN behind the own position has no effect; a query that sees nothing gets zero."""
    q, k, v = (jax.random.normal(k, (1, 3, 2, 4)) for k in jax.random.split(key, 3))
    pos = jnp.arange(3, dtype=jnp.int32)[None]
    far = jnp.asarray([[0, 1, 2, 9]], jnp.int32)
    wide = lambda x: jnp.concatenate([x, jnp.full((1, 1, 2, 4), jnp.nan)], 1)  # noqa: E731
    want = attention.attend(q, k, v, pos, pos, scale=0.5)
    got = attention.attend(q, wide(k), wide(v), pos, far, scale=0.5)
    # Three keys and four are two programs, whose sums run in another order on another processor.
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.all(attention.attend(q, k, v, pos, pos + 9, scale=0.5) == 0.0)


def test_sizes_are_checked():
    for make in (
        lambda: attention.make_gqa(24, 4, num_kv_heads=3),
        lambda: attention.make_gqa(24, 5),
        lambda: attention.make_gqa(24, 4, head_dim=7),
        lambda: latent.make_mla(24, 4, rope_dim=3),
        lambda: factorized.init_mfa(jax.random.key(0), MFA._replace(head_dim=7)),
        lambda: factorized.make_mfa(MFA._replace(head_dim=7)),
        lambda: factorized.make_mfa(MFA._replace(depth=0)),
        lambda: factorized.make_mfa(MFA._replace(theta=0.0)),
        lambda: attention.make_gqa(24, 4, theta=-1.0),
        lambda: attention.make_gqa(24, 4, depth=0),
        lambda: latent.make_mla(24, 4, theta=0.0),
        lambda: latent.make_mla(24, 4, depth=0),
    ):
        with pytest.raises(ValueError):
            make()

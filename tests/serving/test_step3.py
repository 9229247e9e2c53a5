"""The whole model: published counts, and decoding from a paged cache against the plain forward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.serving import experts, factorized, paged_cache, quantization, rotary, step3

TINY = step3.TINY


def test_published_number_of_parameters():
    """316 billion, 38 billion active (the recount with embedding and head: 316.29 and 38.84)."""
    total, active = step3.num_parameters(step3.Step3Config())
    assert round(total / 1e9, 2) == 316.29
    assert round(active / 1e9, 2) == 38.84


@pytest.fixture(scope="module")
def model():
    params = step3.init_step3(jax.random.key(0), TINY)
    tokens = jax.random.randint(jax.random.key(1), (3, 21), 0, TINY.vocab)
    return params, tokens, jax.jit(step3.step3_forward, static_argnums=2)(params, tokens, TINY)


@pytest.fixture(scope="module")
def decode():
    return jax.jit(step3.step3_decode_step, static_argnums=3)


def make_cache(dtype=jnp.float32, num_pages=20):
    return step3.init_step3_cache(TINY, num_pages, batch=3, max_pages=6, page=4, dtype=dtype)


@pytest.mark.parametrize(
    "chunks", [[1] * 21, [13, 1, 7], [13, 8]], ids=["tokens", "chunks", "prefill"]
)
def test_decoding_is_the_forward_pass(chunks, model, decode, monkeypatch):
    if len(chunks) == 2:  # more rows than are decoded: the prefill kernel, over pages
        monkeypatch.setattr(step3, "MOST_ROWS", 8)
        decode = jax.jit(lambda *x: step3.step3_decode_step(*x[:3], TINY))
    params, tokens, want = model
    cache, at = make_cache(), 0
    for chunk in chunks:
        logits, cache, done = decode(params, cache, tokens[:, at : at + chunk], TINY)
        np.testing.assert_allclose(logits, want[:, at : at + chunk], atol=2e-4)
        assert done.all()
        at += chunk
    assert np.asarray(cache.lens).tolist() == [21] * 3


def test_forward_is_the_layers_one_after_another(model):
    """Written out with `make_mfa` and a loop over experts: another attention and mixture."""
    params, tokens, want = model
    pos = jnp.broadcast_to(jnp.arange(21, dtype=jnp.int32), tokens.shape)

    @jax.jit
    def plain(params):
        x = params.embedding[tokens]
        for layer, block in enumerate(params.blocks):
            normed = rotary.rms_norm(x, block.attention_norm)
            x = (
                x
                + factorized.make_mfa(TINY.attention(layer)).apply(block.attention, normed, pos)[0]
            )
            normed = rotary.rms_norm(x, block.ffn_norm)
            if layer in TINY.dense_layers:
                x = x + experts.swiglu(block.ffn, normed)
                continue
            prob = jax.nn.softmax(normed @ block.ffn.router, axis=-1)
            least = jax.lax.top_k(prob, TINY.num_active)[0][..., -1:]
            y = experts.swiglu(block.ffn.shared, normed)
            for e in range(TINY.num_experts):
                weights = jax.tree.map(lambda w, e=e: w[e], block.ffn.experts)
                weight = jnp.where(prob >= least, prob, 0.0)[..., e : e + 1]
                y = y + weight * experts.swiglu(weights, normed)
            x = x + y
        return rotary.rms_norm(x, params.norm) @ params.head

    np.testing.assert_allclose(plain(params), want, atol=2e-4)


def test_folded_norms_change_nothing(model, decode):
    params, tokens, want = model
    logits, _, _ = decode(step3.fold_norms(params), make_cache(), tokens, TINY)
    np.testing.assert_allclose(logits, want, atol=2e-4)


def test_requests_are_independent(model, decode):
    """One waits, one shares the prefix of another, one finds no page: the others go on."""
    params, tokens, want = model
    cache = make_cache(num_pages=9)
    active = jnp.asarray([True, False, False])
    _, cache, _ = decode(params, cache, tokens[:, :6], TINY, active=active)
    cache = paged_cache.share(cache, 0, 1)
    mixed = jnp.stack([tokens[0, 6:12], tokens[1, 6:12], tokens[2, 6:12]])
    logits, cache, done = decode(
        params, cache, mixed, TINY, active=jnp.asarray([True, True, False])
    )
    assert done.tolist() == [True, True, False]
    np.testing.assert_allclose(logits[0], want[0, 6:12], atol=2e-4)
    branch = jnp.concatenate([tokens[0, :6], tokens[1, 6:12]])[None]
    other = jax.jit(step3.step3_forward, static_argnums=2)(params, branch, TINY)
    np.testing.assert_allclose(logits[1], other[0, 6:], atol=2e-4)
    before = np.asarray(cache.lens)
    logits, cache, done = decode(params, cache, tokens[:, :17], TINY)
    assert not done.all() and np.asarray(cache.lens)[~np.asarray(done)].tolist() == (
        before[~np.asarray(done)].tolist()
    )


@pytest.mark.parametrize(
    "dtype, least, most",
    [(jnp.bfloat16, 1e-4, 0.02), (quantization.FP8, 1e-3, 0.1)],
    ids=["bfloat16", "float8"],
)
def test_a_narrow_cache_is_close(dtype, least, most, model, decode):
    """Rounding keys and values shows, and costs 0.3 % a value in 16 bits, 2.6 % in eight."""
    params, tokens, want = model
    logits, _, _ = decode(params, make_cache(dtype), tokens, TINY)
    error = np.sqrt(np.mean((np.asarray(logits) - want) ** 2) / np.mean(np.asarray(want) ** 2))
    assert least < error < most


def test_gradients_reach_every_weight(model):
    params, tokens, _ = model

    @jax.jit
    def grads(params):
        def loss(params):
            logits = step3.step3_forward(params, tokens[:, :-1], TINY)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
            return -jnp.mean(picked)

        return jax.grad(loss)(params)

    for path, g in jax.tree_util.tree_leaves_with_path(grads(params)):
        assert np.isfinite(g).all() and np.abs(g).max() > 0.0, jax.tree_util.keystr(path)


def test_layers_are_checked():
    with pytest.raises(ValueError, match="dense_layers"):
        step3.init_step3(jax.random.key(0), TINY._replace(dense_layers=(7,)))

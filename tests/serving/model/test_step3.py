"""The whole model: published counts, and decoding from a paged cache against the plain forward."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from scipy.special import softmax

from jaxlab.kernels import compat
from jaxlab.nn import transformer
from jaxlab.serving.cache import paged_cache, quantization
from jaxlab.serving.model import experts, factorized, step3

TINY = step3.TINY
SHALLOW = TINY._replace(num_layers=2, dense_layers=(0,))
"""A layer of each kind, which compile in half the time."""


def test_published_number_of_parameters():
    """316 billion, 38 billion active (the recount with embedding and head: 316.29 and 38.84)."""
    total, active = step3.num_parameters(step3.Step3Config())
    assert round(total / 1e9, 2) == 316.29
    assert round(active / 1e9, 2) == 38.84


@pytest.fixture(scope="module")
def model():
    params = step3.init_step3(jax.random.key(0), SHALLOW)
    tokens = jax.random.randint(jax.random.key(1), (3, 21), 0, SHALLOW.vocab)
    return params, tokens, jax.jit(step3.step3_forward, static_argnums=2)(params, tokens, SHALLOW)


@pytest.fixture(scope="module")
def decode():
    return jax.jit(step3.step3_decode_step, static_argnums=3)


def make_cache(dtype=jnp.float32, num_pages=20):
    return step3.init_step3_cache(SHALLOW, num_pages, batch=3, max_pages=6, page=4, dtype=dtype)


@pytest.mark.parametrize(
    "chunks", [[1] * 21, [13, 1, 7], [13, 8]], ids=["tokens", "chunks", "prefill"]
)
def test_decoding_is_the_forward_pass(chunks, model, decode, monkeypatch):
    if len(chunks) == 2:  # more rows than are decoded: the prefill kernel, over pages
        monkeypatch.setattr(step3, "MOST_ROWS", 8)
        decode = jax.jit(lambda *x: step3.step3_decode_step(*x[:3], SHALLOW))
    params, tokens, want = model
    cache, at = make_cache(), 0
    for chunk in chunks:
        logits, cache, done = decode(params, cache, tokens[:, at : at + chunk], SHALLOW)
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
            normed = transformer.rms_norm(x, block.attention_norm)
            x = (
                x
                + factorized.make_mfa(SHALLOW.attention(layer)).apply(block.attention, normed, pos)[
                    0
                ]
            )
            normed = transformer.rms_norm(x, block.ffn_norm)
            if layer in SHALLOW.dense_layers:
                x = x + experts.swiglu(block.ffn, normed)
                continue
            prob = jax.nn.softmax(normed @ block.ffn.router, axis=-1)
            least = jax.lax.top_k(prob, SHALLOW.num_active)[0][..., -1:]
            y = experts.swiglu(block.ffn.shared, normed)
            for e in range(SHALLOW.num_experts):
                weights = jax.tree.map(lambda w, e=e: w[e], block.ffn.experts)
                weight = jnp.where(prob >= least, prob, 0.0)[..., e : e + 1]
                y = y + weight * experts.swiglu(weights, normed)
            x = x + y
        return transformer.rms_norm(x, params.norm) @ params.head

    np.testing.assert_allclose(plain(params), want, atol=2e-4)


def test_folded_norms_change_nothing(model, decode):
    params, tokens, want = model
    logits, _, _ = decode(step3.fold_norms(params), make_cache(), tokens, SHALLOW)
    np.testing.assert_allclose(logits, want, atol=2e-4)


def test_requests_are_independent(model, decode):
    """One waits, one shares the prefix of another, one finds no page: the others go on."""
    params, tokens, want = model
    cache = make_cache(num_pages=9)
    active = jnp.asarray([True, False, False])
    _, cache, _ = decode(params, cache, tokens[:, :6], SHALLOW, active=active)
    cache = paged_cache.share(cache, 0, 1)
    mixed = jnp.stack([tokens[0, 6:12], tokens[1, 6:12], tokens[2, 6:12]])
    logits, cache, done = decode(
        params, cache, mixed, SHALLOW, active=jnp.asarray([True, True, False])
    )
    assert done.tolist() == [True, True, False]
    np.testing.assert_allclose(logits[0], want[0, 6:12], atol=2e-4)
    branch = jnp.concatenate([tokens[0, :6], tokens[1, 6:12]])[None]
    other = jax.jit(step3.step3_forward, static_argnums=2)(params, branch, SHALLOW)
    np.testing.assert_allclose(logits[1], other[0, 6:], atol=2e-4)
    before = np.asarray(cache.lens)
    logits, cache, done = decode(params, cache, tokens[:, :17], SHALLOW)
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
    logits, _, _ = decode(params, make_cache(dtype), tokens, SHALLOW)
    error = np.sqrt(np.mean((np.asarray(logits) - want) ** 2) / np.mean(np.asarray(want) ** 2))
    assert least < error < most


def test_gradients_reach_every_weight(model):
    params, tokens, _ = model

    @jax.jit
    def grads(params):
        def loss(params):
            logits = step3.step3_forward(params, tokens[:, :-1], SHALLOW)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
            return -jnp.mean(picked)

        return jax.grad(loss)(params)

    for path, g in jax.tree_util.tree_leaves_with_path(grads(params)):
        assert np.isfinite(g).all() and np.abs(g).max() > 0.0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dense_layers": (7,)}, "dense_layers"),
        ({"num_active": 9}, "num_active must be at most num_experts, got 9 of 8"),
        ({"expert_hidden": 0}, "expert_hidden must be at least 1"),
    ],
)
def test_configurations_are_checked(change, message):
    for make in (lambda config: step3.init_step3(jax.random.key(0), config), step3.num_parameters):
        with pytest.raises(ValueError, match=message):
            make(TINY._replace(**change))
    with pytest.raises(ValueError, match="key_reuse must be False"):
        step3.init_step3_cache(TINY, 4, batch=1, max_pages=2, key_reuse=True)


MICRO = step3.Step3Config(
    vocab=16,
    num_layers=3,
    d_model=12,
    num_heads=2,
    head_dim=16,
    q_rank=6,
    dense_layers=(1,),
    dense_hidden=8,
    num_experts=4,
    num_active=2,
    expert_hidden=5,
)


def forward_in_numpy(params, tokens, config):
    """The whole model in float64 loops over heads and experts."""
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    T, C = tokens.shape[1], config.head_dim
    angle = np.arange(T)[:, None] * config.theta ** (-np.arange(C // 2) / (C // 2))
    causal = np.tril(np.ones((T, T), bool))

    def norm(x, weight):
        return weight * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.eps)

    def rotate(x):
        a, b = np.split(x, 2, -1)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def swiglu(gate, up, down, x):
        hidden = x @ gate
        return (hidden / (1.0 + np.exp(-hidden)) * (x @ up)) @ down

    x = params.embedding[np.asarray(tokens)]
    for layer, block in enumerate(params.blocks):
        y, w = norm(x, block.attention_norm), block.attention
        low, k, v = norm(y @ w.query_down, w.query_norm), rotate(y @ w.key), y @ w.value
        for h in range(config.num_heads):
            scores = rotate(low @ w.query_up[:, h]) @ k.swapaxes(1, 2) / np.sqrt(C)
            weight = softmax(np.where(causal, scores, -np.inf), axis=-1)
            x = x + weight @ v @ w.out[h]
        y = norm(x, block.ffn_norm)
        if layer in config.dense_layers:
            x = x + swiglu(*block.ffn, y)
            continue
        prob = softmax(y @ block.ffn.router, axis=-1)
        least = np.sort(prob, -1)[..., -config.num_active][..., None]
        x = x + swiglu(*block.ffn.shared, y)
        for e in range(config.num_experts):
            weight = np.where(prob >= least, prob, 0.0)[..., e : e + 1]
            x = x + weight * swiglu(*(m[e] for m in block.ffn.experts), y)
    return norm(x, params.norm) @ params.head


def test_forward_in_double_precision(x64, key):
    params = step3.init_step3(key, MICRO)
    tokens = jax.random.randint(key, (2, 7), 0, MICRO.vocab)
    got = jax.jit(step3.step3_forward, static_argnums=2)(params, tokens, MICRO)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, forward_in_numpy(params, tokens, MICRO), atol=1e-12)


def test_narrow_parameters_give_wide_logits(key):
    """Drawn weights are rounded; logits are in float32 and close to those of the numbers drawn."""
    wide, params = (step3.init_step3(key, MICRO, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    for a, b in zip(jax.tree.leaves(wide), jax.tree.leaves(params), strict=True):
        assert b.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)
    tokens = jax.random.randint(key, (2, 7), 0, MICRO.vocab)
    got = jax.jit(step3.step3_forward, static_argnums=2)(params, tokens, MICRO)
    assert got.dtype == jnp.float32
    assert not np.array_equal(got, got.astype(jnp.bfloat16).astype(jnp.float32))
    want = forward_in_numpy(wide, tokens, MICRO)
    assert np.sqrt(np.mean((np.asarray(got) - want) ** 2) / np.mean(want**2)) < 0.1


def test_prompts_of_unequal_lengths_are_padded_and_cut(model, decode):
    """Prompts of 6, 3 and 1 tokens in one step; what follows is as if there had been no padding."""
    params, tokens, want = model
    lens = jnp.asarray([6, 3, 1], jnp.int32)
    padded = jnp.where(jnp.arange(6)[None] < lens[:, None], tokens[:, :6], 0)
    logits, cache, _ = decode(params, make_cache(), padded, SHALLOW)
    cache = paged_cache.truncate(cache, lens)
    for b, n in enumerate((6, 3, 1)):
        np.testing.assert_allclose(logits[b, :n], want[b, :n], atol=2e-4)
    following = jnp.take_along_axis(tokens, lens[:, None], axis=1)
    logits, cache, _ = decode(params, cache, following, SHALLOW)
    assert cache.lens.tolist() == [7, 4, 2]
    for b, n in enumerate((6, 3, 1)):
        np.testing.assert_allclose(logits[b, 0], want[b, n], atol=2e-4)


def test_a_step_is_compiled_once(model):
    params, tokens, _ = model
    step = chex.assert_max_traces(lambda *x: step3.step3_decode_step(*x, SHALLOW), n=1)
    step, cache = jax.jit(step, donate_argnums=1), make_cache()
    for t in range(5):  # across a page
        active = jnp.asarray([True, t % 2 == 0, False])
        _, cache, _ = step(params, cache, tokens[:, t : t + 1])
        cache = paged_cache.truncate(cache, jnp.where(active, 9, 0))


@pytest.mark.parametrize("num_tokens", [1, 40], ids=["decode", "chunk"])
def test_implementations_are_not_ignored(num_tokens):
    """8 heads: 40 tokens are more rows than are decoded."""
    params = jax.eval_shape(lambda: step3.init_step3(jax.random.key(0), SHALLOW))
    tokens = jax.ShapeDtypeStruct((3, num_tokens), jnp.int32)

    def run(impl):
        return jax.eval_shape(
            lambda p, c, t: step3.step3_decode_step(p, c, t, SHALLOW, impl=impl),
            params,
            jax.eval_shape(make_cache),
            tokens,
        )

    for impl in ("mosaic_gpu", "mosaic_tpu", "triton"):
        with pytest.raises(NotImplementedError, match=impl):
            run(impl)
    with pytest.raises(ValueError, match="impl must be one of"):
        run("quick")
    assert run("xla")[0].shape == (3, num_tokens, SHALLOW.vocab)


def test_a_step_on_hopper_makes_one_plan_for_all_layers(monkeypatch):
    """Lowered for a GPU that this machine need not have."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compat, "compute_capability", lambda: 9.0)
    monkeypatch.setattr(compat, "num_processors", lambda: 132)
    config = SHALLOW._replace(num_layers=3, head_dim=64, dense_layers=(0, 1, 2))
    params = jax.eval_shape(lambda: step3.init_step3(jax.random.key(0), config, dtype=jnp.bfloat16))
    cache = jax.eval_shape(lambda: step3.init_step3_cache(config, 9, batch=3, max_pages=4, page=64))
    tokens = jax.ShapeDtypeStruct((3, 1), jnp.int32)

    def step(params, cache, tokens):
        return step3.step3_decode_step(params, cache, tokens, config, impl="mosaic_gpu")

    with compat.target():
        lowered = jax.jit(step).trace(params, cache, tokens).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert text.count("call @_divided") == 1
    assert text.count("mosaic_gpu") >= 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_layers": 3, "dense_layers": (0,)}, "params have 4 layers, the configuration 3"),
        ({"head_dim": 16}, r"query_up must be \(64, 8, 16\)"),
        ({"d_model": 64}, "embedding must be"),
        ({"vocab": 8}, "embedding must be"),
        ({"num_experts": 4}, "router must be"),
        ({"dense_layers": (0,)}, r"blocks\[3\] must have experts"),
    ],
)
def test_parameters_of_another_model_are_refused(change, message):
    params = jax.eval_shape(lambda: step3.init_step3(jax.random.key(0), TINY))
    tokens = jax.ShapeDtypeStruct((3, 1), jnp.int32)
    other = TINY._replace(**change)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p, t: step3.step3_forward(p, t, other), params, tokens)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda p, c, t: step3.step3_decode_step(p, c, t, other),
            params,
            jax.eval_shape(make_cache),
            tokens,
        )


@pytest.mark.parametrize(
    "options, requests, message",
    [
        ({"num_layers": 5}, 3, "keys and values of 4 layers of 32 dimensions, got 5 of 32"),
        ({"head_dim": 64}, 3, "got 4 of 64"),
        ({"key_reuse": True}, 3, "no values"),
        ({}, 2, "tokens are of 2 requests, the cache of 3"),
    ],
)
def test_caches_of_another_model_are_refused(options, requests, message):
    params = jax.eval_shape(lambda: step3.init_step3(jax.random.key(0), TINY))
    sizes = {"num_layers": 4, "num_pages": 9, "head_dim": 32, "batch": 3, "max_pages": 6, "page": 4}
    cache = jax.eval_shape(lambda: paged_cache.init_cache(**{**sizes, **options}))
    tokens = jax.ShapeDtypeStruct((requests, 1), jnp.int32)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda p, c, t: step3.step3_decode_step(p, c, t, TINY), params, cache, tokens
        )


def test_tokens_are_of_the_vocabulary(model):
    params, tokens, _ = model
    for wrong in (SHALLOW.vocab, -1):
        bad = tokens.at[1, 2].set(wrong)
        for run in (
            lambda t: step3.step3_forward(params, t, SHALLOW),
            lambda t: step3.step3_decode_step(params, make_cache(), t, SHALLOW),
        ):
            with pytest.raises(ValueError, match="tokens must be in 0 to 511, the vocabulary"):
                run(bad)
    with pytest.raises(ValueError, match="tokens must be integers"):
        step3.step3_forward(params, tokens[0], SHALLOW)
    forward = checkify.checkify(
        lambda p, t: step3.step3_forward(p, t, MICRO), errors=checkify.user_checks
    )
    params = step3.init_step3(jax.random.key(0), MICRO)
    error, _ = jax.jit(forward)(params, jnp.full((1, 2), MICRO.vocab))
    assert "tokens must be in 0 to 15" in error.get()

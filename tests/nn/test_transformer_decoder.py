"""The scanned decoder against NumPy in float64, its own layers one by one, and its cache."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.test_util import check_grads

from jaxlab.nn import transformer
from jaxlab.nn.transformer import BlockConfig, DecoderConfig

BLOCK = BlockConfig(d_model=12, num_heads=4, num_kv_heads=2, head_dim=6, hidden=10, theta=100.0)
CONFIG = DecoderConfig(vocab=11, num_layers=2, block=BLOCK)
CONFIGS = {
    "tied": CONFIG,
    "untied": CONFIG._replace(tied=False),
    "interleaved": CONFIG._replace(block=BLOCK._replace(layout="interleaved", num_kv_heads=1)),
}


def away_from_one(params, key):
    """Parameters whose norms have weights of their own."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        x + 0.3 * jax.random.normal(k, x.shape, x.dtype) if np.all(x == 1.0) else x
        for k, x in zip(keys, leaves, strict=True)
    )


def in_numpy(params, tokens, config):
    """Logits of one row in float64: loops over layers, tokens and heads, complex rotations."""
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
    block, half = config.block, config.block.head_dim // 2
    T = len(tokens)
    wave = block.theta ** (-np.arange(half) / half)

    def norm(x, weight):
        return weight * x / np.sqrt(np.mean(x**2) + block.eps)

    def rotate(x, t):
        even = block.layout == "interleaved"
        z = x[::2] + 1j * x[1::2] if even else x[:half] + 1j * x[half:]
        z = z * np.exp(1j * t * wave)
        return np.stack([z.real, z.imag], -1).ravel() if even else np.append(z.real, z.imag)

    x = params.embedding[np.asarray(tokens)]
    for layer in range(config.num_layers):
        b = jax.tree.map(lambda w, layer=layer: w[layer], params.blocks)
        y = [norm(row, b.attention_norm) for row in x]
        heads = {}
        for name, count in (("query", block.num_heads), ("key", block.num_kv_heads)):
            drawn = [(row @ getattr(b.attention, name)).reshape(count, -1) for row in y]
            heads[name] = [[rotate(h, t) for h in drawn[t]] for t in range(T)]
        value = [(row @ b.attention.value).reshape(block.num_kv_heads, -1) for row in y]
        attended = []
        for t in range(T):
            out = []
            for h in range(block.num_heads):
                g = h * block.num_kv_heads // block.num_heads
                score = [heads["query"][t][h] @ heads["key"][s][g] for s in range(t + 1)]
                weight = np.exp(np.array(score) / np.sqrt(block.head_dim))
                out.append(sum(w * value[s][g] for s, w in enumerate(weight)) / weight.sum())
            attended.append(np.concatenate(out) @ b.attention.out)
        x = x + np.array(attended)
        y = np.array([norm(row, b.ffn_norm) for row in x])
        a = y @ b.ffn.gate
        x = x + (a / (1.0 + np.exp(-a)) * (y @ b.ffn.up)) @ b.ffn.down
    head = params.embedding.T if params.head is None else params.head
    return np.array([norm(row, params.norm) for row in x]) @ head


@pytest.mark.parametrize("name", CONFIGS)
def test_forward_in_double_precision(name, x64, key):
    config = CONFIGS[name]
    params = away_from_one(transformer.init(key, config), key)
    tokens = jax.random.randint(key, (2, 7), 0, config.vocab)
    got = jax.jit(transformer.forward, static_argnums=2)(params, tokens, config)
    assert got.dtype == jnp.float64
    for row, logits in zip(np.asarray(tokens), got, strict=True):
        np.testing.assert_allclose(logits, in_numpy(params, row, config), atol=1e-12)


@pytest.fixture(scope="module")
def model():
    """Float32 parameters, tokens `[3, 9]` and their logits."""
    key = jax.random.key(5)
    params = away_from_one(transformer.init(key, CONFIG), key)
    tokens = jax.random.randint(key, (3, 9), 0, CONFIG.vocab)
    return params, tokens, jax.jit(transformer.forward, static_argnums=2)(params, tokens, CONFIG)


@pytest.fixture(scope="module")
def decode():
    return jax.jit(transformer.decode, static_argnums=4)


def unrolled(params, tokens, config):
    """One layer after another, without a scan."""
    block = config.block
    pos = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    mask = transformer.causal_mask(pos, pos)
    x = params.embedding[tokens]
    for layer in range(config.num_layers):
        b = jax.tree.map(lambda w, layer=layer: w[layer], params.blocks)
        normed = transformer.rms_norm(x, b.attention_norm, eps=block.eps)
        q, k, v = transformer.project_qkv(
            b.attention, normed, pos, head_dim=block.head_dim, theta=block.theta
        )
        out = transformer.attend(q, k, v, mask, scale=block.head_dim**-0.5)
        x = x + out.reshape(*x.shape[:-1], -1) @ b.attention.out
        x = x + transformer.swiglu(b.ffn, transformer.rms_norm(x, b.ffn_norm, eps=block.eps))
    return transformer.readout(x, params.norm, params.embedding.T, eps=block.eps)


def test_scanned_is_unrolled(model):
    """Logits of order one, and gradients, in float32."""
    params, tokens, want = model
    np.testing.assert_allclose(
        want, jax.jit(unrolled, static_argnums=2)(params, tokens, CONFIG), atol=1e-6, rtol=1e-6
    )

    def loss(forward):
        def f(params):
            return jnp.mean(jnp.sin(forward(params, tokens, CONFIG)))

        return jax.jit(jax.grad(f))(params)

    got = loss(lambda *x: transformer.forward(*x, remat=True))
    plain, loop = loss(transformer.forward), loss(unrolled)
    for a, b, c in zip(*(jax.tree.leaves(g) for g in (got, plain, loop)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
        np.testing.assert_allclose(b, c, atol=1e-7)


def count_equations(jaxpr):
    total = 0
    for eqn in jaxpr.eqns:
        inner = [x for v in eqn.params.values() for x in (v if isinstance(v, tuple) else (v,))]
        inner = [getattr(x, "jaxpr", x) for x in inner]
        total += 1 + sum(count_equations(x) for x in inner if hasattr(x, "eqns"))
    return total


def test_thirty_layers_are_traced_like_one():
    """Forward, gradient and decoding: as many equations, however deep."""
    sizes = set()
    for depth in (1, 2, 30):
        config = CONFIG._replace(num_layers=depth)
        params = jax.eval_shape(lambda c=config: transformer.init(jax.random.key(0), c))
        cache = jax.eval_shape(lambda c=config: transformer.init_cache(c, 2, 8))
        tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)

        def loss(params, tokens, c=config):
            return jnp.sum(transformer.forward(params, tokens, c, remat=True))

        def step(params, cache, tokens, c=config):
            return transformer.decode(params, cache, tokens, tokens, c)

        sizes.add(
            (
                count_equations(jax.make_jaxpr(loss)(params, tokens).jaxpr),
                count_equations(jax.make_jaxpr(jax.grad(loss))(params, tokens).jaxpr),
                count_equations(jax.make_jaxpr(step)(params, cache, tokens).jaxpr),
            )
        )
    assert len(sizes) == 1 and min(*sizes) > 50


@pytest.mark.parametrize("chunks", [[9], [4, 1, 4], [1] * 9], ids=["prompt", "chunks", "tokens"])
def test_decoding_is_the_forward_pass(chunks, model, decode):
    params, tokens, want = model
    cache, at = transformer.init_cache(CONFIG, 3, 12), 0
    for n in chunks:
        pos = jnp.broadcast_to(jnp.arange(at, at + n, dtype=jnp.int32), (3, n))
        logits, cache = decode(params, cache, tokens[:, at : at + n], pos, CONFIG)
        np.testing.assert_allclose(logits, want[:, at : at + n], atol=2e-6)
        at += n
    assert all(np.all(x[:, :, 9:] == 0.0) for x in cache)


def test_rows_of_a_batch_have_lengths_of_their_own(model, decode):
    """Prompts of 6, 3 and 1 tokens, padded on the left; then one token a row, one row idle."""
    params, tokens, want = model
    lens = np.array([6, 3, 1])
    is_token = jnp.asarray(np.arange(6) >= 6 - lens[:, None])
    padded = np.zeros((3, 6), np.int32)
    for b, n in enumerate(lens):
        padded[b, 6 - n :] = tokens[b, :n]
    pos = transformer.positions(is_token)
    whole = jax.jit(transformer.forward, static_argnums=2)(params, padded, CONFIG, pos=pos)
    logits, cache = decode(params, transformer.init_cache(CONFIG, 3, 9), padded, pos, CONFIG)
    assert np.isfinite(logits).all() and np.isfinite(whole).all()
    for b, n in enumerate(lens):
        np.testing.assert_allclose(logits[b, 6 - n :], want[b, :n], atol=2e-6)
        np.testing.assert_allclose(whole[b, 6 - n :], want[b, :n], atol=2e-6)
    for step in range(3):
        at = np.where(np.arange(3) == 1, -1, lens + step)[:, None]
        token = np.take_along_axis(np.asarray(tokens), lens[:, None] + step, axis=1)
        logits, cache = decode(params, cache, token, jnp.asarray(at, jnp.int32), CONFIG)
        for b in (0, 2):
            np.testing.assert_allclose(logits[b, 0], want[b, lens[b] + step], atol=2e-6)
    # A row that is begun anew does not see what was there.
    pos = jnp.arange(2, dtype=jnp.int32)[None].repeat(3, axis=0)
    logits, _ = decode(params, cache, tokens[:, :2], pos, CONFIG)
    np.testing.assert_allclose(logits, want[:, :2], atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_positions_in_eight_bits_reach_all_of_a_cache(dtype, model, decode):
    """Padding and prompt: nothing is written to slots that wrap around."""
    params, tokens, want = model
    pos = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32), (3, 9))
    if dtype == jnp.int8:
        pos = pos.at[2].set(-1)
    cache = transformer.init_cache(CONFIG, 3, 300)
    logits, cache = decode(params, cache, tokens, pos.astype(dtype), CONFIG)
    np.testing.assert_allclose(logits[:2], want[:2], atol=2e-6)
    assert all(np.all(x[:, :, 9:] == 0.0) for x in cache)
    assert all(np.all((x[:, 2] == 0.0) == (dtype == jnp.int8)) for x in (cache[0][:, :, :9],))


def test_padding_has_no_gradient(key):
    """The loss of rows with padding is that of the rows without, and so is its gradient."""
    config = CONFIGS["untied"]
    params = transformer.init(key, config)
    tokens = jax.random.randint(key, (4,), 1, config.vocab)
    padded = jnp.concatenate([jnp.zeros(3, tokens.dtype), tokens])
    pos = jnp.asarray([-1, -1, -1, 0, 1, 2, 3], jnp.int32)
    grads = [
        jax.jit(jax.grad(lambda p, f=f: jnp.sum(jnp.sin(f(p)))))(params)
        for f in (
            lambda p: transformer.forward(p, padded, config, pos=pos)[3:],
            lambda p: transformer.forward(p, tokens, config),
        )
    ]
    for a, b in zip(*(jax.tree.leaves(g) for g in grads), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.all(grads[0].embedding[0] == 0.0)


def test_gradients_by_differences(x64, key):
    """Through the scan, with and without recomputation."""
    params = transformer.init(key, CONFIG)
    tokens = jax.random.randint(key, (1, 5), 0, CONFIG.vocab)
    for remat in (False, True):
        f = jax.jit(
            lambda p, r=remat: jnp.mean(transformer.forward(p, tokens, CONFIG, remat=r) ** 2)
        )
        check_grads(f, (params,), order=1, modes=("rev",), atol=1e-6, rtol=1e-6, eps=1e-6)


def test_recomputation_keeps_less():
    """What a backward pass needs of the forward: the input of each block instead of all inside."""
    params = jax.eval_shape(lambda: transformer.init(jax.random.key(0), CONFIG))
    tokens = jax.ShapeDtypeStruct((2, 32), jnp.int32)

    def kept(remat):
        def pullback(params, tokens):
            return jax.vjp(lambda p: transformer.forward(p, tokens, CONFIG, remat=remat), params)[1]

        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(pullback, params, tokens)))

    assert kept(True) < kept(False) / 4


def test_a_bidirectional_trunk_does_not_know_the_order(key):
    """Under a mask of True and positions 0, tokens are a set: order them otherwise, and back."""
    blocks = transformer.init_blocks(key, 3, BLOCK)
    x = jax.random.normal(key, (7, BLOCK.d_model))
    pos, mask = jnp.zeros(7, jnp.int32), jnp.ones((7, 7), bool)
    trunk = jax.jit(lambda x, pos: transformer.apply_blocks(blocks, x, pos, mask, BLOCK)[0])
    order = np.random.default_rng(0).permutation(7)
    np.testing.assert_allclose(trunk(x[order], pos), trunk(x, pos)[order], atol=1e-5)
    turned = trunk(x, jnp.arange(7, dtype=jnp.int32))
    assert np.abs(turned - trunk(x, pos)).max() > 1e-2
    # The first token sees the last.
    other = trunk(x.at[6].add(1.0), pos)
    assert np.abs(other[0] - trunk(x, pos)[0]).max() > 1e-3


def test_models_side_by_side_are_a_loop(key):
    params = jax.vmap(lambda k: transformer.init(k, CONFIG))(jax.random.split(key, 3))
    tokens = jax.random.randint(key, (3, 6), 0, CONFIG.vocab)
    forward = jax.jit(jax.vmap(lambda p, t: transformer.forward(p, t, CONFIG)))
    got = forward(params, tokens)
    one = jax.jit(lambda p, t: transformer.forward(p, t, CONFIG))
    for i in range(3):
        want = one(jax.tree.map(lambda w, i=i: w[i], params), tokens[i])
        np.testing.assert_allclose(got[i], want, atol=2e-6)


def test_narrow_parameters_give_wide_logits(model, decode):
    """Weights in bfloat16, norms in float32: the error of eight digits a product."""
    wide, tokens, want = model
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), wide)
    params = params._replace(norm=wide.norm)
    got = jax.jit(transformer.forward, static_argnums=2)(params, tokens, CONFIG)
    assert got.dtype == jnp.float32
    error = np.sqrt(np.mean((np.asarray(got) - want) ** 2) / np.mean(np.asarray(want) ** 2))
    assert 1e-4 < error < 0.03
    cache = transformer.init_cache(CONFIG, 3, 9, dtype=jnp.bfloat16)
    pos = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32), (3, 9))
    logits, cache = decode(params, cache, tokens, pos, CONFIG)
    assert logits.dtype == jnp.float32 and cache[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(logits, got, atol=0.05 * np.abs(want).max())


def test_tied_and_untied_start_as_the_same_function(x64, key):
    """Up to the head: a stream drawn D^-1/2 times smaller has the same direction everywhere."""
    block = BLOCK._replace(eps=1e-20)
    tied, untied = (DecoderConfig(200, 3, block, tied) for tied in (True, False))
    tokens = jnp.arange(200, dtype=jnp.int32).reshape(20, 10)
    streams = []
    for config in (tied, untied):
        params = transformer.init(key, config)
        pos = jnp.broadcast_to(jnp.arange(10, dtype=jnp.int32), (20, 10))
        x, _ = transformer.hidden(params, tokens, pos, config)
        streams.append(transformer.rms_norm(x, params.norm, eps=1e-20))
        spread = np.std(transformer.logits(params, x, config))
        assert 0.8 < spread < 1.25, spread
    np.testing.assert_allclose(*streams, atol=1e-9)


def test_a_step_is_compiled_once_and_writes_in_place(model):
    params, tokens, _ = model
    config = CONFIG._replace(num_layers=8)
    params = transformer.init(jax.random.key(0), config)
    step = chex.assert_max_traces(lambda *x: transformer.decode(*x, config), n=1)
    step, cache = jax.jit(step, donate_argnums=1), transformer.init_cache(config, 3, 256)
    for t in range(3):
        pos = jnp.full((3, 1), t, jnp.int32)
        _, cache = step(params, cache, tokens[:, t : t + 1], pos)
    # Room for one layer's keys and values, not for those of all.
    analysis = jax.jit(lambda *x: transformer.decode(*x, config), donate_argnums=1)
    memory = analysis.lower(params, cache, tokens[:, :1], pos).compile().memory_analysis()
    assert memory.temp_size_in_bytes < cache[0].nbytes


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads, got 3 and 4"),
        ({"head_dim": 5}, "head_dim must be even, got 5"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"theta": 0.0}, "theta must be positive, got 0.0"),
        ({"eps": float("nan")}, "eps must be positive, got nan"),
        ({"layout": "neox"}, 'layout must be "half" or "interleaved"'),
    ],
)
def test_configurations_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        transformer.init(jax.random.key(0), CONFIG._replace(block=BLOCK._replace(**change)))
    for wrong in ({"vocab": 0}, {"num_layers": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            transformer.init(jax.random.key(0), CONFIG._replace(**wrong))


def test_what_does_not_belong_together_is_refused(model):
    params, tokens, _ = model
    pos = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32), (3, 9))
    cache = transformer.init_cache(CONFIG, 3, 9)

    def forward(config=CONFIG, params=params, tokens=tokens, pos=pos, cache=None):
        return transformer.hidden(params, tokens, pos, config, cache=cache)

    narrow = params._replace(embedding=params.embedding.astype(jnp.bfloat16))
    for wrong, message in (
        ({"config": CONFIG._replace(vocab=5)}, r"params.embedding must be \(5, 12\)"),
        ({"config": CONFIGS["untied"]}, r"params.head must be \(12, 11\).*got None"),
        ({"config": CONFIG._replace(num_layers=3)}, "params have 2 layers, the configuration 3"),
        (
            {"config": CONFIG._replace(block=BLOCK._replace(hidden=4))},
            r"blocks.ffn.gate must be \(2, 12, 4\)",
        ),
        ({"params": narrow}, "share one dtype, got bfloat16 and float32"),
        ({"tokens": tokens.at[0, 0].set(11)}, "tokens must be in 0 to 10, the vocabulary"),
        ({"tokens": tokens.astype(jnp.float32)}, "tokens must be integers"),
        ({"pos": pos[:, :4]}, r"pos must be integers \(3, 9\)"),
        ({"pos": pos + 1, "cache": cache}, "pos must be in -1 to 8.*got 1 to 9"),
        ({"cache": transformer.init_cache(CONFIG, 2, 9)}, "init_cache"),
        ({"cache": transformer.init_cache(CONFIG._replace(num_layers=1), 3, 9)}, "of 2 layers"),
    ):
        with pytest.raises(ValueError, match=message):
            forward(**wrong)
    for sizes in ((0, 4), (2, 0)):
        with pytest.raises(ValueError, match="batch and length must be at least 1"):
            transformer.init_cache(CONFIG, *sizes)
    run = checkify.checkify(
        lambda t, p: transformer.decode(params, cache, t, p, CONFIG), errors=checkify.user_checks
    )
    run = jax.jit(run)
    assert "tokens must be in 0 to 10" in run(tokens + 9, pos)[0].get()
    assert "pos must be in -1 to 8" in run(tokens, pos + 1)[0].get()

"""The Step-3 language model: MFA attention, and experts in most layers.

Source: Step-3, arXiv:2507.19427. Constants that the report does not state are those of the
published model code.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.kernels.mqa_decode import api as mqa_decode  # pyright: ignore[reportMissingImports]
from jaxlab.kernels.mqa_prefill import api as mqa_prefill  # pyright: ignore[reportMissingImports]
from jaxlab.nn import transformer
from jaxlab.nn.transformer import Block, dense
from jaxlab.serving.cache import paged_cache
from jaxlab.serving.cache.paged_cache import PagedCache
from jaxlab.serving.model import experts, factorized
from jaxlab.serving.model.experts import Moe
from jaxlab.serving.model.factorized import MfaConfig, ValueMap


class Step3Config(NamedTuple):
    """Sizes of the model; the defaults are the published ones, 316 billion parameters.

    Attributes:
        vocab: number of tokens V.
        num_layers: number of layers.
        d_model: width D of the model.
        num_heads: number of query heads H.
        head_dim: dimensions C of a head.
        q_rank: dimensions R of the query space that all heads share.
        dense_layers: indices of the layers with one dense feed-forward instead of experts.
        dense_hidden: width of a dense feed-forward layer.
        num_experts: number of routed experts; one shared expert of the same width joins them.
        num_active: number of routed experts that a token visits.
        expert_hidden: width of an expert.
        theta: base of the rotary embedding's wavelengths.
        eps: constant of every norm.
    """

    vocab: int = 128_815
    num_layers: int = 61
    d_model: int = 7168
    num_heads: int = 64
    head_dim: int = 256
    q_rank: int = 2048
    dense_layers: tuple[int, ...] = (0, 1, 2, 3, 60)
    dense_hidden: int = 18_432
    num_experts: int = 48
    num_active: int = 3
    expert_hidden: int = 5120
    theta: float = 5e5
    eps: float = 1e-5

    def attention(self, layer: int) -> MfaConfig:
        """The attention of a layer."""
        return MfaConfig(
            self.d_model,
            self.num_heads,
            self.head_dim,
            self.q_rank,
            self.theta,
            self.eps,
            depth=layer + 1,
        )


TINY = Step3Config(
    vocab=512,
    num_layers=4,
    d_model=128,
    num_heads=8,
    head_dim=32,
    q_rank=64,
    dense_layers=(0, 3),
    dense_hidden=256,
    num_experts=8,
    num_active=2,
    expert_hidden=64,
)
"""A model for tests."""
SMALL = Step3Config(
    vocab=512,
    num_layers=8,
    d_model=512,
    num_heads=16,
    head_dim=64,
    q_rank=256,
    dense_layers=(0, 7),
    dense_hidden=1536,
    num_experts=16,
    num_active=3,
    expert_hidden=384,
)
"""A model for experiments on a CPU."""
ONE_LAYER = Step3Config(num_layers=1, dense_layers=())
"""A layer of the published size with experts, for timings."""


MOST_ROWS = 256
"""Rows S H up to which new tokens are decoded, beyond it they are a chunk of a prompt."""


class Step3Params(NamedTuple):
    """Embedding `[V, D]`, layers, final norm `[D]` and head `[D, V]`, not tied."""

    embedding: Float[Array, "V D"]
    blocks: tuple[Block, ...]
    norm: Float[Array, " D"]
    head: Float[Array, "D V"]


def init_step3(key: Array, config: Step3Config, *, dtype: Any = None) -> Step3Params:
    """Draws weights; see the layers for their scale.

    Args:
        key: PRNG key for all weights.
        config: sizes of the model.
        dtype: dtype that the drawn weights are rounded to; JAX's default float if None.

    Raises:
        ValueError: if a size is not positive, more experts are active than there are, or a dense
            layer is named that does not exist.
    """
    _check_config(config)
    key_embedding, key_head, *keys = jax.random.split(key, 2 + config.num_layers)

    def cast(drawn: Any) -> Any:
        return drawn if dtype is None else jax.tree.map(lambda w: w.astype(dtype), drawn)

    return Step3Params(
        embedding=cast(jax.random.normal(key_embedding, (config.vocab, config.d_model))),
        blocks=tuple(cast(_init_block(k, config, layer)) for layer, k in enumerate(keys)),
        norm=cast(jnp.ones((config.d_model,))),
        head=cast(dense(key_head, config.d_model, config.vocab)),
    )


def num_parameters(config: Step3Config) -> tuple[int, int]:
    """Returns the number of parameters, and of those that one token uses."""
    shapes = jax.eval_shape(lambda: init_step3(jax.random.key(0), config))
    total = sum(x.size for x in jax.tree.leaves(shapes))
    idle = sum(
        sum(w.size for w in block.ffn.experts) * (1 - config.num_active / config.num_experts)
        for block in shapes.blocks
        if isinstance(block.ffn, Moe)
    )
    return total, round(total - idle)


def fold_norms(params: Step3Params) -> Step3Params:
    """Folds the inner norms of all layers, see `factorized.fold_norm`: do it before decoding."""
    blocks = tuple(
        block._replace(attention=factorized.fold_norm(block.attention)) for block in params.blocks
    )
    return params._replace(blocks=blocks)


def step3_forward(
    params: Step3Params,
    tokens: Int[Array, "B T"],
    config: Step3Config,
    *,
    impl: mqa_prefill.Impl | None = None,
) -> Float[Array, "B T V"]:
    """Returns the logits of every next token of whole sequences, without a cache.

    Differentiable; scores are never held for more than a block of keys. Logits are in float32 or
    wider. A token whose keys or values are not finite can make NaN of earlier ones of its sequence
    too: 0 * NaN is NaN in the kernels.

    Args:
        params: weights of the model.
        tokens: `[B, T]` integers of the vocabulary.
        config: sizes of the model.
        impl: implementation of the prefill kernel; None chooses one.

    Raises:
        ValueError: if the parameters are not of this configuration, or concrete tokens not of its
            vocabulary; traced ones are checked under `checkify`.
        NotImplementedError: if `impl` is given and cannot run; it says why.
    """
    check_params(params, config)
    check_tokens(tokens, config.vocab)
    pos = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    x = params.embedding[tokens]
    for layer, block in enumerate(params.blocks):
        attention = config.attention(layer)
        normed = transformer.rms_norm(x, block.attention_norm, eps=config.eps)
        q = factorized.project_q(block.attention, normed, pos, attention)
        k, v = factorized.project_kv(block.attention, normed, pos, attention)
        out = mqa_prefill.mqa_prefill(q, k, v, scale=attention.scale, impl=impl)
        x = x + jnp.einsum("bthc,hcd->btd", out, block.attention.out)
        x = x + _feed_forward(block, x, config)
    return _logits(params, x, config)


def step3_decode_step(
    params: Step3Params,
    cache: PagedCache,
    tokens: Int[Array, "B S"],
    config: Step3Config,
    *,
    active: Bool[Array, " B"] | None = None,
    impl: mqa_decode.Impl | mqa_prefill.Impl | None = None,
) -> tuple[Float[Array, "B S V"], PagedCache, Bool[Array, " B"]]:
    """Appends tokens to the requests and returns the logits of what follows each.

    One token a request is the usual step; several are a verification of drafted ones, or a chunk of
    a prompt. Tokens are written to the cache before they attend. Prompts of unequal lengths are
    padded with any token to one S, and `paged_cache.truncate` cuts the padding off again: no token
    sees what follows it. As in `step3_forward`, NaN can reach earlier tokens of the same step.

    Args:
        params: weights of the model.
        cache: what the requests have left behind, see `init_step3_cache`.
        tokens: `[B, S]` integers of the vocabulary.
        config: sizes of the model.
        active: `[B]`, requests that take part; all by default. Others are left alone.
        impl: implementation of the attention kernel; None chooses one. Up to `MOST_ROWS` rows S H
            that is `mqa_decode`, beyond `mqa_prefill_paged`, which "triton" does not have.

    Returns:
        `(logits, cache, done)`: logits in float32 or wider; requests for which no page was left are
        not done, and unchanged.

    Raises:
        ValueError: if parameters or cache are not of this configuration, or concrete tokens not of
            its vocabulary; traced ones are checked under `checkify`.
        NotImplementedError: if `impl` is given and cannot run; it says why.
    """
    check_params(params, config)
    check_tokens(tokens, config.vocab)
    _check_cache(cache, tokens, config)
    S = tokens.shape[1]
    rows = S * config.num_heads
    if rows > MOST_ROWS and impl in mqa_decode.IMPLS and impl not in mqa_prefill.IMPLS:
        raise NotImplementedError(
            f"{S} tokens of {config.num_heads} heads are {rows} rows, a chunk of a prompt, for "
            f"which there is no impl={impl!r}: take {', '.join(mqa_prefill.IMPLS)} or None, or "
            f"{MOST_ROWS // config.num_heads} tokens at most"
        )
    cache, done, step = begin_step(cache, tokens, active, config)
    x = params.embedding[tokens]
    for layer, block in enumerate(params.blocks):
        x, cache = attend_pages(block, x, cache, layer, step, config, impl=impl)
        x = x + _feed_forward(block, x, config)
    return _logits(params, x, config), cache, done


class Step(NamedTuple):
    """What the attention of all layers needs to know of a decoding step, next to the cache.

    Attributes:
        pos: `[B, S]` int32, positions of the new tokens.
        keep: `[B, S]` bool, tokens that are written.
        lens: `[B]` int32, tokens that each request attends over; 0 where it takes no part.
        plan: who reads which page where rows are decoded, or None for a chunk of a prompt.
    """

    pos: Int[Array, "B S"]
    keep: Bool[Array, "B S"]
    lens: Int[Array, " B"]
    plan: mqa_decode.Plan | None


def begin_step(
    cache: PagedCache,
    tokens: Int[Array, "B S"],
    active: Bool[Array, " B"] | None,
    config: Step3Config,
) -> tuple[PagedCache, Bool[Array, " B"], Step]:
    """Reserves room for the tokens of the active requests; returns cache, who is done, and step.

    Raises:
        ValueError: if `active` is not one bool a request.
    """
    B, S = tokens.shape
    active = jnp.ones((B,), bool) if active is None else active
    if active.shape != (B,) or active.dtype != jnp.bool_:
        raise ValueError(f"active must be bool [{B}], got {active.dtype} {active.shape}")
    old = cache.lens
    cache, done = paged_cache.reserve(cache, jnp.where(active, S, 0).astype(jnp.int32))
    done = done & active
    pos = old[:, None] + jnp.arange(S, dtype=jnp.int32)[None]
    keep = jnp.broadcast_to(done[:, None], (B, S))
    lens = jnp.where(done, cache.lens, 0)
    return cache, done, Step(pos, keep, lens, step_plan(cache, lens, S, config))


def step_plan(
    cache: PagedCache, lens: Int[Array, " B"], S: int, config: Step3Config
) -> mqa_decode.Plan | None:
    """Returns who reads which page; lengths are those of all layers, and so is the plan."""
    if S * config.num_heads > MOST_ROWS:
        return None
    return mqa_decode.decode_plan(lens, cache.page_table, page=cache.page)


def attend_pages(
    block: Block,
    x: Float[Array, "B S D"],
    cache: PagedCache,
    layer: int | Array,
    step: Step,
    config: Step3Config,
    *,
    impl: mqa_decode.Impl | mqa_prefill.Impl | None = None,
) -> tuple[Float[Array, "B S D"], PagedCache]:
    """Writes the tokens' keys and values of a layer, and adds what they attend to to x.

    Args:
        block: weights of the layer, of which the feed-forward is not read.
        x: `[B, S, D]`, the residual stream.
        cache: with room for the tokens, see `begin_step`.
        layer: index of the layer, which may be traced.
        step: positions and lengths.
        config: sizes of the model.
        impl: implementation of the attention kernel; None chooses one.
    """
    q, k, v = project(block, x, step, config)
    cache = paged_cache.write(cache, layer, k, v, step.pos, step.keep)
    return read_pages(block, x, q, cache, layer, step, config, impl=impl), cache


def project(
    block: Block, x: Float[Array, "B S D"], step: Step, config: Step3Config
) -> tuple[Float[Array, "B S H C"], Float[Array, "B S C"], Float[Array, "B S C"]]:
    """Returns the queries of a layer, and the keys and values that its cache has to hold."""
    attention = config.attention(0)  # the depth shrinks initial weights, nothing else
    normed = transformer.rms_norm(x, block.attention_norm, eps=config.eps)
    q = factorized.project_q(block.attention, normed, step.pos, attention)
    k, v = factorized.project_kv(block.attention, normed, step.pos, attention)
    return q, k, v


def read_pages(
    block: Block,
    x: Float[Array, "B S D"],
    q: Float[Array, "B S H C"],
    cache: PagedCache,
    layer: int | Array,
    step: Step,
    config: Step3Config,
    *,
    impl: mqa_decode.Impl | mqa_prefill.Impl | None = None,
) -> Float[Array, "B S D"]:
    """Adds to x what its queries attend to in a cache that holds their keys and values."""
    num_pages = cache.k_pages.shape[1]
    # Pages of all layers, of which the table names this one's: a slice would be a copy.
    table = cache.page_table + layer * num_pages
    pages = {name: _flat(getattr(cache, name)) for name in ("k_pages", "v_pages")}
    scales = {name: _flat(getattr(cache, name)) for name in ("k_scale", "v_scale")}
    if cache.k_scale is None:
        q = q.astype(cache.k_pages.dtype)  # the kernel multiplies what the cache holds
    attend: Any = mqa_prefill.mqa_prefill_paged
    if step.plan is not None:
        here = step.plan._replace(flat_page=step.plan.flat_page + layer * num_pages)
        attend = functools.partial(mqa_decode.mqa_decode, plan=here)
    scale = config.attention(0).scale
    out = attend(q, *pages.values(), table, step.lens, scale=scale, impl=impl, **scales)
    return x + jnp.einsum("bthc,hcd->btd", out.astype(x.dtype), block.attention.out)


def init_step3_cache(config: Step3Config, num_pages: int, **options: Any) -> PagedCache:
    """Makes an empty cache for the model; options as in `paged_cache.init_cache`.

    Raises:
        ValueError: for `key_reuse`, which Step-3 has not, and as in `paged_cache.init_cache`.
    """
    if options.get("key_reuse"):
        raise ValueError("key_reuse must be False, got True: Step-3 caches keys and values")
    return paged_cache.init_cache(config.num_layers, num_pages, head_dim=config.head_dim, **options)


def _init_block(key: Array, config: Step3Config, layer: int) -> Block:
    key_attention, key_ffn = jax.random.split(key)
    if layer in config.dense_layers:
        ffn = transformer.init_swiglu(key_ffn, config.d_model, config.dense_hidden, depth=layer + 1)
    else:
        ffn = experts.init_moe(
            key_ffn, config.d_model, config.expert_hidden, config.num_experts, depth=layer + 1
        )
    return Block(
        attention_norm=jnp.ones((config.d_model,)),
        attention=factorized.init_mfa(key_attention, config.attention(layer)),
        ffn_norm=jnp.ones((config.d_model,)),
        ffn=ffn,
    )


def _feed_forward(block: Block, x: Float[Array, "B T D"], config: Step3Config) -> Array:
    x = transformer.rms_norm(x, block.ffn_norm, eps=config.eps)
    if isinstance(block.ffn, Moe):
        return experts.moe(block.ffn, x, num_active=config.num_active)
    return transformer.swiglu(block.ffn, x)


def _logits(params: Step3Params, x: Float[Array, "B T D"], config: Step3Config) -> Array:
    return transformer.readout(x, params.norm, params.head, eps=config.eps)


def _flat(x: Array | None) -> Array | None:
    """Joins the axes of layers and pages."""
    return None if x is None else x.reshape(-1, *x.shape[2:])


def _check_config(config: Step3Config) -> None:
    names = (
        "vocab",
        "num_layers",
        "d_model",
        "num_heads",
        "head_dim",
        "q_rank",
        "dense_hidden",
        "num_experts",
        "num_active",
        "expert_hidden",
    )
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if config.num_active > config.num_experts:
        raise ValueError(
            f"num_active must be at most num_experts, got {config.num_active} of "
            f"{config.num_experts}"
        )
    wrong = [layer for layer in config.dense_layers if not 0 <= layer < config.num_layers]
    if wrong:
        raise ValueError(f"dense_layers must be in 0 to {config.num_layers - 1}, got {wrong}")


def check_params(params: Step3Params, config: Step3Config) -> None:
    """Refuses parameters of another model; shapes alone, so that it costs nothing in a trace."""
    if len(params.blocks) != config.num_layers:
        raise ValueError(
            f"params have {len(params.blocks)} layers, the configuration {config.num_layers}"
        )
    D, H, C, R = config.d_model, config.num_heads, config.head_dim, config.q_rank
    want: dict[str, tuple] = {"embedding": (config.vocab, D), "head": (D, config.vocab)}
    shapes = {name: getattr(params, name).shape for name in want}
    for layer, block in enumerate(params.blocks):
        attention, where = block.attention, f"blocks[{layer}]"
        if isinstance(block.ffn, Moe) == (layer in config.dense_layers):
            kind = "one feed-forward" if layer in config.dense_layers else "experts"
            raise ValueError(f"{where} must have {kind}: dense_layers are {config.dense_layers}")
        if attention.value is None or isinstance(attention.value, ValueMap):
            raise ValueError(f"{where} has key reuse (MFA-KR), which Step-3 has not")
        for name, shape in (
            ("query_down", (D, R)),
            ("query_up", (R, H, C)),
            ("key", (D, C)),
            ("value", (D, C)),
            ("out", (H, C, D)),
        ):
            want[f"{where}.attention.{name}"] = shape
            shapes[f"{where}.attention.{name}"] = getattr(attention, name).shape
        if isinstance(block.ffn, Moe):
            want[f"{where}.ffn.router"] = (D, config.num_experts)
            shapes[f"{where}.ffn.router"] = block.ffn.router.shape
    for name, shape in want.items():
        if shapes[name] != shape:
            raise ValueError(f"params.{name} must be {shape} for {config}, got {shapes[name]}")


def _check_cache(cache: PagedCache, tokens: Array, config: Step3Config) -> None:
    check_cache_sizes(cache, config)
    if cache.lens.shape != tokens.shape[:1]:
        raise ValueError(
            f"tokens are of {tokens.shape[0]} requests, the cache of {cache.lens.shape[0]}"
        )


def check_cache_sizes(cache: PagedCache, config: Step3Config) -> None:
    """Refuses a cache of another model.

    Raises:
        ValueError: that says which layers and dimensions it must have.
    """
    L, _, _, C = cache.k_pages.shape
    if (L, C) != (config.num_layers, config.head_dim) or cache.v_pages is None:
        values = "no values" if cache.v_pages is None else "values"
        raise ValueError(
            f"the cache must hold keys and values of {config.num_layers} layers of "
            f"{config.head_dim} dimensions, got {L} of {C} with {values}: make it with "
            "init_step3_cache"
        )


def check_tokens(tokens: Array, vocab: int) -> None:
    if tokens.ndim != 2:
        raise ValueError(f"tokens must be integers [B, T], got {tokens.dtype} {tokens.shape}")
    transformer.check_vocabulary(tokens, vocab)

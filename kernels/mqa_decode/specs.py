"""Named shapes of paged decode attention, their operands, and what they cost at least."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FP8 = jnp.float8_e4m3fn
COLD_BYTES = 256_000_000
"""Pages are spread over at least so many bytes, and calls take turns: caches hold tens of MB."""


class Spec(NamedTuple):
    """A workload; the defaults are one layer of Step-3.

    Attributes:
        B: requests.  S: their mean number of tokens.
        lengths: all equal, lognormal (sigma 0.8), or bimodal (one in eight is long).
        kv: keys and values in bfloat16, in FP8 with a scale a token ("fp8"), or in FP8 with value
            pages by columns ("direct"); queries in bfloat16. "f32": all in float32.
        S_q: tokens that ask.  H, C: heads and their size.  page: tokens of a page.
    """

    B: int
    S: int
    lengths: Literal["uniform", "lognormal", "bimodal"] = "uniform"
    kv: Literal["bf16", "fp8", "direct", "f32"] = "bf16"
    S_q: int = 1
    H: int = 64
    C: int = 256
    page: int = 64

    @property
    def name(self) -> str:
        """In words, for tables."""
        extra = f", {self.S_q} tokens" if self.S_q > 1 else ""
        return f"B = {self.B}, S = {self.S:,} {self.lengths}, {self.kv}{extra}"


class Workload(NamedTuple):
    """Operands of `mqa_decode`, and counts.

    Attributes:
        q, k_pages, v_pages, lens: see `api.mqa_decode`.
        tables: `[copies, B, P]`, page tables that share nothing; a timing takes them in turn.
        scales: `k_scale` and `v_scale`, or nothing.
        num_bytes: that one call must move: keys, values and scales of all tokens, q and the result.
        num_flops: FLOPs of scores and averages, 4 H C a visible token.
    """

    q: jax.Array
    k_pages: jax.Array
    v_pages: jax.Array
    tables: jax.Array
    lens: jax.Array
    scales: dict[str, jax.Array]
    num_bytes: int
    num_flops: int


GRID = tuple(
    Spec(B, S)
    for B in (1, 16, 64, 128, 256)
    for S in (1024, 4096, 8192, 32_768, 131_072)
    if 4096 <= B * S <= 8_388_608
)
"""Equal lengths in bfloat16; 8M tokens of one layer are 8.6 GB."""
RAGGED = tuple(
    Spec(B, S, lengths)
    for lengths in ("lognormal", "bimodal")
    for B, S in ((16, 32_768), (64, 8192), (128, 4096), (256, 8192))
)
EIGHT_BITS = tuple(
    Spec(B, S, "uniform", kv)
    for kv in ("fp8", "direct")
    for B, S in ((16, 32_768), (64, 8192), (128, 8192), (256, 8192))
)
VERIFY = tuple(
    Spec(B, S, "uniform", "bf16", S_q) for S_q in (2, 4) for B, S in ((16, 32_768), (64, 8192))
)
ON_CPU = (
    Spec(4, 1024, H=16, C=64),
    Spec(4, 1024, kv="f32", H=16, C=64),
    Spec(1, 8192),
    Spec(16, 1024, "lognormal"),
    Spec(16, 1024, "lognormal", "fp8"),
    Spec(8, 2048, S_q=4, H=16),
)
"""Small enough for two cores."""


def lengths(spec: Spec, seed: int = 0) -> np.ndarray:
    """Draws `[B]` int32 token counts of mean S (about), at least S_q."""
    rng = np.random.default_rng(seed)
    if spec.lengths == "uniform":
        draw = np.full(spec.B, float(spec.S))
    elif spec.lengths == "lognormal":
        draw = rng.lognormal(-0.32, 0.8, spec.B) * spec.S  # exp(sigma^2 / 2) = exp(0.32)
    else:
        long = np.arange(spec.B) % 8 == 0
        draw = np.where(long, 4.5, 0.5) * spec.S
    return np.maximum(np.round(draw), spec.S_q).astype(np.int32)


def make(spec: Spec, seed: int = 0, *, cold_bytes: int | None = None) -> Workload:
    """Draws operands; pages of all requests are shuffled together.

    Args:
        spec: the workload.
        seed: of lengths, pages and numbers.
        cold_bytes: bytes that pages are spread over at least; `COLD_BYTES` by default.
    """
    cold_bytes = COLD_BYTES if cold_bytes is None else cold_bytes
    rng = np.random.default_rng(seed)
    lens = lengths(spec, seed)
    pages = -(-lens // spec.page)
    size = {"bf16": 2, "fp8": 1, "direct": 1, "f32": 4}[spec.kv]
    per_page = 2 * spec.page * spec.C * size
    copies = max(1, -(-cold_bytes // int(pages.sum() * per_page)))
    count = int(pages.sum())
    tables = np.zeros((copies, spec.B, int(pages.max())), np.int32)
    for copy in range(copies):
        order = copy * count + rng.permutation(count)
        for b, (begin, n) in enumerate(zip(np.cumsum(pages) - pages, pages, strict=True)):
            tables[copy, b, :n] = order[begin : begin + n]

    shape = (copies * count, spec.page, spec.C)
    v_shape = (shape[0], spec.C, spec.page) if spec.kv == "direct" else shape
    wide = jnp.float32 if spec.kv == "f32" else jnp.bfloat16
    store = FP8 if size == 1 else wide

    def drawn(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        # Page by page: float32 draws of the whole cache would take twice its memory again.
        def one(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, shape[1:], jnp.bfloat16).astype(store)

        return jax.lax.map(one, jax.random.split(key, shape[0]), batch_size=256)

    @jax.jit
    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        key_q, key_k, key_v = jax.random.split(key, 3)
        q = jax.random.normal(key_q, (spec.B, spec.S_q, spec.H, spec.C), wide)
        return q, drawn(key_k, shape), drawn(key_v, v_shape)

    q, k_pages, v_pages = draw(jax.random.key(seed))
    scales = {}
    if size == 1:
        scales["k_scale"] = jnp.full(shape[:2], 0.5, jnp.float32)
        scales["v_scale"] = jnp.full(() if spec.kv == "direct" else shape[:2], 0.5, jnp.float32)
    tokens = int(lens.sum())
    seen = sum(int(np.maximum(lens - spec.S_q + 1 + t, 0).sum()) for t in range(spec.S_q))
    ends = 2 * spec.B * spec.S_q * spec.H * spec.C * jnp.dtype(wide).itemsize
    of_scales = sum(4 * tokens for scale in scales.values() if scale.ndim)
    return Workload(
        q=q,
        k_pages=k_pages,
        v_pages=v_pages,
        tables=jnp.asarray(tables),
        lens=jnp.asarray(lens),
        scales=scales,
        num_bytes=2 * tokens * spec.C * size + of_scales + ends,
        num_flops=4 * spec.H * spec.C * seen,
    )

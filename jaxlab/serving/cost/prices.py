"""What a decoded token costs: bytes of KV cache, FLOPs, and dollars on an accelerator.

Costs are per decoded token at a context length: the token's attention reads the whole cache of its
request once, or the tokens that a step verifies share a read (`Mtp`). Embedding, head and
communication are left out, a multiply-add counts 2 FLOPs. Plain numbers; contexts may be NumPy
arrays.

Source: Step-3, arXiv:2507.19427, sections on decoding cost (tables of costs per token and per
accelerator). The counting rules are those that give the published digits.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

KIB_TOKENS = 1024
"""Tokens in the "K" of the published contexts, 8K and 32K."""


@dataclasses.dataclass(frozen=True)
class GroupedQueryAttention:
    """Attention with shared key and value heads (GQA; MHA and MQA are its ends).

    Attributes:
        num_heads: number of query heads H.
        num_kv_heads: number of heads G of keys and values.
        head_dim: dimensions C of a head.
        bytes_per_element: bytes of a number in the cache.
        window: tokens that a token can see, or None for all.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    bytes_per_element: float = 1.0
    window: int | None = None

    def __post_init__(self):
        _check_sizes(self)

    def kv_bytes(self, context):
        """Returns the bytes of cache that a token of one layer reads."""
        stored = 2 * self.num_kv_heads * self.head_dim * self.bytes_per_element
        return stored * self._seen(context)

    def attention_flops(self, context):
        """Returns the FLOPs of scores and weighted sum, one layer."""
        return 4.0 * self.num_heads * self.head_dim * self._seen(context)

    def num_weights(self, d_model: int) -> int:
        """Returns the weights of one layer's projections."""
        heads = self.num_heads + 2 * self.num_kv_heads
        return d_model * heads * self.head_dim + self.num_heads * self.head_dim * d_model

    def _seen(self, context):
        return context if self.window is None else np.minimum(context, self.window)


@dataclasses.dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (MLA), absorbed: every head attends in the latent space.

    The published tables count the `kv_rank + rope_dim` columns for both products.
    """

    num_heads: int
    kv_rank: int = 512
    rope_dim: int = 64
    q_rank: int = 1536
    head_dim: int = 128
    bytes_per_element: float = 1.0

    def __post_init__(self):
        _check_sizes(self)

    def kv_bytes(self, context):
        """Returns the bytes of cache that a token of one layer reads."""
        return (self.kv_rank + self.rope_dim) * self.bytes_per_element * context

    def attention_flops(self, context):
        """Returns the FLOPs of scores and weighted sum, one layer."""
        return 4.0 * self.num_heads * (self.kv_rank + self.rope_dim) * context

    def num_weights(self, d_model: int) -> int:
        """Returns the weights of one layer's projections."""
        query = d_model * self.q_rank
        query += self.q_rank * self.num_heads * (self.head_dim + self.rope_dim)
        latent = d_model * (self.kv_rank + self.rope_dim)
        absorbed = 2 * self.num_heads * self.head_dim * self.kv_rank
        return query + latent + absorbed + self.num_heads * self.head_dim * d_model


@dataclasses.dataclass(frozen=True)
class FactorizedAttention:
    """Multi-matrix factorization attention (MFA): one key and one value head, low-rank queries.

    With `key_reuse` (MFA-KR) values are computed from the cached keys, which halves the cache.
    """

    num_heads: int
    head_dim: int
    q_rank: int
    bytes_per_element: float = 1.0
    key_reuse: bool = False

    def __post_init__(self):
        _check_sizes(self)

    def kv_bytes(self, context):
        """Returns the bytes of cache that a token of one layer reads."""
        vectors = 1 if self.key_reuse else 2
        return vectors * self.head_dim * self.bytes_per_element * context

    def attention_flops(self, context):
        """Returns the FLOPs of scores and weighted sum, one layer."""
        return 4.0 * self.num_heads * self.head_dim * context

    def num_weights(self, d_model: int) -> int:
        """Returns the weights of one layer's projections: D (R + 2C) + R H C + H C D."""
        vectors = 1 if self.key_reuse else 2
        down = d_model * (self.q_rank + vectors * self.head_dim)
        heads = self.num_heads * self.head_dim
        return down + self.q_rank * heads + heads * d_model


@dataclasses.dataclass(frozen=True)
class LightningAttention:
    """Linear attention whose state has a fixed size, read and written at every token.

    A head's state is `head_dim x head_dim` in float32; five multiply-adds per entry update and read
    it. Projections: query, key, value and gate in, one out.
    """

    num_heads: int
    head_dim: int
    bytes_per_element: float = 4.0

    def __post_init__(self):
        _check_sizes(self)

    def kv_bytes(self, context):
        """Returns the bytes of state that a token of one layer reads and writes."""
        return 2.0 * self.state_bytes + 0.0 * context

    @property
    def state_bytes(self) -> float:
        """Bytes of one layer's state, whatever the context."""
        return self._state() * self.bytes_per_element

    def attention_flops(self, context):
        """Returns the FLOPs of one layer's state, whatever the context."""
        return 10.0 * self._state() + 0.0 * context

    def num_weights(self, d_model: int) -> int:
        """Returns the weights of one layer's projections."""
        return 5 * d_model * self.num_heads * self.head_dim

    def _state(self) -> int:
        return self.num_heads * self.head_dim**2


Attention = GroupedQueryAttention | LatentAttention | FactorizedAttention | LightningAttention


class Ffn(NamedTuple):
    """Equal feed-forward layers: SwiGLU, three matrices an expert.

    Attributes:
        num_layers: number of such layers.
        hidden: width of an expert, or of the dense layer.
        num_active: number of experts that a token visits, shared ones included; 1 if dense.
        num_experts: number of experts that are stored, shared ones included.
    """

    num_layers: int
    hidden: int
    num_active: int = 1
    num_experts: int = 1


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A language model as the cost model sees it.

    Attributes:
        name: name in tables and plots.
        d_model: width D of the model.
        attention: pairs `(number of layers, kind)`, in any order.
        ffn: groups of equal feed-forward layers.
    """

    name: str
    d_model: int
    attention: tuple[tuple[int, Attention], ...]
    ffn: tuple[Ffn, ...]

    def __post_init__(self):
        counts = {"d_model": self.d_model}
        counts |= {f"attention[{i}]: layers": n for i, (n, _) in enumerate(self.attention)}
        for i, group in enumerate(self.ffn):
            counts |= {f"ffn[{i}]: {name}": n for name, n in group._asdict().items()}
            if group.num_active > group.num_experts:
                raise ValueError(
                    f"ffn[{i}] of {self.name}: num_active must be at most num_experts, got "
                    f"{group.num_active} of {group.num_experts}; both count shared experts"
                )
        if not self.attention:
            raise ValueError(f"{self.name} must have at least one layer of attention")
        for name, count in counts.items():
            check_positive(**{f"{name} of {self.name}": count})

    @property
    def num_layers(self) -> int:
        return sum(count for count, _ in self.attention)

    def replace(self, **changes) -> "ModelSpec":
        """Returns a copy with some fields changed, for what-if studies."""
        return dataclasses.replace(self, **changes)

    def with_cache(self, bytes_per_element: float) -> "ModelSpec":
        """Returns a copy whose caches that grow with the context take so many bytes an element."""
        attention = tuple(
            (count, kind)
            if isinstance(kind, LightningAttention)
            else (count, dataclasses.replace(kind, bytes_per_element=bytes_per_element))
            for count, kind in self.attention
        )
        return self.replace(attention=attention)


class TokenCost(NamedTuple):
    """What one decoded token takes.

    Attributes:
        kv_bytes: bytes of cache that are read.
        attention_flops: FLOPs that grow with the context.
        linear_flops: FLOPs of the attention's projections.
        ffn_flops: FLOPs of the feed-forward layers or their experts.
    """

    kv_bytes: float
    attention_flops: float
    linear_flops: float
    ffn_flops: float


class Mtp(NamedTuple):
    """Multi-token prediction: a step verifies drafted tokens together and keeps some of them.

    Their attention shares one read of the cache; FLOPs are spent on all of them. The draft itself
    is left out.

    Attributes:
        verified: number of tokens of a request in a step.
        kept: how many of them stay, on average.

    Source: Step-3, arXiv:2507.19427, discussion of arithmetic intensity.
    """

    verified: int = 1
    kept: float = 1.0


ONE_TOKEN = Mtp()
"""A step that decodes one token of a request."""


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """An accelerator and its price.

    Attributes:
        usd_per_hour: rent of one accelerator, US dollars an hour.
        flops: peak FLOP/s at the precision that it serves with.
        bandwidth: bytes/s that its memory delivers.
        memory: bytes that it holds.
        network: bytes/s that a server of eight sends, all its network cards together.
    """

    name: str
    usd_per_hour: float
    flops: float
    bandwidth: float
    memory: float = 80e9
    network: float = 400e9

    def __post_init__(self):
        for field in ("usd_per_hour", "flops", "bandwidth", "memory", "network"):
            check_positive(**{field: getattr(self, field)})

    @property
    def usd_per_flop(self) -> float:
        return self.usd_per_hour / 3600.0 / self.flops

    @property
    def usd_per_byte(self) -> float:
        return self.usd_per_hour / 3600.0 / self.bandwidth

    @property
    def ratio(self) -> float:
        """FLOPs per byte at which compute and memory take equal time."""
        return self.flops / self.bandwidth


class Cheapest(NamedTuple):
    """Attention and feed-forward layers on the accelerators where each costs least.

    Attributes:
        usd: US dollars per million tokens.
        attention: name of the accelerator that runs the attention.
        ffn: name of the accelerator that runs the feed-forward layers.
    """

    usd: float
    attention: str
    ffn: str


def token_cost(spec: ModelSpec, context, *, mtp: Mtp = ONE_TOKEN) -> TokenCost:
    """Returns bytes and FLOPs of one decoded token at a context of so many tokens.

    Raises:
        ValueError: if a context is negative or not finite, or fewer tokens are verified than kept.

    Source: arXiv:2507.19427, table of memory access and computation per token.
    """
    if not np.all(np.isfinite(context) & (np.asarray(context) >= 0)):
        raise ValueError(f"context must be at least 0 tokens, got {context}")
    if not 1.0 <= mtp.kept <= mtp.verified < math.inf:
        raise ValueError(f"mtp must satisfy 1 <= kept <= verified, got {mtp}")
    layers, spent = spec.attention, mtp.verified / mtp.kept
    core = sum(count * kind.attention_flops(context) for count, kind in layers)
    ffn = sum(3 * spec.d_model * f.hidden * f.num_active * f.num_layers for f in spec.ffn)
    return TokenCost(
        kv_bytes=sum(count * kind.kv_bytes(context) for count, kind in layers) / mtp.kept,
        attention_flops=core * spent,
        linear_flops=2.0 * attention_weights(spec) * spent,
        ffn_flops=2.0 * ffn * spent,
    )


def stored_bytes(spec: ModelSpec, context):
    """Returns the bytes of cache that a request keeps: what it reads, but for states once."""
    return sum(
        count
        * (kind.state_bytes if isinstance(kind, LightningAttention) else kind.kv_bytes(context))
        for count, kind in spec.attention
    )


def attention_weights(spec: ModelSpec) -> float:
    """Returns the weights of all projections of the attention."""
    return float(sum(count * kind.num_weights(spec.d_model) for count, kind in spec.attention))


def output_weights(spec: ModelSpec) -> float:
    """Returns the weights of the output projections alone, which a server can divide."""
    heads = sum(count * kind.num_heads * kind.head_dim for count, kind in spec.attention)
    return float(heads * spec.d_model)


def ffn_weights(spec: ModelSpec) -> float:
    """Returns the weights of all experts and dense layers, active or not."""
    return float(sum(3 * spec.d_model * f.hidden * f.num_experts * f.num_layers for f in spec.ffn))


def active_weights(spec: ModelSpec) -> float:
    """Returns the weights that one token multiplies with, embedding and head left out."""
    cost = token_cost(spec, 0)
    return (cost.linear_flops + cost.ffn_flops) / 2.0


def arithmetic_intensity(spec: ModelSpec, context, *, mtp: Mtp = ONE_TOKEN) -> float:
    """Returns the FLOPs of attention per byte of cache; 2 H / bytes for MFA without `mtp`.

    An accelerator is used fully where this equals its `ratio`.
    """
    cost = token_cost(spec, context, mtp=mtp)
    return cost.attention_flops / cost.kv_bytes


def attention_usd(spec: ModelSpec, accelerator: Accelerator, context, *, mtp: Mtp = ONE_TOKEN):
    """Returns dollars per million tokens of attention: the dearer of its FLOPs and its bytes."""
    cost = token_cost(spec, context, mtp=mtp)
    core = np.maximum(
        cost.attention_flops * accelerator.usd_per_flop, cost.kv_bytes * accelerator.usd_per_byte
    )
    return 1e6 * (core + cost.linear_flops * accelerator.usd_per_flop)


def ffn_usd(spec: ModelSpec, accelerator: Accelerator, *, mtp: Mtp = ONE_TOKEN) -> float:
    """Returns dollars per million tokens of the feed-forward layers, at a batch that fills them."""
    return 1e6 * token_cost(spec, 0, mtp=mtp).ffn_flops * accelerator.usd_per_flop


def tokens_per_second(spec: ModelSpec, accelerator: Accelerator, context: int) -> float:
    """Returns the tokens/s of one accelerator that does everything at the peaks of these costs."""
    usd = float(attention_usd(spec, accelerator, context)) + ffn_usd(spec, accelerator)
    return accelerator.usd_per_hour / 3600.0 / usd * 1e6


def cheapest(spec: ModelSpec, accelerators: Sequence[Accelerator], context: int) -> Cheapest:
    """Returns the cheapest disaggregated deployment: each part where it costs least.

    Source: arXiv:2507.19427, decoding cost with attention and FFN on separate hardware.
    """
    if not accelerators:
        raise ValueError("accelerators must name at least one")
    attention = min(accelerators, key=lambda a: attention_usd(spec, a, context))
    ffn = min(accelerators, key=lambda a: ffn_usd(spec, a))
    usd = float(attention_usd(spec, attention, context)) + ffn_usd(spec, ffn)
    return Cheapest(usd, attention.name, ffn.name)


def training_usd(spec: ModelSpec, accelerator: Accelerator, context: int = 8 * KIB_TOKENS) -> float:
    """Returns dollars per million training tokens, backward passes counted as twice the forward.

    Source: the sketch of arXiv:2507.19427, 3 (attention + linear + FFN FLOPs) at 8K.
    """
    cost = token_cost(spec, context)
    flops = cost.attention_flops + cost.linear_flops + cost.ffn_flops
    return 3e6 * flops * accelerator.usd_per_flop


def check_positive(**values: float) -> None:
    """Checks that numbers are positive and finite.

    Raises:
        ValueError: that names the first that is not.
    """
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_sizes(kind: Attention) -> None:
    sizes = {field.name: getattr(kind, field.name) for field in dataclasses.fields(kind)}
    sizes.pop("key_reuse", None)
    if sizes.get("window", 1) is None:
        sizes.pop("window")
    for name, size in sizes.items():
        check_positive(**{f"{name} of {type(kind).__name__}": size})
    if isinstance(kind, GroupedQueryAttention) and kind.num_heads % kind.num_kv_heads:
        raise ValueError(
            f"num_kv_heads must divide num_heads, got {kind.num_kv_heads} and {kind.num_heads}"
        )

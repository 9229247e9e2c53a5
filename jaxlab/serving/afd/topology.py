"""Who computes what: instances of attention and of feed-forward, and the weights of each.

Attention instances hold disjoint requests and all weights of attention. A feed-forward instance is
`ep` groups of `tp` devices. Routed experts are split over instances and groups, and their hidden
axis over the devices of a group; the shared expert and dense layers, which every token visits, are
split along their hidden axis over all feed-forward devices, so that all have equal work.

Source: Step-3, arXiv:2507.19427, section 4.
"""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.nn.transformer import Block, Swiglu
from jaxlab.serving.model.experts import Moe
from jaxlab.serving.model.step3 import Step3Config, Step3Params

Wire = Literal["exact", "fp8"]
Router = Literal["attention", "ffn"]
GROUP = 128
"""Elements of a token that share a scale on the wire."""


class Topology(NamedTuple):
    """Counts and choices of a disaggregated decoder.

    Attributes:
        num_attention: attention instances, of one device each.
        num_ffn: feed-forward instances, of ep * tp devices each.
        tp: devices of a group, over which the hidden axis of an expert is split.
        ep: groups of an instance, over which its experts are split.
        micro_batches: parts of a batch that are under way at the same time.
        wire: "exact" sends tokens as they are; "fp8" in eight bits, and results in bfloat16.
        router: the side that chooses the experts.
    """

    num_attention: int
    num_ffn: int
    tp: int = 1
    ep: int = 1
    micro_batches: int = 3
    wire: Wire = "exact"
    router: Router = "attention"

    @property
    def num_shards(self) -> int:
        """Feed-forward devices."""
        return self.num_ffn * self.ep * self.tp

    @property
    def num_devices(self) -> int:
        """Devices of both roles."""
        return self.num_attention + self.num_shards


class AttentionWeights(NamedTuple):
    """What an attention instance holds of one layer.

    Attributes:
        block: the layer, whose `ffn` is None.
        router: `[D, E]`, or None where there is none to ask on this side.
    """

    block: Block
    router: Float[Array, "D E"] | None


class FfnShard(NamedTuple):
    """What one feed-forward device holds of one layer; stacked, every leaf starts with its shard.

    Attributes:
        routed: weights of its experts `[e, D, f]`, or None in a dense layer.
        always: weights of its part of the shared expert or of the dense layer.
        router: `[D, E]` where it chooses the experts, else None.
        first: int32, number of its first expert.
    """

    routed: Swiglu | None
    always: Swiglu
    router: Float[Array, "D E"] | None
    first: Array


def check_topology(topology: Topology, config: Step3Config, dtype: Any) -> None:
    """Refuses a topology that does not fit the model.

    Raises:
        ValueError: if a count is below 1, the instances of one role are not a multiple of those of
            the other, experts or hidden axes do not divide, or the wire cannot carry the dtype.
    """
    for name in ("num_attention", "num_ffn", "tp", "ep", "micro_batches"):
        count = getattr(topology, name)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")
    if topology.wire not in get_args(Wire) or topology.router not in get_args(Router):
        raise ValueError(
            f"wire must be one of {get_args(Wire)} and router one of {get_args(Router)}, got "
            f"{topology.wire!r} and {topology.router!r}"
        )
    few, many = sorted((topology.num_attention, topology.num_ffn))
    if many % few:
        raise ValueError(
            "the larger of num_attention and num_ffn must be a multiple of the smaller, got "
            f"{topology.num_attention} and {topology.num_ffn}"
        )
    groups = topology.num_ffn * topology.ep
    sparse = len(config.dense_layers) < config.num_layers
    divided = [("dense_hidden", topology.num_shards)] if config.dense_layers else []
    if sparse:
        divided += [("num_experts", groups), ("expert_hidden", topology.num_shards)]
    for name, parts in divided:
        if getattr(config, name) % parts:
            raise ValueError(
                f"{name} = {getattr(config, name)} must divide over {parts} parts of num_ffn="
                f"{topology.num_ffn}, ep={topology.ep}, tp={topology.tp}; take fewer"
            )
    if topology.wire == "fp8":
        if config.d_model % GROUP:
            raise ValueError(
                f'wire="fp8" scales groups of {GROUP}, which must divide d_model, got '
                f'{config.d_model}; take wire="exact"'
            )
        if jnp.dtype(dtype).itemsize > 4:
            raise ValueError(
                f'wire="fp8" carries float32 or narrower, got {jnp.dtype(dtype).name}; take '
                'wire="exact"'
            )


def attention_layers(params: Step3Params, topology: Topology) -> tuple[AttentionWeights, ...]:
    """Returns what the attention side holds of every layer; embedding and head stay in params."""

    def one(block: Block) -> AttentionWeights:
        here = isinstance(block.ffn, Moe) and topology.router == "attention"
        return AttentionWeights(block._replace(ffn=None), block.ffn.router if here else None)

    return tuple(one(block) for block in params.blocks)


def ffn_shards(block: Block, topology: Topology) -> FfnShard:
    """Returns the shards of a layer, stacked in the order of instance, group and device."""
    shards, groups = topology.num_shards, topology.num_ffn * topology.ep
    ffn = block.ffn
    per_group = ffn.experts.gate.shape[0] // groups if isinstance(ffn, Moe) else 0
    first = jnp.repeat(jnp.arange(groups, dtype=jnp.int32) * per_group, topology.tp)
    if not isinstance(ffn, Moe):
        return FfnShard(None, _split_hidden(ffn, shards), None, first)
    # Experts by group, then the hidden axis by device: [groups, e, D, tp, f].
    by_group = jax.tree.map(lambda w: w.reshape(groups, per_group, *w.shape[1:]), ffn.experts)
    routed = _split_hidden(by_group, topology.tp)  # [tp, groups, ...]
    routed = jax.tree.map(lambda w: jnp.swapaxes(w, 0, 1).reshape(shards, *w.shape[2:]), routed)
    if ffn.shared is None:
        raise ValueError("a layer with experts must have a shared one, got None")
    router = None
    if topology.router == "ffn":
        router = jnp.broadcast_to(ffn.router, (shards, *ffn.router.shape))
    return FfnShard(routed, _split_hidden(ffn.shared, shards), router, first)


def _split_hidden(weights: Swiglu, parts: int) -> Swiglu:
    """Splits the hidden axis, the last of gate and up and the last but one of down."""
    return Swiglu(
        gate=jnp.stack(jnp.split(weights.gate, parts, axis=-1)),
        up=jnp.stack(jnp.split(weights.up, parts, axis=-1)),
        down=jnp.stack(jnp.split(weights.down, parts, axis=-2)),
    )

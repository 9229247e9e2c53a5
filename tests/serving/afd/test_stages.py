"""Shards, wire and stages against the whole feed-forward layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.serving.afd import stages, topology, wire
from jaxlab.serving.afd.topology import Topology
from jaxlab.serving.model import experts, step3

TINY = step3.TINY


def swiglu(weights, x):
    gate, up, down = (np.asarray(w, np.float64) for w in weights)
    hidden = x @ gate
    return (hidden / (1 + np.exp(-hidden)) * (x @ up)) @ down


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("router", ["attention", "ffn"])
def test_shards_add_up_to_the_layer(dense, router):
    """A loop over all experts of all tokens in float64."""
    block = step3.init_step3(jax.random.key(0), TINY).blocks[0 if dense else 1]
    where = Topology(2, 2, tp=2, ep=2, router=router)
    x = jax.random.normal(jax.random.key(1), (7, TINY.d_model))
    wide = np.asarray(x, np.float64)
    routing = None
    if dense:
        want = swiglu(block.ffn, wide)
    else:
        routing = experts.route(block.ffn.router, x, TINY.num_active)
        want = swiglu(block.ffn.shared, wide)
        for n, row in enumerate(wide):
            for weight, expert in zip(routing.weight[n], routing.expert[n], strict=True):
                one = [w[expert] for w in block.ffn.experts]
                want[n] += float(weight) * swiglu(one, row[None])[0]
    message = wire.pack(x, routing if router == "attention" else None, "exact")
    shards = topology.ffn_shards(block, where)
    parts = jax.jit(
        lambda s, m: jax.lax.map(lambda one: stages.ffn_stage(one, m, TINY, x.dtype), s)
    )(shards, message)
    assert parts.shape[0] == 8
    np.testing.assert_allclose(stages.sum_in_order(parts), want, atol=2e-5)
    # No weight is on two devices, but for the router's copies.
    held = sum(w.size for part in (shards.routed, shards.always) for w in jax.tree.leaves(part))
    whole = sum(w.size for w in jax.tree.leaves(block.ffn))
    assert held == whole - (0 if dense else block.ffn.router.size)


def test_bytes_of_the_published_model():
    """7168 + 56 scales of 4 B + 3 experts of 4 + 4 B out, and 2 D back: 3 D + 248."""
    config = step3.Step3Config()
    assert wire.wire_bytes(config, "fp8") == (7168 + 224 + 24, 14336)
    assert wire.wire_bytes(config, "exact", dtype=jnp.bfloat16, routed=False) == (14336, 14336)
    routing = experts.Routing(jnp.ones((5, 2)), jnp.zeros((5, 2), jnp.int32), jnp.ones((5, 8)))
    x = jnp.ones((5, TINY.d_model))
    for kind in ("exact", "fp8"):
        message = wire.pack(x, routing, kind)
        out = sum(leaf.nbytes for leaf in jax.tree.leaves(message)) // 5
        assert (out, wire.pack_back(x, kind).nbytes // 5) == wire.wire_bytes(TINY, kind)


def test_wire_of_eight_bits_rounds_by_two_and_a_half_percent():
    x = jax.random.normal(jax.random.key(2), (500, 256))
    got = wire.unpack(wire.pack(x, None, "fp8"), x.dtype)
    rms = float(jnp.sqrt(jnp.mean((got - x) ** 2) / jnp.mean(x**2)))
    assert abs(rms - 0.026) < 0.001
    assert jnp.array_equal(wire.unpack(wire.pack(x, None, "exact"), x.dtype), x)


@pytest.mark.parametrize("layer", [0, 1])
def test_eight_bits_change_the_update_of_a_layer_as_they_change_its_tokens(layer):
    """2.6 % of a token: of SwiGLU, which multiplies two products with it, 2.6 to 2.6 * 2 %."""
    block = step3.init_step3(jax.random.key(0), TINY).blocks[layer]
    x = jax.random.normal(jax.random.key(1), (64, TINY.d_model))
    routing = experts.route(block.ffn.router, x, TINY.num_active) if layer else None
    shard = jax.tree.map(lambda w: w[0], topology.ffn_shards(block, Topology(1, 1)))
    updates = [
        np.asarray(
            wire.pack_back(stages.ffn_stage(shard, wire.pack(x, routing, w), TINY, x.dtype), w),
            np.float64,
        )
        for w in ("exact", "fp8")
    ]
    error = np.sqrt(np.mean((updates[1] - updates[0]) ** 2) / np.mean(updates[0] ** 2))
    assert 0.026 < error < 0.052


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Topology(0, 1), "num_attention must be an integer of at least 1, got 0"),
        (Topology(2.0, 1), "num_attention must be an integer of at least 1, got 2.0"),
        (Topology(3, 2), "multiple of the smaller, got 3 and 2"),
        (Topology(1, 1, micro_batches=0), "micro_batches must be an integer of at least 1, got 0"),
        (Topology(3, 3), "dense_hidden = 256 must divide over 3"),
        (Topology(1, 1, ep=16), "num_experts = 8 must divide over 16"),
        (Topology(1, 1, tp=128), "expert_hidden = 64 must divide over 128"),
        (Topology(1, 1, wire="bf16"), "wire must be one of"),
    ],
)
def test_refuses_a_topology(where, message):
    with pytest.raises(ValueError, match=message):
        topology.check_topology(where, TINY, jnp.float32)


def test_refuses_a_wire_that_does_not_fit():
    narrow = TINY._replace(d_model=96)
    with pytest.raises(ValueError, match="must divide d_model, got 96"):
        topology.check_topology(Topology(1, 1, wire="fp8"), narrow, jnp.float32)
    with pytest.raises(ValueError, match="got float64"):
        topology.check_topology(Topology(1, 1, wire="fp8"), TINY, jnp.float64)

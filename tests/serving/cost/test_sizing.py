"""Published bounds on sparsity, batch and small accelerators."""

import math

import pytest

from jaxlab.serving.cost import catalog, sizing


@pytest.mark.parametrize(
    "name, least", [("H800", 0.058), ("H20", 0.007), ("A800", 0.031), ("910B", 0.034)]
)
def test_least_sparsity_to_three_decimals(name, least):
    found = sizing.min_sparsity(7168, 61, catalog.ACCELERATORS[name])
    assert round(found, 3) == least


def test_least_sparsity_at_the_bandwidth_that_was_measured():
    """40 GB/s a network card instead of 50: 0.073, and 14 of DSv3's 256 experts would be active."""
    on = catalog.ACCELERATORS["H800"]
    assert round(sizing.min_sparsity(7168, 61, on, network=8 * 40e9), 3) == 0.073
    assert sizing.min_active(256, sizing.min_sparsity(7168, 61, on)) == 14
    assert round(sizing.sparsity(48, 3), 4) == 0.0816


def test_micro_batch_of_three_attention_and_four_expert_servers():
    """The paper runs 3,072 tokens; the network allows about 3,040 in its rounded 272 us."""
    found = sizing.max_micro_batch(7168, 61, 3, 4, 8 * 40e9)
    assert abs(found * 272e-6 / sizing.stage_seconds(61) - 3036) < 1.0


def test_small_accelerators():
    """L20, 864 GB/s: 67 of 235 MB are projections, a batch of about 41, six servers of experts."""
    spec = catalog.MODELS["Step-3"]
    found = sizing.small_accelerator(spec, 864e9)
    assert abs(found.stage_bytes / 1e6 - 235) < 2
    assert round(found.linear_bytes / 1e6) == 67
    assert abs(found.kv_tokens / 1e3 - 328) < 4  # 331K: the paper rounds the stage to 272 us
    assert found.max_batch in (40, 41)
    assert found.num_servers == 6
    slow = sizing.small_accelerator(spec, 300e9)
    # L4: hardly a request at 8K. 16 servers, 128 cards, by this count; the paper says 144.
    assert slow.max_batch == 3 and slow.num_servers == 16
    with pytest.raises(ValueError, match="too slow for attention"):
        sizing.small_accelerator(spec, 100e9)
    with pytest.raises(ValueError, match="num_ffn must be positive"):
        sizing.max_micro_batch(7168, 61, 3, 0, 1e9)


@pytest.mark.parametrize("routed, active, shared", [(48, 3, 1), (256, 8, 1), (64, 8, 4), (8, 2, 0)])
def test_fewest_active_experts_are_the_first_that_reach_the_bound(routed, active, shared):
    least = sizing.sparsity(routed, active, shared)
    assert sizing.min_active(routed, least, shared) == active
    assert sizing.min_active(routed, least * 1.001, shared) == active + 1


@pytest.mark.parametrize(
    "call",
    [
        lambda on: sizing.min_sparsity(-1, 61, on),
        lambda on: sizing.min_sparsity(7168, 61, on, network=math.inf),
        lambda on: sizing.min_sparsity(7168, math.nan, on),
        lambda on: sizing.max_micro_batch(7168, 61, 3, 4, math.nan),
        lambda on: sizing.small_accelerator(catalog.MODELS["Step-3"], 864e9, context=0),
        lambda on: sizing.small_accelerator(catalog.MODELS["Step-3"], math.nan),
        lambda on: sizing.sparsity(math.inf, 3),
        lambda on: sizing.min_active(0, 0.5),
    ],
)
def test_impossible_numbers_are_refused(call):
    with pytest.raises(ValueError):
        call(catalog.ACCELERATORS["H800"])

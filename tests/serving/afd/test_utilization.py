"""Expert servers: the published bound is the limit of their use; micro-batches checked anew."""

import dataclasses

import numpy as np
import pytest

from jaxlab.serving.afd import utilization
from jaxlab.serving.cost import catalog, prices, sizing

H800, STEP3, DSV3 = (catalog.ACCELERATORS["H800"], catalog.MODELS["Step-3"], catalog.MODELS["DSv3"])


def model(hidden, num_active, num_experts):
    """Step-3 with other experts in all of its 61 layers."""
    return STEP3.replace(ffn=(prices.Ffn(61, hidden, num_active, num_experts),))


def test_the_published_bound_is_the_limit_of_many_servers():
    """At every network: at most min(1, S / S_min), and nearly that where experts are large."""
    large = model(5120 * 12, 4, 49)
    for network in (2e10, 1e11, 2e11, 4e11, 1e12):
        least = sizing.min_sparsity(7168, 61, H800, network=network)
        want = min(1.0, 4 / 49 / least)
        bound = utilization.utilization_bound(large, H800, network=network)
        np.testing.assert_allclose(bound, want, rtol=1e-12)
        found = utilization.afd_utilization(
            large, H800, context=512, network=network, max_servers=24
        )
        assert 0.93 * want < found.ffn_utilization <= want * (1 + 1e-12)
    for spec in (STEP3, DSV3, model(1280, 16, 196), model(640, 8, 98)):
        for network in (5e10, 4e11, 2e12):
            found = utilization.afd_utilization(spec, H800, context=4096, network=network)
            bound = utilization.utilization_bound(spec, H800, network=network)
            assert found.ffn_utilization <= bound * (1 + 1e-12)


def test_the_dead_zone():
    """On a slow network utilization is that of the network; sparser experts have less of it."""
    slow = [
        utilization.afd_utilization(STEP3, H800, context=4096, network=network)
        for network in (2e10, 4e10)
    ]
    assert all(found.bound == "network" for found in slow)
    np.testing.assert_allclose(slow[1].micro_batch, 2 * slow[0].micro_batch, rtol=1e-12)
    np.testing.assert_allclose(slow[1].ffn_utilization, 2 * slow[0].ffn_utilization, rtol=1e-12)
    used = [
        utilization.afd_utilization(
            model(5120, active, 96), H800, context=4096, network=1e11
        ).ffn_utilization
        for active in (2, 4, 8)
    ]
    assert used[0] < used[1] < used[2]
    # Half as large experts at the same share leave the one server that is needed half as idle.
    fine, coarse = (
        utilization.afd_utilization(
            model(hidden, 4, 49), H800, context=4096, network=2e10, max_servers=2
        )
        for hidden in (640, 1280)
    )
    assert fine.num_ffn == coarse.num_ffn == 1
    np.testing.assert_allclose(2 * fine.ffn_utilization, coarse.ffn_utilization, rtol=1e-12)
    # EP shares the network among more servers.
    together = utilization.ep_utilization(STEP3, H800, context=4096, network=2e10)
    assert together.tokens_per_gpu_second > slow[0].tokens_per_gpu_second


def ep_seconds(spec, n, tokens, network, context, num_shared):
    """Seconds of computing and of travel of a micro-batch, group by group."""
    cost, local = prices.token_cost(spec, context), tokens / (8 * n)
    weights = prices.attention_weights(spec) - 7 / 8 * prices.output_weights(spec)
    compute = max(local * cost.kv_bytes / H800.bandwidth, local * cost.attention_flops / H800.flops)
    compute += max(weights / H800.bandwidth, local * cost.linear_flops / H800.flops)
    experts = local * cost.ffn_flops / H800.flops
    compute += max(prices.ffn_weights(spec) / (8 * n) / H800.bandwidth, experts)
    travel = 0.0
    for group in spec.ffn:
        k = group.num_active - num_shared if group.num_experts > 1 else 0
        others = (n - 1) * (1 - (1 - 1 / n) ** k)
        travel += group.num_layers * 3 * spec.d_model * others * tokens / n / network
    return compute, travel


@pytest.mark.parametrize("network", [1e10, 1e11, 1e12])
@pytest.mark.parametrize("spec", [STEP3, DSV3], ids=["Step-3", "DSv3"])
def test_ep_fills_its_step_and_no_number_of_servers_does_better(spec, network):
    found = utilization.ep_utilization(spec, H800, context=4096, network=network, max_servers=20)
    n = found.num_attention
    times = ep_seconds(spec, n, found.micro_batch, network, 4096, 1)
    assert max(times) <= 0.025 * (1 + 1e-12)
    np.testing.assert_allclose(
        found.tokens_per_gpu_second, 2 * found.micro_batch / (8 * n * 0.05), rtol=1e-12
    )
    per_gpu = prices.stored_bytes(spec, 4096)
    weights = prices.attention_weights(spec) - 7 / 8 * prices.output_weights(spec)
    for other in range(1, 21):
        room = H800.memory - weights - prices.ffn_weights(spec) / (8 * other)
        tokens = 1.001 * found.tokens_per_gpu_second * 0.025 * 8 * other
        times = ep_seconds(spec, other, tokens, network, 4096, 1)
        assert max(times) > 0.025 or 2 * tokens / (8 * other) * per_gpu > room


def test_bad_input_is_named():
    for call, message in (
        (lambda: utilization.afd_utilization(STEP3, H800, context=0), "context"),
        (lambda: utilization.afd_utilization(STEP3, H800, context=8, network=0.0), "network"),
        (lambda: utilization.ep_utilization(STEP3, H800, context=8, max_servers=0), "max_servers"),
        (lambda: utilization.ep_utilization(STEP3, H800, context=8, num_shared=5), "num_shared"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    small = dataclasses.replace(H800, memory=1e8)
    assert utilization.afd_utilization(STEP3, small, context=8) is None
    assert utilization.ep_utilization(STEP3, small, context=8) is None

"""Deployments that are published, and the search against all of them."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxlab.serving.afd import planner
from jaxlab.serving.cost import catalog

H800, SPEC = catalog.ACCELERATORS["H800"], catalog.MODELS["Step-3"]


def test_published_deployment_fits():
    """2A2F at 4K with 6,144 requests: 49 GB of cache a GPU, under 50 ms."""
    found = planner.evaluate(SPEC, H800, H800, context=4096, num_attention=2, num_ffn=2, batch=6144)
    empty = planner.evaluate(SPEC, H800, H800, context=1, num_attention=2, num_ffn=2, batch=1)
    assert abs((found.attention_bytes - empty.attention_bytes) / 1e9 - 49) < 1
    assert found.attention_bytes < 80e9
    assert found.tpot < 50e-3
    assert found.tokens_per_gpu_second > 4039  # what the paper measures; this is a bound


def every(on, max_servers, max_tpot, most_local, **options):
    """Every batch, one at a time, of every number of servers and micro-batches that fits."""
    servers = range(1, max_servers + 1)
    for nA, nF, M in itertools.product(servers, servers, (1, 2, 3, 4)):
        for local in range(1, most_local):
            found = planner.evaluate(
                SPEC,
                on,
                on,
                num_attention=nA,
                num_ffn=nF,
                micro_batches=M,
                batch=local * 8 * nA * M,
                **options,
            )
            if found.tpot > max_tpot or max(found.attention_bytes, found.ffn_bytes) > on.memory:
                break
            yield found


@pytest.mark.parametrize(
    "name, context, max_servers, max_tpot, want",
    [
        ("H800", 16384, 2, 0.03, None),
        ("A800", 2048, 2, 0.05, (1, 2, 1872, 3)),  # not 2,496 in four parts, 48.1 ms
        ("H20", 8192, 4, 0.05, (4, 4, 1056, 3)),  # not 1A1F, 36.1 ms
    ],
)
def test_the_plan_is_the_best_of_all(name, context, max_servers, max_tpot, want):
    """The most throughput; of equals the quickest; of those the fewest servers."""
    on = catalog.ACCELERATORS[name]
    best = planner.plan(SPEC, on, on, context=context, max_servers=max_servers, max_tpot=max_tpot)
    all_ = list(every(on, max_servers, max_tpot, 400, context=context))
    most = max(found.tokens_per_gpu_second for found in all_)
    equals = [f for f in all_ if f.tokens_per_gpu_second >= most * (1 - 1e-9)]
    quickest = min(f.tpot for f in equals)
    equals = [f for f in equals if f.tpot <= quickest * (1 + 1e-9)]
    fewest = min(f.num_attention + f.num_ffn for f in equals)
    assert best in [f for f in equals if f.num_attention + f.num_ffn == fewest]
    if want is not None:
        assert (best.num_attention, best.num_ffn, best.batch, best.micro_batches) == want


def test_limits_bind():
    """Less network, memory or time never makes the best plan better."""
    common = {"context": 8192, "max_servers": 4}
    best = planner.plan(SPEC, H800, H800, **common)
    slow = dataclasses.replace(H800, network=H800.network / 20)
    worse = planner.plan(SPEC, slow, slow, **common)
    assert worse is None or worse.tokens_per_gpu_second < best.tokens_per_gpu_second
    quick = planner.plan(SPEC, H800, H800, max_tpot=0.02, **common)
    assert quick.tpot <= 0.02
    assert quick.tokens_per_gpu_second < best.tokens_per_gpu_second
    assert best.attention_bytes <= H800.memory and best.tpot <= 0.05
    small = dataclasses.replace(H800, memory=5e9)
    assert planner.plan(SPEC, small, small, **common) is None
    narrow = planner.evaluate(
        SPEC, slow, slow, context=8192, num_attention=2, num_ffn=2, batch=4096
    )
    assert narrow.bottleneck.startswith("network")


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="batch"):
        planner.evaluate(SPEC, H800, H800, context=1, num_attention=1, num_ffn=1, batch=0)
    with pytest.raises(ValueError, match="network"):
        planner.evaluate(
            SPEC,
            H800,
            H800,
            context=1,
            num_attention=1,
            num_ffn=1,
            batch=8,
            efficiency=planner.Efficiency(network=1.5),
        )
    for wrong in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="context must be a whole number"):
            planner.plan(SPEC, H800, H800, context=wrong)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="max_tpot"):
            planner.plan(SPEC, H800, H800, context=8192, max_tpot=wrong)
    with pytest.raises(ValueError, match="micro_batches"):
        planner.plan(SPEC, H800, H800, context=8192, micro_batches=())


def test_memory_counts_what_is_stored():
    """A state that is read and written at every token lies in memory once."""
    spec = catalog.MODELS["MM M1"]
    small, large = (
        planner.evaluate(spec, H800, H800, context=8192, num_attention=1, num_ffn=1, batch=batch)
        for batch in (8, 16)
    )
    per_request = large.attention_bytes - small.attention_bytes
    np.testing.assert_allclose(per_request, 629_145_600.0, rtol=1e-9)

"""Every cell of the published cost tables: 54 costs of a token, 108 prices, totals and bounds."""

import dataclasses
import math

import numpy as np
import pytest

from experiments.step3_cost.published import PER_TOKEN, PRICES
from jaxlab.serving.cost import catalog, prices

CONTEXTS = np.array([8192, 32768])


@pytest.mark.parametrize("name", PER_TOKEN)
def test_costs_of_a_token_to_three_digits(name):
    found = prices.token_cost(catalog.MODELS[name], CONTEXTS)
    cells = (*found.kv_bytes, *found.attention_flops, found.linear_flops, found.ffn_flops)
    assert [float(f"{cell:.3g}") for cell in cells] == list(PER_TOKEN[name])


@pytest.mark.parametrize("name", PRICES)
def test_prices_of_a_million_tokens_to_half_a_digit(name):
    spec, accelerators = catalog.MODELS[name], catalog.ACCELERATORS.values()
    attention = np.array([prices.attention_usd(spec, a, CONTEXTS) for a in accelerators])
    ffn = [prices.ffn_usd(spec, a) for a in accelerators]
    found = [*attention.T.ravel(), *ffn]
    np.testing.assert_allclose(found, [float(cell) for cell in PRICES[name].split()], atol=6e-4)


@pytest.mark.parametrize(
    "name, at_8k, at_32k",
    [("Step-3", 0.055, 0.129), ("DSv3", 0.068, 0.211), ("Qwen3 MoE", 0.062, 0.193)],
)
def test_totals_of_the_disaggregated_deployments(name, at_8k, at_32k):
    spec, accelerators = catalog.MODELS[name], list(catalog.ACCELERATORS.values())
    found = [prices.cheapest(spec, accelerators, int(context)) for context in CONTEXTS]
    assert [round(f.usd, 3) for f in found] == [at_8k, at_32k]
    assert {f.ffn for f in found} == {"H800"}
    assert {f.attention for f in found} == {"H800" if name == "DSv3" else "H20"}


def test_training_sketch():
    """USD per million training tokens on the 910B: Pangu 0.076, Step-3 0.213."""
    on = catalog.ACCELERATORS["910B"]
    found = [prices.training_usd(catalog.MODELS[name], on) for name in ("Pangu Pro", "Step-3")]
    assert [round(usd, 3) for usd in found] == [0.076, 0.213]


def test_sizes_of_step3():
    """316B weights with 38B active, both counted with embedding and head of 128,815 x 7168."""
    spec = catalog.MODELS["Step-3"]
    vocabulary = 2 * 128_815 * 7168 / 1e9
    total = (prices.attention_weights(spec) + prices.ffn_weights(spec)) / 1e9
    assert abs(total + vocabulary - 316.29) < 0.02  # norms and routers are not counted
    assert abs(prices.active_weights(spec) / 1e9 + vocabulary - 38.84) < 0.03
    assert abs(prices.ffn_weights(spec) / 1e9 - 304.1) < 0.05


def test_intensity_of_attention():
    """2 H / bytes for MFA whatever the context: 128 at 8 bits, 256 with key reuse."""
    mfa = prices.FactorizedAttention(64, 256, 2048)
    for kind, want in (
        (mfa, 128.0),
        (dataclasses.replace(mfa, bytes_per_element=2.0), 64.0),
        (dataclasses.replace(mfa, key_reuse=True), 256.0),
        (prices.LatentAttention(128), 512.0),
        (prices.GroupedQueryAttention(64, 4, 128), 32.0),
    ):
        spec = prices.ModelSpec("one layer", 7168, ((1, kind),), (prices.Ffn(1, 1024),))
        np.testing.assert_allclose(prices.arithmetic_intensity(spec, CONTEXTS), want)


def test_a_state_is_stored_once_and_moved_twice():
    """MiniMax M1 at 8K: 922.7 MB are read and written, 629.1 MB are kept; other models keep all."""
    spec = catalog.MODELS["MM M1"]
    assert round(prices.token_cost(spec, 8192).kv_bytes / 1e6, 1) == 922.7
    assert round(prices.stored_bytes(spec, 8192) / 1e6, 1) == 629.1
    for name in ("Step-3", "DSv3", "Llama 4 M"):
        spec = catalog.MODELS[name]
        assert prices.stored_bytes(spec, 20_000) == prices.token_cost(spec, 20_000).kv_bytes


def test_rate_of_the_cost_model():
    """13,239 and 8,793 tokens/s on H800 at 4K and 8K, of which the paper measures 30 %."""
    on = catalog.ACCELERATORS["H800"]
    found = [prices.tokens_per_second(catalog.MODELS["Step-3"], on, c) for c in (4096, 8192)]
    assert [round(x) for x in found] == [13_239, 8_793]


def test_four_bits_and_verified_tokens_double_the_intensity():
    """Bytes halve; bound by memory the price halves, bound by compute it does not fall."""
    qwen, mla = catalog.MODELS["Qwen3 MoE"], catalog.MODELS["DSv3"]
    two = prices.Mtp(verified=2, kept=2.0)
    for spec in (qwen, mla):
        once = prices.token_cost(spec, 8192)
        for other in (
            prices.token_cost(spec.with_cache(0.5), 8192),
            prices.token_cost(spec, 8192, mtp=two),
        ):
            assert other == once._replace(kv_bytes=once.kv_bytes / 2)
        np.testing.assert_allclose(
            prices.arithmetic_intensity(spec, 8192, mtp=two),
            2.0 * prices.arithmetic_intensity(spec, 8192),
        )
    h20 = catalog.ACCELERATORS["H20"]
    assert prices.attention_usd(mla, h20, 8192, mtp=two) == prices.attention_usd(mla, h20, 8192)
    assert prices.attention_usd(qwen, h20, 8192, mtp=two) < 0.7 * prices.attention_usd(
        qwen, h20, 8192
    )
    # A quarter of the drafted tokens is thrown away: 2 / 1.5 of the experts' work.
    wasteful = prices.Mtp(verified=2, kept=1.5)
    np.testing.assert_allclose(
        prices.ffn_usd(qwen, h20, mtp=wasteful), prices.ffn_usd(qwen, h20) * 2 / 1.5
    )
    for wrong in (prices.Mtp(2, 2.1), prices.Mtp(2, 0.9), prices.Mtp(1, math.nan)):
        with pytest.raises(ValueError, match="1 <= kept <= verified"):
            prices.token_cost(qwen, 8192, mtp=wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: prices.GroupedQueryAttention(0, 1, 64),
        lambda: prices.GroupedQueryAttention(6, 4, 64),
        lambda: prices.GroupedQueryAttention(4, 4, 64, window=0),
        lambda: prices.LatentAttention(64, bytes_per_element=math.nan),
        lambda: prices.FactorizedAttention(64, -256, 2048),
        lambda: prices.LightningAttention(64, math.inf),
        lambda: prices.ModelSpec("m", 8, ((-1, prices.LatentAttention(2)),), (prices.Ffn(1, 8),)),
        lambda: prices.ModelSpec("m", 8, (), (prices.Ffn(1, 8),)),
        lambda: prices.ModelSpec(
            "m", 8, ((1, prices.LatentAttention(2)),), (prices.Ffn(1, 8, 3, 2),)
        ),
        lambda: prices.ModelSpec("m", 8, ((1, prices.LatentAttention(2)),), (prices.Ffn(0, 8),)),
        lambda: prices.Accelerator("a", 1.0, math.inf, 1e12),
        lambda: prices.Accelerator("a", 1.0, 1e15, 1e12, memory=math.inf),
        lambda: prices.Accelerator("a", math.nan, 1e15, 1e12),
        lambda: prices.token_cost(catalog.MODELS["Step-3"], math.nan),
        lambda: prices.token_cost(catalog.MODELS["Step-3"], np.array([1.0, math.inf])),
    ],
)
def test_impossible_sizes_are_refused(make):
    with pytest.raises(ValueError):
        make()

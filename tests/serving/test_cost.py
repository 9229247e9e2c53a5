"""Every cell of the published cost tables: 54 costs of a token, 108 prices, totals and bounds."""

import dataclasses

import numpy as np
import pytest

from experiments.step3_cost.published import PER_TOKEN, PRICES
from jaxlab.serving import catalog, cost

CONTEXTS = np.array([8192, 32768])


@pytest.mark.parametrize("name", PER_TOKEN)
def test_costs_of_a_token_to_three_digits(name):
    found = cost.token_cost(catalog.MODELS[name], CONTEXTS)
    cells = (
        *found.kv_bytes, *found.attention_flops, found.linear_flops, found.ffn_flops
    )  # fmt: skip
    assert [float(f"{cell:.3g}") for cell in cells] == list(PER_TOKEN[name])


@pytest.mark.parametrize("name", PRICES)
def test_prices_of_a_million_tokens_to_half_a_digit(name):
    spec, accelerators = catalog.MODELS[name], catalog.ACCELERATORS.values()
    attention = np.array([cost.attention_usd(spec, a, CONTEXTS) for a in accelerators])
    ffn = [cost.ffn_usd(spec, a) for a in accelerators]
    found = [*attention.T.ravel(), *ffn]
    np.testing.assert_allclose(found, [float(cell) for cell in PRICES[name].split()], atol=6e-4)


@pytest.mark.parametrize(
    "name, at_8k, at_32k",
    [("Step-3", 0.055, 0.129), ("DSv3", 0.068, 0.211), ("Qwen3 MoE", 0.062, 0.193)],
)
def test_totals_of_the_disaggregated_deployments(name, at_8k, at_32k):
    spec, accelerators = catalog.MODELS[name], list(catalog.ACCELERATORS.values())
    found = [cost.cheapest(spec, accelerators, int(context)) for context in CONTEXTS]
    assert [round(f.usd, 3) for f in found] == [at_8k, at_32k]
    assert {f.ffn for f in found} == {"H800"}
    assert {f.attention for f in found} == {"H800" if name == "DSv3" else "H20"}


def test_training_sketch():
    """USD per million training tokens on the 910B: Pangu 0.076, Step-3 0.213."""
    on = catalog.ACCELERATORS["910B"]
    found = [cost.training_usd(catalog.MODELS[name], on) for name in ("Pangu Pro", "Step-3")]
    assert [round(usd, 3) for usd in found] == [0.076, 0.213]


def test_sizes_of_step3():
    """316B weights with 38B active, both counted with embedding and head of 128,815 x 7168."""
    spec = catalog.MODELS["Step-3"]
    vocabulary = 2 * 128_815 * 7168 / 1e9
    total = (cost.attention_weights(spec) + cost.ffn_weights(spec)) / 1e9
    assert abs(total + vocabulary - 316.29) < 0.02  # norms and routers are not counted
    assert abs(cost.active_weights(spec) / 1e9 + vocabulary - 38.84) < 0.03
    assert abs(cost.ffn_weights(spec) / 1e9 - 304.1) < 0.05


def test_intensity_of_attention():
    """2 H / bytes for MFA whatever the context: 128 at 8 bits, 256 with key reuse."""
    mfa = cost.FactorizedAttention(64, 256, 2048)
    for kind, want in (
        (mfa, 128.0),
        (dataclasses.replace(mfa, bytes_per_element=2.0), 64.0),
        (dataclasses.replace(mfa, key_reuse=True), 256.0),
        (cost.LatentAttention(128), 512.0),
        (cost.GroupedQueryAttention(64, 4, 128), 32.0),
    ):
        spec = cost.ModelSpec("one layer", 7168, ((1, kind),), (cost.Ffn(1, 1024),))
        np.testing.assert_allclose(cost.arithmetic_intensity(spec, CONTEXTS), want)

"""Every cell of the published cost tables: 54 costs of a token, 108 prices, totals and bounds."""

import dataclasses

import numpy as np
import pytest

from jaxlab.serving import catalog, cost

# KV bytes at 8K and 32K, attention FLOPs at 8K and 32K, linear FLOPs, FFN FLOPs.
PER_TOKEN = {
    "DSv3": (2.88e8, 1.15e9, 1.47e11, 5.89e11, 2.28e10, 4.84e10),
    "Kimi K2": (2.88e8, 1.15e9, 7.37e10, 2.95e11, 1.23e10, 4.84e10),
    "Qwen3 MoE": (7.89e8, 3.15e9, 2.52e10, 1.01e11, 1.34e10, 2.84e10),
    "Qwen3 32B": (1.07e9, 4.29e9, 1.72e10, 6.87e10, 1.21e10, 5.03e10),
    "Llama 4 M": (1.01e9, 2.21e9, 8.05e9, 1.41e10, 6.04e9, 2.42e10),
    "MM M1": (9.23e8, 1.93e9, 3.42e9, 1.15e10, 3.75e10, 5.44e10),
    "ERNIE 4.5": (9.06e8, 3.62e9, 1.45e10, 5.80e10, 1.63e10, 7.61e10),
    "Pangu Pro": (8.05e8, 3.22e9, 8.05e9, 3.22e10, 6.04e9, 2.38e10),
    "Step-3": (2.56e8, 1.02e9, 3.27e10, 1.31e11, 2.07e10, 5.33e10),
}
# USD per million tokens on H800, H20, A800, 910B: attention at 8K, at 32K, FFN.
PRICES = {
    "DSv3": ".054 .128 .114 .113 .197 .460 .409 .407 .014 .036 .032 .032",
    "Kimi K2": ".051 .065 .057 .057 .194 .231 .205 .204 .014 .036 .032 .032",
    "Qwen3 MoE": ".135 .054 .091 .101 .527 .185 .338 .376 .008 .021 .019 .019",
    "Qwen3 32B": ".181 .069 .120 .133 .716 .248 .455 .508 .014 .038 .034 .033",
    "Llama 4 M": ".169 .060 .109 .121 .369 .128 .235 .262 .007 .018 .016 .016",
    "MM M1": ".164 .079 .121 .132 .330 .135 .226 .249 .015 .041 .036 .036",
    "ERNIE 4.5": ".155 .063 .105 .116 .606 .214 .388 .432 .021 .057 .051 .051",
    "Pangu Pro": ".135 .049 .088 .098 .536 .183 .340 .379 .007 .018 .016 .016",
    "Step-3": ".048 .040 .040 .043 .176 .114 .120 .133 .015 .040 .036 .035",
}
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

"""The tables of arXiv:2507.19427, cell by cell, and what it measures."""

from typing import NamedTuple

CONTEXTS = (8 * 1024, 32 * 1024)
ACCELERATORS = ("H800", "H20", "A800", "910B")

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
"""KV bytes at 8K and 32K, attention FLOPs at 8K and 32K, linear FLOPs, FFN FLOPs."""

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
"""USD per million tokens on each accelerator: attention at 8K, attention at 32K, FFN."""

TOTALS = {"Step-3": (0.055, 0.129), "DSv3": (0.068, 0.211), "Qwen3 MoE": (0.062, 0.193)}
"""USD per million tokens, attention and FFN each where it is cheapest, at 8K and 32K."""

MIN_SPARSITY = {"H800": 0.058, "H20": 0.007, "A800": 0.031, "910B": 0.034}
"""Least share of active experts."""
MIN_SPARSITY_SLOWER = 0.073
"""The same on H800 at 40 GB/s a network card."""
INTENSITY = {"Step-3": 128, "DSv3": 512}
"""FLOPs of attention per byte of cache."""
MICRO_BATCH = 3072
"""Tokens of a micro-batch of 3A4F."""
L4_CARDS = 144
"""Cards for all experts on L4."""


class Small(NamedTuple):
    """What the paper says of an accelerator with little bandwidth.

    Attributes:
        kv_tokens: Tokens of cache that it reads in a stage.
        max_batch: Requests of 8K in its micro-batch.
        num_servers: Servers that hold all experts.
    """

    kv_tokens: int
    max_batch: int
    num_servers: int


L20 = Small(328_000, 41, 6)


class Served(NamedTuple):
    """A deployment on H800, and the tokens per GPU and second that the paper gives for it.

    Attributes:
        name: attention and expert servers.  model: key of `study.SERVED`.
        batch: requests in flight.  note: where the figure, or a missing size, comes from.
    """

    name: str
    model: str
    context: int
    num_attention: int
    num_ffn: int
    batch: int
    measured: float
    note: str = "The paper measures."


DEPLOYMENTS = (
    Served("2A2F", "Step-3", 4096, 2, 2, 6144, 4039.0),
    Served("4A2F", "Step-3", 8192, 4, 2, 6144, 2643.0),
    Served("3A2F", "Step-3, BF16 cache", 4096, 3, 2, 6048, 3321.0),
    Served("16A2F", "Step-3", 32768, 16, 2, 6144, 898.0, "The paper scales its 4,039 by 4/18."),
    Served(
        "3A4F",
        "Step-3, twice the experts",
        4096,
        3,
        4,
        3 * 3072,
        3291.0,
        "The paper measures a model of more than 600B with micro-batches of 3,072; its sizes and "
        "context are not published, here Step-3 with 96 routed experts at 4K.",
    ),
)

RATES = (("Step-3", 4096, 13_239.0, 4039.0, 0.305), ("Step-3", 8192, 8_793.0, 2643.0, 0.301))
"""Model, context, tokens/s of one H800 by the cost model, measured, and their ratio."""
DSV3_SHARE = (4096, 2324.0, 0.183)
"""Context, tokens per GPU and second of DSv3's published profile, share of the cost model's."""

ROUTED_EXPERTS = 14
"""Routed experts that a token of DSv3 would have to visit on H800."""

TRAINING = {"Pangu Pro": 0.076, "Step-3": 0.213}
"""USD per million training tokens on the 910B."""

"""What the cost model says beside the paper's figures, claim by claim."""

import numpy as np

from experiments.harness.result import Row
from experiments.step3_cost import published
from experiments.step3_cost.tables import DRAFTED
from jaxlab.serving.afd import planner
from jaxlab.serving.cost import catalog, prices, sizing
from jaxlab.serving.cost.prices import ModelSpec

SERVED: dict[str, ModelSpec] = {
    "Step-3": catalog.MODELS["Step-3"],
    "Step-3, BF16 cache": catalog.MODELS["Step-3"].with_cache(2.0),
    "Step-3, twice the experts": catalog.MODELS["Step-3"].replace(
        ffn=(prices.Ffn(56, 5120, 3 + 1, 2 * 48 + 1), prices.Ffn(5, 18432))
    ),
}
"""Models of the published deployments."""
HALF_A_DIGIT = 6e-4
"""Prices are printed to three decimals, from constants that were rounded before."""
USD = "USD per million tokens"
SHARE = 0.02
"""Deviation from a rounded figure of the paper's that counts as the same."""


def rows() -> tuple[Row, ...]:
    """Returns all rows: tables, prices, bounds, denser attention, deployments, rates."""
    return (*tables(), *totals(), *bounds(), *intensities(), *deployments(), *rates())


def tables() -> tuple[Row, ...]:
    """Counts the cells of the paper's tables that the cost model gives, digit by digit."""
    contexts = np.array(published.CONTEXTS)
    agree, cells = 0, 0
    for name, printed in published.PER_TOKEN.items():
        found = prices.token_cost(catalog.MODELS[name], contexts)
        fixed = [float(f"{x:.3g}") for x in (found.linear_flops, found.ffn_flops)]
        growing = [
            float(f"{x:.3g}") for x in (*np.ravel(found.kv_bytes), *np.ravel(found.attention_flops))
        ]
        # Linear and FFN FLOPs are printed once for each of the two contexts.
        mine, theirs = [*growing, *fixed, *fixed], [*printed, *printed[4:]]
        agree += sum(a == b for a, b in zip(mine, theirs, strict=True))
        cells += len(theirs)
    near, priced = 0, 0
    for name, printed in published.PRICES.items():
        on = [catalog.ACCELERATORS[a] for a in published.ACCELERATORS]
        spec = catalog.MODELS[name]
        attention = np.array([prices.attention_usd(spec, a, contexts) for a in on]).T.ravel()
        mine = np.concatenate([attention, [prices.ffn_usd(spec, a) for a in on]])
        theirs = np.array([float(x) for x in printed.split()])
        near += int(np.sum(np.abs(mine - theirs) <= HALF_A_DIGIT))
        priced += theirs.size
    claim = "Attention design decides what decoding costs (tables of bytes, FLOPs and prices)"
    return (
        _beside(
            claim,
            "Cells of bytes and FLOPs equal to three digits",
            agree,
            cells,
            unit="cells",
            note="Nine models at 8K and 32K; the counting rules are those that give the digits.",
        ),
        _beside(
            claim,
            "Prices per million tokens equal to half a digit",
            near,
            priced,
            unit="cells",
            note="Nine models on four accelerators: attention at 8K and 32K, FFN.",
        ),
    )


def totals() -> tuple[Row, ...]:
    """Prices of whole models, each part where it is cheapest, and of training."""
    found = []
    everything = list(catalog.ACCELERATORS.values())
    for name, printed in published.TOTALS.items():
        for context, paper in zip(published.CONTEXTS, printed, strict=True):
            best = prices.cheapest(catalog.MODELS[name], everything, context)
            found.append(
                _beside(
                    "Attention and FFN each where they are cheapest",
                    f"{name} at {context // 1024}K",
                    best.usd,
                    paper,
                    same=round(best.usd, 3) == paper,
                    unit=USD,
                    note=f"Attention on {best.attention}, FFN on {best.ffn}.",
                )
            )
    for name, paper in published.TRAINING.items():
        usd = prices.training_usd(catalog.MODELS[name], catalog.ACCELERATORS["910B"])
        found.append(
            _beside(
                "Training costs follow the same count",
                f"{name} on the 910B, 8K",
                usd,
                paper,
                same=round(usd, 3) == paper,
                unit=USD,
                note="Three times attention, linear and FFN FLOPs.",
            )
        )
    return tuple(found)


def bounds() -> tuple[Row, ...]:
    """What network and memory ask of the model: sparsity, intensity, small accelerators."""
    return (*_sparsity(), *_balance(), *_small_accelerators(), _micro_batch())


def intensities() -> tuple[Row, ...]:
    """What twice the intensity does for GQA, MFA and MLA, and for the experts."""
    found, context = [], 8192
    claim = "A four-bit cache or MTP doubles intensity: good for GQA and MFA, not for MLA"
    for name, on in (("Qwen3 MoE", "H800"), ("Step-3", "H800"), ("DSv3", "H20")):
        spec, accelerator = catalog.MODELS[name], catalog.ACCELERATORS[on]
        before = float(prices.attention_usd(spec, accelerator, context))
        halved = prices.attention_usd(spec.with_cache(0.5), accelerator, context)
        drafted = prices.attention_usd(spec, accelerator, context, mtp=DRAFTED)
        for what, usd in (("4-bit cache", halved), ("MTP, 1.8 of 2 tokens kept", drafted)):
            metric = f"Attention of {name} on {on} at 8K, {what}"
            found.append(
                _cheaper(claim, metric, float(usd), ("8-bit cache, one token a step", before))
            )
    spec, on = catalog.MODELS["Step-3"], catalog.ACCELERATORS["H800"]
    found.append(
        _cheaper(
            "MTP always makes more work for the experts",
            "FFN of Step-3 on H800, MTP, 1.8 of 2 tokens kept",
            prices.ffn_usd(spec, on, mtp=DRAFTED),
            ("one token a step", prices.ffn_usd(spec, on)),
            note="Rejected tokens pass the experts too.",
        )
    )
    return tuple(found)


def deployments() -> tuple[Row, ...]:
    """The planner's bound on the published deployments, beside what the paper measures."""
    rows = []
    for served in published.DEPLOYMENTS:
        found = planned(served)
        rows.append(
            Row(
                "Step-3 serves 20 tokens a second to every user",
                f"Bound of the planner, {served.name} at {served.context // 1024}K"
                + served.model.removeprefix("Step-3"),
                found.tokens_per_gpu_second,
                paper=served.measured,
                unit="tokens/GPU/s",
                note=f"{served.note} Ours is a bound at the usual efficiencies. Batch "
                f"{served.batch:,}, {1e3 * found.tpot:.1f} ms a token, bottleneck: "
                f"{found.bottleneck}, {found.attention_bytes / 1e9:.0f} GB an attention GPU.",
            )
        )
    return tuple(rows)


def planned(
    served: published.Served, efficiency: planner.Efficiency = planner.MEASURED
) -> planner.Deployment:
    """What the planner says of a published deployment, on H800."""
    on = catalog.ACCELERATORS["H800"]
    return planner.evaluate(
        SERVED[served.model],
        on,
        on,
        context=served.context,
        num_attention=served.num_attention,
        num_ffn=served.num_ffn,
        batch=served.batch,
        efficiency=efficiency,
    )


def rates() -> tuple[Row, ...]:
    """The cost model's tokens a second of an H800, and the share that the paper measures."""
    rows, on = [], catalog.ACCELERATORS["H800"]
    claim = "What is measured is a third of what the cost model promises"
    for name, context, rate, measured, share in published.RATES:
        found = prices.tokens_per_second(catalog.MODELS[name], on, context)
        at = f"{name} at {context // 1024}K"
        rows += [
            _beside(
                claim,
                f"Rate of one H800 by the cost model, {at}",
                found,
                rate,
                same=round(found) == rate,
                unit="tokens/GPU/s",
            ),
            _beside(
                claim,
                f"Measured by the paper, share of that rate, {at}",
                measured / found,
                share,
                same=round(measured / found, 3) == share,
            ),
        ]
    context, measured, share = published.DSV3_SHARE
    found = measured / prices.tokens_per_second(catalog.MODELS["DSv3"], on, context)
    metric = "Measured by its makers, share of that rate, DSv3 at 4K"
    return (*rows, _beside(claim, metric, found, share, same=round(found, 3) == share))


def _sparsity() -> list[Row]:
    claim, rows = "Experts must not be too sparse for the network", []
    for name, paper in published.MIN_SPARSITY.items():
        least = sizing.min_sparsity(7168, 61, catalog.ACCELERATORS[name])
        metric = f"Least share of active experts, {name}"
        rows.append(_beside(claim, metric, least, paper, same=round(least, 3) == paper))
    h800 = catalog.ACCELERATORS["H800"]
    slower = sizing.min_sparsity(7168, 61, h800, network=8 * 40e9)
    return [
        *rows,
        _beside(
            claim,
            "The same on H800 at 40 GB/s a network card",
            slower,
            published.MIN_SPARSITY_SLOWER,
            same=round(slower, 3) == published.MIN_SPARSITY_SLOWER,
            note="The bandwidth that DeepEP reaches.",
        ),
        _beside(
            claim,
            "Routed experts of 256 that a token of DSv3 would visit on H800",
            sizing.min_active(256, sizing.min_sparsity(7168, 61, h800)),
            published.ROUTED_EXPERTS,
            unit="experts",
            note="It visits 8.",
        ),
    ]


def _balance() -> list[Row]:
    claim = "MFA's arithmetic intensity suits most accelerators"
    return [
        _beside(
            claim,
            f"FLOPs per byte of cache, {kind} ({name})",
            prices.arithmetic_intensity(catalog.MODELS[name], 8192),
            published.INTENSITY[name],
            unit="FLOP/B",
        )
        for kind, name in (("MFA", "Step-3"), ("MLA", "DSv3"))
    ]


def _small_accelerators() -> list[Row]:
    small = sizing.small_accelerator(catalog.MODELS["Step-3"], 864e9)
    smaller = sizing.small_accelerator(catalog.MODELS["Step-3"], 300e9)
    kv_tokens, paper = small.kv_tokens, published.L20
    claim = "Accelerators with a quarter of the bandwidth can serve (L20, 864 GB/s)"
    return [
        _beside(
            claim,
            "Tokens of cache that an accelerator reads in a stage",
            kv_tokens,
            paper.kv_tokens,
            same=abs(kv_tokens - paper.kv_tokens) <= SHARE * paper.kv_tokens,
            unit="tokens",
            note="The paper rounds the stage of 273 us to 272.",
        ),
        _beside(
            claim,
            "Requests of 8K in a micro-batch of an accelerator",
            small.max_batch,
            paper.max_batch,
            unit="requests",
            note="Contexts of 8,192 tokens; with 8,000 it is 41.",
        ),
        _beside(
            claim, "Servers for all experts", small.num_servers, paper.num_servers, unit="servers"
        ),
        _beside(
            claim,
            "Cards for all experts on L4 (300 GB/s), too slow for attention",
            sizing.SERVER * smaller.num_servers,
            published.L4_CARDS,
            unit="cards",
            note="By the same count as for L20; the paper's figure may be the 48 of L20 scaled by "
            "bandwidth and rounded up to servers.",
        ),
    ]


def _micro_batch() -> Row:
    micro, paper = sizing.max_micro_batch(7168, 61, 3, 4, 8 * 40e9), published.MICRO_BATCH
    return _beside(
        "3A4F carries a micro-batch of 3,072",
        "Tokens that the network carries in a stage",
        micro,
        paper,
        same=abs(micro - paper) <= SHARE * paper,
        unit="tokens",
    )


def _beside(
    claim: str,
    metric: str,
    value: float,
    paper: float,
    *,
    same: bool | None = None,
    unit: str = "",
    note: str = "",
) -> Row:
    """A figure beside the paper's; the two are the same if they are equal, or `same` says so."""
    agree = value == paper if same is None else same
    verdict = "reproduced" if agree else "not reproduced"
    return Row(claim, metric, value, paper=paper, verdict=verdict, unit=unit, note=note)


def _cheaper(
    claim: str, metric: str, usd: float, baseline: tuple[str, float], *, note: str = ""
) -> Row:
    """A price beside another one; half a percent apart they are the same."""
    before = baseline[1]
    verdict = "better" if usd < before else "worse"
    if abs(usd - before) <= 0.005 * before:
        verdict = "no clear difference"
    return Row(claim, metric, usd, baseline=baseline, verdict=verdict, unit=USD, note=note)

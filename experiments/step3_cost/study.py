"""The study: published tables computed again, bounds, and the planner beside what was measured."""

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.harness.result import Result, Row, Table
from experiments.step3_cost import Config, figures, own, published
from jaxlab.serving import catalog, cost, planner, sizing
from jaxlab.serving.cost import Accelerator, ModelSpec

PAPER = "StepFun: Step-3 is Large yet Affordable, arXiv:2507.19427"
LIMITS = (
    "Costs are a roofline: the dearer of bytes and FLOPs at full peak, rent alone. Communication, "
    "embedding and head are left out, as in the paper.",
    "Prices are the paper's; that of the 910B is its estimate.",
    "The planner divides peaks by fixed efficiencies and knows no stragglers, no growing contexts "
    "and no imbalance of experts: its throughput is a bound, not a forecast.",
)
SERVED: dict[str, ModelSpec] = {
    "Step-3": catalog.MODELS["Step-3"],
    "Step-3, BF16 cache": catalog.MODELS["Step-3"].with_cache(2.0),
    "Step-3, twice the experts": catalog.MODELS["Step-3"].replace(
        ffn=(cost.Ffn(56, 5120, 3 + 1, 2 * 48 + 1), cost.Ffn(5, 18432))
    ),
}
"""Models of the published deployments."""
DRAFTED = cost.Mtp(verified=2, kept=1.8)
"""One drafted token a step, of which 80 % are accepted."""
HALF_A_DIGIT = 6e-4
"""Prices are printed to three decimals, from constants that were rounded before."""


def run(config: Config, out: pathlib.Path) -> Result:
    """Computes everything; plain numbers, no accelerator needed."""
    own_models, own_accelerators = own.read(config.own)
    known = catalog.MODELS | own_models
    models = _chosen(config.models, known, "models")
    accelerators = _chosen(
        config.accelerators, catalog.ACCELERATORS | own_accelerators, "accelerators"
    )
    (spec,) = _chosen((config.planned,), known, "planned")
    plans = [_plans(spec, pair, config) for pair in _pairs(accelerators)]
    return Result(
        experiment="step3_cost",
        title="What decoding costs: models, accelerators, deployments",
        summary=_summary(models, accelerators),
        paper=PAPER,
        rows=(
            *_table_rows(),
            *_total_rows(),
            *_bound_rows(),
            *_intensity_rows(),
            *_deployment_rows(),
            *_rate_rows(),
        ),
        figures=figures.draw(models, accelerators, config.contexts, plans, spec.name, out),
        tables=(
            _cost_table(models, accelerators, 8192),
            _cost_table(models, accelerators, 32768),
            _ffn_table(models, accelerators),
            _denser_table(models, accelerators, 8192),
            _plan_table(plans, config.contexts),
        ),
        limits=LIMITS,
    )


def _chosen(names: Sequence[str], table: dict, what: str) -> list:
    unknown = [name for name in names if name not in table]
    if unknown:
        raise ValueError(f"{what} must be among {', '.join(table)}, got {', '.join(unknown)}")
    return [table[name] for name in names or table]


def _table_rows() -> tuple[Row, ...]:
    contexts = np.array(published.CONTEXTS)
    agree, cells = 0, 0
    for name, printed in published.PER_TOKEN.items():
        found = cost.token_cost(catalog.MODELS[name], contexts)
        fixed = [float(f"{x:.3g}") for x in (found.linear_flops, found.ffn_flops)]
        growing = [float(f"{x:.3g}") for x in (*found.kv_bytes, *found.attention_flops)]
        # Linear and FFN FLOPs are printed once for each of the two contexts.
        mine, theirs = [*growing, *fixed, *fixed], [*printed, *printed[4:]]
        agree += sum(a == b for a, b in zip(mine, theirs, strict=True))
        cells += len(theirs)
    near, prices = 0, 0
    for name, printed in published.PRICES.items():
        on = [catalog.ACCELERATORS[a] for a in published.ACCELERATORS]
        spec = catalog.MODELS[name]
        attention = np.array([cost.attention_usd(spec, a, contexts) for a in on]).T.ravel()
        mine = np.concatenate([attention, [cost.ffn_usd(spec, a) for a in on]])
        theirs = np.array([float(x) for x in printed.split()])
        near += int(np.sum(np.abs(mine - theirs) <= HALF_A_DIGIT))
        prices += theirs.size
    claim = "Attention design decides what decoding costs (tables of bytes, FLOPs and prices)"
    return (
        Row(
            claim,
            "Cells of bytes and FLOPs equal to three digits",
            agree,
            paper=cells,
            unit="cells",
            verdict=_same(agree, cells),
            note="Nine models at 8K and 32K; the counting rules are those that give the digits.",
        ),
        Row(
            claim,
            "Prices per million tokens equal to half a digit",
            near,
            paper=prices,
            unit="cells",
            verdict=_same(near, prices),
            note="Nine models on four accelerators: attention at 8K and 32K, FFN.",
        ),
    )


def _total_rows() -> tuple[Row, ...]:
    rows = []
    everything = list(catalog.ACCELERATORS.values())
    for name, printed in published.TOTALS.items():
        for context, paper in zip(published.CONTEXTS, printed, strict=True):
            found = cost.cheapest(catalog.MODELS[name], everything, context)
            rows.append(
                Row(
                    "Attention and FFN each where they are cheapest",
                    f"{name} at {context // 1024}K",
                    found.usd,
                    paper=paper,
                    unit="USD per million tokens",
                    verdict=_same(round(found.usd, 3), paper),
                    note=f"Attention on {found.attention}, FFN on {found.ffn}.",
                )
            )
    on = catalog.ACCELERATORS["910B"]
    for name, paper in published.TRAINING.items():
        usd = cost.training_usd(catalog.MODELS[name], on)
        rows.append(
            Row(
                "Training costs follow the same count",
                f"{name} on the 910B, 8K",
                usd,
                paper=paper,
                unit="USD per million tokens",
                verdict=_same(round(usd, 3), paper),
                note="Three times attention, linear and FFN FLOPs.",
            )
        )
    return tuple(rows)


def _bound_rows() -> tuple[Row, ...]:
    claim = "Experts must not be too sparse for the network"
    rows = []
    for name, paper in published.MIN_SPARSITY.items():
        least = sizing.min_sparsity(7168, 61, catalog.ACCELERATORS[name])
        rows.append(
            Row(
                claim,
                f"Least share of active experts, {name}",
                least,
                paper=paper,
                verdict=_same(round(least, 3), paper),
            )
        )
    slower = sizing.min_sparsity(7168, 61, catalog.ACCELERATORS["H800"], network=8 * 40e9)
    rows.append(
        Row(
            claim,
            "The same on H800 at 40 GB/s a network card",
            slower,
            paper=0.073,
            verdict=_same(round(slower, 3), 0.073),
            note="The bandwidth that DeepEP reaches.",
        )
    )
    least = sizing.min_sparsity(7168, 61, catalog.ACCELERATORS["H800"])
    routed = sizing.min_active(256, least)
    rows.append(
        Row(
            claim,
            "Routed experts of 256 that a token of DSv3 would visit on H800",
            routed,
            paper=published.ROUTED_EXPERTS,
            unit="experts",
            verdict=_same(routed, published.ROUTED_EXPERTS),
            note="It visits 8.",
        )
    )
    mfa = cost.arithmetic_intensity(catalog.MODELS["Step-3"], 8192)
    mla = cost.arithmetic_intensity(catalog.MODELS["DSv3"], 8192)
    claim = "MFA's arithmetic intensity suits most accelerators"
    for name, value, paper in (("MFA (Step-3)", mfa, 128), ("MLA (DSv3)", mla, 512)):
        rows.append(
            Row(
                claim,
                f"FLOPs per byte of cache, {name}",
                value,
                paper=paper,
                unit="FLOP/B",
                verdict=_same(value, paper),
            )
        )
    small = sizing.small_accelerator(catalog.MODELS["Step-3"], 864e9)
    claim = "Accelerators with a quarter of the bandwidth can serve (L20, 864 GB/s)"
    rows.append(
        Row(
            claim,
            "Tokens of cache that an accelerator reads in a stage",
            small.kv_tokens,
            paper=328_000,
            unit="tokens",
            verdict=_near(small.kv_tokens, 328_000, 0.02),
            note="The paper rounds the stage of 273 us to 272.",
        )
    )
    rows.append(
        Row(
            claim,
            "Requests of 8K in a micro-batch of an accelerator",
            small.max_batch,
            paper=41,
            unit="requests",
            verdict=_same(small.max_batch, 41),
            note="Contexts of 8,192 tokens; with 8,000 it is 41.",
        )
    )
    rows.append(
        Row(
            claim,
            "Servers for all experts",
            small.num_servers,
            paper=6,
            unit="servers",
            verdict=_same(small.num_servers, 6),
        )
    )
    cards = sizing.SERVER * sizing.small_accelerator(catalog.MODELS["Step-3"], 300e9).num_servers
    rows.append(
        Row(
            claim,
            "Cards for all experts on L4 (300 GB/s), too slow for attention",
            cards,
            paper=144,
            unit="cards",
            verdict=_same(cards, 144),
            note="By the same count as for L20; the paper's figure may be the 48 of L20 scaled by "
            "bandwidth and rounded up to servers.",
        )
    )
    micro = sizing.max_micro_batch(7168, 61, 3, 4, 8 * 40e9)
    rows.append(
        Row(
            "3A4F carries a micro-batch of 3,072",
            "Tokens that the network carries in a stage",
            micro,
            paper=3072,
            unit="tokens",
            verdict=_near(micro, 3072, 0.02),
        )
    )
    return tuple(rows)


def _intensity_rows() -> tuple[Row, ...]:
    """What twice the intensity does for GQA, MFA and MLA."""
    rows, context = [], 8192
    claim = "A four-bit cache or MTP doubles intensity: good for GQA and MFA, not for MLA"
    for name, on in (("Qwen3 MoE", "H800"), ("Step-3", "H800"), ("DSv3", "H20")):
        spec, accelerator = catalog.MODELS[name], catalog.ACCELERATORS[on]
        before = float(cost.attention_usd(spec, accelerator, context))
        for what, usd in (
            ("4-bit cache", cost.attention_usd(spec.with_cache(0.5), accelerator, context)),
            (
                "MTP, 1.8 of 2 tokens kept",
                cost.attention_usd(spec, accelerator, context, mtp=DRAFTED),
            ),
        ):
            rows.append(
                Row(
                    claim,
                    f"Attention of {name} on {on} at 8K, {what}",
                    float(usd),
                    baseline=("8-bit cache, one token a step", before),
                    unit="USD per million tokens",
                    verdict=_against(float(usd), before),
                )
            )
    spec, on = catalog.MODELS["Step-3"], catalog.ACCELERATORS["H800"]
    before, usd = cost.ffn_usd(spec, on), cost.ffn_usd(spec, on, mtp=DRAFTED)
    rows.append(
        Row(
            "MTP always makes more work for the experts",
            "FFN of Step-3 on H800, MTP, 1.8 of 2 tokens kept",
            usd,
            baseline=("one token a step", before),
            unit="USD per million tokens",
            verdict=_against(usd, before),
            note="Rejected tokens pass the experts too.",
        )
    )
    return tuple(rows)


def _deployment_rows() -> tuple[Row, ...]:
    rows, on = [], catalog.ACCELERATORS["H800"]
    for served in published.DEPLOYMENTS:
        found = planner.evaluate(
            SERVED[served.model],
            on,
            on,
            context=served.context,
            num_attention=served.num_attention,
            num_ffn=served.num_ffn,
            batch=served.batch,
        )
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


def _rate_rows() -> tuple[Row, ...]:
    """The cost model's tokens/s of an H800, and the share that the paper measures."""
    rows, on = [], catalog.ACCELERATORS["H800"]
    claim = "What is measured is a third of what the cost model promises"
    for name, context, rate, measured, share in published.RATES:
        found = cost.tokens_per_second(catalog.MODELS[name], on, context)
        at = f"{name} at {context // 1024}K"
        rows.append(
            Row(
                claim,
                f"Rate of one H800 by the cost model, {at}",
                found,
                paper=rate,
                unit="tokens/GPU/s",
                verdict=_same(round(found), rate),
            )
        )
        rows.append(
            Row(
                claim,
                f"Measured by the paper, share of that rate, {at}",
                measured / found,
                paper=share,
                verdict=_same(round(measured / found, 3), share),
            )
        )
    context, measured, share = published.DSV3_SHARE
    found = measured / cost.tokens_per_second(catalog.MODELS["DSv3"], on, context)
    rows.append(
        Row(
            claim,
            "Measured by its makers, share of that rate, DSv3 at 4K",
            found,
            paper=share,
            verdict=_same(round(found, 3), share),
        )
    )
    return tuple(rows)


def _pairs(accelerators: list[Accelerator]) -> list[tuple[Accelerator, Accelerator]]:
    """Attention and experts on one kind, and each where it costs least."""
    same = [(one, one) for one in accelerators]
    spec = catalog.MODELS["Step-3"]
    attention = min(accelerators, key=lambda a: cost.attention_usd(spec, a, 8192))
    ffn = min(accelerators, key=lambda a: cost.ffn_usd(spec, a))
    return same if attention is ffn else [*same, (attention, ffn)]


def _plans(
    spec: ModelSpec, pair: tuple[Accelerator, Accelerator], config: Config
) -> tuple[str, list[tuple[planner.Deployment | None, float | None]]]:
    """The best deployment for every context and its USD per million tokens."""
    attention, ffn = pair
    found = []
    for context in config.contexts:
        best = planner.plan(spec, attention, ffn, context=context, max_servers=config.max_servers)
        usd = None
        if best is not None:
            rent = best.num_attention * attention.usd_per_hour + best.num_ffn * ffn.usd_per_hour
            tokens = best.tokens_per_gpu_second * (best.num_attention + best.num_ffn)
            usd = rent / 3600.0 / tokens * 1e6
        found.append((best, usd))
    name = attention.name if attention is ffn else f"{attention.name} + {ffn.name}"
    return name, found


def _cost_table(models: list[ModelSpec], accelerators: list[Accelerator], context: int) -> Table:
    rows = []
    for spec in models:
        best = cost.cheapest(spec, accelerators, context)
        rows.append(
            (
                spec.name,
                round(cost.active_weights(spec) / 1e9, 1),
                round(cost.arithmetic_intensity(spec, context), 1),
                *(round(float(cost.attention_usd(spec, a, context)), 3) for a in accelerators),
                round(best.usd, 3),
                f"{best.attention}, {best.ffn}",
            )
        )
    columns = ("Model", "Active (10⁹)", "FLOP/B", *(a.name for a in accelerators), "With FFN", "on")
    return Table(
        f"Attention at {context // 1024}K, USD per million tokens",
        columns,
        tuple(rows),
        "With FFN: attention and FFN each on the accelerator where it costs least.",
    )


def _ffn_table(models: list[ModelSpec], accelerators: list[Accelerator]) -> Table:
    rows = tuple(
        (spec.name, *(round(cost.ffn_usd(spec, a), 3) for a in accelerators)) for spec in models
    )
    columns = ("Model", *(a.name for a in accelerators))
    return Table("FFN, USD per million tokens", columns, rows, "At a batch that fills the experts.")


def _denser_table(models: list[ModelSpec], accelerators: list[Accelerator], context: int) -> Table:
    rows = []
    for spec in models:
        for what, changed, mtp in (
            ("as it is", spec, cost.ONE_TOKEN),
            ("4-bit cache", spec.with_cache(0.5), cost.ONE_TOKEN),
            ("MTP", spec, DRAFTED),
        ):
            usd = [cost.attention_usd(changed, a, context, mtp=mtp) for a in accelerators]
            rows.append(
                (
                    spec.name,
                    what,
                    round(cost.arithmetic_intensity(changed, context, mtp=mtp), 1),
                    *(round(float(x), 3) for x in usd),
                    round(min(cost.ffn_usd(changed, a, mtp=mtp) for a in accelerators), 3),
                )
            )
    columns = ("Model", "Decoding", "FLOP/B", *(a.name for a in accelerators), "FFN")
    return Table(
        f"Denser attention at {context // 1024}K, USD per million tokens",
        columns,
        tuple(rows),
        f"MTP: {DRAFTED.kept} of {DRAFTED.verified} tokens a step are kept and share a read of the "
        "cache or state; the draft itself is not counted. FFN where it is cheapest.",
    )


def _plan_table(plans: list, contexts: Sequence[int]) -> Table:
    rows = []
    for name, found in plans:
        for context, (best, usd) in zip(contexts, found, strict=True):
            if best is None:
                rows.append((name, context, "none fits", None, None, None, None, None, ""))
                continue
            rows.append(
                (
                    name,
                    context,
                    f"{best.num_attention}A{best.num_ffn}F",
                    best.batch,
                    best.micro_batches,
                    round(1e3 * best.tpot, 1),
                    round(best.tokens_per_gpu_second),
                    round(usd, 3),
                    best.bottleneck,
                )
            )
    columns = (
        "Accelerators",
        "Context",
        "Servers",
        "Batch",
        "Parts",
        "ms",
        "tokens/GPU/s",
        "USD",
        "Bottleneck",
    )
    return Table(
        "The best deployments that keep 50 ms a token",
        columns,
        tuple(rows),
        "Servers of attention and of experts, micro-batches (parts), time per token, throughput, "
        "USD per million tokens; at 80 % of bandwidth and network, 60 % of the peak FLOPs.",
    )


def _summary(models: list[ModelSpec], accelerators: list[Accelerator]) -> str:
    found = sorted((cost.cheapest(spec, accelerators, 32768).usd, spec.name) for spec in models)
    (least, first), (most, last) = found[0], found[-1]
    return (
        f"At a context of 32K {first} decodes a million tokens for {least:.3f} USD, {last} for "
        f"{most:.3f}: what the attention reads and computes decides, not the active parameters."
    )


def _same(value: float, printed: float) -> str:
    return "reproduced" if value == printed else "not reproduced"


def _near(value: float, printed: float, tolerance: float) -> str:
    close = abs(value - printed) <= tolerance * printed
    return "reproduced" if close else "not reproduced"


def _against(value: float, baseline: float) -> str:
    if abs(value - baseline) <= 0.005 * baseline:
        return "no clear difference"
    return "better" if value < baseline else "worse"

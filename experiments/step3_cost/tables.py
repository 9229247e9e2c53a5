"""The tables: attention, FFN, denser attention, and the best deployments."""

from collections.abc import Mapping, Sequence

from experiments.harness.result import Table
from experiments.step3_cost.plans import Plan
from jaxlab.serving.cost import prices
from jaxlab.serving.cost.prices import Accelerator, ModelSpec

DRAFTED = prices.Mtp(verified=2, kept=1.8)
"""One drafted token a step, of which 80 % are accepted."""


def tables(
    models: Sequence[ModelSpec],
    accelerators: Sequence[Accelerator],
    planned: Mapping[str, Sequence[Plan]],
) -> tuple[Table, ...]:
    """Returns all tables."""
    return (
        _cost_table(models, accelerators, 8192),
        _cost_table(models, accelerators, 32768),
        _ffn_table(models, accelerators),
        _denser_table(models, accelerators, 8192),
        _plan_table(planned),
    )


def _cost_table(
    models: Sequence[ModelSpec], accelerators: Sequence[Accelerator], context: int
) -> Table:
    rows = []
    for spec in models:
        best = prices.cheapest(spec, accelerators, context)
        rows.append(
            (
                spec.name,
                round(prices.active_weights(spec) / 1e9, 1),
                round(prices.arithmetic_intensity(spec, context), 1),
                *(round(float(prices.attention_usd(spec, a, context)), 3) for a in accelerators),
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


def _ffn_table(models: Sequence[ModelSpec], accelerators: Sequence[Accelerator]) -> Table:
    rows = tuple(
        (spec.name, *(round(prices.ffn_usd(spec, a), 3) for a in accelerators)) for spec in models
    )
    columns = ("Model", *(a.name for a in accelerators))
    return Table("FFN, USD per million tokens", columns, rows, "At a batch that fills the experts.")


def _denser_table(
    models: Sequence[ModelSpec], accelerators: Sequence[Accelerator], context: int
) -> Table:
    rows = []
    for spec in models:
        for what, changed, mtp in (
            ("as it is", spec, prices.ONE_TOKEN),
            ("4-bit cache", spec.with_cache(0.5), prices.ONE_TOKEN),
            ("MTP", spec, DRAFTED),
        ):
            usd = [prices.attention_usd(changed, a, context, mtp=mtp) for a in accelerators]
            rows.append(
                (
                    spec.name,
                    what,
                    round(prices.arithmetic_intensity(changed, context, mtp=mtp), 1),
                    *(round(float(x), 3) for x in usd),
                    round(min(prices.ffn_usd(changed, a, mtp=mtp) for a in accelerators), 3),
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


def _plan_table(planned: Mapping[str, Sequence[Plan]]) -> Table:
    rows = []
    for name, found in planned.items():
        for context, best, usd in found:
            if best is None or usd is None:
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

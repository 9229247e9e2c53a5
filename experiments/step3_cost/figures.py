"""Pictures of the cost study: Pareto, rooflines, cost against context, deployments."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes

from experiments.harness import drawing, result
from experiments.step3_cost.plans import Plan
from jaxlab.serving.cost import prices
from jaxlab.serving.cost.prices import Accelerator, ModelSpec

EMPHASIZED = "Step-3"


def draw(
    models: Sequence[ModelSpec],
    accelerators: Sequence[Accelerator],
    contexts: Sequence[int],
    planned: Mapping[str, Sequence[Plan]],
    name: str,
    out: pathlib.Path,
) -> tuple[result.Figure, ...]:
    """Draws all four."""
    return (
        _pareto(models, accelerators, out),
        _intensity(models, accelerators, out),
        _contexts(models, accelerators, contexts, out),
        _deployments(planned, contexts, name, out),
    )


def _logarithmic(axis: Axes, contexts: Sequence[int]) -> None:
    """Contexts in K along x, dollars at 1, 2, 5 and their multiples along y."""
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = [context / 1024 for context in contexts]
    axis.set_xticks(ticks, [f"{tick:g}K" for tick in ticks])
    axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axis.minorticks_off()
    axis.set_xlabel("Context (tokens)")
    axis.set_ylabel("USD per million tokens")


def _color(name: str, index: int) -> str:
    return drawing.BLUE if name == EMPHASIZED else drawing.COLORS[1:][index % 6]


def _pareto(
    models: Sequence[ModelSpec], accelerators: Sequence[Accelerator], out: pathlib.Path
) -> result.Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6), sharex=True, layout="constrained")
        contexts = (8192, 32768)
        by_context = [
            [
                (
                    prices.active_weights(m) / 1e9,
                    prices.cheapest(m, accelerators, context).usd,
                    m.name,
                )
                for m in models
            ]
            for context in contexts
        ]
        for axis, context, points in zip(axes, contexts, by_context, strict=True):
            for index, (x, y, name) in enumerate(points):
                axis.plot(x, y, "o", color=_color(name, index), markersize=6)
            front = _front(points)
            axis.step(*zip(*front, strict=True), where="post", color=drawing.MUTED, linewidth=1)
            axis.set_title(f"Context of {context // 1024}K")
            axis.set_xlabel("Active parameters (10⁹)")
            axis.set_ylabel("USD per million tokens")
            axis.set_ylim(0.0, 1.08 * max(y for _, y, _ in points))
            axis.set_xlim(right=1.2 * max(x for x, _, _ in points))

        def names() -> None:
            for axis, points in zip(axes, by_context, strict=True):
                front = _front(points)
                corners = [front[0]]
                for x, y in front[1:]:
                    corners += [(x, corners[-1][1]), (x, y)]
                drawing.name_points(axis, points, corners)

        drawing.save(figure, out / "pareto.png", names)
    return result.Figure(
        "pareto.png",
        "Cost against active parameters, attention and FFN each where they are cheapest; the line "
        "joins the models that no other beats in both.",
        "Scatter of active parameters against dollars per million tokens at 8K and 32K",
    )


def _front(points: list[tuple[float, float, str]]) -> list[tuple[float, float]]:
    """Models for which no other has more parameters at lower cost."""
    front: list[tuple[float, float]] = []
    for x, y, _ in sorted(points, reverse=True):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front[::-1]


def _intensity(
    models: Sequence[ModelSpec], accelerators: Sequence[Accelerator], out: pathlib.Path
) -> result.Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axis = plt.subplots(figsize=(6.8, 4.4), layout="constrained")
        at = [prices.token_cost(model, 8192) for model in models]
        most = 1.6 * max(c.kv_bytes for c in at)
        grid = np.geomspace(0.6 * min(c.kv_bytes for c in at), most, 50)
        for index, accelerator in enumerate(accelerators):
            style = ("-", "--", "-.", ":")[index % 4]
            axis.plot(
                grid / 1e6,
                accelerator.ratio * grid / 1e9,
                style,
                color=drawing.MUTED,
                linewidth=1.1,
                label=f"{accelerator.name}, {accelerator.ratio:.0f} FLOP/B",
            )
        for index, (model, c) in enumerate(zip(models, at, strict=True)):
            axis.plot(
                c.kv_bytes / 1e6,
                c.attention_flops / 1e9,
                "o",
                markersize=6,
                color=_color(model.name, index),
            )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_xlabel("KV cache read per token (MB)")
        axis.set_ylabel("Attention FLOPs per token (10⁹)")
        axis.set_title("Attention at 8K and the balance of accelerators")
        drawing.legend(figure)
        points = [
            (c.kv_bytes / 1e6, c.attention_flops / 1e9, m.name)
            for m, c in zip(models, at, strict=True)
        ]
        drawing.save(figure, out / "intensity.png", lambda: drawing.name_points(axis, points))
    return result.Figure(
        "intensity.png",
        "FLOPs against bytes of attention. On a line an accelerator's compute and memory take "
        "equal time: above it attention is bound by compute, below by memory.",
        "Log-log scatter of attention FLOPs against KV bytes with four accelerator lines",
    )


def _contexts(
    models: Sequence[ModelSpec],
    accelerators: Sequence[Accelerator],
    contexts: Sequence[int],
    out: pathlib.Path,
) -> result.Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        for index, model in enumerate(models):
            usd = [prices.cheapest(model, accelerators, context).usd for context in contexts]
            axis.plot(
                [c / 1024 for c in contexts],
                usd,
                "-" if index < 6 else "--",
                color=_color(model.name, index),
                label=model.name,
                linewidth=2.2 if model.name == EMPHASIZED else 1.3,
            )
        _logarithmic(axis, contexts)
        axis.set_title("Cost of a decoded token, each part where it is cheapest")
        drawing.legend(figure)
        drawing.save(figure, out / "contexts.png")
    return result.Figure(
        "contexts.png",
        "Cost against context: the slope is the attention's.",
        "Log-log lines of dollars per million tokens against context for all models",
    )


def _deployments(
    planned: Mapping[str, Sequence[Plan]], contexts: Sequence[int], spec: str, out: pathlib.Path
) -> result.Figure:
    with plt.rc_context(drawing.STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        for index, (name, found) in enumerate(planned.items()):
            points = [(plan.context / 1024, plan.usd) for plan in found if plan.usd is not None]
            if points:
                x, y = zip(*points, strict=True)
                axis.plot(x, y, "o-", color=drawing.COLORS[index % 7], label=name, markersize=4)
        _logarithmic(axis, contexts)
        axis.set_title(f"{spec}: the best deployments within 50 ms a token")
        drawing.legend(figure)
        drawing.save(figure, out / "deployments.png")
    return result.Figure(
        "deployments.png",
        "Cost of the deployments that the planner finds: memory, bandwidth and network respected.",
        "Lines of dollars per million tokens against context for kinds of accelerators",
    )

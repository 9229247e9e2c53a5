"""What is said of the games: success against beta, own and joint critics, rules, strangers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import verdicts
from experiments.harness.result import Row, Table
from experiments.optimistic_marl import networks, training
from experiments.optimistic_marl.networks import Deep
from experiments.optimistic_marl.training import RELIABLE, Ball, Ends, Greedy, Strangers
from jaxlab.core import stats

NEUTRAL = "beta = 0"


def exact(found: dict[str, Ends]) -> tuple[Row, ...]:
    """The largest beta against none, on the same starts."""
    claim = "Optimism finds the best joint action"
    return tuple(
        verdicts.row(
            claim,
            f"Success on {name}, exact play, beta = {ends.betas[-1]:g}",
            100.0 * ends.success[-1],
            (NEUTRAL, 100.0 * ends.success[int(np.argmin(np.abs(ends.betas)))]),
            larger_is_better=True,
            unit="%",
            note=f"Share of {ends.score.shape[1]} random starts that end within 3 % of the best, "
            f"{float(ends.optimum):.4g}.",
        )
        for name, ends in found.items()
    )


def sampled(found: dict[tuple[str, str], Ends]) -> tuple[Row, ...]:
    """Own critics beside beta = 0 and, where payoffs are random, joint ones beside own ones."""
    rows = []
    for name in dict.fromkeys(name for name, _ in found):
        own, none, best = _best(name, found[name, "values"])
        rows.append(
            verdicts.row(
                "It does so from samples, each agent by itself",
                f"Success on {name}, own critics, beta = {best:g}",
                own,
                (NEUTRAL, none),
                larger_is_better=True,
                unit="%",
                note="At the best of the betas, chosen afterwards.",
            )
        )
        if (name, "joint") in found:
            joint, _, best = _best(name, found[name, "joint"])
            rows.append(
                verdicts.row(
                    "Where payoffs are random, a joint critic is needed",
                    f"Success on {name}, joint critic, beta = {best:g}",
                    joint,
                    ("own critics, their best beta", own),
                    larger_is_better=True,
                    unit="%",
                    note="Own critics take luck for their partners' skill.",
                )
            )
    return tuple(rows)


def sampled_table(found: dict[tuple[str, str], Ends]) -> Table:
    """Success by game, critic and beta."""
    betas = next(iter(found.values())).betas
    cells = [
        (name, critic, *(float(100.0 * x) for x in _judged(name, ends).mean(axis=1)))
        for (name, critic), ends in found.items()
    ]
    return Table(
        "Success of sampled play by beta, in percent",
        ("Game", "Critic", *(f"{beta:g}" for beta in betas)),
        tuple(cells),
        "Share of seeds in which the best joint action has more than 0.9; in the gold mine those "
        "that come within a tenth of the best value.",
    )


def exact_table(found: dict[str, Ends]) -> Table:
    """Success and value of exact play by beta."""
    betas = next(iter(found.values())).betas
    cells = []
    for name, ends in found.items():
        cells.append((name, "success, %", *(float(x) for x in 100.0 * ends.success.mean(axis=1))))
        cells.append((name, "value", *(float(x) for x in ends.score.mean(axis=1))))
    columns = ("Game", "What", *(f"{beta:g}" for beta in betas))
    return Table("Exact play by beta", columns, tuple(cells), "Means over starts.")


def stag(found: dict[float, Ends]) -> tuple[Row, ...]:
    """For each loss the most successful beta against none."""
    rows = []
    for loss, ends in found.items():
        none = int(np.argmin(np.abs(ends.betas)))
        best = int(np.argmax(ends.score.mean(axis=1)))
        rows.append(
            verdicts.row(
                "Optimists hunt the stag where it is dangerous alone",
                f"Value of the stag hunt at a loss of {loss:g}, beta = {ends.betas[best]:g}",
                ends.score[best],
                (NEUTRAL, ends.score[none]),
                larger_is_better=True,
                note=f"The best is {float(ends.optimum):.4g}; beta is the best, chosen afterwards.",
            )
        )
    return tuple(rows)


def stag_table(found: dict[float, Ends]) -> Table:
    """Value and success by loss and beta."""
    betas = next(iter(found.values())).betas
    cells = []
    for loss, ends in found.items():
        cells.append((f"{loss:g}", "value", *(float(x) for x in ends.score.mean(axis=1))))
        share = 100.0 * ends.success.mean(axis=1)
        cells.append((f"{loss:g}", "success, %", *(float(x) for x in share)))
    columns = ("Loss", "What", *(f"{beta:g}" for beta in betas))
    return Table("Stag hunt by loss and beta", columns, tuple(cells), "Means over starts.")


def rules(found: dict[str, dict[str, Greedy]]) -> tuple[Row, ...]:
    """Entropic Q-learning beside the best of the other rules, game by game."""
    return tuple(
        verdicts.row(
            "Entropic Q-learning finds the best joint action",
            f"Success on {name}, greedy",
            100.0 * by_rule[training.OURS].success,
            _best_rival({rule: 100.0 * one.success for rule, one in by_rule.items()}),
            larger_is_better=True,
            unit="%",
            note=_of_rivals(by_rule),
        )
        for name, by_rule in found.items()
    )


def rules_table(found: dict[str, dict[str, Greedy]], chosen: dict[str, dict[str, float]]) -> Table:
    """Success of every rule, and its setting."""
    cells = [
        (
            name,
            rule,
            f"{training.MATRIX_RULES[rule].tuned} {chosen[name][rule]:g}",
            float(100.0 * one.success.mean()),
            float(one.value.mean()),
        )
        for name, by_rule in found.items()
        for rule, one in by_rule.items()
    ]
    return Table(
        "Rules of Q-learning",
        ("Game", "Rule", "Chosen", "Success, %", "Payoff"),
        tuple(cells),
        "Of the greedy joint action, means over seeds. The setting is the best of three by other "
        "seeds.",
    )


def ball(found: dict[str, Ball]) -> tuple[Row, ...]:
    """Entropic Q-learning beside the best rule, and how many seeds each loses."""
    greedy = {name: one.greedy for name, one in found.items()}
    claim = "Entropic Q-learning balances the ball"
    note = f"Of 667. {_of_rivals(found)}"
    best, theirs = _best_rival(greedy)
    ours = greedy[training.OURS]
    return (
        verdicts.row(
            claim,
            "Return of the greedy policy",
            ours,
            (best, theirs),
            larger_is_better=True,
            note=note,
        ),
        verdicts.row(
            claim,
            f"Seeds that reach {RELIABLE:g}",
            100.0 * (ours >= RELIABLE),
            (best, 100.0 * (theirs >= RELIABLE)),
            larger_is_better=True,
            unit="%",
            note="Of the greedy policy.",
        ),
    )


def ball_table(found: dict[str, Ball], chosen: dict[str, float]) -> Table:
    """Every rule: its setting, while exploring, greedy, reliability."""
    cells = [
        (
            name,
            f"{training.RULES[name].tuned} {chosen[name]:g}",
            float(one.final.mean()),
            float(one.greedy.mean()),
            float(one.greedy.min()),
            float(100.0 * np.mean(one.greedy >= RELIABLE)),
        )
        for name, one in found.items()
    ]
    columns = (
        "Rule",
        "Chosen",
        "Last tenth, exploring",
        "Greedy",
        "Worst seed",
        f"{RELIABLE:g} reached, %",
    )
    return Table("Ball balancing", columns, tuple(cells), "Returns of 667 at most, over seeds.")


def strangers(found: dict[str, Strangers]) -> tuple[Row, ...]:
    """Where optimism may lose: partners that were trained elsewhere, against averse ones."""
    rows = []
    for name, one in found.items():
        away = [_with_strangers(payoff) for payoff in one.payoff]
        rows.append(
            verdicts.row(
                "Risk aversion helps with partners not seen in training (arXiv:2602.21515)",
                f"Payoff of optimists with strangers on {name}, beta = {one.betas[-1]:g}",
                away[-1],
                (f"averse, beta = {one.betas[0]:g}", away[0]),
                larger_is_better=True,
                note=f"With their own partners {_own(one.payoff[-1]):.4g} against "
                f"{_own(one.payoff[0]):.4g}. Worse is what that paper claims of optimists.",
            )
        )
    return tuple(rows)


def deep(found: dict[str, Deep], task: str) -> tuple[Row, ...]:
    """Op-IPPO beside every rival, with IQM."""
    ours = found[networks.OURS].sampled
    return tuple(
        verdicts.row(
            "Op-IPPO beats IPPO and the heuristics with networks",
            f"Return of Op-IPPO, {task}",
            ours,
            (name, rival.sampled),
            larger_is_better=True,
            note=f"IQM {_iqm(ours)} against {_iqm(rival.sampled)}; sampled actions, "
            f"{networks.EPISODES} episodes after training.",
        )
        for name, rival in found.items()
        if name != networks.OURS
    )


def deep_table(found: dict[str, Deep], chosen: dict[str, float], task: str) -> Table:
    """Every method: its setting, returns in both ways of acting, speed."""
    cells = []
    for name, one in found.items():
        told = []
        for returns in (one.sampled, one.greedy):
            kept = jnp.asarray(returns[np.isfinite(returns)])
            inside = stats.bootstrap_interval(jax.random.key(0), kept, statistic=stats.iqm)
            ends = f"{float(inside.low):.4g} to {float(inside.high):.4g}"
            told += [f"{float(np.mean(kept)):.4g}", f"{float(inside.estimate):.4g} ({ends})"]
        tuned = "eta" if name == "OptiMAPPO" else networks.METHODS[name].tuned
        speed = f"{float(one.steps_per_second):,.0f}"
        cells.append((name, f"{tuned} {chosen[name]:g}", *told, speed))
    return Table(
        f"Networks on {task}",
        ("Method", "Chosen", "Sampled: mean", "IQM", "Greedy: mean", "IQM", "Steps/s"),
        tuple(cells),
        f"Returns of {networks.EPISODES} episodes after training, the same starts for all; IQM "
        "with 95 % bootstrap intervals over seeds. Environment steps a second of all seeds "
        "together, compilation left out.",
    )


def _iqm(x: np.ndarray) -> str:
    return f"{float(stats.iqm(jnp.asarray(x[np.isfinite(x)]))):.4g}"


def _best_rival(by_rule: dict[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """The rule with the largest mean besides ours."""
    rivals = {name: x for name, x in by_rule.items() if name != training.OURS}
    best = max(rivals, key=lambda name: float(np.mean(rivals[name])))
    return best, rivals[best]


def _of_rivals(by_rule: dict[str, Any]) -> str:
    return f"The baseline is the best of {len(by_rule) - 1} by its mean, chosen afterwards."


def _best(name: str, ends: Ends) -> tuple[np.ndarray, np.ndarray, float]:
    """Success by seed in percent at the best beta and at 0, and that beta."""
    judged = 100.0 * _judged(name, ends)
    best = int(np.argmax(judged.mean(axis=1)))
    return judged[best], judged[int(np.argmin(np.abs(ends.betas)))], float(ends.betas[best])


def _judged(name: str, ends: Ends) -> np.ndarray:
    if name != "gold mine":
        return ends.found
    return (ends.score >= ends.optimum - 0.1 * (ends.optimum - ends.chance)).astype(np.float64)


def _with_strangers(payoff: np.ndarray) -> np.ndarray:
    """Mean payoff of each first agent over all second agents of other seeds."""
    others = payoff.shape[0] - 1
    return (payoff.sum(axis=1) - np.diagonal(payoff)) / others


def _own(payoff: np.ndarray) -> float:
    return float(np.mean(np.diagonal(payoff)))

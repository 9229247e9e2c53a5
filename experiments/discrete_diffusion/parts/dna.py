"""Regulatory DNA: a pre-trained policy is fine-tuned on a learned oracle, and judged by the truth.

A simulator is the truth. A corpus of its sequences is measured with noise; an oracle that is the
reward and another that only judges learn from halves of it; a diffusion is pre-trained on all of
it. Every method then has the same calls of the first oracle. Seeds are those of the fine-tuning:
corpus, oracles and pre-trained policy are common.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.discrete_diffusion import Config
from experiments.discrete_diffusion.parts import dna_told
from experiments.discrete_diffusion.parts.dna_told import Ground, Judged
from experiments.harness import units, verdicts
from experiments.harness.result import Part
from experiments.harness.units import Unit
from jaxlab.core import logging, loop
from jaxlab.core.types import Algorithm, PyTree
from jaxlab.diffusion.discrete import sampling, schedules
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.learning import over_seeds
from jaxlab.rl import discrete
from jaxlab.rl.discrete import DnaReport, TokenPolicy, enhancers, surrogates

REFERENCE = 0.01
"""Share of the corpus, the most active, that sequences should be like; the published 0.1 % of
700,000 would be a handful here."""
DRAWS = 640
"""Sequences that are judged of every method and seed, as published."""
BATCH = 256
"""Sequences of a step of fine-tuning."""
SETTINGS = ("seed", "dna_length", "dna_corpus", "dna_hidden", "dna_pretraining", "dna_steps")
"""What all methods begin from depends on these."""


def run(config: Config, out: pathlib.Path) -> Part:
    """Prepares, fine-tunes, judges, tells."""
    names = tuple(n for n in METHODS if not config.methods or n in (*config.methods, "pre-trained"))
    basis = {name: getattr(config, name) for name in SETTINGS}
    first = Unit("dna/ground", basis, functools.partial(prepare, config), Ground)
    ground = units.run([first], out, title="discrete_diffusion, DNA")["dna/ground"]

    def unit(name: str, rate: float, tuning: bool) -> Unit:
        seeds = config.tuning_seeds if tuning else config.num_seeds
        seed = config.seed + 1000 * tuning
        calls = config.dna_calls // 2 if tuning else config.dna_calls
        settings = {**basis, "calls": calls, "rate": rate, "seeds": [seed, seeds]}
        settings["evaluations"] = config.evaluations
        given = dataclasses.replace(config, dna_calls=calls, dna_rates=config.dna_rates[:1])
        compute = functools.partial(fine_tune, name, rate, given, seeds, seed, ground)
        where = f"dna/{name}" + (f"/tuning/{rate:g}" if tuning else "")
        return Unit(where, settings, compute, Judged)

    candidates = config.dna_rates if config.tuning_seeds else config.dna_rates[:1]
    trained = [name for name in names if name in TRAINED] if len(candidates) > 1 else []
    tried = {(n, r): unit(n, r, True) for n in trained for r in candidates}
    kept = units.run(list(tried.values()), out, title="discrete_diffusion, DNA tuning")
    worth = {pair: _worth(kept[one.name]) for pair, one in tried.items() if one.name in kept}
    rates = {
        name: max(candidates, key=lambda rate: worth.get((name, rate), 0.0))
        for name in names
        if name in TRAINED
    }
    todo = {name: unit(name, rates.get(name, 0.0), False) for name in names}
    kept = units.run(list(todo.values()), out, title="discrete_diffusion, DNA", metrics=_metrics)
    found = {name: kept[one.name] for name, one in todo.items()}
    return dna_told.tell(found, rates, ground, config, out)


def prepare(config: Config, folder: pathlib.Path) -> Ground:
    """Draws the corpus, fits both oracles to halves of it, and pre-trains on all of it."""
    keys = jax.random.split(jax.random.key(config.seed), 4)
    drawn = enhancers.draw_corpus(keys[0], config.dna_corpus, length=config.dna_length)
    corpus = jnp.asarray(np.unique(np.asarray(drawn), axis=0))  # halves share no sequence
    activity = enhancers.score(corpus).activity
    fit = functools.partial(surrogates.fit_surrogate, symmetry=enhancers.other_strand)
    oracles = surrogates.fit_oracles(keys[1], corpus, activity, fit=jax.jit(fit))
    policy = make_policy(config)
    algorithm = discrete.pretrain(policy, corpus, batch=128, learning_rate=2e-3, average=0.999)
    prior = loop.run(
        algorithm,
        keys[2],
        num_steps=config.dna_pretraining,
        chunk_size=max(config.dna_pretraining // 20, 1),
        directory=folder,
    ).state.average
    reference = discrete.most_active(corpus, activity, share=REFERENCE)
    ground = Ground(prior, oracles.reward, oracles.judge, np.asarray(reference), {})
    some = jax.random.permutation(keys[3], corpus)[:DRAWS]
    return ground._replace(natural=_judge(ground, config)(some)._asdict())


def fine_tune(
    name: str,
    rate: float,
    config: Config,
    num_seeds: int,
    seed: int,
    ground: Ground,
    folder: pathlib.Path,
) -> Judged:
    """Fine-tunes all seeds side by side, or chooses among draws, and judges what comes out."""
    ground = jax.tree.map(jnp.asarray, ground)
    keys = [jax.random.fold_in(jax.random.key(seed), 1000 + i) for i in range(num_seeds)]
    course, lost = (np.zeros(0), np.zeros((0, num_seeds))), set[int]()
    if name in TRAINED:
        num_steps = config.dna_calls // BATCH
        calls = num_steps * BATCH
        try:
            ended = loop.run(
                over_seeds(TRAINED[name](ground, rate, config), num_seeds),
                jax.random.key(seed),
                num_steps=num_steps,
                chunk_size=max(num_steps // config.evaluations, 1),
                directory=folder,
            )
        except loop.NonFiniteError:
            gone = dict.fromkeys(DnaReport._fields, np.full(num_seeds, np.nan))
            return Judged(gone, calls, course, np.zeros(64))
        records = logging.read_jsonl(folder / "metrics.jsonl")
        steps, rewards = logging.series(records, "reward/mean_seeds")
        course, lost = (steps * BATCH, rewards), set(ended.frozen)
        draw = jax.jit(functools.partial(_draw, config))
        drawn = [
            draw(jax.tree.map(lambda x, i=i: x[i], ended.state.params), key)
            for i, key in enumerate(keys)
        ]
    else:
        choose, calls = GUIDED[name](ground, config)
        choose = jax.jit(choose)
        drawn = [choose(key) for key in keys]
    judge = _judge(ground, config)
    reports = [jax.device_get(judge(tokens)) for tokens in drawn]
    report = {k: np.array([getattr(one, k) for one in reports]) for k in DnaReport._fields}
    for values in report.values():
        values[list(lost)] = np.nan
    kept = [np.asarray(enhancers.trimers(x)) for i, x in enumerate(drawn) if i not in lost]
    return Judged(report, calls, course, np.sum(kept, axis=0))


def make_policy(config: Config) -> TokenPolicy:
    """The published network, smaller."""
    return discrete.make_conv_policy(4, config.dna_length, hidden=config.dna_hidden, repeats=1)


def _judge(ground: Ground, config: Config) -> Callable[[jax.Array], DnaReport]:
    return jax.jit(
        lambda tokens: discrete.eval_dna(
            jax.random.key(2**31 - 1),
            tokens,
            jnp.asarray(ground.reference),
            make_policy(config),
            ground.prior,
            reward=_reward(ground),
            judge=functools.partial(surrogates.predict, ground.judge),
        )
    )


def _reward(ground: Ground) -> Callable[[jax.Array], jax.Array]:
    return functools.partial(surrogates.predict, ground.reward)


def _schedule(config: Config) -> Schedule:
    return schedules.make_schedule(config.dna_steps)


def _draw(config: Config, params: PyTree, key: jax.Array) -> jax.Array:
    policy = make_policy(config)
    return sampling.sample(
        key,
        policy.denoise(params),
        (DRAWS,),
        policy.length,
        vocab=policy.vocab,
        schedule=_schedule(config),
    ).tokens


def _worth(judged: Judged) -> float:
    """A rate is chosen by the judging oracle, nobody who tunes has the truth; none loses a seed."""
    value = float(np.mean(judged.report["judge"]))
    return value if np.isfinite(value) else -np.inf


def _metrics(_: str, judged: Judged) -> dict[str, float]:
    return {name: verdicts.average(judged.report[name]) for name in ("reward", "activity")}


# Methods that change the parameters


def _forward(ground: Ground, rate: float, config: Config) -> Algorithm:
    return discrete.forward(
        _reward(ground),
        make_policy(config),
        num_steps=config.dna_steps,
        batch=BATCH // 2,
        num_batches=2,
        num_updates=4,
        temperature=0.3,
        learning_rate=rate,
        init_params=ground.prior,
    )


def _reverse(ground: Ground, rate: float, config: Config) -> Algorithm:
    return discrete.reverse(
        _reward(ground),
        make_policy(config),
        num_steps=config.dna_steps,
        batch=BATCH,
        count=min(4, config.dna_steps),
        learning_rate=rate,
        init_params=ground.prior,
    )


def _grpo(ground: Ground, rate: float, config: Config) -> Algorithm:
    return discrete.grpo(
        _reward(ground),
        make_policy(config),
        ground.prior,
        num_steps=config.dna_steps,
        batch=BATCH,
        learning_rate=rate,
    )


def _drakes(ground: Ground, rate: float, config: Config) -> Algorithm:
    return discrete.drakes(
        _reward(ground),
        make_policy(config),
        ground.prior,
        num_steps=config.dna_steps,
        num_grad_steps=-(-config.dna_steps * 50 // 128),
        batch=32,
        num_batches=BATCH // 32,
        learning_rate=rate,
    )


TRAINED: Mapping[str, Callable[[Ground, float, Config], Algorithm]] = {
    "FKL": _forward,
    "RKL": _reverse,
    "DRAKES": _drakes,
    "diffu-GRPO": _grpo,
}
"""Methods that change the parameters, and choose a learning rate."""

# Methods that choose among draws of the pre-trained policy

Choose = tuple[Callable[[jax.Array], jax.Array], int]


def _pretrained(ground: Ground, config: Config) -> Choose:
    return functools.partial(_draw, config, ground.prior), 0


def _best_of_n(ground: Ground, config: Config) -> Choose:
    number = config.dna_calls // DRAWS
    return _guide(discrete.best_of_n, ground, config, number * DRAWS, num_draws=number)


def _svdd(ground: Ground, config: Config) -> Choose:
    """Every candidate of every step is a call, and the ends are."""
    number = max((config.dna_calls // DRAWS - 1) // config.dna_steps, 1)
    calls = (number * config.dna_steps + 1) * DRAWS
    return _guide(discrete.svdd, ground, config, calls, num_candidates=number)


def _smc(ground: Ground, config: Config) -> Choose:
    """Every particle at its start, every step and its end; those that are judged are some."""
    particles = max(config.dna_calls // (config.dna_steps + 2), DRAWS)
    calls = (config.dna_steps + 2) * particles
    return _guide(discrete.smc, ground, config, calls, batch=particles)


def _guide(
    method: Callable[..., Any], ground: Ground, config: Config, calls: int, **options: int
) -> Choose:
    def choose(key: jax.Array) -> jax.Array:
        policy = make_policy(config)
        return method(
            key,
            _reward(ground),
            policy,
            ground.prior,
            schedule=_schedule(config),
            **{"batch": DRAWS, **options},
        ).tokens[:DRAWS]

    return choose, calls


def _genetic(ground: Ground, config: Config) -> Choose:
    """Elites live on without a call, children take one."""
    elite = DRAWS // 16
    generations = max((config.dna_calls - DRAWS) // (DRAWS - elite), 1)
    search = discrete.evolve(_reward(ground), 4, config.dna_length, population=DRAWS, elite=elite)

    def choose(key: jax.Array) -> jax.Array:
        start = search.init(key)
        ended, _ = jax.lax.scan(lambda s, _: search.step(s), start, length=generations)
        return ended.tokens

    return choose, DRAWS + generations * (DRAWS - elite)


GUIDED: Mapping[str, Callable[[Ground, Config], Choose]] = {
    "pre-trained": _pretrained,
    "best of n": _best_of_n,
    "SVDD": _svdd,
    "SMC": _smc,
    "genetic": _genetic,
}
"""Methods that do not."""
METHODS = (*TRAINED, *GUIDED)

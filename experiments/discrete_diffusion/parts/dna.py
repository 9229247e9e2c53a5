"""Regulatory DNA: a pre-trained policy is fine-tuned on a learned oracle, and judged by the truth.

A simulator is the truth. A corpus of its sequences is measured with noise; an oracle that is the
reward and another that only judges learn from halves of it; a diffusion, a policy that writes from
left to right and one of independent bases are pre-trained on all of it. Every method then has the
same calls of the first oracle, but for SVDD and SMC, which cannot do with so few. Seeds are those
of the fine-tuning: corpus, oracles and pre-trained policies are common.
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
from jaxlab.diffusion.discrete import schedules
from jaxlab.diffusion.discrete.schedules import Schedule
from jaxlab.learning import over_seeds
from jaxlab.nn.transformer import Block, GqaParams, Swiglu
from jaxlab.rl import discrete
from jaxlab.rl.discrete import DnaReport, TokenPolicy, WritingPolicy, bandits, enhancers, surrogates
from jaxlab.rl.discrete.matching import Policy
from jaxlab.rl.discrete.transformers import TrunkParams

REFERENCE = 0.01
"""Share of the corpus, the most active, that sequences should be like; the published 0.1 % of
700,000 would be a handful here."""
DRAWS = 640
"""Sequences that are judged of every method and seed, as published."""
CANDIDATES = 10
"""Of a step of SVDD at least, as published: a single one would be a plain draw."""
BATCH = 256
"""Sequences of a step of fine-tuning."""
BATCHES = {"DRAKES": 128}
"""Where they are others: 32 times 4 as published, so that as many calls make more steps."""
SETTINGS = (
    "seed",
    "dna_length",
    "dna_corpus",
    "dna_hidden",
    "dna_pretraining",
    "dna_steps",
    "width",
    "num_layers",
)
"""What all methods begin from depends on these."""
FACTORS = {"factored": 10.0}
"""Factors of learning rates: logits without a network move slowly."""


def run(config: Config, out: pathlib.Path) -> Part:
    """Prepares, fine-tunes, judges, tells."""
    names = tuple(n for n in METHODS if not config.methods or n in (*config.methods, "pre-trained"))
    basis = {name: getattr(config, name) for name in SETTINGS}
    kinds = Ground | TrunkParams | Block | GqaParams | Swiglu
    first = Unit("dna/ground", basis, functools.partial(prepare, config), kinds)
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

    trained = [name for name in names if name in TRAINED]
    rates = {name: FACTORS.get(name, 1.0) * config.dna_rates[0] for name in trained}
    if config.tuning_seeds and len(config.dna_rates) > 1:
        candidates = {n: [FACTORS.get(n, 1.0) * r for r in config.dna_rates] for n in trained}
        tried = {(n, r): unit(n, r, True) for n in trained for r in candidates[n]}
        kept = units.run(list(tried.values()), out, title="discrete_diffusion, DNA tuning")
        worth = {pair: _worth(kept[one.name]) for pair, one in tried.items()}
        rates = {n: max(candidates[n], key=lambda r, n=n: worth[n, r]) for n in trained}
    todo = {name: unit(name, rates.get(name, 0.0), False) for name in names}
    kept = units.run(list(todo.values()), out, title="discrete_diffusion, DNA", metrics=_metrics)
    found = {name: kept[one.name] for name, one in todo.items()}
    return dna_told.tell(found, rates, ground, config, out)


def prepare(config: Config, folder: pathlib.Path) -> Ground:
    """Draws the corpus, fits both oracles to halves of it, and pre-trains on all of it.

    Oracles have twice the channels of the diffusion, 64 at most.
    """
    keys = jax.random.split(jax.random.key(config.seed), 4)
    drawn = enhancers.draw_corpus(keys[0], config.dna_corpus, length=config.dna_length)
    corpus = jnp.asarray(np.unique(np.asarray(drawn), axis=0))  # halves share no sequence
    activity = enhancers.score(corpus).activity
    fit = functools.partial(
        surrogates.fit_surrogate,
        symmetry=enhancers.other_strand,
        hidden=min(64, 2 * config.dna_hidden),
    )
    oracles = surrogates.fit_oracles(keys[1], corpus, activity, fit=jax.jit(fit))
    counts = jnp.sum(jax.nn.one_hot(corpus, 4), axis=0)
    priors = {"factored": jnp.log((counts + 1.0) / (len(corpus) + 4.0))}
    for name in ("diffusion", "autoregressive"):
        priors[name] = loop.run(
            discrete.pretrain(
                POLICIES[name](config), corpus, batch=128, learning_rate=2e-3, average=0.999
            ),
            keys[2],
            num_steps=config.dna_pretraining,
            chunk_size=max(config.dna_pretraining // 20, 1),
            directory=folder / name,
        ).state.average
    reference = discrete.most_active(corpus, activity, share=REFERENCE)
    ground = Ground(priors, oracles.reward, oracles.judge, np.asarray(reference), {})
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
        batch = BATCHES.get(name, BATCH)
        num_steps = config.dna_calls // batch
        calls = num_steps * batch
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
            return Judged(gone, calls, course, *_counted([], config))
        records = logging.read_jsonl(folder / "metrics.jsonl")
        steps, rewards = logging.series(records, "reward/mean_seeds")
        course, lost = (steps * batch, rewards), set(ended.frozen)
        draw = jax.jit(functools.partial(_draw, config, kind_of(name)))
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
    left = [tokens for i, tokens in enumerate(drawn) if i not in lost]
    return Judged(report, calls, course, *_counted(left, config))


def _counted(drawn: list[jax.Array], config: Config) -> tuple[np.ndarray, np.ndarray, int]:
    """Groups of three bases, sites of motifs, and sequences, of what the seeds drew."""
    tokens = jnp.concatenate([jnp.zeros((0, config.dna_length), jnp.int32), *drawn])
    return *jax.device_get((enhancers.trimers(tokens), enhancers.site_counts(tokens))), len(tokens)


def make_policy(config: Config) -> TokenPolicy:
    """The published network, smaller."""
    return discrete.make_conv_policy(4, config.dna_length, hidden=config.dna_hidden, repeats=1)


def _writer(config: Config) -> WritingPolicy:
    return discrete.make_writing_policy(
        4, config.dna_length, width=config.width, num_layers=config.num_layers
    )


POLICIES: Mapping[str, Callable[[Config], Policy]] = {
    "diffusion": make_policy,
    "factored": lambda config: discrete.make_factored_policy(4, config.dna_length),
    "autoregressive": _writer,
}
"""What is pre-trained."""


def kind_of(name: str) -> str:
    """Returns which of `POLICIES` a method trains, or draws from."""
    return name if name in POLICIES else "diffusion"


def _judge(ground: Ground, config: Config) -> Callable[[jax.Array], DnaReport]:
    return jax.jit(
        lambda tokens: discrete.eval_dna(
            jax.random.key(2**31 - 1),
            tokens,
            jnp.asarray(ground.reference),
            make_policy(config),
            ground.priors["diffusion"],
            reward=_reward(ground),
            judge=functools.partial(surrogates.predict, ground.judge),
        )
    )


def _reward(ground: Ground) -> Callable[[jax.Array], jax.Array]:
    return functools.partial(surrogates.predict, ground.reward)


def _schedule(config: Config) -> Schedule:
    return schedules.make_schedule(config.dna_steps)


def _draw(config: Config, kind: str, params: PyTree, key: jax.Array) -> jax.Array:
    return bandits.draw(key, POLICIES[kind](config), params, (DRAWS,), _schedule(config)).tokens


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
        init_params=ground.priors["diffusion"],
    )


def _reverse(kind: str) -> Callable[[Ground, float, Config], Algorithm]:
    """R2 of the diffusion; PPO of the others, which are drawn at once, or token by token."""

    def make(ground: Ground, rate: float, config: Config) -> Algorithm:
        diffuses = kind == "diffusion"
        return discrete.reverse(
            _reward(ground),
            POLICIES[kind](config),
            num_steps={"diffusion": config.dna_steps, "factored": 1}.get(kind),
            batch=BATCH,
            count=min(4, config.dna_steps) if diffuses else None,
            learning_rate=rate,
            init_params=ground.priors[kind],
        )

    return make


def _grpo(ground: Ground, rate: float, config: Config) -> Algorithm:
    return discrete.grpo(
        _reward(ground),
        make_policy(config),
        ground.priors["diffusion"],
        num_steps=config.dna_steps,
        batch=BATCH,
        learning_rate=rate,
    )


def _drakes(ground: Ground, rate: float, config: Config) -> Algorithm:
    return discrete.drakes(
        _reward(ground),
        make_policy(config),
        ground.priors["diffusion"],
        num_steps=config.dna_steps,
        num_grad_steps=-(-config.dna_steps * 50 // 128),
        batch=32,
        num_batches=BATCHES["DRAKES"] // 32,
        learning_rate=rate,
    )


TRAINED: Mapping[str, Callable[[Ground, float, Config], Algorithm]] = {
    "FKL": _forward,
    "RKL": _reverse("diffusion"),
    "factored": _reverse("factored"),
    "autoregressive": _reverse("autoregressive"),
    "DRAKES": _drakes,
    "diffu-GRPO": _grpo,
}
"""Methods that change the parameters, and choose a learning rate."""

# Methods that choose among draws of the pre-trained policy

Choose = tuple[Callable[[jax.Array], jax.Array], int]


def _pretrained(ground: Ground, config: Config) -> Choose:
    return functools.partial(_draw, config, "diffusion", ground.priors["diffusion"]), 0


def _best_of_n(ground: Ground, config: Config) -> Choose:
    number = config.dna_calls // DRAWS
    return _guide(discrete.best_of_n, ground, config, number * DRAWS, num_draws=number)


def _svdd(ground: Ground, config: Config) -> Choose:
    """Every candidate of every step is a call, and the ends are."""
    number = max((config.dna_calls // DRAWS - 1) // config.dna_steps, CANDIDATES)
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
    # Resampling leaves the copies of a particle side by side, so those that are judged lie apart.
    drawn = options.get("batch", DRAWS)
    spread = np.arange(DRAWS) * drawn // DRAWS

    def choose(key: jax.Array) -> jax.Array:
        policy = make_policy(config)
        return method(
            key,
            _reward(ground),
            policy,
            ground.priors["diffusion"],
            schedule=_schedule(config),
            **{"batch": DRAWS, **options},
        ).tokens[spread]

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

"""A user's own sequences: from a table of sequence and score, or a reward function, to proposals.

From a table: two ensembles are fitted to disjoint halves of it, a policy is pre-trained on all of
it and climbs the first ensemble by forward mirror descent, and what it draws is ranked by the
second, which it never saw. From a reward function: the policy climbs it from scratch. Either way
`proposals.csv` holds different sequences that the table does not.
"""

import functools
import hashlib
import importlib
import pathlib
import re
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.discrete_diffusion import Config
from experiments.harness import flags, units
from experiments.harness.result import Part, Row, Table
from experiments.harness.units import Unit
from jaxlab.core import loop, tables, text_files
from jaxlab.diffusion.discrete import sampling, schedules
from jaxlab.rl import discrete
from jaxlab.rl.discrete import TokenPolicy, surrogates
from jaxlab.rl.discrete.bandits import Reward

SETTINGS = (
    "seed",
    "rewards",
    "batch",
    "num_steps",
    "width",
    "num_layers",
    "learning_rates",
    "proposals",
)
"""What proposals depend on, besides their source."""
FEWEST = 40
"""Sequences that a table must have."""
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII)
"""A number whose commas may part thousands."""
WEAK = 0.5
"""Correlation on held-out sequences below which a warning is given."""
LONGEST = 64
"""Tokens up to which the policy is a transformer; longer ones have convolutions."""
CHANNELS = 32
"""Of the ensembles' networks at least."""
PRICE = 0.25
"""Temperature of the climb, in standard deviations of what is climbed at the start."""
SHOWN = 15
"""Proposals that the report shows; the file has all."""


class Known(NamedTuple):
    """A table that was read.

    Attributes:
        alphabet: letters, whose places are the tokens.
        tokens: `[num, K]`, none twice.
        scores: `[num]`, the mean where a sequence was there twice.
        notices: what a reader should know of how it was read.
    """

    alphabet: str
    tokens: np.ndarray
    scores: np.ndarray
    notices: tuple[str, ...]


class Proposed(NamedTuple):
    """What was found, the best first.

    Attributes:
        tokens: `[num, K]` different sequences.
        worth: `[num]` what they are ranked by: the judge's prediction, or the reward.
        aim: `[num]` what was climbed: the first ensemble's prediction, or the reward.
        distance: `[num]` tokens in which the nearest sequence of the table differs; empty without.
        correlations: of predictions and scores of held-out sequences, of both ensembles; empty
            without a table.
        drawn: sequences that were drawn.
        different: of these, different and new.
    """

    tokens: np.ndarray
    worth: np.ndarray
    aim: np.ndarray
    distance: np.ndarray
    correlations: np.ndarray
    drawn: int
    different: int


def run(config: Config, out: pathlib.Path) -> Part:
    """Reads, learns, proposes, and writes `proposals.csv`."""
    known = None if config.data is None else read(pathlib.Path(config.data), config.alphabet)
    alphabet = config.alphabet if known is None else known.alphabet
    settings = {name: getattr(config, name) for name in SETTINGS}
    if known is None:
        length, reward = config.length, load_reward(str(config.reward))
        check_reward(reward, len(alphabet), length)
        compute = functools.partial(climb, reward, len(alphabet), config)
        settings |= {"reward": config.reward, "length": length, "alphabet": alphabet}
    else:
        compute = functools.partial(learn, known, config)
        digest = hashlib.sha256(known.tokens.tobytes() + known.scores.tobytes())
        settings |= {"data": digest.hexdigest(), "alphabet": alphabet}
    unit = Unit("proposals", settings, compute, Proposed)
    found = units.run([unit], out, title="discrete_diffusion, proposals")["proposals"]
    texts = ["".join(alphabet[token] for token in row) for row in found.tokens]
    columns = {"rank": np.arange(1, len(texts) + 1), "sequence": texts}
    if known is None:
        columns["reward"] = found.worth
    else:
        columns |= {"predicted": found.worth, "climbed": found.aim, "distance": found.distance}
    tables.write_table(out / "proposals.csv", columns)
    return _told(found, known, columns)


def read(path: pathlib.Path, alphabet: str) -> Known:
    """Reads a table with the columns sequence and score.

    Args:
        path: a CSV file, see `jaxlab.core.tables`.
        alphabet: letters of the sequences; if empty those that occur, in the order of the alphabet.

    Raises:
        ValueError: if a row cannot be used, sequences differ in length, a letter is not in the
            alphabet, or there are too few; the line is named.
    """
    table = tables.read_table(path, ("sequence", "score"))
    at = [table.columns[name] for name in ("sequence", "score")]
    comma, told = _decimal_comma(table, path)
    width = max(i for i, name in enumerate(table.header) if name.strip()) + 1
    texts: dict[str, list[float]] = {}
    for line, cells in zip(table.numbers, table.rows, strict=True):
        where = f"{path}, line {line}"
        if max(at) >= len(cells):
            raise ValueError(f"{where}: {len(cells)} cells; sequence and score must be among them")
        if any(cell.strip() for cell in cells[width:]):
            raise ValueError(
                f"{where}: {len(cells)} cells under {width} names; write scores with a point, and "
                "put a cell that holds the separator in quotes"
            )
        text, cell = tables.clean_name(cells[at[0]]), cells[at[1]].strip()
        score = tables.plain_number(cell, comma=comma)
        if not np.isfinite(score):
            raise ValueError(f"{where}: score must be a finite number, got {tables.brief(cell)}")
        first = next(iter(texts), text)
        if not text:
            raise ValueError(f"{where}: the sequence is empty")
        if len(text) != len(first):
            raise ValueError(
                f"{where}: sequences must all have the same length, {len(first)} like the first, "
                f"got {len(text)}; pad them with a letter of their own, or split the table"
            )
        if alphabet and (wrong := set(text) - set(alphabet)):
            raise ValueError(
                f"{where}: letters must be among {alphabet}, got {''.join(sorted(wrong))}; see "
                "--alphabet"
            )
        texts.setdefault(text, []).append(score)
    notices = table.notices + told
    if not alphabet:
        alphabet = "".join(sorted(set("".join(texts))))
        if wrong := set(alphabet) & set(text_files.SEPARATORS):
            raise ValueError(
                f"{path}: sequences hold {' '.join(sorted(wrong))}, between cells in other tables; "
                "use one separator in all lines, or name all letters with --alphabet"
            )
        notices += (f"The letters are those that occur: {alphabet}",)
        if both := [x for x in alphabet if x.upper() != x and x.upper() in alphabet]:
            raise ValueError(
                f"{path}: {both[0].upper()} and {both[0]} differ in case alone; write them alike, "
                "or name all letters with --alphabet if they are different tokens"
            )
    rows = sum(map(len, texts.values()))
    if len(texts) < FEWEST:
        raise ValueError(
            f"{path}: {tables.count(len(texts), 'different sequence')}; proposals need {FEWEST} at "
            "least"
        )
    if len(alphabet) < 2:
        raise ValueError(f"{path}: all letters are {alphabet}; there is nothing to choose")
    if rows > len(texts):
        notices += (f"{rows} rows hold {len(texts)} different sequences; scores were averaged",)
    tokens = np.array([[alphabet.index(letter) for letter in text] for text in texts], np.int32)
    scores = np.array([np.mean(x) for x in texts.values()])
    if len(tokens) == len(alphabet) ** tokens.shape[1]:
        raise ValueError(
            f"{path}: all {len(tokens)} sequences of these letters are in it; there is nothing new "
            "to propose"
        )
    if np.ptp(scores) == 0.0:
        raise ValueError(f"{path}: all scores are {scores[0]:g}; there is nothing to learn")
    return Known(alphabet, tokens, scores, notices)


def _decimal_comma(table: tables.Table, path: pathlib.Path) -> tuple[bool, tuple[str, ...]]:
    """Tells whether commas in scores are decimal points, with a notice if they are.

    Raises:
        ValueError: if other scores have points, or every comma may as well part thousands.
    """
    at = table.columns["score"]
    scores = [cells[at].strip() for cells in table.rows if at < len(cells)]
    commas = [cell for cell in scores if "," in cell]
    if not commas:
        return False, ()
    if any("." in cell for cell in scores):
        raise ValueError(
            f"{path}: some scores have a comma, such as {tables.brief(commas[0])}, and some a "
            "point; write all with a point, and thousands without any mark"
        )
    if all(_THOUSANDS.fullmatch(cell) for cell in commas):
        raise ValueError(
            f"{path}: {tables.brief(commas[0])} may be a thousand or a fraction; write scores with "
            "a point, and thousands without any mark"
        )
    return True, (f"Commas in scores are decimal points, such as in {commas[0]}",)


def load_reward(name: str) -> Reward:
    """Imports the function that `package.module:function` names.

    Raises:
        Mistake: if there is none.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may raise anything as it is imported
        raise flags.Mistake(
            f"reward must be module:function, importable from here, got {name!r}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise flags.Mistake(f"reward must be a function, {name} is {type(found).__name__}")
    return cast(Reward, found)


def check_reward(reward: Reward, vocab: int, length: int) -> None:
    """Refuses a reward that does not take tokens `[B, K]` to `[B]` under jit."""
    shape = jax.ShapeDtypeStruct((8, length), jnp.int32)
    try:
        found = jax.eval_shape(reward, shape)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise flags.Mistake(
            f"reward must be traceable by JAX: reward(tokens [B, {length}] of 0 .. {vocab - 1}) -> "
            f"[B]; it raised {type(error).__name__}: {first}"
        ) from error
    if getattr(found, "shape", None) != (8,):
        raise flags.Mistake(f"reward must return [B], one number a sequence, got {found}")


def learn(known: Known, config: Config, folder: pathlib.Path) -> Proposed:
    """From a table: oracles, pre-training, forward mirror descent, ranking by the judge."""
    vocab, length = len(known.alphabet), known.tokens.shape[1]
    mean = np.mean(known.scores)  # float32 would round scores that are far from zero
    tokens, scores = jnp.asarray(known.tokens), jnp.asarray(known.scores - mean, jnp.float32)
    key = jax.random.key(config.seed)
    key_fit, key_pretrain, key_climb, key_draw = jax.random.split(key, 4)
    fit = functools.partial(
        surrogates.fit_surrogate,
        vocab=vocab,
        hidden=max(config.width, CHANNELS),
        width=min(15, length - 1 + length % 2),
        held_out=max(0.1, 3.5 / (len(scores) // 2)),
    )
    oracles = surrogates.fit_oracles(key_fit, tokens, scores, noise=0.0, fit=fit)
    policy = make_policy(vocab, length, config)
    pretraining = discrete.pretrain(
        policy, tokens, batch=config.batch, learning_rate=config.learning_rates[0]
    )
    prior = loop.run(
        pretraining,
        key_pretrain,
        num_steps=config.rewards // config.batch * 5,
        chunk_size=config.rewards // config.batch,
        directory=folder / "pretraining",
    ).state.average
    aim = jax.jit(functools.partial(surrogates.predict, oracles.reward))
    spread = float(jnp.std(scores))
    params = _climbed(aim, policy, config, key_climb, folder / "climbing", spread, prior)
    drawn = _draw(key_draw, policy, params, config)
    new = _different(drawn, known.tokens)
    worth = mean + np.asarray(surrogates.predict(oracles.judge, jnp.asarray(new)), np.float64)
    order = np.argsort(-worth, kind="stable")[: config.proposals]
    return Proposed(
        new[order],
        worth[order],
        mean + np.asarray(aim(jnp.asarray(new)), np.float64)[order],
        _nearest(new[order], known.tokens),
        np.array([float(oracles.reward.correlation), float(oracles.judge.correlation)]),
        len(drawn),
        len(new),
    )


def climb(reward: Reward, vocab: int, config: Config, folder: pathlib.Path) -> Proposed:
    """From a reward function: forward mirror descent from scratch, ranking by the reward."""
    key_spread, key_climb, key_draw = jax.random.split(jax.random.key(config.seed), 3)
    policy = make_policy(vocab, config.length, config)
    tokens = jax.random.randint(key_spread, (config.batch, config.length), 0, vocab, jnp.int32)
    rewards = np.asarray(reward(tokens), np.float64)
    if not np.isfinite(rewards).any():
        raise flags.Mistake("reward is not finite for any of the first random sequences")
    spread = float(np.std(rewards[np.isfinite(rewards)])) or 1.0
    params = _climbed(reward, policy, config, key_climb, folder / "climbing", spread, None)
    drawn = _draw(key_draw, policy, params, config)
    new = _different(drawn, np.zeros((0, config.length), np.int32))
    worth = np.asarray(reward(jnp.asarray(new)), np.float64)
    new, worth = new[np.isfinite(worth)], worth[np.isfinite(worth)]
    if not len(new):
        raise flags.Mistake("reward is not finite for any of the sequences that were drawn")
    order = np.argsort(-worth, kind="stable")[: config.proposals]
    none = np.zeros(0)
    return Proposed(new[order], worth[order], worth[order], none, none, len(drawn), len(new))


def make_policy(vocab: int, length: int, config: Config) -> TokenPolicy:
    """A transformer for short sequences, convolutions for long ones."""
    if length > LONGEST:
        return discrete.make_conv_policy(vocab, length, hidden=config.width, repeats=1)
    return discrete.make_transformer_policy(
        vocab, length, width=config.width, num_layers=config.num_layers
    )


def _climbed(
    reward: Reward,
    policy: TokenPolicy,
    config: Config,
    key: jax.Array,
    folder: pathlib.Path,
    spread: float,
    init_params: object,
) -> object:
    algorithm = discrete.forward(
        reward,
        policy,
        num_steps=min(config.num_steps, policy.length),
        batch=config.batch // 4,
        num_batches=4,
        num_updates=4,
        temperature=PRICE * spread,
        learning_rate=config.learning_rates[0],
        init_params=init_params,
    )
    num_steps = config.rewards // config.batch
    return loop.run(
        algorithm,
        key,
        num_steps=num_steps,
        chunk_size=max(num_steps // config.evaluations, 1),
        directory=folder,
    ).state.params


def _draw(key: jax.Array, policy: TokenPolicy, params: object, config: Config) -> np.ndarray:
    """Twenty times as many sequences as are wanted, in as many steps as tokens."""
    denoise = policy.denoise(params)
    schedule = schedules.make_schedule(policy.length)

    def draw(key: jax.Array) -> jax.Array:
        return sampling.sample(
            key, denoise, (config.batch,), policy.length, vocab=policy.vocab, schedule=schedule
        ).tokens

    keys = jax.random.split(key, max(20 * config.proposals // config.batch, 1))
    return np.asarray(jax.lax.map(draw, keys)).reshape(-1, policy.length)


def _different(drawn: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Different sequences that are not known, in the order in which they were drawn first."""
    seen = {row.tobytes() for row in np.asarray(known, np.int32)}
    new = {row.tobytes(): row for row in np.asarray(drawn, np.int32)}
    kept = [row for data, row in new.items() if data not in seen]
    if not kept:
        raise flags.Mistake(
            "everything that the policy draws is in the table already; take fewer rewards, or more "
            "sequences"
        )
    return np.stack(kept)


def _nearest(tokens: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`[num]` tokens in which the nearest known sequence differs."""
    return np.array([int((row != known).sum(axis=1).min()) for row in tokens])


def _told(found: Proposed, known: Known | None, columns: dict[str, object]) -> Part:
    claim = "Proposals"
    best = found.worth[0]
    if known is None:
        rows = [Row(claim, "Reward of the best proposal", best)]
        limits = ["Proposals are ranked by the reward itself."]
    else:
        rows = [
            Row(
                claim,
                "Predicted score of the best proposal",
                best,
                baseline=("best of the table", float(known.scores.max())),
                note="By the ensemble that was not climbed; a prediction, and the table's best is "
                "a measurement.",
            ),
            Row(
                claim,
                "Correlation of predictions with held-out scores",
                float(found.correlations[1]),
                note="Of the ensemble that ranks; each has half of the table.",
            ),
        ]
        limits = [
            "Predictions are ensembles' of convolutions; far from the table they are guesses. The "
            "column distance says how far."
        ]
        if not found.correlations[1] >= WEAK:  # NaN, where the held-out scores are all equal
            limits.insert(
                0,
                "The predictions hardly follow the scores (correlation "
                f"{found.correlations[1]:.2f} on held-out sequences): the ranking is little better "
                "than chance.",
            )
        limits += list(known.notices)
    rows.append(
        Row(
            claim,
            "Different new sequences of those drawn",
            100.0 * found.different / found.drawn,
            unit="%",
        )
    )
    names = tuple(columns)
    shown = [
        tuple(x if isinstance(x, str) else round(float(x), 4) for x in row)
        for row in zip(*columns.values(), strict=True)
    ]
    table = Table(
        "Best proposals", names, tuple(shown[:SHOWN]), f"All {len(shown)} are in proposals.csv."
    )
    return Part(tuple(rows), tables=(table,), limits=tuple(limits))

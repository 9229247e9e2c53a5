"""A simulator of regulatory DNA: activity and accessibility of sequences, and a corpus of them.

Twelve binding motifs, their positions and the spacing of some pairs say how active a sequence is.
All is differentiable in a soft sequence, and the same for both strands. It stands in for trained
oracles that are not public: its scores are its own, and compare with no published ones.

Motifs: JASPAR 2024 CORE (Rauluseviciute et al. 2024, Nucleic Acids Research 52), in percent by
column. Calibrated to published quantiles of measured activity in HepG2 cells.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab.diffusion.discrete.masked import check_tokens
from jaxlab.rl.discrete.bandits import unique_share

BASES = "ACGT"
"""Tokens 0 to 3."""
LENGTH = 200
"""Bases of the published task; the simulator takes any number from 15 on."""
_PERCENT = {
    "HNF1A": (
        "MA0046.3",
        "46 2 15 98 93 8 24 93 5 1 81 88 9",
        "3 6 11 1 4 3 27 1 1 2 1 4 82",
        "47 5 3 2 1 1 32 2 5 1 8 7 4",
        "4 86 72 1 2 89 18 4 90 98 9 1 5",
    ),
    "HNF4A": (
        "MA0114.5",
        "3 93 86 93 2 2 6 3 79",
        "89 3 3 1 2 1 81 91 6",
        "3 2 8 4 94 5 4 1 6",
        "5 2 3 2 3 92 9 5 9",
    ),
    "FOXA2": (
        "MA0047.4",
        "36 7 1 93 85 95 1 94",
        "5 1 1 4 9 1 75 1",
        "15 90 1 1 2 1 1 1",
        "45 2 97 2 4 3 23 4",
    ),
    "CEBPB": (
        "MA0466.4",
        "72 1 1 15 1 1 2 99 100 1",
        "6 1 1 1 99 1 83 1 1 23",
        "22 1 1 83 1 99 1 1 1 6",
        "1 100 99 2 1 1 15 1 1 71",
    ),
    "FOS::JUN": (
        "MA0099.4",
        "59 1 1 82 8 1 3 99 2",
        "11 1 1 13 18 1 96 1 31",
        "26 1 82 1 69 1 1 1 10",
        "4 99 17 4 5 99 1 1 57",
    ),
    "GABPA": (
        "MA0062.4",
        "12 80 1 6 1 2 2 3 3 8",
        "63 6 85 2 2 94 96 2 10 18",
        "11 7 3 1 2 2 1 7 79 12",
        "14 7 10 90 94 2 1 88 8 62",
    ),
    "CREB1": (
        "MA0018.5",
        "2 2 92 3 2 11 4 95",
        "1 3 2 18 2 2 90 1",
        "1 91 3 8 94 2 3 2",
        "95 4 3 72 2 86 2 2",
    ),
    "SP1": (
        "MA0079.5",
        "1 1 1 1 27 1 1 25 16",
        "1 1 1 1 73 1 9 5 1",
        "95 100 100 100 1 100 91 66 84",
        "5 1 1 1 1 1 1 3 1",
    ),
    "ZEB1": ("MA0103.4", "1 99 1 1 1 2", "95 1 99 96 2 1", "1 1 1 3 2 96", "3 1 1 1 96 1"),
    "GFI1B": (
        "MA0483.2",
        "64 100 100 1 1 59 3 63 3 8",
        "25 1 1 19 100 1 75 1 1 75",
        "6 1 1 2 1 1 22 1 95 4",
        "5 1 1 79 1 40 1 37 2 12",
    ),
    "GATA1": (
        "MA0035.5",
        "6 2 69 94 3 4 10",
        "87 1 1 2 2 92 4",
        "4 1 1 1 1 2 1",
        "4 96 29 3 94 3 84",
    ),
    "CTCF": (
        "MA0139.2",
        "31 6 1 81 4 12 93 1 37 6 1 6 11 41 9",
        "5 88 99 1 58 47 1 1 1 1 1 1 81 1 53",
        "49 2 1 7 37 5 4 99 62 55 98 85 1 56 34",
        "15 4 1 10 1 36 2 1 1 37 1 8 7 2 4",
    ),
}
"""Motif -> its number in JASPAR and rows of A, C, G and T, percent."""
MOTIFS = tuple(_PERCENT)
WIDTHS = tuple(len(rows[1].split()) for rows in _PERCENT.values())
"""Bases of each motif."""
_WEIGHT = (1.5, 1.3, 1.0, 1.1, 1.2, 0.8, 0.7, 0.6, 0.0, 0.0, 0.0, 0.0)
_OPENS = (1.5, 1.5, 2.2, 1.0, 2.5, 1.2, 0.5, 1.2, -0.5, -0.8, 0.2, 1.5)
_PAIRS = (
    ("HNF1A", "HNF4A", 0.9, (20.0, 8.0)),
    ("FOXA2", "CEBPB", 0.9, (14.0, 6.0)),
    ("FOS::JUN", "GABPA", 0.8, (12.0, 5.0)),
    ("HNF4A", "FOXA2", 0.7, None),
)
"""Pairs that help each other: gain, and mean and spread of their distance; None for one turn of the
helix, 10.5 bases, from 8 to 63."""
HALF = 0.82
"""Score, over the best of its motif, at which a window is occupied by half."""
RUN = 6
"""Equal bases in a row that cost activity."""
_AT_RICH = ((36, 16, 22, 26), (38, 22, 4, 36), (30, 20, 22, 28), (22, 18, 24, 36))
_GC_RICH = ((22, 24, 36, 18), (24, 34, 14, 28), (22, 30, 32, 16), (14, 30, 34, 22))
AT_SHARE = 0.6
_CLASSES = (0.12, 0.22, 0.16, 0.50)
_CLASS_MOTIFS = (
    (20, 20, 20, 16, 6, 4, 4, 4, 1, 1, 2, 2),
    (1, 2, 3, 5, 22, 20, 15, 22, 2, 2, 2, 4),
    (2, 2, 3, 2, 5, 5, 3, 6, 30, 26, 8, 8),
    (1, 1, 2, 2, 3, 4, 3, 8, 6, 6, 30, 34),
)
"""Percent of each motif in liver, ubiquitous, repressed and neutral sequences."""
MOST_MOTIFS = 10
"""Most motifs that the corpus writes into a sequence."""


class Scores(NamedTuple):
    """What the simulator says of sequences, `[B]` each.

    Attributes:
        activity: 0.25 of a sequence without motifs, at most 10.25.
        open_prob: probability of accessible chromatin.
    """

    activity: Float[Array, " B"]
    open_prob: Float[Array, " B"]


def score(sequence: Int[Array, "B L"] | Float[Array, "B L 4"]) -> Scores:
    """Returns activity and accessibility of sequences.

    Args:
        sequence: tokens `[B, L]`, or soft bases `[B, L, 4]`, which are differentiated through.

    Raises:
        ValueError: if a sequence is shorter than the longest motif, 15 bases, or a token is known
            and no base.

    Source: the simulator is this library's; its motifs are those of JASPAR.
    """
    soft = _soft(sequence)
    length = soft.shape[1]
    tables = _tables(length)
    occupancy = _occupancy(soft)
    strength = 1.0 - jnp.exp(-jnp.einsum("blm,lm->bm", occupancy, _like(tables.envelope, soft)))
    near = []
    for (first, second, gain, _), kernel in zip(_PAIRS, tables.kernels, strict=True):
        a, b = (occupancy[..., MOTIFS.index(name)] for name in (first, second))
        meet = jnp.einsum("bl,lk,bk->b", a, _like(kernel, soft), b, precision="highest")
        near.append(gain * (1.0 - jnp.exp(-meet)))
    gc = jnp.mean(soft[..., 1] + soft[..., 2], axis=1)
    runs = jnp.sum(_runs(soft), axis=(1, 2))
    force = strength @ _like(_WEIGHT, soft) + sum(near)
    force = force - 0.25 * ((gc - 0.45) / 0.15) ** 2 - 0.15 * jnp.minimum(runs, 20.0)
    zeb, gfi = (strength[:, MOTIFS.index(name)] for name in ("ZEB1", "GFI1B"))
    repressed = force * (1.0 - 0.5 * zeb) * (1.0 - 0.6 * gfi)
    g = jnp.where(force > 0.0, repressed, force)
    activity = 0.25 + 10.0 * -jnp.expm1(-jnp.maximum(g, 0.0) / 2.36) + 1.5 * jnp.minimum(g, 0.0)
    opening = -2.6 + strength @ _like(_OPENS, soft) + 2.0 * (gc - 0.5)
    return Scores(activity, jax.nn.sigmoid(opening))


def motif_hits(sequence: Int[Array, "B L"]) -> Float[Array, "B M"]:
    """Returns how many windows of each motif are more occupied than not."""
    occupancy = _occupancy(_soft(sequence))
    return jnp.sum((occupancy > 0.5).astype(occupancy.dtype), axis=1)


def site_counts(sequence: Int[Array, "B L"]) -> Float[Array, "M W 4"]:
    """Returns how often each base stands at each place of each motif's sites, in a batch.

    A site is a window that a motif occupies by more than half, read along the motif: on the other
    strand it is the reverse complement. One that both strands fit counts as two. Motifs are as long
    as the longest, with zeros beyond their ends. Columns over their sums make a logo.
    """
    filters, sizes = _filters()
    forward, width = filters[..., : len(MOTIFS)], filters.shape[0]
    total = jnp.zeros((len(MOTIFS), width, 4))
    for strand in (sequence, other_strand(sequence)):
        soft = _soft(strand)
        sites = (_windows(soft, forward) > HALF).astype(soft.dtype)
        padded = jnp.pad(soft, ((0, 0), (0, width - 1), (0, 0)))
        for at in range(width):
            seen = jnp.einsum("blm,blc->mc", sites, padded[:, at : at + soft.shape[1]])
            total = total.at[:, at].add(jnp.where((at < sizes)[:, None], seen, 0.0))
    return total


def other_strand(
    sequence: Int[Array, "*B L"] | Float[Array, "B L 4"],
) -> Int[Array, "*B L"] | Float[Array, "B L 4"]:
    """Returns the reverse complement of tokens or of soft bases `[B, L, 4]`: it scores the same."""
    if jnp.issubdtype(sequence.dtype, jnp.integer):
        return 3 - sequence[..., ::-1]
    return sequence[..., ::-1, ::-1]


def draw_corpus(key: jax.Array, num: int, *, length: int = LENGTH) -> Int[Array, "num L"]:
    """Draws sequences as they might be found: a Markov chain with motifs written into it.

    AT-rich or GC-rich chains; a class of sequence, which says which motifs are frequent; their
    number Poisson with a gamma-distributed mean, at most 10; each drawn from its columns, on a
    random strand, at a random place, over what was there.

    Args:
        key: PRNG key.
        num: number of sequences.
        length: L, from 15.

    Raises:
        ValueError: if the length or the number is too small.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    _check_length(length)
    keys = jax.random.split(key, 6)
    chain = jnp.log(jnp.asarray([_AT_RICH, _GC_RICH], float) / 100.0)
    rich = jax.random.bernoulli(keys[0], 1.0 - AT_SHARE, (num,)).astype(jnp.int32)

    def extend(base: Array, key: Array) -> tuple[Array, Array]:
        return jax.random.categorical(key, chain[rich, base]).astype(jnp.int32), base

    first = jax.random.randint(keys[1], (num,), 0, 4, jnp.int32)
    _, tokens = jax.lax.scan(extend, first, jax.random.split(keys[2], length))
    kind = jax.random.categorical(keys[3], jnp.log(jnp.asarray(_CLASSES)), shape=(num,))
    count = jax.random.poisson(keys[4], 2.2 * jax.random.gamma(keys[5], 0.7, (num,)))
    count = jnp.minimum(count, MOST_MOTIFS)
    motif_logits = jnp.log(jnp.asarray(_CLASS_MOTIFS, float) / 100.0)
    probs, sizes = (jnp.asarray(x) for x in _padded_probs())
    place = jnp.arange(length, dtype=jnp.int32)

    def write(tokens: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        index, key = at
        key_motif, key_bases, key_strand, key_start = jax.random.split(key, 4)
        motif = jax.random.categorical(key_motif, motif_logits[kind])
        size = sizes[motif]
        bases = jax.random.categorical(key_bases, jnp.log(probs[motif]).astype(jnp.float32))
        backward = jax.random.bernoulli(key_strand, 0.5, (num, 1))
        start = jax.random.randint(key_start, (num,), 0, length - size + 1)
        offset = place[None] - start[:, None]
        inside = (offset >= 0) & (offset < size[:, None]) & (index < count)[:, None]
        column = jnp.where(backward, size[:, None] - 1 - offset, offset)
        base = jnp.take_along_axis(bases, jnp.clip(column, 0, probs.shape[1] - 1), axis=1)
        base = jnp.where(backward, 3 - base, base).astype(jnp.int32)
        return jnp.where(inside, base, tokens), None

    slots = (jnp.arange(MOST_MOTIFS), jax.random.split(jax.random.fold_in(key, 1), MOST_MOTIFS))
    return jax.lax.scan(write, tokens.T, slots)[0]


def trimers(sequence: Int[Array, "B L"]) -> Float[Array, " 64"]:
    """Returns how often each of 64 groups of three bases occurs in a batch of sequences."""
    code = 16 * sequence[:, :-2] + 4 * sequence[:, 1:-1] + sequence[:, 2:]
    return jnp.bincount(code.reshape(-1), length=64).astype(jnp.float32)


class Naturalness(NamedTuple):
    """How like the best of a corpus generated sequences are.

    Attributes:
        open_share: share with accessibility above one half.
        trimer_correlation: Pearson's, of counts of 64 groups of three bases.
        motif_correlation: Spearman's, of hits by motif.
        distance: mean share of bases in which two sequences differ.
        unique: different sequences over all.
    """

    open_share: Float[Array, ""]
    trimer_correlation: Float[Array, ""]
    motif_correlation: Float[Array, ""]
    distance: Float[Array, ""]
    unique: Float[Array, ""]


def naturalness(generated: Int[Array, "B L"], reference: Int[Array, "R L"]) -> Naturalness:
    """Compares generated sequences with the best of a corpus (its top 0.1 % by activity).

    Source: Wang et al. 2024 (DRAKES), arXiv:2410.13643, its evaluation.
    """
    counts = [trimers(x) for x in (generated, reference)]
    hits = [_ranks(jnp.mean(motif_hits(x), axis=0)) for x in (generated, reference)]
    size = generated.shape[0]
    share = jnp.mean(jax.nn.one_hot(generated, 4), axis=0)
    same = jnp.sum(share**2, axis=1)  # of a pair drawn with replacement
    differ = (1.0 - jnp.mean(same)) * size / max(size - 1, 1)
    return Naturalness(
        jnp.mean((score(generated).open_prob > 0.5).astype(jnp.float32)),
        _correlation(*counts),
        _correlation(*hits),
        differ,
        unique_share(generated),
    )


def encode(text: str) -> np.ndarray:
    """Returns the tokens `[L]` of a sequence of letters A, C, G, T in either case.

    Raises:
        ValueError: if it is empty or has another letter.
    """
    tokens = np.array([BASES.find(base) for base in text.upper()], np.int32)
    if not tokens.size or tokens.min() < 0:
        raise ValueError(f"a sequence must be letters of {BASES}, got {text[:40]!r}")
    return tokens


def decode(tokens: np.ndarray) -> str:
    """Returns the letters of a sequence of tokens `[L]`."""
    return "".join(BASES[base] for base in np.asarray(tokens))


class _Tables(NamedTuple):
    """Constants of one length: `[L, 12]` weight of a window's centre, and `[L, L]` of each pair."""

    envelope: np.ndarray
    kernels: tuple[np.ndarray, ...]


@functools.cache
def _tables(length: int) -> _Tables:
    start = np.arange(length)
    centres = {name: start + (len(probs) - 1) / 2 for name, probs in _probs().items()}
    middle, width = (length - 1) / 2, length / 4
    envelope = [0.6 + 0.4 * np.exp(-(((c - middle) / width) ** 2)) for c in centres.values()]
    kernels = []
    for first, second, _, spacing in _PAIRS:
        d = np.abs(centres[first][:, None] - centres[second])
        if spacing is None:
            turn = 0.5 * (1.0 + np.cos(2.0 * np.pi * d / 10.5))
            kernels.append(np.where((d >= 8) & (d <= 63), turn, 0.0))
        else:
            kernels.append(np.exp(-0.5 * ((d - spacing[0]) / spacing[1]) ** 2))
    return _Tables(np.stack(envelope, axis=1), tuple(kernels))


@functools.cache
def _probs() -> dict[str, np.ndarray]:
    """Motif -> probabilities of its bases, `[width, 4]`."""
    probs = {}
    for name, (_, *rows) in _PERCENT.items():
        percent = np.array([row.split() for row in rows], float).T
        probs[name] = percent / percent.sum(axis=1, keepdims=True)
    return probs


@functools.cache
def _padded_probs() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[12, 15, 4]`, even beyond a motif's end, and its width `[12]`."""
    sizes = np.array([len(p) for p in _probs().values()], np.int32)
    padded = np.full((len(MOTIFS), sizes.max(), 4), 0.25)
    for row, probs in zip(padded, _probs().values(), strict=True):
        row[: len(probs)] = probs
    return padded, sizes


@functools.cache
def _filters() -> tuple[np.ndarray, np.ndarray]:
    """Scores by column of all motifs on both strands, `[15, 4, 24]`, over the best of each."""
    padded, sizes = _padded_probs()
    scores = np.log2(padded / 0.25)
    best = scores.max(axis=2).sum(axis=1)
    backward = np.zeros_like(scores)
    for row, score_, size in zip(backward, scores, sizes, strict=True):
        row[:size] = score_[:size][::-1, ::-1]
    both = np.concatenate([scores, backward]) / np.tile(best, 2)[:, None, None]
    return np.moveaxis(both, 0, -1), sizes


def _occupancy(soft: Array) -> Array:
    """Returns how occupied each window of each motif is, `[B, L, 12]`; 0 where none fits."""
    scores = _windows(soft, _filters()[0])
    best = jnp.maximum(scores[..., : len(MOTIFS)], scores[..., len(MOTIFS) :])
    return jax.nn.sigmoid(24.0 * (best - HALF))


def _windows(soft: Array, filters: np.ndarray) -> Array:
    """Scores `[B, L, F]` of the windows that begin at each base; -inf where none fits."""
    sizes, length = _filters()[1], soft.shape[1]
    scores = jax.lax.conv_general_dilated(
        jnp.pad(soft, ((0, 0), (0, filters.shape[0] - 1), (0, 0))),
        _like(filters, soft),
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision="highest",
    )
    fits = np.arange(length)[:, None] <= length - np.tile(sizes, filters.shape[-1] // len(sizes))
    return jnp.where(jnp.asarray(fits)[None], scores, -jnp.inf)


def _runs(soft: Array) -> Array:
    windows = soft.shape[1] - RUN + 1
    run = soft[:, :windows]
    for j in range(1, RUN):
        run = run * soft[:, j : j + windows]
    return run


def _soft(sequence: Array) -> Array:
    if jnp.issubdtype(sequence.dtype, jnp.integer):
        check_tokens(sequence, 4)
        sequence = jax.nn.one_hot(sequence, 4)
    if sequence.ndim != 3 or sequence.shape[-1] != 4:
        raise ValueError(f"sequence must be [B, L] tokens or [B, L, 4], got {sequence.shape}")
    _check_length(sequence.shape[1])
    return sequence


def _check_length(length: int) -> None:
    longest = int(_padded_probs()[1].max())
    if length < longest:
        raise ValueError(f"sequences must have at least {longest} bases, got {length}")


def _like(x: object, soft: Array) -> Array:
    return jnp.asarray(np.asarray(x), soft.dtype)


def _correlation(a: Array, b: Array) -> Array:
    a, b = a - jnp.mean(a), b - jnp.mean(b)
    return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))


def _ranks(x: Array) -> Array:
    """Returns mean ranks, ties sharing theirs."""
    below = jnp.sum((x[None] < x[:, None]).astype(x.dtype), axis=1)
    equal = jnp.sum((x[None] == x[:, None]).astype(x.dtype), axis=1)
    return below + 0.5 * (equal - 1.0)

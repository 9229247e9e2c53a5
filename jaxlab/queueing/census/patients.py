"""Patients of an M_t/G_t/inf queue, drawn one by one for many replications at once.

The replications of a group (256) are simulated together. By superposition, the patients whom they
admit at one site on one day number Poisson(256 lam); by splitting, giving each patient one of them
at random makes their counts independent Poisson(lam). One 32-bit word per patient
is enough: 8 bits choose the replication, 24 bits are the quantile of the stay, as fine as a float32
uniform (probabilities are rounded to multiples of 2^-24). The patients lie in one list, in rows of
32 of the same site and day, and a `while_loop` takes as many tiles of rows as were drawn: the list
is not padded to a guessed size, and no patient can fall off its end.

Sources: Akbari-Moghaddam et al. 2025, arXiv:2510.02852 (the queue); Kingman 1993, "Poisson
Processes" (superposition and splitting); Lewis and Shedler 1979 (thinning).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, UInt32

from jaxlab.queueing import settings
from jaxlab.queueing.census import initial, occupancy
from jaxlab.queueing.census.occupancy import QueueInputs
from jaxlab.queueing.settings import QueueModel
from jaxlab.queueing.stays import conditional

_GROUP = 256
_ROW = 32
_ONE = 1 << 24  # probability 1 in the 24-bit fixed point of stays and thinning
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


class Law(NamedTuple):
    """What patients are drawn from; a cell is a (site, day), history days included.

    Attributes:
        rate: `[I, T]` float32, arrivals per day, of the dominating stream if there is thinning.
        accept: `[I, T]` int32 chance that an arrival is a patient, or None where all are.
        stay: `[I, T, n]` int32 chance of presence u days after admission, not increasing, then 0;
            n a power of two.
        depth: `[I]` int32, bisections that invert `stay`: S_max + 1 < 2^depth.
        residual: `[I, P, n]` the same for patients in bed on day 0, or None.
        invalid: int32, number of cells and initial patients without a valid rate or law; nobody is
            drawn for them.

    Chances are integers, in units of 2^-24.
    """

    rate: Float[Array, "I T"]
    accept: Int[Array, "I T"] | None
    stay: Int[Array, "I T n"]
    depth: Int[Array, " I"]
    residual: Int[Array, "I P n"] | None
    invalid: Int[Array, ""]


def make_law(
    inputs: QueueInputs,
    *,
    num_lags: int | None = None,
    history: int = 0,
    queue: QueueModel = settings.PAPER_QUEUE,
    lam_max: Float[Array, "I T"] | None = None,
    initial_ages: Float[Array, "I P"] | None = None,
) -> Law:
    """Checks and tabulates rates and stays; compiles one small program.

    Args:
        inputs: rates and length-of-stay laws.
        num_lags: static bound of smax; max(smax) by default, required where smax is traced.
        history: days put before day 0, of the kind that `queue.backfill` names.
        queue: how the laws are read and when the census is taken: "ceil", "midnight" or "touch".
        lam_max: `[I, T]` rates >= lam of the stream to be thinned; None draws lam itself.
        initial_ages: `[I, P]` stay so far of the patients of the census of day 0, days; negative
            for an empty place.

    Raises:
        ValueError: on bad shapes or names, or concrete lam_max < lam.
    """
    _check_inputs(inputs, queue, lam_max, initial_ages)
    num_lags = static_lags(inputs.smax, num_lags)
    families = tuple(range(len(conditional.FAMILIES)))
    if not isinstance(inputs.family, Tracer):
        families = tuple(sorted(set(np.asarray(inputs.family).tolist())))

    return _tabulate(inputs, lam_max, initial_ages, families, num_lags, history, queue)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _tabulate(
    inputs: QueueInputs,
    lam_max: Float[Array, "I T"] | None,
    initial_ages: Float[Array, "I P"] | None,
    families: tuple[int, ...],
    num_lags: int,
    history: int,
    queue: QueueModel,
) -> Law:
    lam, mu, sig2, kappa = conditional.as_floats(*inputs[:4])
    inputs = inputs._replace(lam=lam, mu=mu, sig2=sig2, kappa=kappa)
    site = functools.partial(
        _site_chances, families=families, num_lags=num_lags, history=history, queue=queue
    )
    ages = None if initial_ages is None else initial_ages.astype(mu.dtype)
    weight, residual = jax.lax.map(site, (inputs, ages))
    stay, sound = _fixed_point(weight)
    lam = occupancy.extend_back(lam, history, queue.backfill)
    sound &= (lam >= 0.0) & (lam < jnp.inf)
    rate, accept = lam, None
    if lam_max is not None:
        rate = occupancy.extend_back(lam_max.astype(lam.dtype), history, queue.backfill)
        sound &= (rate >= lam) & (rate < jnp.inf)
        share = jnp.where(sound & (rate > 0.0), lam / jnp.where(rate > 0.0, rate, 1.0), 0.0)
        accept = jnp.round(share * _ONE).astype(jnp.int32)
    powers = jnp.left_shift(1, jnp.arange(stay.shape[-1].bit_length(), dtype=jnp.int32))
    depth = (inputs.smax[:, None] + 1 >= powers[None]).sum(axis=1, dtype=jnp.int32)
    rate = jnp.where(sound, rate, 0.0).astype(jnp.float32)
    invalid = jnp.sum(~sound, dtype=jnp.int32)
    if ages is not None:
        residual, sound = _fixed_point(residual)
        invalid += jnp.sum(~sound, dtype=jnp.int32)
    return Law(rate, accept, stay, depth, residual, invalid)


def static_lags(smax: Int[Array, " I"], num_lags: int | None) -> int:
    """Returns `num_lags`, by default max(smax), as a Python int.

    Raises:
        ValueError: if smax is traced and num_lags missing, or a concrete smax exceeds it.
    """
    if isinstance(smax, Tracer):
        if num_lags is None:
            raise ValueError("smax is traced; give its static bound, num_lags")
        return num_lags
    least, most = int(np.asarray(smax).min()), int(np.asarray(smax).max())
    if least < 0 or (num_lags is not None and most > num_lags):
        raise ValueError(f"need 0 <= smax <= num_lags = {num_lags}, got {least} to {most}")
    return most if num_lags is None else num_lags


def net_flow(
    key: Array, law: Law, *, num_replications: int, tile: int = 131072
) -> Int[Array, "I G T1 g"]:
    """Draws all patients, and returns the admissions minus departures of every day.

    Args:
        key: threefry key.
        law: T days of I sites.
        num_replications: R, static; multiples of 256 waste nothing.
        tile: patients per pass, a multiple of 32, static; it does not change the draws.

    Returns:
        `[I, G, T + 1, g]` int32 for G groups of g replications, R or more in all; the running sum
        over days is the census. Day T gathers departures after the last day.

    Raises:
        ValueError: on a key of another kind, an unsuitable number, or more than 2^31 entries.
    """
    check_threefry(key)
    if num_replications < 1 or tile < 1 or tile % _ROW:
        raise ValueError(
            "need num_replications >= 1 and tile a positive multiple of "
            f"{_ROW}, got {num_replications} and {tile}"
        )
    group = min(_GROUP, 1 << (num_replications - 1).bit_length())
    num_groups = -(-num_replications // group)
    num_sites, num_days, size = law.stay.shape
    shape = (num_sites, num_groups, num_days + 1, group)
    if math.prod(shape) + size * group >= 2**31:
        raise ValueError(f"{num_replications} replications at once are too many, divide them")
    return _draw(key, law, shape, tile)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _draw(key: Array, law: Law, shape: tuple[int, int, int, int], tile: int):
    num_sites, num_groups, num_days, group = shape
    num_days -= 1
    key_count, key_patient, key_residual = jax.random.split(key, 3)

    # Cells are (site, group, day), and each owns whole rows of the list.
    mean = jnp.broadcast_to(law.rate[:, None] * group, (num_sites, num_groups, num_days))
    patients = jax.random.poisson(key_count, mean.reshape(-1), dtype=jnp.int32)
    rows = (patients + (_ROW - 1)) // _ROW
    end = jnp.cumsum(rows)
    num_rows, lane = tile // _ROW, jnp.arange(_ROW, dtype=jnp.int32)[None]

    def locate(first_row):
        """Finds the rows of a tile: their cell of the law, their first and last place in `flow`."""
        row = first_row + jnp.arange(num_rows, dtype=jnp.int32)
        cell = jnp.searchsorted(end, row, side="right").astype(jnp.int32)
        cell = jnp.minimum(cell, end.shape[0] - 1)
        left = patients[cell] - (row - (end[cell] - rows[cell])) * _ROW
        slab, day = cell // num_days, cell % num_days
        site = slab // num_groups
        today = (slab * (num_days + 1) + day) * group
        last = today + (num_days - day) * group
        return row, left, site * num_days + day, today, last, law.depth[site].max()

    def admit(carry):
        (row, *columns, depth), flow = carry
        left, law_row, today, last = (x[:, None] for x in columns)
        word, second = _words(key_patient, row, two_each=law.accept is not None)
        replication = (word & (group - 1)).astype(jnp.int32)
        stay = _leading(law.stay, law_row, (word >> 8).astype(jnp.int32), depth)
        real = lane < left
        if law.accept is not None and second is not None:
            real &= (second >> 8).astype(jnp.int32) < law.accept.reshape(-1)[law_row]
        leave = jnp.minimum(today + stay * group, last)
        count = real.astype(jnp.int32)
        flow = flow.at[today + replication].add(count, mode="promise_in_bounds")
        flow = flow.at[leave + replication].add(-count, mode="promise_in_bounds")
        # Located one pass ahead: XLA would fuse what is not in the carry and repeat it per patient.
        return locate(row[0] + num_rows), flow

    flow = jnp.zeros((math.prod(shape),), jnp.int32)
    carry = (locate(jnp.int32(0)), flow)
    _, flow = jax.lax.while_loop(lambda carry: carry[0][0][0] < end[-1], admit, carry)
    flow = flow.reshape(shape)
    return flow if law.residual is None else _add_initial(key_residual, law.residual, flow)


def threefry(
    key: UInt32[Array, " 2"], counter: UInt32[Array, "..."]
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Computes the block cipher threefry2x32-20 of (counter, 0), elementwise: two random words.

    The cipher of `jax.random`, written out so that XLA fuses it with what uses it.

    Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = counter + schedule[0], jnp.zeros_like(counter) + schedule[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = x + y
            y = ((y << rotation) | (y >> (32 - rotation))) ^ x
        x = x + schedule[(block + 1) % 3]
        y = y + (schedule[(block + 2) % 3] + jnp.uint32(block + 1))
    return x, y


def _site_chances(args, *, families, num_lags, history, queue: QueueModel):
    """Computes chances of presence u days after admission `[T, U+1]` and day 0 `[P, U+1]`."""
    (_, mu, sig2, kappa, family, smax), ages = args
    lags = jnp.arange(num_lags + 1, dtype=jnp.int32)
    law = functools.partial(conditional.law, variant=queue.variant, moments=queue.moments)

    def admitted(code):
        sig2_, kappa_ = conditional.only_if(family == code, sig2, kappa)
        mean, variance = (
            occupancy.extend_back(x[None], history, queue.backfill)[0] for x in (mu, sig2_)
        )
        surv_fn = law(code, mean, variance, kappa_)
        return jax.vmap(lambda u: occupancy.census_weight(u, surv_fn, queue.convention))(lags)

    def in_bed(code):
        sig2_, kappa_ = conditional.only_if(family == code, sig2[0], kappa)
        surv_fn = law(code, mu[0], sig2_, kappa_)
        age = jnp.maximum(ages, 0.0)
        days = lags.astype(mu.dtype)
        chance = initial.initial_survivors(age, ages >= 0.0, days, surv_fn)
        within = days[:, None] + age[None] <= smax.astype(mu.dtype)
        return jnp.where(within | (lags == 0)[:, None], chance, 0.0)

    known = jnp.asarray(families, jnp.int32) == family
    valid = known.any() & (smax >= 0) & (smax <= num_lags)

    def chances(of):
        branches = [functools.partial(of, code) for code in families]
        return jnp.where(valid, jax.lax.switch(jnp.argmax(known), branches), jnp.nan)

    weight = jnp.where((lags <= smax)[:, None], chances(admitted), 0.0)
    weight = jnp.where(valid, weight, jnp.nan)
    return weight.T, None if ages is None else chances(in_bed).T


def _fixed_point(chance: Float[Array, "I T U1"]) -> tuple[Int[Array, "I T n"], Bool[Array, "I T"]]:
    """Returns `(table, sound)`: chances as 24-bit integers, then zeros; all 0 where unsound."""
    sound = jnp.all((chance >= 0.0) & (chance <= 1.0 + 1e-5), axis=-1)
    chance = jnp.where(sound[..., None], jnp.minimum(chance, 1.0), 0.0)
    table = jnp.round(chance * _ONE).astype(jnp.int32)
    table = jax.lax.cummin(table, axis=2)  # rounding may have broken the order
    num_lags = table.shape[-1]
    size = 1 << num_lags.bit_length()  # at least one zero follows the last lag
    return jnp.pad(table, ((0, 0), (0, 0), (0, size - num_lags))), sound


def _words(key, row, *, two_each: bool):
    """Draws a uint32 for the patients of each row, `[rows, 32]`, and a second one if `two_each`.

    The counter is the place in the list, so that the draws do not depend on how the list is tiled.
    """
    per_row = _ROW if two_each else _ROW // 2
    lane = jnp.arange(per_row, dtype=jnp.uint32)[None]
    x, y = threefry(jax.random.key_data(key), row.astype(jnp.uint32)[:, None] * per_row + lane)
    return (x, y) if two_each else (jnp.concatenate([x, y], axis=1), None)


def _leading(table, table_row, value, depth):
    """Counts the entries > value, fewer than 2^depth, of a not increasing row, by bisection."""
    flat, base = table.reshape(-1), jnp.broadcast_to(table_row * table.shape[-1], value.shape)

    def halve(step, place):
        width = jnp.left_shift(1, depth - 1 - step)
        above = flat.at[place + (width - 1)].get(mode="promise_in_bounds") > value
        return jnp.where(above, place + width, place)

    # A loop, for XLA would fuse unrolled steps and evaluate each many times over.
    return jax.lax.fori_loop(0, depth, halve, base) - base


def _add_initial(key, residual, flow):
    """Adds the patients of day 0 to the net flow, and their departures."""
    num_sites, num_groups, num_days, group = flow.shape
    places = residual.shape[1]
    word = jax.random.bits(key, (num_sites, places, num_groups, group))
    place = jnp.arange(num_sites * places, dtype=jnp.int32).reshape(num_sites, places, 1, 1)
    depth = jnp.int32(residual.shape[-1].bit_length() - 1)
    stay = _leading(residual, place, (word >> 8).astype(jnp.int32), depth)
    real = (stay > 0).astype(jnp.int32)  # an empty place is not there on day 0
    site, _, slab, replication = jnp.indices(stay.shape, dtype=jnp.int32, sparse=True)
    flow = flow.at[:, :, 0].add(real.sum(axis=1, dtype=jnp.int32))
    return flow.at[site, slab, jnp.minimum(stay, num_days - 1), replication].add(-real)


def _check_inputs(inputs, queue: QueueModel, lam_max, initial_ages) -> None:
    settings.check(queue, QueueModel)
    lam = inputs.lam
    if lam.ndim != 2 or not lam.shape == inputs.mu.shape == inputs.sig2.shape:
        raise ValueError(
            "lam, mu and sig2 must be [I, T] alike, got "
            f"{lam.shape}, {inputs.mu.shape}, {inputs.sig2.shape}"
        )
    num_sites = lam.shape[0]
    for name in ("kappa", "family", "smax"):
        if getattr(inputs, name).shape != (num_sites,):
            raise ValueError(f"{name} must be [{num_sites}], got {getattr(inputs, name).shape}")
    if queue.convention == "bed_days":
        raise ValueError(
            "a simulated census is a count at one time, got the convention 'bed_days', an average "
            "over the day; take 'ceil', 'midnight' or 'touch'"
        )
    if lam_max is not None:
        if lam_max.shape != lam.shape:
            raise ValueError(f"lam_max must be {lam.shape} like lam, got {lam_max.shape}")
        if not any(isinstance(x, Tracer) for x in (lam, lam_max)):
            if bool(np.any(np.asarray(lam) > np.asarray(lam_max))):
                raise ValueError("lam_max must be >= lam on every day: thinning adds no patients")
    if initial_ages is not None:
        if initial_ages.ndim != 2 or initial_ages.shape[0] != num_sites:
            raise ValueError(f"initial_ages must be [{num_sites}, P], got {initial_ages.shape}")


def check_threefry(key) -> None:
    """Raises a ValueError that says what is wanted if `key` is no typed threefry key."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or "threefry2x32" not in str(jax.random.key_impl(key)):
        raise ValueError(f"need a typed threefry key such as jax.random.key(0), got {key.dtype}")

"""Probabilities and divergences of paths, against sums over all of them."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact, path, schedules

V, K, N = 2, 3, 3


def table(seed):
    return np.random.default_rng(seed).normal(size=((V + 1) ** K, K, V))


def all_paths():
    """Every sequence with every way to reveal its tokens: `[V^K N^K, K]` each."""
    pairs = itertools.product(exact.sequences(V, K), itertools.product(range(1, N + 1), repeat=K))
    tokens, reveal = zip(*pairs, strict=True)
    return np.array(tokens), np.array(reveal)


def path_probability(logp, reveal, schedule):
    """Exact probability of each path: tokens revealed, and which places were."""
    chance, log_place = np.asarray(schedule.reveal), 0.0
    for n in range(1, N + 1):
        now, later = (reveal == n).sum(axis=1), (reveal < n).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            wait = np.where(later > 0, later * np.log1p(-chance[n]), 0.0)
        log_place = log_place + now * math.log(chance[n]) + wait
    return np.exp(logp.sum(axis=0) + log_place)


@pytest.fixture(scope="module")
def cases():
    """Both denoisers, every path, and what each module function says of them, float64."""
    with jax.enable_x64(True):
        schedule = schedules.make_schedule(N, "cosine")
        new, old = (exact.table_denoiser(jnp.asarray(table(seed))) for seed in (0, 1))
        tokens, reveal = all_paths()
        args = (jnp.asarray(tokens, jnp.int32), jnp.asarray(reveal, jnp.int32))
        steps = jnp.arange(1, N + 1)
        options = {"vocab": V, "schedule": schedule}
        result = path.compare_steps(new, old, *args, steps, **options)._asdict() | {
            "nll": path.visited_nll(new, *args, steps, **options),
            "law": exact.sampler_law(new, schedule, vocab=V, length=K),
            "law_old": exact.sampler_law(old, schedule, vocab=V, length=K),
            "bound": exact.nelbo_steps(new, schedule, vocab=V, length=K),
            "bound_old": exact.nelbo_steps(old, schedule, vocab=V, length=K),
        }
        result = {name: np.asarray(x) for name, x in result.items()}
        return tokens, reveal, jax.tree.map(np.asarray, schedule), result


def by_sequence(tokens, x):
    total = np.zeros(V**K)
    np.add.at(total, tokens @ V ** np.arange(K - 1, -1, -1), x)
    return total


def test_probabilities_of_paths_add_up_to_the_law(cases):
    tokens, reveal, schedule, got = cases
    prob = path_probability(got["logp"], reveal, schedule)
    np.testing.assert_allclose(by_sequence(tokens, prob), got["law"], rtol=1e-12)


def test_step_ratios_have_the_marginal_ratio_as_their_mean(cases):
    """E[prod of ratios | a_0] under the old law is pi / pi_old."""
    tokens, reveal, schedule, got = cases
    old = path_probability(got["logp_old"], reveal, schedule)
    ratio = np.exp((got["logp"] - got["logp_old"]).sum(axis=0))
    mean = by_sequence(tokens, old * ratio) / got["law_old"]
    np.testing.assert_allclose(mean, got["law"] / got["law_old"], rtol=1e-12)


def test_steps_of_kl_add_up_to_that_of_paths_which_bounds_the_marginal(cases):
    _, reveal, schedule, got = cases
    prob = path_probability(got["logp"], reveal, schedule)
    of_paths = prob @ (got["logp"] - got["logp_old"]).sum(axis=0)
    assert prob @ got["kl"].sum(axis=0) == pytest.approx(of_paths, rel=1e-12)
    marginal = got["law"] @ np.log(got["law"] / got["law_old"])
    assert of_paths > marginal + 1e-3 and marginal > 0


def test_visited_states_of_forward_noise_give_the_bound(cases):
    """A path's states given its tokens are forward noise if places are revealed at random."""
    tokens, reveal, schedule, got = cases
    drop = -np.diff(schedule.alpha)  # probability that a token's step is n
    weight = np.prod(drop[reveal - 1], axis=1)
    expected = by_sequence(tokens, weight * got["nll"].sum(axis=0))
    np.testing.assert_allclose(expected, got["bound"], rtol=1e-12)


def gap_of_paths(tokens, reveal, logp, schedule):
    """KL of forward noise and of the sampler's path, both given the tokens; and the latter."""
    forward = np.prod(-np.diff(schedule.alpha)[reveal - 1], axis=1)
    prob = path_probability(logp, reveal, schedule)
    law = by_sequence(tokens, prob)
    given = prob / law[tokens @ V ** np.arange(K - 1, -1, -1)]
    return by_sequence(tokens, forward * np.log(forward / given)), forward, given


def test_the_gap_of_the_bound_is_the_divergence_of_paths(cases):
    """And a ratio of probabilities is that of bounds times exp of the difference of gaps."""
    tokens, reveal, schedule, got = cases
    gap, gap_old = (
        gap_of_paths(tokens, reveal, got[name], schedule)[0] for name in ("logp", "logp_old")
    )
    np.testing.assert_allclose(got["bound"] + np.log(got["law"]), gap, rtol=1e-10)
    ratio = got["bound_old"] - got["bound"] + gap - gap_old
    np.testing.assert_allclose(np.log(got["law"] / got["law_old"]), ratio, atol=1e-12)


def test_visited_states_are_forward_noise_of_independent_tokens_alone():
    """True conditionals are not enough: tokens of one step are drawn as if independent."""
    first, second, third = np.random.default_rng(5).dirichlet(np.ones(2), 3)
    independent = np.einsum("i,j,k->ijk", first, second, third).ravel()
    tokens, reveal = all_paths()
    apart = []
    with jax.enable_x64(True):
        schedule = schedules.make_schedule(N)
        for joint in (independent, np.random.default_rng(6).dirichlet(np.ones(V**K))):
            denoise = exact.table_denoiser(exact.conditionals(joint, vocab=V, length=K))
            at = (jnp.asarray(x, jnp.int32) for x in (tokens, reveal))
            logp = path.step_logp(denoise, *at, jnp.arange(1, N + 1), vocab=V, schedule=schedule)
            gap, forward, given = gap_of_paths(
                tokens, reveal, np.asarray(logp), jax.tree.map(np.asarray, schedule)
            )
            apart.append(abs(forward - given).max())
            assert gap.max() < 1e-12 or joint is not independent
    assert apart[0] < 1e-12 and apart[1] > 1e-3


def test_tokens_that_do_not_count_have_no_part(cases):
    tokens, reveal, _, _ = cases
    with jax.enable_x64(True):
        schedule = schedules.make_schedule(N)
        new, old = (exact.table_denoiser(jnp.asarray(table(seed))) for seed in (0, 1))
        mask = jnp.asarray(np.arange(K) < 1)
        args = (jnp.asarray(tokens[:40], jnp.int32), jnp.asarray(reveal[:40], jnp.int32))
        options = {
            "vocab": V,
            "schedule": schedule,
            "token_mask": jnp.broadcast_to(mask, args[0].shape),
        }
        steps = jnp.arange(1, N + 1)
        logs = np.asarray(jax.nn.log_softmax(jnp.asarray(table(0))))
        logs_old = np.asarray(jax.nn.log_softmax(jnp.asarray(table(1))))
        logp, kl, nll = (
            np.asarray(x)
            for x in (
                path.step_logp(new, *args, steps, **options),
                path.compare_steps(new, old, *args, steps, **options).kl,
                path.visited_nll(new, *args, steps, **options),
            )
        )
    chance = 1 / np.arange(1, N + 1)
    for n in range(1, N + 1):
        state = np.where(reveal[:40] > n, tokens[:40], V) @ (V + 1) ** np.arange(K - 1, -1, -1)
        first, first_old = logs[state, 0], logs_old[state, 0]
        at = first[np.arange(40), tokens[:40, 0]]
        hidden = reveal[:40, 0] <= n
        divergence = (np.exp(first) * (first - first_old)).sum(axis=1)
        np.testing.assert_allclose(logp[n - 1], np.where(reveal[:40, 0] == n, at, 0), rtol=1e-12)
        np.testing.assert_allclose(
            kl[n - 1], chance[n - 1] * np.where(hidden, divergence, 0), rtol=1e-11, atol=1e-14
        )
        np.testing.assert_allclose(
            nll[n - 1], -chance[n - 1] * np.where(hidden, at, 0), rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": jnp.full((2, 3), 2)}, r"tokens must be in 0 \.\. 1"),
        ({"token_mask": jnp.zeros((2, 3), bool)}, "at least one token"),
        ({"token_mask": jnp.ones((2, 2), bool)}, "token_mask must be"),
        ({"reveal": jnp.ones((2, 2), jnp.int32)}, "reveal must be"),
        ({"steps": jnp.asarray([0, 1])}, r"steps must be in 1 \.\. 2, got 0"),
        ({"steps": jnp.asarray([1, 3])}, r"steps must be in 1 \.\. 2, got 1 \.\. 3"),
        ({"steps": jnp.zeros((0,), jnp.int32)}, "one at least"),
    ],
)
def test_what_is_no_path_is_refused(change, message):
    denoise = lambda tokens, level: jnp.zeros((*tokens.shape, 2))  # noqa: E731
    known = {"tokens": jnp.zeros((2, 3), jnp.int32), "reveal": jnp.ones((2, 3), jnp.int32)}
    known |= {"steps": jnp.ones(1, jnp.int32), "schedule": schedules.make_schedule(2), **change}
    for ask in (path.step_logp, path.visited_nll, functools.partial(path.compare_steps, denoise)):
        with pytest.raises(ValueError, match=message):
            ask(denoise, vocab=2, **known)


def test_steps_are_drawn_without_replacement():
    drawn = np.asarray(
        jax.vmap(lambda key: path.draw_steps(key, 6, 2))(jax.random.split(jax.random.key(0), 3000))
    )
    assert (drawn[:, 0] != drawn[:, 1]).all()
    counts = np.bincount(drawn.ravel(), minlength=7)[1:]
    assert abs(counts - 1000).max() < 5 * math.sqrt(1000 * 2 / 3)
    np.testing.assert_array_equal(path.draw_steps(jax.random.key(0), 4, 4), [1, 2, 3, 4])
    for count in (0, 5):
        with pytest.raises(ValueError, match="count"):
            path.draw_steps(jax.random.key(0), 4, count)


def test_divergence_over_kept_paths_differs_in_the_third_order(x64):
    """Halving a small step divides the divergence by 4, and what the old paths miss by 8."""
    schedule = schedules.make_schedule(N, "cosine")
    old, direction = (jnp.asarray(table(seed)) for seed in (3, 4))
    at = (*(jnp.asarray(x, jnp.int32) for x in all_paths()), jnp.arange(1, N + 1))
    options = {"vocab": V, "schedule": schedule}

    @jax.jit
    def look(h):
        new, before = (exact.table_denoiser(x) for x in (old + h * direction, old))
        both = path.compare_steps(new, before, *at, **options)
        return both.kl.sum(axis=0), both.logp, both.logp_old

    found = []
    for h in (1e-2, 5e-3):
        kl, *logps = (np.asarray(x) for x in look(h))
        new, before = (path_probability(x, np.asarray(at[1]), schedule) @ kl for x in logps)
        found.append((new, new - before))
    (kl, gap), (half_kl, half_gap) = found
    assert kl / half_kl == pytest.approx(4.0, rel=0.05)
    assert gap / half_gap == pytest.approx(8.0, rel=0.1)

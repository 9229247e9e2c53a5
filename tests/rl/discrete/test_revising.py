"""Uniform diffusion as a policy: paths by enumeration, its best denoiser, and that it learns."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact, schedules, uniform
from jaxlab.learning import over_seeds
from jaxlab.rl import discrete
from jaxlab.rl.discrete import bandits, matching

V, K, N = 2, 2, 3


def table(logits):
    """A denoiser with logits `[num_steps, V^K, K, V]` of its own for every state and level."""

    def denoise(tokens, level):
        n = jnp.round(level * logits.shape[0]).astype(jnp.int32) - 1
        return logits[jnp.broadcast_to(n, tokens.shape[:-1]), exact.number(tokens, V)]

    return denoise


def random_table(seed, num_steps=N):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(num_steps, V**K, K, V)))


@pytest.fixture(scope="module")
def paths():
    """All `[N + 1, 256, K]` paths."""
    numbers = np.array(list(itertools.product(range(V**K), repeat=N + 1)))
    return jnp.asarray(exact.sequences(V, K)[numbers.T])


def path_logp(logits, paths):
    steps, schedule = jnp.arange(1, N + 1), schedules.make_schedule(N)
    logp = uniform.step_logp(table(logits), paths, steps, vocab=V, schedule=schedule)
    return logp, logp.sum(axis=0) - K * np.log(V)  # the last state is uniform


def test_single_steps_give_the_policy_gradient(x64, paths):
    logits, schedule = random_table(0), schedules.make_schedule(N)
    worth = jnp.asarray(np.random.default_rng(1).normal(size=V**K))

    def law(logits):
        return exact.uniform_sampler_law(table(logits), schedule, vocab=V, length=K)

    advantage = worth - law(logits) @ worth
    true = jax.grad(lambda logits: law(logits) @ advantage)(logits)
    logp_old, whole = path_logp(logits, paths)
    weight = jnp.exp(whole) * whole.size

    def r2(logits):
        compared = uniform.compare_steps(
            table(logits),
            table(random_table(0)),
            paths,
            jnp.arange(1, N + 1),
            vocab=V,
            schedule=schedule,
        )
        np.testing.assert_allclose(compared.logp_old, logp_old, rtol=1e-12)
        loss, _ = matching.reverse_kl(
            compared.logp,
            compared.logp_old,
            weight * advantage[exact.number(paths[0], V)],
            compared.kl,
            num_steps=N,
            clip_eps=0.2,
            temperature=0.1,  # its divergence has no slope where both policies are one
        )
        return -loss

    found = jax.grad(r2)(logits)
    assert float(jnp.linalg.norm(true)) > 1e-3
    np.testing.assert_allclose(found, true, atol=1e-12)


def test_divergences_of_steps_add_up_to_that_of_paths(x64, paths):
    new, old, schedule = random_table(2), random_table(3), schedules.make_schedule(N)
    (_, whole), (_, before) = path_logp(new, paths), path_logp(old, paths)
    assert float(jnp.exp(whole).sum()) == pytest.approx(1.0, abs=1e-12)
    of_paths = float(jnp.exp(whole) @ (whole - before))
    compared = uniform.compare_steps(
        table(new), table(old), paths, jnp.arange(1, N + 1), vocab=V, schedule=schedule
    )
    assert float(jnp.exp(whole) @ compared.kl.sum(axis=0)) == pytest.approx(of_paths, rel=1e-12)
    laws = [exact.uniform_sampler_law(table(x), schedule, vocab=V, length=K) for x in (new, old)]
    assert 0.0 < float(laws[0] @ jnp.log(laws[0] / laws[1])) < of_paths


def cavity(law, num_steps):
    """What each token is, given the noisy tokens at all other places: `[N, V^K, K, V]` logits."""
    clean, schedule = exact.sequences(V, K), schedules.make_schedule(num_steps)
    found = np.zeros((num_steps, V**K, K, V))
    for n, (row, noisy), place in itertools.product(range(num_steps), enumerate(clean), range(K)):
        alpha = float(schedule.alpha[n + 1])
        chance = alpha * (clean == noisy) + (1.0 - alpha) / V
        chance[:, place] = 1.0
        joint = law * chance.prod(axis=1)
        for token in range(V):
            found[n, row, place, token] = joint[clean[:, place] == token].sum()
    return jnp.asarray(np.log(found))


def test_the_best_denoiser_knows_each_token_from_the_other_places(x64):
    """There the weighted loss has no slope, and many steps draw the target."""
    law, clean = np.array([0.4, 0.1, 0.15, 0.35]), jnp.asarray(exact.sequences(V, K))
    schedule = schedules.make_schedule(N)

    def loss(logits):
        total = 0.0
        for n, noisy in itertools.product(range(1, N + 1), np.asarray(clean)):
            alpha = float(schedule.alpha[n])
            chance = (alpha * (np.asarray(clean) == noisy) + (1.0 - alpha) / V).prod(axis=1)
            each = uniform.step_loss(
                table(logits),
                clean,
                jnp.broadcast_to(jnp.asarray(noisy), clean.shape),
                jnp.full(V**K, n),
                vocab=V,
                schedule=schedule,
            )
            total += matching.forward_kl(each, jnp.asarray(law * chance)) / N
        return total

    best = cavity(law, N)
    np.testing.assert_allclose(jax.grad(loss)(best), 0.0, atol=1e-12)
    assert float(jnp.linalg.norm(jax.grad(loss)(best + 0.1 * random_table(4)))) > 1e-3
    apart = []
    for num_steps in (4, 8, 16):
        drawn = exact.uniform_sampler_law(
            table(cavity(law, num_steps)), schedules.make_schedule(num_steps), vocab=V, length=K
        )
        apart.append(0.5 * float(jnp.abs(drawn - law).sum()))
    ratios = np.array(apart[:-1]) / np.array(apart[1:])
    assert (ratios > 1.6).all() and (ratios < 2.6).all(), apart  # an error of order 1 / N


def test_replicates_are_averaged_over_one_noise_for_two_denoisers():
    schedule, tokens = schedules.make_schedule(N), jnp.asarray(exact.sequences(V, K))
    tokens = jnp.broadcast_to(tokens, (500, V**K, K))

    def ask(key, logits, replicates):
        return uniform.nelbo(
            key, table(logits), tokens, vocab=V, schedule=schedule, replicates=replicates
        )

    logits = random_table(5).astype(jnp.float32)
    one, eight = (ask(jax.random.key(i), logits, i) for i in (1, 8))
    assert one.shape == eight.shape == (500, V**K)
    spread = np.std(one, axis=0) / np.std(eight, axis=0)
    assert (spread > 2.0).all() and (spread < 4.0).all(), spread  # the root of eight
    error = np.std(one, axis=0) / np.sqrt(500)
    assert (np.abs(np.mean(one, axis=0) - np.mean(eight, axis=0)) < 5 * error).all()
    np.testing.assert_array_equal(one, ask(jax.random.key(1), logits, 1))


@pytest.mark.parametrize("make", ["masked", "revising"])
def test_networks_that_see_the_level_heed_it(make):
    if make == "masked":
        policy = discrete.make_transformer_policy(3, 4, width=8, num_layers=1, sees_level=True)
    else:
        policy = discrete.make_revising_policy(3, 4, width=8, num_layers=1)
    params = policy.init(jax.random.key(0))
    head = jax.random.normal(jax.random.key(1), params.trunk.head.shape)
    params = params._replace(trunk=params.trunk._replace(head=head))
    tokens = jax.random.randint(jax.random.key(2), (5, 4), 0, 3)
    low, high, mixed = (
        policy.denoise(params)(tokens, jnp.asarray(level))
        for level in ([0.1] * 5, [0.9] * 5, [0.1, 0.9, 0.1, 0.9, 0.1])
    )
    assert float(jnp.abs(low - high).max(axis=(1, 2)).min()) > 1e-2
    np.testing.assert_allclose(mixed[::2], low[::2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[1::2], high[1::2], rtol=1e-5, atol=1e-6)


def permutation(tokens):
    return jnp.all(jnp.diff(jnp.sort(tokens, axis=-1), axis=-1) > 0, axis=-1).astype(jnp.float32)


@functools.cache
def revising():
    return discrete.make_revising_policy(3, 3, width=16, num_layers=1, num_heads=2)


@pytest.mark.slow
@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("update", ["forward", "step", "bound"])
def test_permutations_are_learned_where_a_product_cannot(update):
    """All different: of even tokens 2 in 9 are, and of no product law more."""
    given = {"num_steps": 6, "batch": 128, "learning_rate": 3e-3}
    if update == "forward":
        algorithm = discrete.forward(
            permutation, revising(), num_batches=1, temperature=0.5, num_updates=4, **given
        )
    else:
        algorithm = discrete.reverse(permutation, revising(), ratio=update, **given)
    algorithm = over_seeds(algorithm, 3)

    @jax.jit
    def learn(key):
        return jax.lax.scan(lambda s, _: algorithm.step(s), algorithm.init(key), length=60)

    state, metrics = learn(jax.random.key(0))
    rewards = np.asarray(metrics["reward/mean"])
    assert abs(rewards[0].mean() - 2 / 9) < 5 * np.sqrt(2 / 9 * 7 / 9 / (3 * 128))
    final = rewards[-10:].mean(axis=0)
    assert final.mean() - 3 * final.std(ddof=1) / np.sqrt(3) > 0.5, final
    needed = {"policy/unique", "policy/entropy", "policy/ess", "loss/band_0", "loss/band_3"}
    assert needed <= metrics.keys()
    one = jax.tree.map(lambda x: x[0], state.params)
    drawn = bandits.draw(jax.random.key(1), revising(), one, (512,), schedules.make_schedule(6))
    assert abs(float(permutation(drawn.tokens).mean()) - final[0]) < 0.15
    again = uniform.step_logp(
        revising().denoise(one),
        drawn.states,
        jnp.arange(1, 7),
        vocab=3,
        schedule=schedules.make_schedule(6),
    )
    np.testing.assert_allclose(drawn.logp, again, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("optax_promotes")
def test_a_corpus_is_learned_as_it_is():
    """Two sequences of 27, each of whose places is even over two tokens."""
    corpus = jnp.asarray([[0, 1, 2], [2, 2, 0]])
    algorithm = discrete.pretrain(revising(), corpus, batch=64, learning_rate=3e-3, average=0.9)

    @jax.jit
    def learn(key):
        return jax.lax.scan(lambda s, _: algorithm.step(s), algorithm.init(key), length=300)

    state, _ = learn(jax.random.key(0))
    drawn = bandits.draw(
        jax.random.key(1), revising(), state.average, (1024,), schedules.make_schedule(16)
    ).tokens
    shares = [float((drawn == row).all(axis=-1).mean()) for row in corpus]
    assert min(shares) > 0.35 and sum(shares) > 0.85, shares


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda policy: discrete.forward(permutation, policy, num_steps=2, noise="on_policy"),
            "use 'forward'",
        ),
        (
            lambda policy: discrete.reverse(
                permutation, policy, num_steps=2, ratio="mean_field", batch=8
            ),
            "one of step, bound",
        ),
        (
            lambda policy: discrete.grpo(permutation, policy, None, num_steps=2, batch=8),
            "one that revises",
        ),
        (
            lambda policy: discrete.drakes(
                permutation, policy, None, num_steps=2, num_grad_steps=1, batch=4
            ),
            "TokenPolicy, got RevisingPolicy",
        ),
        (lambda policy: discrete.reverse(permutation, policy, batch=8), "num_steps must be given"),
        (
            lambda policy: discrete.reverse(permutation, policy, num_steps=2, batch=2),
            "two sequences or more",
        ),
    ],
)
def test_what_a_policy_that_revises_cannot_do_is_named(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(revising())

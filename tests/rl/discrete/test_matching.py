"""Directions of forward and reverse updates, against the policy gradient by enumeration.

Three tokens of two kinds in three steps: eight sequences, 216 paths, a table as the denoiser.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact, path, schedules
from jaxlab.rl.discrete import matching, targets

V, K, N = 2, 3, 3
OPTIONS = {"vocab": V, "length": K}


class Toy:
    """A random denoiser, advantages, all paths and their probabilities, float64."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.logits = jnp.asarray(rng.normal(size=((V + 1) ** K, K, V)))
        self.schedule = schedules.make_schedule(N)
        law = np.asarray(self.law(self.logits))
        advantage = rng.normal(size=V**K)
        self.advantage = jnp.asarray(advantage - law @ advantage)
        self.old_law = jnp.asarray(law)
        pairs = list(
            itertools.product(exact.sequences(V, K), itertools.product((1, 2, 3), repeat=K))
        )
        self.tokens = jnp.asarray(np.array([a for a, _ in pairs]), jnp.int32)
        self.reveal = jnp.asarray(np.array([r for _, r in pairs]), jnp.int32)
        self.number = exact.number(self.tokens, V)
        self.steps = jnp.arange(1, N + 1)
        self.logp_old = self.step_logp(self.logits)
        # The linear schedule reveals every token at a step that is uniform over N.
        self.prob = jnp.exp(self.logp_old.sum(axis=0)) / N**K

    def law(self, logits):
        return exact.sampler_law(exact.table_denoiser(logits), self.schedule, **OPTIONS)

    def step_logp(self, logits):
        return path.step_logp(
            exact.table_denoiser(logits),
            self.tokens,
            self.reveal,
            self.steps,
            vocab=V,
            schedule=self.schedule,
        )

    def policy_gradient(self):
        return jax.grad(lambda logits: self.law(logits) @ self.advantage)(self.logits)

    def r2(self, logits):
        """The reverse loss over all paths, each as often as it is drawn."""
        weight = self.prob * self.prob.size
        loss, _ = matching.reverse_kl(
            self.step_logp(logits),
            self.logp_old,
            weight * self.advantage[self.number],
            jnp.zeros_like(self.logp_old),
            num_steps=N,
            clip_eps=0.2,
            temperature=0.1,
        )
        return -loss

    def r1(self, logits):
        bound = exact.nelbo_steps(exact.table_denoiser(logits), self.schedule, **OPTIONS)
        ratio = jnp.exp(jax.lax.stop_gradient(bound) - bound)
        return self.old_law @ (ratio * self.advantage)

    def r3(self, logits):
        clean = jnp.asarray(exact.sequences(V, K))
        logp = matching.mean_field_logp(exact.table_denoiser(logits), clean, vocab=V)[0]
        return self.old_law @ (jnp.exp(logp - jax.lax.stop_gradient(logp)) * self.advantage)


def cosine(a, b):
    a, b = np.asarray(a).ravel(), np.asarray(b).ravel()
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.fixture(scope="module")
def toys():
    with jax.enable_x64(True):
        yield [Toy(seed) for seed in range(8)]


def test_bounds_of_a_ratio_share_their_noise_and_have_the_exact_bound_as_mean(toys):
    """The same key and policy make a ratio of one; over many keys R1 is that of enumeration."""
    toy, clean = toys[0], jnp.asarray(exact.sequences(V, K))

    def estimate(key, logits):
        denoise = exact.table_denoiser(logits)
        return matching.bound_logp(key, denoise, clean, vocab=V, schedule=toy.schedule)[0]

    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(estimate, (0, None)))(keys, toy.logits)
    assert np.min(np.std(drawn, axis=0)) > 0.1
    again = jax.jit(estimate)(keys[0], toy.logits)
    np.testing.assert_allclose(again, drawn[0], rtol=1e-12)
    wanted = -exact.nelbo_steps(exact.table_denoiser(toy.logits), toy.schedule, **OPTIONS)
    sigma = np.std(drawn, axis=0) / np.sqrt(len(keys))
    assert np.max(np.abs(np.mean(drawn, axis=0) - wanted) / sigma) < 4.0
    whole = matching.bound_logp(
        keys[0], exact.table_denoiser(toy.logits), clean, vocab=V, schedule=toy.schedule
    )
    share = matching.bound_logp(
        keys[0],
        exact.table_denoiser(toy.logits),
        clean,
        vocab=V,
        schedule=toy.schedule,
        per_token=True,
    )
    np.testing.assert_allclose(share, whole / K, rtol=1e-12)


def test_step_ratios_give_the_policy_gradient_and_the_others_do_not(toys):
    found = {"r1": [], "r2": [], "r3": []}
    for toy in toys:
        true = toy.policy_gradient()
        for name, values in found.items():
            gradient = jax.grad(getattr(toy, name))(toy.logits)
            values.append(cosine(gradient, true))
            if name == "r2":
                np.testing.assert_allclose(gradient, true, atol=1e-12)
    r1, r2, r3 = (np.array(found[name]) for name in ("r1", "r2", "r3"))
    assert (r2 > 1 - 1e-12).all()
    # .938 and .867 on the toy of the paper's notes; ours are eight others.
    assert (r1 < 0.999).all() and 0.85 < r1.mean() < 0.98, r1
    assert (r3 < 0.99).all() and 0.7 < r3.mean() < 0.95, r3
    assert r3.mean() < r1.mean()


def test_the_loss_on_visited_states_points_nearly_along_the_policy_gradient(toys):
    """With advantages as weights; on fresh noise it is the gradient of R1, which is further off."""
    cosines, sizes, fresh = [], [], []
    for toy in toys:

        def visited(logits, toy=toy):
            denoise = exact.table_denoiser(logits)
            nll = path.visited_nll(
                denoise, toy.tokens, toy.reveal, toy.steps, vocab=V, schedule=toy.schedule
            )
            return -(toy.prob * toy.advantage[toy.number]) @ nll.sum(axis=0)

        true, found = toy.policy_gradient(), jax.grad(visited)(toy.logits)
        cosines.append(cosine(found, true))
        sizes.append(float(jnp.linalg.norm(found) / jnp.linalg.norm(true)))
        fresh.append(cosine(jax.grad(toy.r1)(toy.logits), true))
    # .99 and 1.16 on the toy of the paper's notes; ours are eight others.
    assert 0.9 < np.mean(cosines) < 0.9999 and 1.0 < np.mean(sizes) < 1.3
    assert (np.array(cosines) > fresh).all()


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_weighted_bound_is_least_where_conditionals_are_the_target_s(kind, x64):
    """For two steps and more; one step teaches the state alone in which all tokens are hidden."""
    rng = np.random.default_rng(9)
    prior, advantage = rng.dirichlet(np.ones(V**K)), rng.normal(size=V**K)
    target = targets.exact_target(jnp.asarray(prior), jnp.asarray(advantage), 0.7)
    best = exact.conditionals(target, **OPTIONS)
    other = jnp.asarray(rng.normal(size=best.shape))

    def loss(logits, num_steps):
        schedule = schedules.make_schedule(num_steps, kind)
        bound = exact.nelbo_steps(exact.table_denoiser(logits), schedule, **OPTIONS)
        return matching.forward_kl(bound, target)

    for num_steps in (2, 3):
        np.testing.assert_allclose(jax.grad(loss)(best, num_steps), 0.0, atol=1e-12)
        assert loss(best, num_steps) < loss(other, num_steps)
    slope = np.asarray(jax.grad(loss)(other, 1))
    assert abs(slope[:-1]).max() == 0.0 < abs(slope[-1]).max()
    laws = [
        exact.sampler_law(
            exact.table_denoiser(best), schedules.make_schedule(n, kind), vocab=V, length=K
        )
        for n in (400, 800)
    ]
    np.testing.assert_allclose(2.0 * laws[1] - laws[0], target, rtol=1e-3)


def test_losses_on_visited_states_are_sums_over_all_paths(toys):
    """And half of one, half of the bound, is the mix: 60 draws of each path, four standard errors.

    A token hidden at n costs u_n = 1 / n under "on_policy"; under "path" what is revealed costs 1.
    """
    toy = toys[0]
    logp = np.asarray(jax.nn.log_softmax(toy.logits))
    visited, revealed = np.zeros(len(toy.tokens)), np.zeros(len(toy.tokens))
    pairs = zip(np.asarray(toy.tokens), np.asarray(toy.reveal), strict=True)
    for i, (tokens, reveal) in enumerate(pairs):
        for n in range(1, N + 1):
            partial = np.where(reveal > n, tokens, V)
            at = logp[partial @ (V + 1) ** np.arange(K - 1, -1, -1)]
            for k in range(K):
                if reveal[k] <= n:
                    visited[i] -= at[k, tokens[k]] / n
                if reveal[k] == n:
                    revealed[i] -= at[k, tokens[k]]

    def loss(noise, count, repeats):
        return matching.sequence_loss(
            jax.random.key(0),
            exact.table_denoiser(toy.logits),
            jnp.tile(toy.tokens, (repeats, 1)),
            vocab=V,
            noise=noise,
            schedule=toy.schedule,
            reveal=jnp.tile(toy.reveal, (repeats, 1)),
            count=count,
        )

    np.testing.assert_allclose(loss("on_policy", N, 1), visited, rtol=1e-10)
    np.testing.assert_allclose(loss("path", N, 1), revealed, rtol=1e-10)
    bound = exact.nelbo_steps(exact.table_denoiser(toy.logits), toy.schedule, **OPTIONS)
    wanted = 0.5 * (visited + np.asarray(bound)[np.asarray(toy.number)])
    error = np.asarray(loss("mix", N, 60)).reshape(60, -1) - wanted
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(error.size)
    assert error.std() > 0.05  # fresh noise is in it

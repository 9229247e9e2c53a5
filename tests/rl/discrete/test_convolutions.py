"""The convolutional denoiser and its pre-training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.diffusion.discrete import exact, schedules
from jaxlab.rl import discrete
from jaxlab.rl.discrete.convolutions import dilated_conv


@pytest.mark.parametrize(("length", "dilation"), [(25, 1), (25, 4), (25, 7), (25, 30), (6, 2)])
def test_dilated_convolution_and_its_gradient_are_those_of_loops(length, dilation, x64):
    rng = np.random.default_rng(dilation)
    x, kernel = rng.normal(size=(2, length, 3)), rng.normal(size=(9, 3, 4))
    weight = rng.normal(size=(2, length, 4))
    y, of_x, of_kernel = np.zeros(weight.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for here in range(length):
        for i in range(9):
            there = here + (i - 4) * dilation
            if 0 <= there < length:
                y[:, here] += x[:, there] @ kernel[i]
                of_x[:, there] += weight[:, here] @ kernel[i].T
                of_kernel[i] += x[:, there].T @ weight[:, here]
    found, back = jax.vjp(lambda x, k: dilated_conv(x, k, dilation), *map(jnp.asarray, (x, kernel)))
    for got, want in zip((found, *back(jnp.asarray(weight))), (y, of_x, of_kernel), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


def test_a_far_token_is_seen_and_hidden_ones_count_as_hidden():
    policy = discrete.make_conv_policy(4, 40, hidden=16, repeats=1)
    params = jax.jit(policy.init)(jax.random.key(0))
    head = params["params"]["Dense_1"]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    tokens = jnp.full((3, 40), 4).at[1, 39].set(0).at[2, 39].set(1)
    logits = jax.jit(policy.denoise(params))(tokens, jnp.ones(3))
    first = np.asarray(logits[:, :3])  # 36 places away and more
    assert (abs(first[0] - first[1]) > 1e-6).any() and (abs(first[1] - first[2]) > 1e-6).any()


@pytest.mark.usefixtures("optax_promotes")
def test_pretraining_reaches_the_entropy_of_its_corpus():
    """Two bits that are equal, and a third that is one in four: the bound's least is known."""
    joint = np.zeros((2, 2, 2))
    joint[0, 0], joint[1, 1] = [0.375, 0.125], [0.375, 0.125]
    entropy = -(joint[joint > 0] * np.log(joint[joint > 0])).sum()
    sequences = exact.sequences(2, 3)
    corpus = jnp.asarray(np.repeat(sequences, (joint.ravel() * 64).astype(int), axis=0))
    policy = discrete.make_table_policy(2, 3)
    algorithm = discrete.pretrain(
        policy, corpus, batch=64, learning_rate=5e-2, max_grad_norm=10.0, average=0.9
    )
    state, _ = jax.jit(
        lambda key: jax.lax.scan(
            lambda state, _: algorithm.step(state), algorithm.init(key), length=600
        )
    )(jax.random.key(0))
    bound = exact.nelbo_subsets(policy.denoise(state.average), vocab=2, length=3)
    reached = float(joint.ravel()[joint.ravel() > 0] @ np.asarray(bound)[joint.ravel() > 0])
    assert entropy < reached < entropy + 0.03
    keys = jax.random.split(jax.random.key(1), 400)
    each = jax.jit(
        jax.vmap(
            lambda key: discrete.log_likelihood(
                key, policy, state.average, jnp.asarray(sequences[:1]), 8
            )
        )
    )(keys)
    schedule = schedules.make_schedule(8)
    expected = -exact.nelbo_steps(policy.denoise(state.average), schedule, vocab=2, length=3)[0]
    error = float(jnp.std(each)) / 20
    assert abs(float(jnp.mean(each)) - float(expected)) < 5 * error


@pytest.mark.usefixtures("optax_promotes")
def test_a_policy_that_writes_is_pretrained_on_its_own_probability():
    """A logit for every beginning: the least of the loss is the entropy of the corpus."""

    def log_prob(params, tokens):
        first, second = tokens[:, 0], tokens[:, 1]
        beginnings = jnp.stack([jnp.zeros_like(first), 1 + first, 3 + 2 * first + second], axis=1)
        logp = jax.nn.log_softmax(params)
        return jnp.sum(logp[beginnings, tokens], axis=1)

    policy: Any = discrete.WritingPolicy(2, 3, lambda key: jnp.zeros((7, 2)), None, log_prob, None)
    counts = np.array([6, 1, 2, 4, 1, 3, 5, 2])
    corpus = jnp.asarray(np.repeat(exact.sequences(2, 3), counts, axis=0))
    algorithm = discrete.pretrain(policy, corpus, batch=64, learning_rate=5e-2, average=0.99)
    state, _ = jax.jit(
        lambda key: jax.lax.scan(
            lambda state, _: algorithm.step(state), algorithm.init(key), length=300
        )
    )(jax.random.key(0))
    share = counts / counts.sum()
    logp = np.asarray(log_prob(state.average, jnp.asarray(exact.sequences(2, 3))))
    # KL(corpus, law) in nats; of even tokens it is 0.169.
    assert -1e-6 <= share @ (np.log(share) - logp) < 0.02


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        (np.zeros((0, 3), np.int32), "corpus"),
        (np.zeros((4, 2), np.int32), "corpus"),
        (np.full((4, 3), 2, np.int32), "tokens must be in 0 .. 1"),
        (np.zeros((4, 3)), "integers"),
    ],
)
def test_a_bad_corpus_is_refused(corpus, message):
    with pytest.raises(ValueError, match=message):
        discrete.pretrain(discrete.make_table_policy(2, 3), jnp.asarray(corpus))


def test_a_gradient_is_not_shortened_to_less_than_nothing():
    corpus = jnp.zeros((4, 3), jnp.int32)
    with pytest.raises(ValueError, match="max_grad_norm must be positive, got -1"):
        discrete.pretrain(discrete.make_table_policy(2, 3), corpus, max_grad_norm=-1.0)

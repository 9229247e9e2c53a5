"""PIRF: gradients against closed forms and differences, truncation, regularization, refusals."""

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import physics
from jaxlab.core import loop
from jaxlab.diffusion import edm
from jaxlab.physics import layers as layers_lib
from jaxlab.physics import pirf as pirf_lib

LAW = physics.poisson()


class Small(flax.linen.Module):
    """A network of each pixel whose layers are named as those of a U-Net; it compiles fast."""

    @flax.linen.compact
    def __call__(self, x, noise, *, train=False, detach=False):
        level = jnp.atleast_1d(noise)[:, None, None, None]
        h = jnp.tanh(flax.linen.Dense(5, name="encoder_0_in")(x) + level)
        h = h + flax.linen.Dense(5, name="decoder_1_block_0")(h)
        h = flax.linen.Dropout(0.5, deterministic=not train)(h)
        h = jax.lax.stop_gradient(h) if detach else h
        h = jnp.tanh(flax.linen.Dense(5, name="decoder_0_block_0")(h))
        return flax.linen.Dense(2, name="out_conv")(h)


NETWORK = Small()


def scaled(params):
    """A denoiser that is linear in x and in its one weight."""
    return lambda x, sigma: params * x


def euler_only(theta, start, levels, first):
    """x_N of Heun's steps with D = theta x, in plain arithmetic, theta from step `first` on."""

    def d(theta, x, s):
        return (x - theta * x) / s

    x = start
    for i in range(len(levels) - 1):
        t = theta if i >= first else jax.lax.stop_gradient(theta)
        x = x if i != first else jax.lax.stop_gradient(x)
        s, then = levels[i], levels[i + 1]
        ahead = x + (then - s) * d(t, x, s)
        x = x + 0.5 * (then - s) * (d(t, x, s) + d(t, ahead, then)) if then > 0.0 else ahead
    return x


@pytest.mark.parametrize("K", [1, 2, 5])
def test_gradient_of_a_toy_is_that_of_the_closed_form(K, x64):
    """K = 1: of x_N^2 it is 2 x_N x_{N-1}; K = N is that of the whole product; random cuts too."""
    N, theta, noise = 5, jnp.asarray(0.9), jnp.asarray([0.4])
    levels = edm.sigmas(N).astype(np.float64)

    def value(theta):
        still = scaled(jax.lax.stop_gradient(theta))
        x, _ = pirf_lib.truncated(scaled(theta), still, noise, N, K)
        return jnp.sum(x**2)

    def by_hand(theta, first=N - K):
        return jnp.sum(euler_only(theta, float(levels[0]) * noise, levels, first) ** 2)

    np.testing.assert_allclose(value(theta), by_hand(theta), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(value)(theta), jax.grad(by_hand)(theta), rtol=1e-6)
    if K == 1:
        before = float(levels[0]) * noise
        before = edm.heun_steps(scaled(theta), before, levels, 0, N - 1)
        by_product = 2.0 * 0.9 * before[0] * before[0]
        np.testing.assert_allclose(jax.grad(value)(theta), by_product, rtol=1e-6)
    if K == N:
        numeric = (by_hand(theta + 1e-6) - by_hand(theta - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(value)(theta), numeric, rtol=1e-6)
        return

    def random(theta):
        x = pirf_lib.randomly_truncated(scaled(theta), noise, N, jnp.asarray(K))
        return jnp.sum(x**2)

    np.testing.assert_allclose(jax.grad(random)(theta), jax.grad(value)(theta), rtol=1e-6)


def test_reward_gradient_of_the_exact_denoiser_against_differences(x64):
    """The exact Gaussian denoiser with a weight for each variance; the reward is Poisson's."""
    exact = physics.gaussian_law(LAW, 6)
    law = edm.Gaussian(*(z.astype(jnp.float64) for z in exact))
    noise = jax.random.normal(jax.random.key(0), (3, 6, 6, 2), jnp.float64)
    off = jax.random.normal(jax.random.key(1), (6, 6, 2), jnp.float64)

    def learned(weights):
        return lambda x, s: (
            law._replace(variance=jnp.exp(weights[:-1])).denoiser(x, s) + (weights[-1] * off[None])
        )

    weights = jnp.append(jnp.log(law.variance), 0.01)

    @functools.partial(jax.jit, static_argnums=2)
    def value(weights, still, K):
        x, _ = pirf_lib.truncated(learned(weights), learned(still), noise, 8, K)
        return -jnp.mean(physics.reward(LAW, x))

    slope = jax.jit(jax.grad(value), static_argnums=2)
    direction = jax.random.normal(jax.random.key(2), weights.shape, jnp.float64)
    for K in (1, 3, 8):
        pair = [value(weights + e * direction, weights, K) for e in (1e-5, -1e-5)]
        found = jnp.sum(slope(weights, weights, K) * direction)
        np.testing.assert_allclose(found, (pair[0] - pair[1]) / 2e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def loaded():
    """Weights as a trained network has them: none of them zero."""
    params = jax.jit(NETWORK.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 2)), jnp.zeros(1))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(3)
    return jax.tree.unflatten(
        tree, [np.float32(0.2) * rng.normal(size=z.shape).astype(np.float32) for z in leaves]
    )


def tune(loaded, steps=1, **given):
    given = {"num_steps": 4, "num_grad_steps": 1, "batch_size": 2, "learning_rate": 1e-3} | given
    algorithm = physics.make_pirf(LAW, NETWORK.apply, loaded, (8, 8, 2), **given)

    @jax.jit
    def run(key):
        return jax.lax.scan(lambda s, _: algorithm.step(s), algorithm.init(key), length=steps)

    return run(jax.random.key(7))


def biggest(a, b):
    return max(
        float(np.max(np.abs(np.asarray(p) - np.asarray(q))))
        for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.usefixtures("optax_promotes")
def test_weights_outside_of_the_mask_do_not_move_and_detaching_changes_nothing_at_one_step(loaded):
    """K = 1: the same gradients, so the same first moments of Adam; dropout plays no part."""
    states = {
        layers: tune(loaded, layers=layers, regularizer="off")[0] for layers in ("mask", "detach")
    }
    for state in states.values():
        params = physics.tuned_params(state)["params"]
        for name in params:
            moved = biggest(params[name], loaded["params"][name])
            top = name.startswith(("decoder_0", "out_"))
            assert (moved > 1e-4) if top else (moved == 0.0), name
    moments = [states[x].opt_state[0].mu for x in ("mask", "detach")]
    largest = max(np.max(np.abs(z)) for z in jax.tree.leaves(moments[0]))
    assert biggest(*moments) < 1e-4 * float(largest)


@pytest.mark.usefixtures("optax_promotes")
def test_detaching_is_biased_where_more_than_one_step_is_learned_from(loaded):
    """It is refused unless asked for, and moves the weights elsewhere then."""
    given = {"num_grad_steps": 3, "regularizer": "off"}
    right = tune(loaded, **given)[0].opt_state[0].mu
    biased = tune(loaded, layers="detach", allow_biased=True, **given)[0].opt_state[0].mu
    largest = max(np.max(np.abs(z)) for z in jax.tree.leaves(right))
    assert biggest(right, biased) > 1e-2 * float(largest)


@pytest.mark.usefixtures("optax_promotes")
def test_a_long_gradient_is_shortened_and_a_short_one_is_not(loaded):
    """As all of Adam's first moments say, which are a tenth of the gradient."""
    free, metrics = tune(loaded, regularizer="off")
    norm = float(metrics["tune/grad_norm"][0])
    for limit, factor in ((norm / 4.0, 0.25), (norm * 4.0, 1.0)):
        clipped, same = tune(loaded, regularizer="off", clip_norm=limit)
        assert float(same["tune/grad_norm"][0]) == pytest.approx(norm, rel=1e-5)  # as it was
        expected = jax.tree.map(lambda z, f=factor: f * z, free.opt_state[0].mu)
        found = clipped.opt_state[1][0].mu
        largest = max(float(np.max(np.abs(z))) for z in jax.tree.leaves(expected))
        assert biggest(found, expected) < 1e-4 * largest


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("K", [2, 4])
def test_step_is_adams_on_the_reward_and_the_distance(loaded, K):
    """Against the gradient of the loss written out, on the same noise; K = N is all of it."""
    state, metrics = tune(loaded, num_grad_steps=K, reg_weight=0.3, regularizer="l2sq")
    key = jax.random.split(jax.random.split(jax.random.key(7))[1], 3)[0]
    noise = jax.random.normal(key, (2, 8, 8, 2))
    levels = edm.sigmas(4)

    @jax.jit
    def slope(params):
        def denoiser(params):
            return edm.precondition(lambda x, s: NETWORK.apply(params, x, s))

        start = edm.heun_steps(denoiser(params), 80.0 * noise, levels, 0, 4 - K)

        def loss(params):
            x = edm.heun_steps(denoiser(params), start, levels, 4 - K, 4)
            return -jnp.mean(physics.reward(LAW, x))

        return jax.value_and_grad(loss)(params)

    value, grads = slope(loaded)
    np.testing.assert_allclose(-metrics["tune/reward"][0], value, rtol=1e-4)
    mask = layers_lib.trainable_mask(loaded, "mask")
    grads, _ = layers_lib.split(grads, mask)
    mu = jax.tree.map(lambda g: 0.1 * g, grads)  # at the start the distance has no gradient
    found = state.opt_state[0].mu
    largest = max(float(np.max(np.abs(z))) for z in jax.tree.leaves(mu))
    assert biggest(found, mu) < 1e-3 * largest
    np.testing.assert_allclose(
        metrics["tune/grad_norm"][0],
        np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads))),
        rtol=1e-3,
    )


def test_distance_by_hand_and_its_gradient_at_the_start():
    rng = np.random.default_rng(0)
    a, b = ({"x": rng.normal(size=(2, 3)), "y": rng.normal(size=4), "z": None} for _ in range(2))
    a, b = (jax.tree.map(lambda z: jnp.asarray(z, jnp.float32), t) for t in (a, b))
    norms = [np.linalg.norm(np.asarray(a[k] - b[k])) for k in "xy"]
    np.testing.assert_allclose(layers_lib.distance(a, b), sum(norms), rtol=1e-6)
    np.testing.assert_allclose(
        layers_lib.distance(a, b, "l2sq"), sum(n**2 for n in norms), rtol=1e-6
    )
    slope = jax.grad(layers_lib.distance)(a, b)
    np.testing.assert_allclose(slope["x"], (a["x"] - b["x"]) / norms[0], rtol=1e-5)
    assert not any(np.any(z) for z in jax.tree.leaves(jax.grad(layers_lib.distance)(b, b)))
    back = layers_lib.pull_back(a, b, 3.0)
    np.testing.assert_allclose(back["y"], b["y"] + (a["y"] - b["y"]) / 4.0, rtol=1e-5)


@pytest.mark.usefixtures("optax_promotes")
def test_a_strong_hold_keeps_the_weights_and_none_is_none(loaded):
    """The anchor is what was handed over; Adam's step is at most its rate, the pull undoes it."""
    held, _ = tune(loaded, 3, regularizer="l2sp", reg_weight=1e9)
    params = physics.tuned_params(held)
    assert biggest(params, loaded) < 1e-6
    assert biggest(layers_lib.join(held.anchor, held.frozen), loaded) == 0.0
    strong, _ = tune(loaded, 4, regularizer="l2", reg_weight=1e9)
    free, _ = tune(loaded, 4, regularizer="l2", reg_weight=0.0)
    off, _ = tune(loaded, 4, regularizer="off")
    assert biggest(physics.tuned_params(free), physics.tuned_params(off)) == 0.0
    far = [float(layers_lib.distance(s.train, s.anchor)) for s in (strong, free)]
    assert far[0] < 0.6 * far[1]


@pytest.mark.usefixtures("optax_promotes")
def test_random_truncation_is_one_of_those_below_all_steps(loaded):
    """ReFT's first moments are those of K = 1 or K = 2 of three steps, and each occurs."""
    keys = jax.random.split(jax.random.key(0), 8)

    def moments(K):
        learner = physics.make_pirf(
            LAW, NETWORK.apply, loaded, (8, 8, 2), num_steps=3, num_grad_steps=K, batch_size=2
        )
        first = jax.jit(lambda key: learner.step(learner.init(key))[0].opt_state[0].mu)
        return [jax.device_get(first(key)) for key in keys]

    one, two, drawn = moments(1), moments(2), moments(None)
    apart = np.array(
        [[biggest(a, b), biggest(a, c)] for a, b, c in zip(drawn, one, two, strict=True)]
    )
    between = np.array([biggest(b, c) for b, c in zip(one, two, strict=True)])
    assert np.all(np.min(apart, axis=1) < 1e-3 * between)
    assert set(np.argmin(apart, axis=1)) == {0, 1}


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("regularizer", ["l2", "l2sq", "l2sp"])
def test_second_step_is_adams_with_the_hold_by_hand(regularizer):
    """Of an objective with a known slope, away from the anchor; its loss counts the hold."""
    start, slope, rate, weight = np.array([0.3, -0.8]), np.array([1.0, -3.0]), 0.1, 0.7
    learner = physics.make_tuning(
        {"w": jnp.asarray(start, jnp.float32)},
        lambda key, params, anchor: ((jnp.vdot(jnp.asarray(slope, jnp.float32), params["w"]),), {}),
        layers="none",
        regularizer=regularizer,
        reg_weight=weight,
        learning_rate=rate,
    )
    state, metrics = jax.lax.scan(
        lambda s, _: learner.step(s), learner.init(jax.random.key(0)), length=2
    )
    mean, square, w, losses = np.zeros(2), np.zeros(2), start, []
    for i in (1, 2):
        away = w - start
        size = np.linalg.norm(away)
        value, pull = {
            "l2": (size, away / size if size else away),
            "l2sq": (size**2, 2.0 * away),
            "l2sp": (0.0, 0.0 * away),
        }[regularizer]
        losses.append(slope @ w + weight * value)
        g = slope + weight * pull
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g**2
        w = w - rate * (mean / (1 - 0.9**i)) / (np.sqrt(square / (1 - 0.999**i)) + 1e-8)
        if regularizer == "l2sp":
            w = start + (w - start) / (1.0 + rate * weight)
    np.testing.assert_allclose(state.opt_state[0].mu["w"], mean, rtol=1e-5)
    np.testing.assert_allclose(physics.tuned_params(state, average=False)["w"], w, rtol=1e-4)
    np.testing.assert_allclose(metrics["tune/loss"], losses, rtol=1e-5)


@pytest.mark.usefixtures("optax_promotes")
def test_distillation_begins_at_zero_and_holds(loaded):
    """The first step is that of the reward alone; its own gradient there is zero."""
    held, metrics = tune(loaded, 1, regularizer="distillation", reg_weight=1e3)
    off, _ = tune(loaded, 1, regularizer="off")
    np.testing.assert_allclose(metrics["tune/loss"], -metrics["tune/reward"], rtol=1e-6)
    assert biggest(held.train, off.train) < 1e-5
    states, levels = jnp.ones((2, 1, 2, 2, 1)), np.array([2.0, 0.5], np.float32)
    found = pirf_lib.distillation(scaled(1.3), scaled(1.0), states, levels)
    np.testing.assert_allclose(found, 0.5 * (0.3**2 / 4.0 + 0.3**2 / 0.25), rtol=1e-5)


@pytest.mark.usefixtures("optax_promotes")
def test_random_schedules_take_every_number_of_steps(loaded):
    """The reward of an update with learning rate zero is that of one of the schedules."""
    rewards = {}
    for num in (2, 4, (2, 4)):
        _, metrics = tune(loaded, 8, num_steps=num, learning_rate=1e-30, regularizer="off")
        rewards[num] = np.asarray(metrics["tune/reward"])
    same = [np.isclose(rewards[2, 4], rewards[n], rtol=1e-3) for n in (2, 4)]
    assert np.all(same[0] ^ same[1]) and np.any(same[0]) and np.any(same[1])


@pytest.mark.usefixtures("optax_promotes")
def test_a_run_goes_on_from_its_checkpoint_with_its_own_anchor(loaded, tmp_path):
    algorithm = physics.make_pirf(
        LAW, NETWORK.apply, loaded, (8, 8, 2), num_steps=3, num_grad_steps=1, batch_size=2
    )
    whole = loop.run(algorithm, jax.random.key(1), num_steps=4, chunk_size=2)
    loop.run(algorithm, jax.random.key(1), num_steps=2, chunk_size=2, directory=tmp_path)
    rest = loop.run(algorithm, jax.random.key(2), num_steps=4, chunk_size=2, directory=tmp_path)
    assert biggest(rest.state.train, whole.state.train) == 0.0
    assert biggest(layers_lib.join(rest.state.anchor, rest.state.frozen), loaded) == 0.0


@pytest.mark.usefixtures("optax_promotes")
def test_memory_grows_with_the_steps_that_gradients_run_through():
    """Linear in 2 K - 1, and flat where steps are computed again."""

    def bytes_of(K, remat):
        def loss(theta, noise):
            def learned(x, sigma):
                return jnp.tanh(theta * x) * jnp.cos(x)

            x, _ = pirf_lib.truncated(learned, learned, noise, 12, K, remat=remat)
            return jnp.sum(x**2)

        shape = jax.ShapeDtypeStruct((64, 1024), jnp.float32)
        compiled = jax.jit(jax.grad(loss)).lower(jax.ShapeDtypeStruct((), jnp.float32), shape)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    plain = [bytes_of(K, False) for K in (3, 6, 9)]
    again = [bytes_of(K, True) for K in (3, 6, 9)]
    unit = 4 * 64 * 1024
    assert plain[2] - plain[1] == pytest.approx(plain[1] - plain[0], rel=0.1)
    assert plain[2] - plain[1] >= 3 * 2 * unit  # activations of two calls a step
    assert again[2] - again[1] <= 3 * 1.2 * unit  # its state alone


def test_masks_name_their_weights(loaded):
    names = loaded["params"].keys()
    for layers, kept in {
        "none": lambda n: True,
        "mask": lambda n: n.startswith(("decoder_0", "out_")),
        "late": lambda n: n.startswith("decoder_1"),
    }.items():
        mask = layers_lib.trainable_mask(loaded, layers)["params"]
        assert {n for n in names if any(jax.tree.leaves(mask[n]))} == {n for n in names if kept(n)}
    mask = layers_lib.trainable_mask(loaded, lambda name: name == "params/out_conv/bias")
    assert sum(jax.tree.leaves(mask)) == 1
    train, frozen = layers_lib.split(loaded, mask)
    assert len(jax.tree.leaves(train)) == 1
    assert biggest(layers_lib.join(train, frozen), loaded) == 0.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_grad_steps": 5}, "num_grad_steps must be at most num_steps, got 5 of 4"),
        ({"num_grad_steps": 0}, "num_grad_steps must be an integer of at least 1, got 0"),
        ({"num_steps": (20, 1)}, "num_steps must be an integer of at least 2, got 1"),
        ({"layers": "detach", "num_grad_steps": 2}, "gradient for num_grad_steps=1 alone, got 2"),
        ({"layers": "top"}, "layers must be one of none, mask, detach, late, got 'top'"),
        ({"layers": lambda name: False}, "layers must leave something to tune"),
        ({"regularizer": "l1"}, "regularizer must be one of .*, got 'l1'"),
        ({"reg_weight": -1.0}, "reg_weight must not be negative, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0"),
        ({"region": "edge"}, "region must be one of all, interior"),
        ({"regularizer": "distillation", "num_grad_steps": None}, "needs a fixed num_grad_steps"),
    ],
)
def test_wrong_settings_are_named(given, message, loaded):
    with pytest.raises(ValueError, match=message):
        tune(loaded, **given)
    with pytest.raises(ValueError, match=r"shape must be \(H, W, 2\) for Poisson, got \(8, 8, 3\)"):
        physics.make_pirf(LAW, NETWORK.apply, loaded, (8, 8, 3))
    with pytest.raises(ValueError, match=r"shape must be \(H, W, 2\) for Poisson, got 8"):
        physics.make_pirf(LAW, NETWORK.apply, loaded, 8)
    with pytest.raises(ValueError, match=r"network must keep the shape of x, \(1, 8, 8, 2\), got"):
        physics.make_pirf(LAW, lambda p, x, s: NETWORK.apply(p, x, s)[..., :1], loaded, (8, 8, 2))
    with pytest.raises(ValueError, match="params must hold weights, got none"):
        physics.make_pirf(LAW, NETWORK.apply, {}, (8, 8, 2))

"""Images: encoder sizes, shifts, what the encoder learns from, and a toy that is seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import envs, nn, rl
from jaxlab.rl import critics as critics_lib
from jaxlab.rl import generators, mirror_descent

SHAPE = (16, 16, 1)


def test_published_sizes(key):
    encoder = nn.PixelEncoder((84, 84, 9))
    obs = jax.ShapeDtypeStruct((2, 84 * 84 * 9), jnp.float32)
    params = jax.eval_shape(encoder.init, key, obs)
    assert jax.eval_shape(encoder.apply, params, obs).shape == (2, 39_200)


def test_shifts_move_by_whole_pixels(key):
    """Every crop is a window of the image with its edge repeated; all shifts come up."""
    image = np.arange(16.0 * 16).reshape(SHAPE)
    moved = np.asarray(
        nn.random_shift(key, jnp.broadcast_to(image.reshape(1, -1), (2000, 256)), SHAPE, pad=2)
    ).reshape(2000, 16, 16)
    wide = np.pad(image[..., 0], 2, mode="edge")
    windows = {wide[i : i + 16, j : j + 16].tobytes(): (i, j) for i in range(5) for j in range(5)}
    found = [windows[x.astype(np.float64).tobytes()] for x in moved]
    counts = np.array([found.count(w) for w in windows.values()])
    assert counts.min() > 40 and len(set(found)) == 25


def test_encoder_learns_from_the_observation_alone(key):
    critics = rl.make_pixel_critics(SHAPE, 1, hidden=(8,), trunk=4)
    params = critics.init(key)
    rng = np.random.default_rng(0)
    obs, other = (jnp.asarray(rng.uniform(0, 255, (5, 256)), jnp.float32) for _ in range(2))
    action = jnp.zeros((5, 1))

    def total(p, target, next_obs):
        data = critics_lib.Transitions(
            obs,
            action,
            jnp.ones(5),
            jnp.zeros(5, bool),
            critics.encode(p, next_obs),
            action,
            jnp.zeros(5),
        )
        return critics.loss(key, p, target, data, 0.9)[0]

    one, two = (jax.grad(total)(params, params, x)["encoder"] for x in (obs, other))
    assert any(jnp.any(x != 0) for x in jax.tree.leaves(one))
    # The next observation moves the target, not the gradient's path: a fixed target gives the same.
    q = functools.partial(critics.apply, params)
    target = 1.0 + 0.9 * jnp.min(q(critics.encode(params, other), action), axis=0)

    def plain(p):
        values = critics.apply(p, critics.encode(p, obs), action)
        return jnp.sum(jnp.mean((values - target[None]) ** 2, axis=1))

    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        jax.grad(plain)(params)["encoder"],
        two,
    )


def dot():
    """A bright column of an image says which action is right; one step, then the end."""

    def render(place):
        column = jnp.arange(16, dtype=jnp.float32)[None, :, None]
        near = jnp.exp(-0.5 * (column - 7.5 - 5.0 * place) ** 2)
        return jnp.broadcast_to(255.0 * near, SHAPE).reshape(-1)

    def reset(key):
        place = jax.random.uniform(key, (), minval=-1.0, maxval=1.0)
        return place, render(place)

    def step(place, action):
        return place, render(place), -8.0 * (action[0] - place) ** 2, jnp.ones((), bool)

    return envs.Task("dot", 256, envs.Box((-1.0,), (1.0,)), 1, reset, step)


@pytest.mark.slow
def test_a_policy_that_sees(optax_promotes, key):
    """Blind actions earn -2.7 at best, random ones -5.3; three seeds end far above."""
    critics = rl.make_pixel_critics(SHAPE, 1, hidden=(32, 32), trunk=16)
    size = jax.eval_shape(critics.encode, jax.eval_shape(critics.init, key), jnp.zeros((256,))).size
    policy = mirror_descent.make_mirror_descent(
        generators.make_mean_flow(size, 1, hidden=(32, 32), trunk=16),
        num_particles=8,
        weighting="scale_std",
        temperature=1.0,
        optimizer=optax.adam(2e-3),
        alpha_every=2,
    )
    learner = rl.make_learner(
        envs.make_env(dot(), 8),
        policy,
        critics=critics,
        batch_size=64,
        capacity=4000,
        warmup=800,
        critic_learning_rate=2e-3,
        reward_scale=1.0,
        augment=functools.partial(nn.random_shift, shape=SHAPE, pad=1),
    )

    @jax.jit
    def train(key):
        state = learner.init(key)
        state = jax.lax.scan(lambda s, _: learner.step(s), state, length=600)[0]
        q = critics_lib.smaller(critics, state.critic_params)

        def act(key, obs):
            features = critics.encode(state.critic_params, obs)
            return policy.act(
                key, state.policy_average_params, features, q, jnp.ones(()), explore=False
            )

        return jnp.mean(rl.evaluate(jax.random.fold_in(key, 1), act, envs.make_env(dot(), 200)))

    returns = np.array([train(k) for k in jax.random.split(key, 3)])
    assert returns.mean() - 3 * returns.std(ddof=1) / np.sqrt(3) > -1.5, returns

"""PPO's gradient by hand: advantages, the clip on both sides, the bootstrap of a truncated step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import envs, learning, rl
from jaxlab.core import loop
from jaxlab.nn import Mlp

pytestmark = pytest.mark.usefixtures("optax_promotes")
STEPS, ENVS, HIDDEN = 3, 32, (8,)
GAMMA, LAMBDA, CLIP, RATE = 0.9, 0.8, 0.2, 0.05
RANDOM = np.random.default_rng(4)
OBS, FIRST = RANDOM.normal(size=(2, STEPS + 1, ENVS, 2)).astype(np.float32)
REWARD = RANDOM.normal(size=(STEPS, ENVS)).astype(np.float32)
TERMINATED, CUT = RANDOM.random((2, STEPS, ENVS)) < 0.2
TRUNCATED = CUT & ~TERMINATED
# What is acted on next is the first observation of a new episode where one has ended.
STARTS = np.concatenate([np.zeros((1, ENVS), bool), TERMINATED | TRUNCATED])
SEEN = np.where(STARTS[..., None], FIRST, OBS)


def scripted():
    """An environment that plays the tables above and remembers the actions."""

    def reset(key):
        no = jnp.zeros(ENVS, bool)
        return envs.State(
            jnp.zeros((STEPS, ENVS, 2)),
            jnp.asarray(SEEN[0]),
            jnp.zeros(ENVS),
            no,
            no,
            jnp.asarray(SEEN[0]),
            no,
            jnp.zeros(ENVS, jnp.int32),
            jax.random.split(key, ENVS),
        )

    def step(state, action):
        t = state.time[0]
        tables = (SEEN[1:], REWARD, TERMINATED, TRUNCATED, OBS[1:])
        obs, reward, terminated, truncated, final = (jnp.asarray(x)[t] for x in tables)
        return state._replace(
            physics=state.physics.at[t].set(action),
            obs=obs,
            reward=reward,
            final_obs=final,
            terminated=terminated,
            truncated=truncated,
            time=state.time + 1,
        )

    return envs.Env("scripted", ENVS, 2, envs.Box((-1.0,) * 2, (1.0,) * 2), STEPS, reset, step)


def run(num_epochs, key):
    """Returns states before and after a step of so many gradients of all data, and metrics."""
    algorithm = rl.make_ppo(
        scripted(),
        hidden=HIDDEN,
        num_steps=STEPS,
        num_epochs=num_epochs,
        num_minibatches=1,
        learning_rate=RATE,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_eps=CLIP,
        value_coef=0.7,
        entropy_coef=0.3,
        max_grad_norm=1e9,
        reward_scale=0.5,
    )

    @jax.jit
    def go(key):
        state = algorithm.init(key)
        # Narrow enough that no action is clipped on its way into the environment.
        policy = jax.tree.map(lambda x: 0.4 * x, state.params["policy"])
        params = {**state.params, "policy": policy, "log_std": jnp.asarray([-2.0, -1.7])}
        state = state._replace(params=params)
        return state, *algorithm.step(state)

    return go(key)


def by_hand(params, old, action):
    """Gradients of log_std and of the last biases, and what is logged, in float64 NumPy."""

    def outputs(params, obs):
        networks = (("policy", 2), ("value", 1))
        out = [Mlp(HIDDEN, n).apply(params[k], jnp.asarray(obs)) for k, n in networks]
        return np.asarray(out[0], np.float64), np.asarray(out[1], np.float64)[..., 0]

    value, next_value = outputs(old, SEEN[:-1])[1], outputs(old, OBS[1:])[1]
    delta = 0.5 * REWARD + GAMMA * ~TERMINATED * next_value - value
    advantage, later = np.zeros_like(delta), 0.0
    for t in reversed(range(STEPS)):
        later = delta[t] + GAMMA * LAMBDA * ~(TERMINATED | TRUNCATED)[t] * later
        advantage[t] = later
    target = advantage + value
    advantage = (advantage - advantage.mean()) / advantage.std()

    def density(params):
        mean, log_std = outputs(params, SEEN[:-1])[0], np.asarray(params["log_std"], np.float64)
        z = (action - mean) / np.exp(log_std)
        return np.sum(-0.5 * z**2 - log_std, axis=-1), z

    (logp, z), (logp_old, _) = density(params), density(old)
    ratio = np.exp(logp - logp_old)
    outside = (ratio > 1 + CLIP) & (advantage > 0) | (ratio < 1 - CLIP) & (advantage < 0)
    slope = (-ratio * advantage * ~outside / ratio.size)[..., None]  # of the loss in log p
    error = outputs(params, SEEN[:-1])[1] - target
    std = np.exp(np.asarray(params["log_std"], np.float64))
    return (
        {
            "log_std": np.sum(slope * (z**2 - 1), axis=(0, 1)) - 0.3,
            "policy": np.sum(slope * z / std, axis=(0, 1)),
            "value": np.array([0.7 * 2 * error.mean()]),
        },
        {
            "critic/loss": np.mean(error**2),
            "policy/kl": np.mean(ratio - 1 - np.log(ratio)),
            "policy/clipped": np.mean(np.abs(ratio - 1) > CLIP),
        },
        outside,
        ratio,
    )


def pick(tree):
    last = {k: np.asarray(tree[k]["params"]["layer_1"]["bias"]) for k in ("policy", "value")}
    return {**last, "log_std": np.asarray(tree["log_std"])}


def test_two_gradients_by_hand(key):
    """At a ratio of one, and where the clip holds back a part of the samples on either side."""
    start, once, found = run(1, key)
    _, twice, found_twice = run(2, key)
    action = np.asarray(once.env.physics, np.float64)
    assert np.abs(action).max() < 1.0
    np.testing.assert_array_equal(action, twice.env.physics)
    moments = [optax.tree_utils.tree_get(s.opt_state, "mu") for s in (once, twice)]
    first, both = (pick(x) for x in moments)
    want, logged, _, _ = by_hand(start.params, start.params, action)
    want_after, logged_after, outside, ratio = by_hand(once.params, start.params, action)
    assert outside[ratio > 1].mean() > 0.1 and outside[ratio < 1].mean() > 0.1
    assert np.mean((np.abs(ratio - 1) > CLIP) & ~outside) > 0.1  # clipped, yet with a gradient
    before, after = pick(start.params), pick(once.params)
    for name, gradient in want.items():
        # Adam's first moment is a tenth of the gradient, then nine tenths of it and a tenth.
        np.testing.assert_allclose(10 * first[name], gradient, rtol=2e-3, atol=2e-5)
        second = 10 * (both[name] - 0.9 * first[name])
        np.testing.assert_allclose(second, want_after[name], rtol=2e-3, atol=2e-4)
        step = -RATE * gradient / (np.abs(gradient) + 1e-5)
        np.testing.assert_allclose(after[name] - before[name], step, rtol=1e-2)
    for name, value in logged.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
        mean = (value + logged_after[name]) / 2
        np.testing.assert_allclose(found_twice[name], mean, rtol=1e-3, atol=1e-5)


T, E, LENGTHS = 6, 4, RANDOM.integers(1, 5, (6, 4))
VALUES = RANDOM.normal(size=2 * T * E)  # of what is acted on, and of what a step led to
PAID = RANDOM.normal(size=(T, E))
ENDED, STOPPED = RANDOM.random((2, T, E)) < 0.25
STOPPED &= ~ENDED


def macro():
    """Actions of several steps, over tables; an observation is the number of its value."""
    index = np.arange(2 * T * E, dtype=np.float32).reshape(2, T, E, 1)

    def reset(key):
        no, zeros = jnp.zeros(E, bool), jnp.zeros(E, jnp.int32)
        first = jnp.asarray(index[0, 0])
        return envs.State(
            jnp.zeros(E, jnp.int32),
            first,
            jnp.zeros(E),
            no,
            no,
            first,
            no,
            zeros,
            jax.random.split(key, E),
        )

    def step(state, action):
        t = state.time[0]
        seen = jnp.asarray(np.concatenate([index[0, 1:], index[0, :1]]))[t]
        return state._replace(
            physics=jnp.asarray(LENGTHS)[t],
            obs=seen,
            reward=jnp.asarray(PAID, jnp.float32)[t],
            terminated=jnp.asarray(ENDED)[t],
            truncated=jnp.asarray(STOPPED)[t],
            final_obs=jnp.asarray(index[1])[t],
            time=(state.time + 1) % T,
        )

    return envs.Env("macro", E, 1, envs.Discrete(2), T, reset, step)


def tables():
    """A value and an "entropy" for every observation; gradients show what the loss was given."""

    def at(table, obs):
        return table[obs[..., 0].astype(jnp.int32)]

    def init(key_policy, key_value):
        return {"value": jnp.asarray(VALUES, jnp.float32), "entropy": jnp.zeros(2 * T * E)}

    def sample(key, params, obs, mask):
        return jnp.zeros(obs.shape[:-1], jnp.int32), jnp.zeros(obs.shape[:-1])

    def evaluate(params, obs, mask, action):
        return jnp.zeros(action.shape), at(params["entropy"], obs)

    return learning.Networks(
        init, sample, evaluate, lambda *_: None, lambda params, obs: at(params["value"], obs)
    )


@pytest.mark.parametrize("minibatch_of", ["transitions", "environments"])
def test_what_a_loss_is_given(key, minibatch_of):
    """Discounts gamma^k of macro-actions, two runs with settings of their own, and minibatches:
    of gradients Adam's moment keeps a tenth, nine tenths of it after another step, and so on."""

    def tell(now, then, settings):
        shapes.append(then.target.shape)
        told = now.value * then.target + settings["beta"] * now.entropy * then.advantage
        return jnp.sum(told), {}

    shapes = []
    algorithm = learning.make_ppo(
        macro(),
        tables(),
        num_steps=T,
        num_epochs=1,
        num_minibatches=E,
        minibatch_of=minibatch_of,
        gae_lambda=LAMBDA,
        max_grad_norm=1e9,
        reward_scale=0.5,
        duration=lambda state: state.physics,
        loss=tell,
        loss_settings={"beta": 1.0},
    )
    sweep = {"gamma": jnp.asarray([0.9, 0.7]), "beta": jnp.asarray([1.0, 3.0])}
    both = learning.over_seeds(algorithm, 2, settings=sweep)
    state, metrics = jax.jit(lambda key: both.step(both.init(key)))(key)
    assert set(shapes) == {(6, 1) if minibatch_of == "environments" else (6,)}
    moment = optax.tree_utils.tree_get(state.opt_state, "mu")
    value, next_value = VALUES.reshape(2, T, E)
    for run, (gamma, beta) in enumerate(((0.9, 1.0), (0.7, 3.0))):
        discount = gamma**LENGTHS * ~ENDED
        delta = 0.5 * PAID + discount * next_value - value
        advantage, later = np.zeros((T, E)), 0.0
        for t in reversed(range(T)):
            later = delta[t] + LAMBDA * discount[t] * ~STOPPED[t] * later
            advantage[t] = later
        shown = np.asarray(moment["entropy"], np.float64)[run, : T * E].reshape(T, E)
        turn = np.round(np.log(shown / (0.1 * beta * advantage)) / np.log(0.9))
        np.testing.assert_allclose(shown, 0.1 * beta * 0.9**turn * advantage, rtol=1e-3)
        shown = np.asarray(moment["value"])[run, : T * E].reshape(T, E)
        np.testing.assert_allclose(shown, 0.1 * 0.9**turn * (advantage + value), atol=1e-5)
        # Every sample has had its turn once; those of an environment together, or not.
        np.testing.assert_array_equal(np.bincount(turn.astype(int).ravel()), [T] * E)
        together = np.all(turn == turn[0])
        assert together == (minibatch_of == "environments")
    total, count, running = 0.0, 0, np.zeros(E)
    for t in range(T):
        running += PAID[t]
        done = ENDED[t] | STOPPED[t]
        total, count = total + running[done].sum(), count + done.sum()
        running[done] = 0.0
    np.testing.assert_allclose(metrics["env/return"].total, [total] * 2, rtol=1e-5)
    np.testing.assert_array_equal(metrics["env/return"].count, [count] * 2)
    np.testing.assert_allclose(state.returns, [running] * 2, atol=1e-5)


def test_loss_with_nothing_to_choose():
    """By hand: of four samples one had a single action; it counts for the value alone."""
    mask = np.array([True, True, False, True])
    logp, logp_old = np.log([0.5, 0.3, 1.0, 0.2]), np.log([0.4, 0.5, 1.0, 0.2])
    advantage, value = np.array([1.0, -2.0, 50.0, 4.0]), np.array([0.1, 0.2, 0.3, 0.4])
    target, entropy = np.array([1.0, 0.0, 2.0, 0.5]), np.array([0.6, 0.5, 0.0, 0.7])
    settings = {"clip_eps": 0.2, "value_coef": 0.7, "entropy_coef": 0.3}
    arrays = (jnp.asarray(x, jnp.float32) for x in (logp, entropy, value))
    now = learning.Outputs(*arrays)
    arrays = (jnp.asarray(x, jnp.float32) for x in (logp_old, value - 0.3, target, advantage))
    then = learning.Samples(*arrays, choice_mask=jnp.asarray(mask))
    kept = advantage[mask]
    z, ratio = (kept - kept.mean()) / kept.std(), np.exp(logp - logp_old)[mask]
    gain = np.mean(np.minimum(ratio * z, np.clip(ratio, 0.8, 1.2) * z))
    error = np.mean((value - target) ** 2)
    found, metrics = learning.ppo_loss(now, then, settings)
    np.testing.assert_allclose(found, -gain + 0.7 * error - 0.3 * entropy[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/clipped"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["policy/kl"], np.mean(ratio - 1 - np.log(ratio)), rtol=1e-4)
    clipped = learning.ppo_loss(now, then, settings | {"value_clip_eps": 0.1})[1]
    want = np.mean(np.maximum((value - target) ** 2, (value - 0.2 - target) ** 2))
    np.testing.assert_allclose(clipped["critic/loss"], want, rtol=1e-5)


def train(env, key, num_steps, networks=None, **options):
    """Returns final states of four seeds, and their mean returns of every five steps."""
    algorithm = learning.make_ppo(
        env,
        networks,
        **{"num_steps": 4, "num_epochs": 4, "num_minibatches": 2, "learning_rate": 0.01} | options,
    )
    returns = []
    ended = loop.run(
        learning.over_seeds(algorithm, 4),
        key,
        num_steps=num_steps,
        chunk_size=5,
        log=[lambda step, metrics: returns.append(metrics["env/return_seeds"])],
    )
    return ended.state, np.array(returns)


def one_step(name, obs_size, space, reward, *, mask=None, num_agents=None, look=None, part=None):
    """A context from three, an action, its reward, the end."""
    look = look or (lambda context: jax.nn.one_hot(context, 3))

    def reset(key):
        context = jax.random.randint(key, (), 0, 3)
        return context, look(context)

    def step(context, action):
        return context, look(context), reward(context, action), jnp.ones((), bool)

    task = envs.Task(name, obs_size, space, 1, reset, step, num_agents, mask, part)
    return envs.make_env(task, 32)


def test_masked_bandit_finds_the_best_that_is_allowed(key):
    """What is forbidden would pay a million times as much."""
    pays = jnp.asarray([[0.0, 1.0, 0.5, 1e6], [1e6, 0.2, 1.0, 0.5], [1e6, 1e6, 1e6, 0.5]])
    allowed = pays < 1e6  # the last leaves no choice
    env = one_step(
        "bandit",
        3,
        envs.Discrete(4),
        lambda context, action: pays[context, action],
        mask=lambda context: allowed[context],
    )
    networks = learning.make_networks(env, hidden=(16,))
    state, returns = train(env, key, 40, networks)
    assert returns.max() <= 1.0
    obs = jnp.broadcast_to(jnp.eye(3), (4, 3, 3))
    best = jax.vmap(networks.mode)(state.params, obs, jnp.broadcast_to(allowed, (4, 3, 4)))
    np.testing.assert_array_equal(best, [[1, 2, 3]] * 4)
    assert returns[-1].mean() - 3 * returns[-1].std() > 0.75  # of 5/6 at best


def test_several_choices_at_once(key):
    """Two out of three and two: the reward is for both right ones, which depend on the context."""
    right = jnp.asarray([[0, 1], [1, 0], [2, 1]])
    env = one_step(
        "lock",
        3,
        envs.MultiDiscrete((3, 2)),
        lambda context, action: jnp.all(action == right[context]).astype(jnp.float32),
    )
    _, returns = train(env, key, 40, hidden=(16,))
    assert returns[0].mean() < 0.6 and returns[-1].mean() - 3 * returns[-1].std() > 0.85


def joint():
    """A table of the four actions of two agents, as a policy that acts for both at once."""

    def law(params, obs):
        lead = obs["own"].shape[:-2]
        return jnp.broadcast_to(jax.nn.log_softmax(params["logits"]), (*lead, 4))

    def pair(choice):
        return jnp.stack([choice // 2, choice % 2], axis=-1)

    def sample(key, params, obs, mask):
        action = pair(jax.random.categorical(key, law(params, obs)))
        return action, evaluate(params, obs, mask, action)[0]

    def evaluate(params, obs, mask, action):
        logp, choice = law(params, obs), 2 * action[..., 0] + action[..., 1]
        entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
        return jnp.take_along_axis(logp, choice[..., None], axis=-1)[..., 0], entropy

    return learning.Networks(
        lambda key_policy, key_value: {"logits": jnp.zeros(4), "value": jnp.zeros(())},
        sample,
        evaluate,
        lambda params, obs, mask: pair(jnp.argmax(law(params, obs), axis=-1)),
        lambda params, obs: jnp.broadcast_to(params["value"], obs["own"].shape[:-2]),
    )


def test_a_policy_of_ones_own_for_both_agents(key):
    """With one probability for the pair it keeps away from what only one of them would do; each
    alone, against a partner who chooses evenly, would rather take 0 than 1."""
    pays = jnp.asarray([[0.5, 0.3], [-3.0, 1.0]])

    def look(context):
        return {"own": jnp.ones((2, 1))}

    env = one_step(
        "pair",
        1,
        envs.Discrete(2),
        lambda context, action: pays[action[0], action[1]],
        num_agents=2,
        look=look,
        part="own",
        mask=lambda context: jnp.ones((2, 2), bool),
    )
    state, _ = train(env, key, 30, joint(), entropy_coef=0.01, learning_rate=0.05)
    best = jax.vmap(lambda params: joint().mode(params, look(0), ()))(state.params)
    np.testing.assert_array_equal(best, [[1, 1]] * 4)
    each = joint()._replace(value=lambda params, obs: jnp.zeros(obs["own"].shape[:-1]))
    with pytest.raises(ValueError, match=r"acts for all agents at once, .* got \(32, 2\)"):
        learning.make_ppo(env, each, num_steps=4, num_minibatches=2)


@pytest.mark.parametrize("common", [True, False], ids=["common", "own"])
def test_two_agents(key, common):
    """A matrix game with a common reward, one network for both and a critic of the state; then
    rewards of their own, and networks too, since they see the same. The best is (1, 0) in both."""
    pays = jnp.asarray([[0.0, 0.3], [1.0, 0.2]])

    def look(context):
        own = jnp.eye(2) if common else jnp.ones((2, 2))
        return {"own": own, "state": jax.nn.one_hot(context, 3)}

    def reward(context, action):
        return pays[action[0], action[1]] if common else 1.0 * (action == jnp.asarray([1, 0]))

    env = one_step("game", 2, envs.Discrete(2), reward, num_agents=2, look=look, part="own")
    options = {"hidden": (16,), "critic_part": "state", "share_parameters": common}
    networks = learning.make_networks(env, **options)
    state, returns = train(env, key, 30, **options)
    obs = jax.vmap(look)(jnp.arange(3))
    best = jax.vmap(lambda params: networks.mode(params, obs, ()))(state.params)
    np.testing.assert_array_equal(best, np.broadcast_to([1, 0], (4, 3, 2)))
    assert returns[-1].mean() - 3 * returns[-1].std() > 0.85


def test_bad_arguments_are_refused(key):
    env = macro()
    for options, message in (
        ({"num_minibatches": 5}, r"24 transitions of a rollout \(6 x 4\) must divide .* got 5"),
        (
            {"num_minibatches": 3, "minibatch_of": "environments"},
            "4 environments .* must divide into num_minibatches, got 3",
        ),
        ({"minibatch_of": "agents"}, "minibatch_of must be one of"),
        ({"num_epochs": 0}, "must be at least 1, got 6, 0 and"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\], got 1.1"),
        ({"clip_eps": 0.0}, "clip_eps must be positive, got 0.0"),
        ({"entropy_coef": -0.1}, "entropy_coef must not be negative, got -0.1"),
        ({"gamma": float("nan")}, r"gamma must lie in \[0, 1\], got nan"),
        ({"clip_eps": None}, "clip_eps must be a number, got None"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, got '1e-3'"),
        ({"reward_scale": float("inf")}, "reward_scale must be finite, got inf"),
        ({"num_minibatches": 4.0}, "must be at least 1, got 6, 10 and 4.0; give integers"),
        ({"loss_settings": {"leak": float("nan")}}, "leak must be a number, got nan"),
        ({"loss_settings": {"leak": jnp.ones(2)}}, "setting leak must be one number"),
        ({"loss_settings": {"value_clip_eps": 0.1}}, "must have names of their own, got value_c"),
        ({"networks": tables(), "hidden": (8,)}, "networks are given; give hidden to"),
    ):
        with pytest.raises(ValueError, match=message):
            learning.make_ppo(env, **{"num_steps": T, "num_minibatches": 4} | options)
    with pytest.raises(ValueError, match="24 minibatches of one transition teach nothing"):
        learning.make_ppo(env, num_steps=T, num_minibatches=24)
    plain = tables()._replace(value=lambda params, obs: jnp.zeros(()))
    with pytest.raises(ValueError, match=r"value must be \(4,\), or \(4,\) where .* got \(\) for"):
        learning.make_ppo(env, plain, num_steps=T, num_minibatches=4)
    algorithm = learning.make_ppo(env, num_steps=T, num_minibatches=4)
    with pytest.raises(ValueError, match=r"setting clip_eps must be one number, got shape \(2,\)"):
        algorithm.init(key, {"clip_eps": jnp.ones(2)})
    with pytest.raises(ValueError, match="settings must be among learning_rate, .*, got clip$"):
        algorithm.init(key, {"clip": 0.1})
    with pytest.raises(ValueError, match="learning_rate must be positive, got -0.1"):
        algorithm.init(key, {"learning_rate": -0.1})
    for settings, message in (
        ({"gamma": jnp.asarray([0.9, 1.5])}, r"gamma must lie in \[0, 1\], got \[0.9 1.5\]"),
        ({"beta": jnp.ones(2)}, "settings must be among learning_rate, .*, got beta$"),
        (jnp.ones(2), "settings must be a dict of numbers by name, got ArrayImpl"),
    ):
        with pytest.raises(ValueError, match=message):
            learning.over_seeds(algorithm, 2, settings=settings)


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "x64"])
def test_a_step_keeps_the_state_s_types(wide):
    """With everything in it at once; what changes its type would be compiled again and again."""

    def look(context):
        return {"own": jnp.eye(2, dtype=jnp.float32), "state": jnp.zeros((2, 3), jnp.float32)}

    env = one_step(
        "all",
        2,
        envs.MultiDiscrete((2, 3)),
        lambda context, action: jnp.sum(action, axis=1).astype(jnp.float32),
        mask=lambda context: jnp.ones((2, 5), bool),
        num_agents=2,
        look=look,
        part="own",
    )
    with jax.enable_x64(wide):
        algorithm = learning.make_ppo(
            env,
            hidden=(4,),
            critic_part="state",
            share_parameters=False,
            num_steps=2,
            num_minibatches=2,
            value_clip_eps=0.2,
            learning_rate=optax.linear_schedule(1e-3, 0.0, 100),
            duration=lambda state: state.time + 1,
        )
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        after, _ = jax.eval_shape(algorithm.step, state)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, after)
    assert all(jax.tree.leaves(same))


def brittle(threshold):
    """Breaks where the action is below the threshold; else it walks on, for nine steps."""

    def reset(key):
        x = jax.random.uniform(key, (2,))
        return x, x

    def step(x, action):
        x = x + jnp.where(action[0] < threshold, jnp.nan, 1.0)
        return x, x, jnp.sum(x), jnp.zeros((), bool)

    return envs.Task("brittle", 2, envs.Box((-1.0,), (1.0,)), 9, reset, step)


def test_ppo_counts_failures(key):
    env = envs.make_env(brittle(2.0), 3)
    algorithm = rl.make_ppo(env, hidden=HIDDEN, num_steps=8, num_epochs=1, num_minibatches=2)
    state, metrics = jax.jit(algorithm.step)(algorithm.init(key))
    assert metrics["env/failed"] == state.failures == 24


def test_a_step_that_failed_is_neither_good_nor_bad_and_ends_no_return(key):
    """Of two steps the first pays one and the second always breaks; a state is worth -50."""

    def reset(key):
        return jnp.zeros(()), jnp.zeros(1)

    def step(n, action):
        n = n + 1.0
        return n, n[None], jnp.where(n == 2.0, jnp.nan, 1.0), jnp.zeros((), bool)

    def loss(outputs, samples, settings):
        found = {"advantage": samples.advantage, "surprise": samples.target - samples.value_old}
        ends = {f"{k}/{f.__name__}": f(x) for k, x in found.items() for f in (jnp.min, jnp.max)}
        return 0.0 * jnp.sum(outputs.logp), ends

    env = envs.make_env(envs.Task("breaks", 1, envs.Discrete(2), 9, reset, step), 2)
    networks = learning.make_networks(env, hidden=(4,))
    networks = networks._replace(value=lambda params, obs: jnp.full(obs.shape[:-1], -50.0))
    algorithm = learning.make_ppo(
        env,
        networks,
        num_steps=4,
        num_epochs=1,
        num_minibatches=1,
        gamma=0.9,
        reward_scale=1.0,
        loss=loss,
    )
    state, found = jax.jit(algorithm.step)(algorithm.init(key))
    assert state.failures == 4 and found["env/return"].count == 0
    for name in ("advantage", "surprise"):
        np.testing.assert_allclose(found[f"{name}/min"], 0.0, atol=1e-5)  # V - V of what failed
        np.testing.assert_allclose(found[f"{name}/max"], 1.0 - 0.9 * 50.0 + 50.0, rtol=1e-5)

"""Independent Q-learning with tables, and the heuristics that make it optimistic.

    independent   Q_i += a error
    distributed   errors above 0 only; acts by a policy that changes when the best value rises
    hysteretic    a smaller rate for errors below 0
    lenient       errors below 0 are forgiven with a probability that falls with every visit
    frequency     stateless: acts by Q + c (share of the largest reward) (largest reward)
    entropic      exponential steps, capped at the sampled target

with error = r + gamma max Q_i(s') - Q_i(s, a_i), no agent seeing what the others do.

Lauer and Riedmiller 2000; Kapetanakis and Kudenko 2002 (frequency, FMQ); Matignon, Laurent and Le
Fort-Piat 2007; Wei and Luke 2016 (lenient, in the simpler form of Palmer et al. 2018).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlab import envs
from jaxlab.core.types import Algorithm, Metrics
from jaxlab.envs import spaces
from jaxlab.learning import collecting
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.settings import Settings
from jaxlab.marl import gradients, optimism, tables
from jaxlab.marl.tables import Index
from jaxlab.marl.tabular import capped

Rule = Literal["independent", "distributed", "hysteretic", "lenient", "frequency", "entropic"]
RULES = {
    "rate": settings_lib.POSITIVE_SHARE,
    "slow_rate": settings_lib.SHARE,
    "gamma": settings_lib.SHARE,
    "epsilon": settings_lib.SHARE,
    "epsilon_end": settings_lib.SHARE,
    "leniency": settings_lib.POSITIVE,
    "cooling": settings_lib.SHARE,
    "bonus": settings_lib.NOT_NEGATIVE,
}


class QState(NamedTuple):
    """All that evolves, and the settings.

    Attributes:
        q: `[N, S, A]` of every agent.
        greedy: `[N, S]` int32, the action of each agent that does not explore.
        heat: `[N, S, A]` temperatures of "lenient"; of "frequency" how often the largest reward
            came; else `[0]`.
        most: `[N, S, A]` largest reward of "frequency", else `[0]`.
        visits: `[N, S, A]` of "frequency", else `[0]`.
        env: the environments.
        returns: `[E]` rewards of the running episodes, added up.
        updates: steps so far.
        settings: see `Settings`.
        key: PRNG key of all draws to come.
    """

    q: Float[Array, "N S A"]
    greedy: Int[Array, "N S"]
    heat: Float[Array, "..."]
    most: Float[Array, "..."]
    visits: Float[Array, "..."]
    env: envs.State
    returns: Float[Array, " E"]
    updates: Int[Array, ""]
    settings: Settings
    key: Array


def make_q_learner(
    env: envs.Env,
    index: Index,
    num_states: int,
    *,
    rule: Rule = "independent",
    explore_steps: int,
    stages: int = 40,
    rate: float = 0.9,
    slow_rate: float = 0.1,
    beta: float = 0.5,
    gamma: float = 0.9,
    epsilon: float = 0.8,
    epsilon_end: float = 0.1,
    leniency: float = 2.0,
    cooling: float = 0.995,
    bonus: float = 1.0,
) -> Algorithm:
    """Makes Q-learners, one for each agent; one step is a step of every environment.

    Exploration is by chance with probability epsilon, which falls in equal stages. Where several
    environments visit one entry at once, it moves by the mean.

    Args:
        env: environments whose agents have one choice each, and no masks.
        index: which row of the tables a batch of observations is.
        num_states: S, rows of the tables.
        rule: what is done with an error, see the module.
        explore_steps: steps over which epsilon falls.
        stages: into how many equal stages.
        rate: step size.
        slow_rate: that of errors below 0, of "hysteretic".
        beta: of "entropic", in units of 1 / reward.
        gamma: discount.
        epsilon, epsilon_end: at the first stage and at the last.
        leniency, cooling: of "lenient": an error below 0 counts with probability exp(-leniency T),
            with a temperature T of each entry that is 1 at first and multiplied by `cooling` at
            every visit.
        bonus: c of "frequency".

    Returns:
        The algorithm; its `init(key, settings)` takes other numbers for the arguments from `rate`
        on. Metrics: `env/return` of episodes that ended, `critic/error`, its mean size.

    Raises:
        ValueError: if the environment does not fit tables, has masks, a word is unknown, or a
            number out of range.
    """
    N, A = tables.check(env, index, num_states)
    E = env.num_envs
    gradients.check_words(rule=(rule, Rule))
    if not isinstance(jax.eval_shape(env.reset, jax.random.key(0)).action_mask, tuple):
        raise ValueError(f"{env.name}: Q-learners take no masks; use make_tabular")
    if rule == "frequency" and num_states != 1:
        raise ValueError(f"rule 'frequency' is for games of one state, got num_states {num_states}")
    for name, number in (("explore_steps", explore_steps), ("stages", stages)):
        if not spaces.is_count(number):
            raise ValueError(f"{name} must be at least 1, got {number!r}")
    numbers = {
        "rate": rate,
        "slow_rate": slow_rate,
        "beta": beta,
        "gamma": gamma,
        "epsilon": epsilon,
        "epsilon_end": epsilon_end,
        "leniency": leniency,
        "cooling": cooling,
        "bonus": bonus,
    }
    settings_lib.fill(None, numbers, RULES)

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, RULES)
        first, last = ({**numbers, **settings}[name] for name in ("epsilon", "epsilon_end"))
        if np.any(np.asarray(last) > np.asarray(first)):
            raise ValueError(
                f"epsilon_end must not be above epsilon, got {last} after {first}; is the schedule "
                "reversed?"
            )

    check({})
    exponential = optimism.entropic(z_max=20.0)
    agent = jnp.arange(N)[None]
    shape = (N, num_states, A)

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> QState:
        given = settings_lib.fill(settings, numbers, RULES)
        key, key_env = jax.random.split(key)
        none = jnp.zeros((0,), jnp.float32)
        counts = rule == "frequency"
        heat = {"lenient": jnp.ones(shape), "frequency": jnp.zeros(shape)}.get(rule, none)
        return QState(
            jnp.zeros(shape, jnp.float32),
            jnp.zeros(shape[:2], jnp.int32),
            heat.astype(jnp.float32),
            jnp.full(shape, -jnp.inf, jnp.float32) if counts else none,
            jnp.zeros(shape, jnp.float32) if counts else none,
            env.reset(key_env),
            jnp.zeros((E,), jnp.float32),
            jnp.zeros((), jnp.int32),
            given,
            key,
        )

    def step(state: QState) -> tuple[QState, Metrics]:
        key, key_explore, key_random, key_forgive = jax.random.split(state.key, 4)
        given = state.settings
        at = index(state.env.obs)
        share = jnp.minimum(state.updates.astype(jnp.float32) / explore_steps, 1.0)
        stage = jnp.minimum(jnp.floor(share * stages), stages - 1.0) / max(stages - 1, 1)
        epsilon = given["epsilon"] + stage * (given["epsilon_end"] - given["epsilon"])
        explores = jax.random.uniform(key_explore, (E, N)) < epsilon
        best = tables.rows(state.greedy, at)
        action = jnp.where(explores, jax.random.randint(key_random, (E, N), 0, A), best)
        after = env.step(state.env, action)
        reward = jnp.mean(after.reward.astype(jnp.float32).reshape(E, -1), axis=1)
        discount = jnp.where(after.terminated, 0.0, given["gamma"])
        next_best = jnp.max(tables.rows(state.q, index(after.final_obs)), axis=-1)
        target = reward[:, None] + discount[:, None] * next_best
        where = (agent, at[:, None], action)
        error = jnp.where(after.failed[:, None], 0.0, target - state.q[where])
        most_before = jnp.max(tables.rows(state.q, at), axis=-1)  # before the table is changed
        heat, most, visits = state.heat, state.most, state.visits

        change = given["rate"] * error
        if rule == "distributed":
            change = jnp.maximum(change, 0.0)
        elif rule == "hysteretic":
            change = jnp.where(error < 0.0, given["slow_rate"] * error, change)
        elif rule == "entropic":
            change = capped(given["rate"] * exponential.weight(error, given["beta"]), error)
        elif rule == "lenient":
            unforgiving = jnp.exp(-given["leniency"] * heat[where])
            counts = jax.random.uniform(key_forgive, (E, N)) < unforgiving
            change = jnp.where((error < 0.0) & ~counts, 0.0, change)
            heat = heat.at[where].multiply(given["cooling"])
        q = tables.add_means(state.q, where, change)
        judged = tables.rows(q, at)
        if rule == "frequency":
            visits = visits.at[where].add(1.0)
            new_most = most.at[where].max(jnp.broadcast_to(reward[:, None], (E, N)))
            came = (reward[:, None] >= new_most[where]).astype(jnp.float32)
            heat = jnp.where(new_most > most, 0.0, heat).at[where].add(came)
            most = new_most
            seen = jnp.where(visits > 0.0, heat / jnp.maximum(visits, 1.0) * most, 0.0)
            judged = tables.rows(q + given["bonus"] * jnp.where(visits > 0.0, seen, 0.0), at)
        choice = jnp.argmax(judged, axis=-1).astype(jnp.int32)
        if rule == "distributed":
            # Agents must agree on one of several optima: who acts well goes on with what it does.
            rises = jnp.max(judged, axis=-1) > most_before
            choice = jnp.where(rises, action, best)
        greedy = state.greedy.at[agent, at[:, None]].set(choice)
        returns, ended = collecting.add_rewards(state.returns, after)
        metrics = {
            "env/return": ended,
            "critic/error": jnp.mean(jnp.abs(error)),
            "policy/epsilon": epsilon,
        }
        state = QState(q, greedy, heat, most, visits, after, returns, state.updates + 1, given, key)
        return state, metrics

    return Algorithm(init, step, check=check)

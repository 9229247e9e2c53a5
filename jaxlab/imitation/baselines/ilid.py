"""ILID: cloning of those logged steps that lead to states the expert is found in.

Yue et al. 2024, arXiv:2405.17476.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.envs import spaces
from jaxlab.imitation import learner as learner_lib
from jaxlab.imitation.data import preparing
from jaxlab.imitation.data.preparing import Demonstrations
from jaxlab.imitation.learner import Method, TrainState
from jaxlab.imitation.policy import Policy

PROBS = (0.1, 0.9)
"""Bounds of both discriminators' probabilities."""


def make_ilid(
    demos: Demonstrations,
    policy: Policy | None = None,
    *,
    bar: float = 0.4,
    rollback: int = 20,
    decay: float = 1.0,
    batch_size: int = 256,
    hidden: tuple[int, ...] = (256, 256),
    learning_rate: float = 1e-4,
    weight_decay: float = 5e-3,
    discriminator_steps: int = 100_000,
    discriminator_learning_rate: float = 1e-5,
) -> Algorithm:
    """Makes ILID; both discriminators are trained at the start, and then held.

    A discriminator of states tells the expert's from those of the logs. Logged steps are selected
    if one of the next `rollback` states of their episode is taken for the expert's. A second one
    tells the expert's pairs from those of expert and selection together, d: the policy clones these
    with weights d / (1 - d), and the selection with weights that fall with the steps to the state.

    Args:
        demos: what `prepare` made, with logs.
        policy: the actor; the usual one by default.
        bar: probability from which a state counts as the expert's.
        rollback: how many steps ahead that state may be.
        decay: factor of the weight for each step further ahead, in [0, 1].
        batch_size: transitions of a step, of either kind.
        hidden: of the discriminators, ReLU.
        learning_rate, weight_decay: of the policy's Adam.
        discriminator_steps, discriminator_learning_rate: of each discriminator's Adam, with the
            same decay.

    Raises:
        ValueError: if a number is out of range or there are no logs.
    """
    if not all(map(spaces.is_count, (rollback, discriminator_steps))):
        raise ValueError(
            "rollback and discriminator_steps must be at least 1, got "
            f"{rollback} and {discriminator_steps}"
        )
    if not 0.0 <= decay <= 1.0 or not PROBS[0] < bar <= PROBS[1]:
        raise ValueError(
            f"decay must lie in [0, 1] and bar in ({PROBS[0]}, {PROBS[1]}], got {decay} and {bar}"
        )
    learner_lib.check_rates(
        batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        discriminator_learning_rate=discriminator_learning_rate,
    )
    logs = learner_lib.logs_of(demos, "ILID")
    union = preparing.union(demos)
    num_expert = demos.expert.obs.shape[0]
    actor = learner_lib.policy_for(demos, policy)
    network = learner_lib.scalar_network(hidden)
    optimizer = learner_lib.adam_with_decay(discriminator_learning_rate, weight_decay)

    def prob(params: PyTree, *inputs: jax.Array) -> jax.Array:
        return jnp.clip(jax.nn.sigmoid(network.apply(params, *inputs)), *PROBS)

    def begin(key: jax.Array, params: dict[str, PyTree]) -> tuple[dict[str, PyTree], PyTree]:
        keys = jax.random.split(key, 4)

        def of_states(key: jax.Array, params: PyTree) -> jax.Array:
            key_expert, key_logs = jax.random.split(key)
            mine = learner_lib.rows_of(key_expert, demos.expert, batch_size).obs
            other = learner_lib.rows_of(key_logs, logs, batch_size).obs
            return told_apart(prob(params, mine), prob(params, other))

        first = network.init(keys[0], demos.obs_size)
        states = learner_lib.fit(keys[1], first, of_states, optimizer, discriminator_steps)
        # A termination is no place to go to, though the expert may have ended there too.
        real = logs.next_obs[:, -1] == 0.0
        good = (prob(states, logs.next_obs) >= bar) & real
        weight = selection_weights(good, logs.episode, rollback=rollback, decay=decay)
        chosen = {
            "order": jnp.argsort(weight == 0.0, stable=True),
            "count": jnp.sum(weight > 0.0, dtype=jnp.int32),
            "weight": weight,
        }

        def of_pairs(key: jax.Array, params: PyTree) -> jax.Array:
            key_expert, key_both = jax.random.split(key)
            mine = learner_lib.rows_of(key_expert, demos.expert, batch_size)
            rows = both_rows(key_both, chosen)
            other = (union.obs[rows], union.action[rows])
            return told_apart(prob(params, mine.obs, mine.action), prob(params, *other))

        first = network.init(keys[2], demos.obs_size, demos.action_size)
        pairs = learner_lib.fit(keys[3], first, of_pairs, optimizer, discriminator_steps)
        return params, {**chosen, "pairs": pairs}

    def both_rows(key: jax.Array, chosen: dict[str, jax.Array]) -> jax.Array:
        """Rows of the union, drawn among the expert's and the selected ones."""
        total = (num_expert + chosen["count"]).astype(jnp.float32)
        place = _below(total, jax.random.uniform(key, (batch_size,)))
        of_logs = chosen["order"][jnp.maximum(place - num_expert, 0)]
        return jnp.where(place < num_expert, place, num_expert + of_logs)

    def gradients(key: jax.Array, state: TrainState) -> tuple[dict[str, PyTree], Metrics]:
        key_both, key_chosen = jax.random.split(key)
        chosen = state.fixed
        rows = both_rows(key_both, chosen)
        obs, action = union.obs[rows], union.action[rows]
        expert = prob(chosen["pairs"], obs, action)
        importance = expert / (1.0 - expert)
        count = chosen["count"]
        place = _below(count.astype(jnp.float32), jax.random.uniform(key_chosen, (batch_size,)))
        picked = chosen["order"][place]
        weight = jnp.where(count > 0, chosen["weight"][picked], 0.0)

        def policy_loss(params: PyTree) -> jax.Array:
            of_both = actor.log_prob(params, obs, action)
            of_chosen = actor.log_prob(params, logs.obs[picked], logs.action[picked])
            return -jnp.mean(importance * of_both) - jnp.mean(weight * of_chosen)

        loss, grads = jax.value_and_grad(policy_loss)(state.params["policy"])
        share = count.astype(jnp.float32) / logs.obs.shape[0]
        return {"policy": grads}, {"policy/loss": loss, "selection/share": share}

    optimizers = {"policy": learner_lib.adam_with_decay(learning_rate, weight_decay)}
    return learner_lib.make_learner(
        Method("ilid", lambda key: {"policy": actor.init(key)}, gradients, optimizers, begin)
    )


def selection_weights(
    good: Bool[Array, " N"], episode: Int[Array, " N"], *, rollback: int, decay: float
) -> Float[Array, " N"]:
    """Returns decay^j, j the steps from where a row leads to the first good state, 0 for none.

    Args:
        good: `[N]`, whether the state that a row leads to is the expert's kind.
        episode: `[N]`, rows of an episode together and in order.
        rollback: rows j = 0 to `rollback` - 1 ahead count, within the episode.
        decay: factor for each.
    """
    size = good.shape[0]
    weight = jnp.zeros((size,), jnp.float32)
    for j in reversed(range(min(rollback, size))):
        ahead = jnp.concatenate([good[j:], jnp.zeros((j,), bool)])
        same = jnp.concatenate([episode[j:] == episode[: size - j], jnp.zeros((j,), bool)])
        weight = jnp.where(ahead & same, decay**j, weight)
    return weight


def told_apart(expert: Float[Array, " B"], other: Float[Array, " B"]) -> Float[Array, ""]:
    """Returns E[-log d] over the expert's + E[-log(1 - d)] over others, of probabilities d."""
    return -jnp.mean(jnp.log(expert)) - jnp.mean(jnp.log(1.0 - other))


def _below(total: jax.Array, share: jax.Array) -> Int[Array, " B"]:
    """Returns integers in 0 to total - 1, 0 if there are none."""
    last = jnp.maximum(total - 1.0, 0.0)
    return jnp.minimum(jnp.floor(share * total), last).astype(jnp.int32)

"""Oracles that are learned: ensembles of convolutions that predict a label of a sequence.

What is optimized in practice is a network's opinion, fitted to noisy measurements, and a policy
finds where that opinion is wrong. So there are two, fitted to halves that share no sequence: one is
the reward, the other only judges. How far they part is how much of the gain is not real.

Protocol of Wang et al. 2024, arXiv:2410.13643 (DRAKES), with smaller networks.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxlab.diffusion.discrete.masked import check_tokens
from jaxlab.nn.mlp import fan_in_normal
from jaxlab.rl.discrete.convolutions import dilated_conv
from jaxlab.rl.discrete.policies import check_sizes, one_hot

POOL = 4
"""Neighboring places that are pooled, the largest kept, before motifs are compared."""
NEAR = 9
"""Pooled places that the second convolution covers."""


class Network(NamedTuple):
    """Weights of one network; in a `Surrogate` every leaf has a leading axis of members.

    Attributes:
        motifs: `[W, V, H]` a convolution that finds motifs.
        near: `[9, H, H]` one that sees which of them stand near each other.
        dense: `[2 H, H]` on the mean and the largest over all places.
        out: `[H]`, zero at first: all sequences are predicted alike.
        biases: `[4, H]` of these layers; of the last the first number alone.
    """

    motifs: Float[Array, "W V H"]
    near: Float[Array, "9 H H"]
    dense: Float[Array, "2*H H"]
    out: Float[Array, " H"]
    biases: Float[Array, "4 H"]


class Surrogate(NamedTuple):
    """A fitted ensemble, and how good it is.

    Attributes:
        networks: weights of M networks.
        location: mean of the labels that were fitted.
        scale: their standard deviation.
        correlation: Pearson's, of predictions and labels of the sequences that were held out.
    """

    networks: Network
    location: Float[Array, ""]
    scale: Float[Array, ""]
    correlation: Float[Array, ""]


class Oracles(NamedTuple):
    """Two surrogates of one label, fitted to disjoint halves.

    Attributes:
        reward: what is optimized.
        judge: what only evaluates.
    """

    reward: Surrogate
    judge: Surrogate


def predict(
    surrogate: Surrogate, sequence: Int[Array, "B L"] | Float[Array, "B L V"]
) -> Float[Array, " B"]:
    """Returns the mean prediction of the networks, in units of the labels.

    Args:
        surrogate: see `fit_surrogate`.
        sequence: tokens `[B, L]`, or soft ones `[B, L, V]`, which are differentiated through.

    Example:
        `discrete.forward(functools.partial(surrogates.predict, oracles.reward), policy, ...)`
    """
    soft = one_hot(sequence, surrogate.networks.motifs.shape[2])
    each = jax.lax.map(lambda network: _apply(network, soft), surrogate.networks)
    return surrogate.location + surrogate.scale * jnp.mean(each, axis=0)


def fit_surrogate(
    key: jax.Array,
    sequences: Int[Array, "num L"],
    labels: Float[Array, " num"],
    *,
    vocab: int = 4,
    num_members: int = 4,
    hidden: int = 64,
    width: int = 15,
    held_out: float = 0.1,
    num_steps: int = 2000,
    batch: int = 64,
    learning_rate: float = 1e-2,
    weight_decay: float = 0.1,
    symmetry: Callable[[jax.Array], jax.Array] | None = None,
) -> Surrogate:
    """Fits an ensemble to labels by squared error: one program, which may be jitted.

    Members differ by their first weights and their batches, and are trained one after another.
    Labels are standardized; AdamW, its rate falling to 0 along a cosine, the gradient clipped at 1.

    Args:
        key: PRNG key.
        sequences: `[num, L]` tokens.
        labels: `[num]` what was measured of each.
        vocab: V.
        num_members: M networks.
        hidden: channels of all layers.
        width: places of the first convolution, odd: that of the longest motif.
        held_out: share of the sequences that no member sees, in (0, 1): `Surrogate.correlation` is
            theirs. They are drawn at random: sequences that occur twice should be made one before.
        num_steps: gradient steps of a member.
        batch: sequences of a step, drawn with replacement.
        learning_rate: the largest.
        weight_decay: of AdamW.
        symmetry: `symmetry(soft [B, L, V]) -> [B, L, V]` that leaves labels as they are, such as
            `enhancers.other_strand`; half of every batch is replaced by its image.

    Raises:
        ValueError: if tokens or sizes are out of range, there is not one finite label for each
            sequence, all labels are equal, or fewer than three sequences are held out.
    """
    check_sizes(vocab, num_members, hidden, width, num_steps, batch)
    count = _check(sequences, labels, vocab, width, held_out)
    if not learning_rate > 0.0 or weight_decay < 0.0:
        raise ValueError(
            "learning_rate must be positive and weight_decay not negative, got "
            f"{learning_rate} and {weight_decay}"
        )
    sequences, labels = jnp.asarray(sequences), jnp.asarray(labels, jnp.float32)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.cosine_decay_schedule(learning_rate, num_steps), weight_decay=weight_decay
        ),
    )
    key_split, key_members = jax.random.split(key)
    order = jax.random.permutation(key_split, labels.size)
    unseen, seen = order[:count], order[count:]
    location, scale = jnp.mean(labels[seen]), jnp.std(labels[seen])

    def fit(key: Array) -> Network:
        key_init, key_steps = jax.random.split(key)
        network = _init(key_init, vocab, hidden, width)

        def step(carry: tuple, key: Array) -> tuple[tuple, None]:
            network, opt_state = carry
            key_batch, key_image = jax.random.split(key)
            index = jax.random.choice(key_batch, seen, (batch,))
            soft = one_hot(sequences[index], vocab)
            if symmetry is not None:
                image = jax.random.bernoulli(key_image, 0.5, (batch, 1, 1))
                soft = jnp.where(image, symmetry(soft), soft)
            target = (labels[index] - location) / scale
            grads = jax.grad(lambda n: jnp.mean((_apply(n, soft) - target) ** 2))(network)
            updates, opt_state = optimizer.update(grads, opt_state, network)
            return (optax.apply_updates(network, updates), opt_state), None

        start = (network, optimizer.init(network))
        return jax.lax.scan(step, start, jax.random.split(key_steps, num_steps))[0][0]

    networks = jax.lax.map(fit, jax.random.split(key_members, num_members))
    surrogate = Surrogate(networks, location, scale, jnp.zeros((), jnp.float32))
    predicted = jax.lax.map(lambda i: predict(surrogate, sequences[i[None]])[0], unseen)
    return surrogate._replace(correlation=jnp.corrcoef(predicted, labels[unseen])[0, 1])


def split_halves(key: jax.Array, num: int) -> tuple[Int[Array, " A"], Int[Array, " B"]]:
    """Draws two halves of 0 .. num - 1 that share nothing; of an odd number the second has more.

    Raises:
        ValueError: if there are not two.
    """
    if num < 2:
        raise ValueError(f"num must be at least 2, got {num}")
    order = jax.random.permutation(key, num)
    return order[: num // 2], order[num // 2 :]


def fit_oracles(
    key: jax.Array,
    sequences: Int[Array, "num L"],
    labels: Float[Array, " num"],
    *,
    noise: float = 0.3,
    fit: Callable[[jax.Array, jax.Array, jax.Array], Surrogate] = fit_surrogate,
) -> Oracles:
    """Fits the oracle that is the reward and the one that judges to disjoint halves.

    Every sequence is measured once, with normal noise, before the halves are drawn.

    Args:
        key: PRNG key.
        sequences: `[num, L]` tokens, none twice.
        labels: `[num]` true labels, such as `enhancers.score(sequences).activity`.
        noise: standard deviation of a measurement.
        fit: `fit(key, sequences, labels)`: `fit_surrogate`, with `functools.partial` for options.

    Raises:
        ValueError: as `fit_surrogate`, or if the noise is negative.
    """
    if not noise >= 0.0:
        raise ValueError(f"noise must not be negative, got {noise}")
    keys = jax.random.split(key, 4)
    labels = jnp.asarray(labels, jnp.float32)
    measured = labels + noise * jax.random.normal(keys[0], labels.shape, jnp.float32)
    first, second = split_halves(keys[1], labels.size)
    return Oracles(
        fit(keys[2], sequences[first], measured[first]),
        fit(keys[3], sequences[second], measured[second]),
    )


def _init(key: Array, vocab: int, hidden: int, width: int) -> Network:
    key_motifs, key_near, key_dense = jax.random.split(key, 3)
    return Network(
        fan_in_normal(key_motifs, (width, vocab, hidden)),
        fan_in_normal(key_near, (NEAR, hidden, hidden)),
        fan_in_normal(key_dense, (2 * hidden, hidden)),
        jnp.zeros((hidden,), jnp.float32),
        jnp.zeros((4, hidden), jnp.float32),
    )


def _apply(network: Network, soft: Float[Array, "B L V"]) -> Float[Array, " B"]:
    bias = network.biases[:, None, None]
    x = jax.nn.relu(dilated_conv(soft.astype(jnp.float32), network.motifs, 1) + bias[0])
    batch, length, hidden = x.shape
    x = jnp.pad(x, ((0, 0), (0, -length % POOL), (0, 0)))
    x = jnp.max(x.reshape(batch, -1, POOL, hidden), axis=2)
    x = x + jax.nn.relu(dilated_conv(x, network.near, 1) + bias[1])
    x = jnp.concatenate([jnp.mean(x, axis=1), jnp.max(x, axis=1)], axis=-1)
    x = jax.nn.relu(x @ network.dense + bias[2][0])
    return x @ network.out + network.biases[3, 0]


def _check(sequences: Array, labels: Array, vocab: int, width: int, held_out: float) -> int:
    """Refuses what cannot be fitted; returns how many sequences are held out."""
    check_tokens(sequences, vocab)
    if sequences.ndim != 2 or labels.shape != sequences.shape[:1]:
        raise ValueError(
            f"sequences must be [num, L] and labels [num], got {sequences.shape} and {labels.shape}"
        )
    if width % 2 == 0:
        raise ValueError(f"width must be odd, got {width}")
    count = int(held_out * labels.size)
    if not 3 <= count <= labels.size - 2:
        raise ValueError(
            f"held_out must leave three sequences at least, and two to fit, got {held_out} of "
            f"{labels.size}"
        )
    if not isinstance(labels, Tracer):
        found = np.asarray(labels)
        if not np.isfinite(found).all() or np.ptp(found) == 0.0:
            raise ValueError("labels must be finite and not all equal")
    return count

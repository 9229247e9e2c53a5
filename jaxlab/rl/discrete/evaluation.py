"""What generated DNA is worth: to the oracle it was made for, to another one, to the truth, and how
natural it is.

Protocol of Wang et al. 2024, arXiv:2410.13643 (DRAKES), with a simulator as the truth beside it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlab.core.types import PyTree
from jaxlab.rl.discrete import enhancers
from jaxlab.rl.discrete.bandits import Reward
from jaxlab.rl.discrete.policies import TokenPolicy
from jaxlab.rl.discrete.pretraining import log_likelihood


class DnaReport(NamedTuple):
    """Nine numbers of a batch of generated sequences.

    Attributes:
        reward: median of what was optimized.
        judge: median of the oracle that was not.
        activity: median of the simulator. Where it stays behind the reward, the reward was hacked.
        open_share: share with accessibility above one half ("ATAC accuracy").
        trimer_correlation: Pearson's with the reference, of counts of 64 groups of three bases.
        motif_correlation: Spearman's with the reference, of hits by motif ("JASPAR correlation");
            NaN if all motifs have equally many.
        log_likelihood: median under the pre-trained policy, nats, see `log_likelihood`.
        distance: mean share of bases in which two of them differ.
        unique: different sequences over all.
    """

    reward: Float[Array, ""]
    judge: Float[Array, ""]
    activity: Float[Array, ""]
    open_share: Float[Array, ""]
    trimer_correlation: Float[Array, ""]
    motif_correlation: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    distance: Float[Array, ""]
    unique: Float[Array, ""]


def eval_dna(
    key: jax.Array,
    generated: Int[Array, "B L"],
    reference: Int[Array, "R L"],
    policy: TokenPolicy,
    pretrained: PyTree,
    *,
    reward: Reward,
    judge: Reward,
    num_steps: int = 128,
) -> DnaReport:
    """Returns the report of generated sequences; the published protocol draws 640.

    Args:
        key: PRNG key of the noise in the likelihood, one draw at each step.
        generated: `[B, L]` tokens.
        reference: `[R, L]` what natural and active sequences are like, see `most_active`.
        policy: of the pre-trained parameters, not of those that were fine-tuned.
        pretrained: its parameters.
        reward: `reward(tokens [B, L]) -> [B]` that was optimized, such as `surrogates.predict` of
            `Oracles.reward`.
        judge: the same of the oracle that was not.
        num_steps: N of the likelihood.

    Raises:
        ValueError: if lengths differ, an oracle does not return one number for each sequence, or
            there is no step.
    """
    if generated.ndim != 2 or generated.shape[1:] != reference.shape[1:]:
        raise ValueError(
            "generated and reference must be [B, L] and [R, L], got "
            f"{generated.shape} and {reference.shape}"
        )
    oracles = {"reward": reward(generated), "judge": judge(generated)}
    for name, found in oracles.items():
        if found.shape != generated.shape[:1]:
            raise ValueError(f"{name} must return {generated.shape[:1]}, got {found.shape}")
    natural = enhancers.naturalness(generated, reference)
    likelihood = log_likelihood(key, policy, pretrained, generated, num_steps)
    return DnaReport(
        jnp.median(oracles["reward"]),
        jnp.median(oracles["judge"]),
        jnp.median(enhancers.score(generated).activity),
        natural.open_share,
        natural.trimer_correlation,
        natural.motif_correlation,
        jnp.median(likelihood),
        natural.distance,
        natural.unique,
    )


def most_active(
    corpus: Int[Array, "num L"], activity: Float[Array, " num"], *, share: float = 1e-3
) -> Int[Array, "R L"]:
    """Returns the most active of a corpus, this share of it, rounded up: the reference.

    Args:
        corpus: `[num, L]` tokens.
        activity: `[num]` of each, true or measured.
        share: in (0, 1].

    Raises:
        ValueError: if there is not one activity for each sequence, or the share is out of range.
    """
    if activity.shape != corpus.shape[:1]:
        raise ValueError(f"activity must be {corpus.shape[:1]}, got {activity.shape}")
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    # Less what a product of floats may be too large by: 0.07 of 100 are 7.
    count = math.ceil(share * activity.size * (1.0 - 1e-9))
    return corpus[jax.lax.top_k(activity, count)[1]]

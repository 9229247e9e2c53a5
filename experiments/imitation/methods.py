"""Every method by its name, with the same demonstrations, policy and sizes."""

from collections.abc import Callable

from experiments.imitation import Config
from jaxlab import imitation
from jaxlab.core.types import Algorithm
from jaxlab.imitation import Demonstrations, Policy, Pretrained, Representation

OURS = "ours"
RIVALS = (
    "ValueDICE",
    "BC",
    "BC, regularized",
    "BC, least squares",
    "BC of all data",
    "DemoDICE",
    "SMODICE",
    "SMODICE, state-action",
    "DWBC",
    "IQ-Learn",
    "ILID",
)
ABLATIONS = {
    "ours, random features": "random",
    "ours, the expert's features": "expert",
    "ours, logistic loss": "binary_nce",
    "ours, ranking loss": "ranking_nce",
    "ours, fine-tuned": "union",
    "ours, head phi + f": "union",
    "ours, head phi": "union",
}
"""Variants of ours, and the features that they have."""
NAMES = (OURS, *RIVALS, *ABLATIONS)
_HEADS: dict[str, imitation.Kind] = {"ours, head phi + f": "repo", "ours, head phi": "linear"}


def features_of(name: str) -> str | None:
    """Which features a method needs: a key of `training.pretrain`, or None."""
    return "union" if name == OURS else ABLATIONS.get(name)


def make_policy(config: Config, demos: Demonstrations) -> Policy:
    """The actor of all methods."""
    return imitation.make_policy(
        demos.obs_size, demos.action_size, hidden=(config.width, config.width)
    )


def make_representation(config: Config, demos: Demonstrations) -> Representation:
    """The networks of all features."""
    return imitation.make_representation(
        demos.obs_size,
        demos.action_size,
        feature_size=config.features,
        hidden=(config.width, config.width),
    )


def make_method(
    name: str, config: Config, demos: Demonstrations, pretrained: Pretrained | None
) -> Algorithm:
    """Makes the learner of a method."""
    policy = make_policy(config, demos)
    sizes = {"batch_size": config.batch, "hidden": (config.width, config.width)}
    begin = max(config.updates // 10, 1)
    saddle = {
        **sizes,
        "policy_learning_rate": config.policy_rate,
        "penalty_weight": config.penalty_weight,
    }
    if features_of(name) is not None:
        return imitation.make_value_dice(
            demos,
            policy,
            head=_HEADS.get(name, "paper"),
            representation=make_representation(config, demos),
            pretrained=pretrained,
            finetune=name == "ours, fine-tuned",
            **saddle,
        )
    makers: dict[str, Callable[[], Algorithm]] = {
        "ValueDICE": lambda: imitation.make_value_dice(demos, policy, head="mlp", **saddle),
        "BC": lambda: imitation.make_bc(demos, policy, batch_size=config.batch),
        "BC, regularized": lambda: imitation.make_bc(
            demos, policy, batch_size=config.batch, orthogonality_weight=1e-4, noise_std=0.05
        ),
        "BC, least squares": lambda: imitation.make_bc(
            demos, policy, loss="mse", batch_size=config.batch, orthogonality_weight=1e-4
        ),
        "BC of all data": lambda: imitation.make_bc(
            demos, policy, data="union", batch_size=config.batch
        ),
        "DemoDICE": lambda: imitation.make_demodice(demos, policy, **sizes),
        "SMODICE": lambda: imitation.make_smodice(
            demos, policy, discriminator_steps=begin, **sizes
        ),
        "SMODICE, state-action": lambda: imitation.make_smodice(
            demos, policy, match="state_action", discriminator_steps=begin, **sizes
        ),
        "DWBC": lambda: imitation.make_dwbc(demos, policy, **sizes),
        "IQ-Learn": lambda: imitation.make_iq_learn(demos, policy, **sizes),
        # Its discriminators learn ten times faster, in a tenth of the steps.
        "ILID": lambda: imitation.make_ilid(
            demos, policy, discriminator_steps=begin, discriminator_learning_rate=1e-4, **sizes
        ),
    }
    return makers[name]()

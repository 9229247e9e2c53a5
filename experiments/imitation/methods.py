"""Every method by its name, with the same demonstrations, policy and sizes."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

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
CLONES = ("BC", "BC, regularized", "BC, least squares")
"""Cloning of the expert alone; the tuned one is the one of them with the least error."""
HEADLINE = (OURS, "ValueDICE", "BC", "ILID")
"""What is compared where not all is."""
PUBLISHED_PENALTY = 10.0


class Features(NamedTuple):
    """Features of the dynamics.

    Attributes:
        kind: "union" of all data, the "expert" alone, another loss, or none ("random").
        share: How many there are, as a share of the settings' number.
    """

    kind: str = "union"
    share: float = 1.0

    def __str__(self) -> str:
        return self.kind if self.share == 1.0 else f"{self.kind} x {self.share:g}"


class Variant(NamedTuple):
    """What a variant of ours, or of ValueDICE, has of its own.

    Attributes:
        features: None for ValueDICE.
        options: Of `make_value_dice`.
    """

    features: Features | None = Features()
    options: Mapping[str, Any] = {}


ABLATIONS = {
    "ours, random features": Variant(Features("random")),
    "ours, the expert's features": Variant(Features("expert")),
    "ours, fine-tuned": Variant(options={"finetune": True}),
    "ours, head phi + f": Variant(options={"head": "repo"}),
    "ours, head phi": Variant(options={"head": "linear"}),
    "ours, a quarter of the features": Variant(Features(share=0.25)),
    "ours, four times the features": Variant(Features(share=4.0)),
    "ours, logistic loss": Variant(Features("binary_nce")),
    "ours, ranking loss": Variant(Features("ranking_nce")),
    "ours, f not held small": Variant(options={"correction_weight": 0.0}),
    "ours, published penalty": Variant(options={"penalty_weight": PUBLISHED_PENALTY}),
    "ValueDICE, published penalty": Variant(None, {"penalty_weight": PUBLISHED_PENALTY}),
}
"""Variants, which are trained on the fewest of the expert's episodes alone."""
BASELINES = (OURS, *RIVALS)
NAMES = (*BASELINES, *ABLATIONS)


def features_of(name: str) -> Features | None:
    """Which features a method needs, if any."""
    return Features() if name == OURS else ABLATIONS.get(name, Variant(None)).features


def make_policy(config: Config, demos: Demonstrations) -> Policy:
    """The actor of all methods."""
    return imitation.make_policy(
        demos.obs_size, demos.action_size, hidden=(config.width, config.width)
    )


def make_representation(
    config: Config, demos: Demonstrations, features: Features
) -> Representation:
    """The networks of features, of which there are no more than transitions to learn from."""
    rows = (demos.expert if features.kind == "expert" else imitation.union(demos)).obs.shape[0]
    return imitation.make_representation(
        demos.obs_size,
        demos.action_size,
        feature_size=min(max(round(config.features * features.share), 1), rows),
        hidden=(config.width, config.width),
    )


def make_method(
    name: str, config: Config, demos: Demonstrations, pretrained: Pretrained | None
) -> Algorithm:
    """Makes the learner of a method."""
    policy = make_policy(config, demos)
    sizes = {"batch_size": config.batch, "hidden": (config.width, config.width)}
    begin = max(config.updates // 10, 1)
    if name in (OURS, "ValueDICE", *ABLATIONS):
        features = features_of(name)
        options: dict[str, Any] = {
            "policy_learning_rate": config.policy_rate,
            "penalty_weight": config.penalty_weight,
            "head": "mlp" if features is None else "paper",
            **sizes,
            **ABLATIONS.get(name, Variant()).options,
        }
        if features is not None:
            options["representation"] = make_representation(config, demos, features)
        return imitation.make_value_dice(demos, policy, pretrained=pretrained, **options)
    rate = functools.partial(max, config.policy_rate)  # or the published one, if that is larger

    def clone(**options: Any) -> Algorithm:
        return imitation.make_bc(
            demos, policy, batch_size=config.batch, learning_rate=rate(3e-4), **options
        )

    makers: dict[str, Callable[[], Algorithm]] = {
        "BC": clone,
        "BC, regularized": lambda: clone(orthogonality_weight=1e-4, noise_std=0.05),
        "BC, least squares": lambda: clone(loss="mse", orthogonality_weight=1e-4),
        "BC of all data": lambda: clone(data="union"),
        "DemoDICE": lambda: imitation.make_demodice(
            demos, policy, learning_rate=rate(3e-4), **sizes
        ),
        "SMODICE": lambda: imitation.make_smodice(
            demos, policy, learning_rate=rate(3e-4), discriminator_steps=begin, **sizes
        ),
        "SMODICE, state-action": lambda: imitation.make_smodice(
            demos,
            policy,
            match="state_action",
            learning_rate=rate(3e-4),
            discriminator_steps=begin,
            **sizes,
        ),
        "DWBC": lambda: imitation.make_dwbc(demos, policy, learning_rate=rate(1e-4), **sizes),
        "IQ-Learn": lambda: imitation.make_iq_learn(
            demos, policy, policy_learning_rate=rate(3e-5), **sizes
        ),
        # Its discriminators learn ten times faster, in a tenth of the steps.
        "ILID": lambda: imitation.make_ilid(
            demos,
            policy,
            learning_rate=rate(1e-4),
            discriminator_steps=begin,
            discriminator_learning_rate=1e-4,
            **sizes,
        ),
    }
    return makers[name]()

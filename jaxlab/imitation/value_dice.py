"""Stage two: a policy and a dual variable in a saddle point, from the expert's transitions.

max over policies, min over nu of log E[exp(nu(s, a) - gamma nu(s', a'))] over the expert less
(1 - gamma) E[nu(s0, a0)], whose value is minus the divergence of the occupancies. With a network
for nu it is ValueDICE (Kostrikov et al. 2020, arXiv:1912.05032), with frozen features the method of
Ma et al. 2025, arXiv:2508.14383.
"""

import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxlab.core.types import Algorithm, Metrics, PyTree
from jaxlab.imitation import heads as heads_lib
from jaxlab.imitation import learner as learner_lib
from jaxlab.imitation import policy as policy_lib
from jaxlab.imitation.data.preparing import Demonstrations, Transitions
from jaxlab.imitation.heads import Dual, Kind
from jaxlab.imitation.learner import Method, TrainState
from jaxlab.imitation.policy import Policy
from jaxlab.imitation.pretraining import Pretrained
from jaxlab.imitation.representation import Representation
from jaxlab.learning import settings as settings_lib

Divergence = Literal["kl", "chi2"]
InitStates = Literal["expert_all", "first"]
ALPHA = 0.05
"""Share of the logs in the mixed objective, where there are logs."""
_TINY = 1e-12
"""Under the root of the penalty, whose gradient at 0 would be NaN."""


class Pairs(NamedTuple):
    """States and actions that one estimate of the objective looks at, `[B, O]` and `[B, A]` each.

    Attributes:
        expert: (s, a) of the expert.
        expert_next: (s', a') with a' of the policy.
        start: (s0, a0) with a0 of the policy.
        replay: (s, a) of the logs, or ().
        replay_next: (s', a') with a' of the policy, or ().
    """

    expert: tuple[Array, Array]
    expert_next: tuple[Array, Array]
    start: tuple[Array, Array]
    replay: tuple
    replay_next: tuple

    def joined(self) -> tuple[Array, Array]:
        """All of them as one batch."""
        given = [pair for pair in self if pair]
        obs, action = (jnp.concatenate(column) for column in zip(*given, strict=True))
        return obs, action

    def split(self, x: Array) -> list[Array]:
        """The parts of an array that was computed of `joined`."""
        return jnp.split(x, 5 if self.replay else 3)


def make_value_dice(
    demos: Demonstrations,
    policy: Policy | None = None,
    *,
    head: Kind = "paper",
    representation: Representation | None = None,
    pretrained: Pretrained | None = None,
    gamma: float = 0.99,
    alpha: float | None = None,
    divergence: Divergence = "kl",
    init_states: InitStates = "expert_all",
    batch_size: int = 256,
    hidden: tuple[int, ...] = (256, 256),
    head_learning_rate: float = 1e-3,
    policy_learning_rate: float = 1e-5,
    penalty_weight: float = 10.0,
    correction_weight: float = 0.1,
    orthogonality_weight: float = 1e-4,
    phi_input_grad: bool = True,
    least: float | None = None,
    finetune: bool = False,
) -> Algorithm:
    """Makes the learner; one step is one update of head and policy from the same batches.

    Args:
        demos: what `prepare` made.
        policy: the actor; the usual one by default.
        head: form of the dual variable, see `make_head`; "mlp" is ValueDICE.
        representation, pretrained: features and their parameters; not for "mlp".
        gamma: discount in (0, 1).
        alpha: share of the logs in the mixed objective, in [0, 1]; None: 0.05, and 0 without logs.
        divergence: of the occupancies; KL by its log-mean-exp form, chi2 by its conjugate.
        init_states: where episodes start: "expert_all", anywhere where the expert was, which
            redefines the occupancies and gives more samples; or "first".
        batch_size: B transitions of the expert and as many of the logs.
        hidden: of the head's network.
        head_learning_rate, policy_learning_rate: of Adam.
        penalty_weight: of (|grad nu| - 1)^2 between the expert's pairs and those of the logs, or of
            the policy where alpha is 0. 10 is the published weight; where learning is slow try 0.1,
            since a slope of 1 is shared out between observations and actions.
        correction_weight: of the mean square of f over the expert, so that features carry the dual.
        orthogonality_weight: of the policy's `orthogonality`.
        phi_input_grad, least: see `make_head`.
        finetune: whether the features learn as well, at the head's rate.

    Returns:
        The algorithm; its state is a `TrainState` with params "head", "policy" and, of features,
        "representation". `init(key, representation_params)` takes other parameters of the
        features: with `over_seeds(..., settings=stacked, axes=0)` each seed has its own; otherwise
        frozen features are shared by all. The paper's released code runs 500,000 steps.

    Raises:
        ValueError: if a number is out of range, features are missing, of other sizes or of
            observations that were normalized otherwise, or alpha asks for logs that are not there.

    Example:
        >>> algorithm = imitation.make_value_dice(
        ...     demos, representation=features, pretrained=pretrained
        ... )
        >>> result = loop.run(over_seeds(algorithm, 5), key, num_steps=100_000, chunk_size=5000)
    """
    if divergence not in get_args(Divergence):
        raise ValueError(f"divergence must be kl or chi2, got {divergence!r}")
    if init_states not in get_args(InitStates):
        raise ValueError(f"init_states must be expert_all or first, got {init_states!r}")
    share = (ALPHA if demos.logs is not None else 0.0) if alpha is None else alpha
    _check_numbers(
        gamma,
        share,
        batch_size,
        head_learning_rate=head_learning_rate,
        policy_learning_rate=policy_learning_rate,
        penalty_weight=penalty_weight,
        correction_weight=correction_weight,
        orthogonality_weight=orthogonality_weight,
    )
    actor = learner_lib.policy_for(demos, policy)
    logs = learner_lib.logs_of(demos, f"alpha = {share:g}") if share > 0.0 else None
    form = heads_lib.make_head(
        head,
        demos.obs_size,
        demos.action_size,
        representation=representation,
        gamma=gamma,
        hidden=hidden,
        phi_input_grad=phi_input_grad,
        least=least,
    )
    if head != "mlp" and representation is not None:
        _check_features(demos, head, representation, pretrained)
    elif finetune:
        raise ValueError("finetune needs features, which the head 'mlp' has none of")

    def objective(
        head_params: PyTree,
        representation_params: PyTree,
        policy_params: PyTree,
        key: jax.Array,
        batches: tuple[Transitions, Transitions | None, jax.Array],
    ) -> tuple[jax.Array, tuple[Pairs, Dual]]:
        expert, replay, start = batches
        pairs = draw_pairs(
            key, lambda k, obs: actor.sample(k, policy_params, obs), expert, replay, start
        )
        dual = form.dual(head_params, representation_params, *pairs.joined())
        nu = pairs.split(dual.nu)
        value = estimate(
            nu[0] - gamma * nu[1],
            nu[2],
            None if replay is None else nu[3] - gamma * nu[4],
            gamma=gamma,
            alpha=share,
            divergence=divergence,
        )
        return value, (pairs, dual)

    def regularized(
        head_params: PyTree, representation_params: PyTree, key: jax.Array, pairs: Pairs
    ) -> tuple[jax.Array, Metrics]:
        """What the head's loss has besides the objective."""
        inputs = jax.lax.stop_gradient(between(key, pairs))
        penalty = gradient_penalty(
            lambda obs, action: form.dual(head_params, representation_params, obs, action).nu,
            *inputs,
        )
        expert = form.dual(head_params, representation_params, *pairs.expert)
        size = jnp.mean(expert.correction**2)
        metrics = {
            "dual/penalty": penalty,
            "dual/correction": size,
            "dual/clamped": jnp.mean(expert.clamped),
        }
        return penalty_weight * penalty + correction_weight * size, metrics

    def gradients(key: jax.Array, state: TrainState) -> tuple[dict[str, PyTree], Metrics]:
        key_expert, key_logs, key_start, key_act, key_between = jax.random.split(key, 5)
        expert = learner_lib.rows_of(key_expert, demos.expert, batch_size)
        replay = None if logs is None else learner_lib.rows_of(key_logs, logs, batch_size)
        start = expert.obs
        if init_states == "first":
            firsts = demos.first_obs
            start = firsts[jax.random.randint(key_start, (batch_size,), 0, firsts.shape[0])]
        features = state.params.get("representation")
        own = (state.params["head"], features)
        trained = (0, 1) if finetune else (0,)
        (value, (pairs, dual)), grads = jax.value_and_grad(
            objective, argnums=(*trained, 2), has_aux=True
        )(*own, state.params["policy"], key_act, (expert, replay, start))
        more, metrics = jax.grad(regularized, argnums=trained, has_aux=True)(
            *own, key_between, pairs
        )
        of_head = jax.tree.map(jnp.add, grads[:-1], more)
        spread = jax.grad(policy_lib.orthogonality)(state.params["policy"])
        of_policy = jax.tree.map(
            lambda up, back: orthogonality_weight * back - up, grads[-1], spread
        )
        found = {"head": of_head[0], "policy": of_policy}
        if finetune:
            found["representation"] = of_head[1]
        away = jnp.max(jnp.abs(dual.nu - jnp.mean(dual.nu)))
        return found, {"dual/objective": value, "dual/largest": away, **metrics}

    optimizers = {
        "head": optax.adam(head_learning_rate),
        "policy": optax.adam(policy_learning_rate),
    }
    if finetune:
        optimizers["representation"] = optax.adam(head_learning_rate)

    def method(features: PyTree) -> Method:
        def init(key: jax.Array) -> dict[str, PyTree]:
            key_head, key_policy = jax.random.split(key)
            params = {
                "head": form.init(key_head, features, demos.expert),
                "policy": actor.init(key_policy),
            }
            return params if head == "mlp" else {**params, "representation": features}

        return Method(f"value_dice_{head}", init, gradients, optimizers)

    own = pretrained.params if pretrained is not None and head != "mlp" else None
    algorithm = learner_lib.make_learner(method(own))

    def init(key: jax.Array, representation_params: PyTree = None) -> TrainState:
        given = own if representation_params is None else representation_params
        # The learner keeps its state and gives it away to be overwritten; what it was made from
        # stays.
        return learner_lib.make_learner(method(jax.tree.map(jnp.copy, given))).init(key)

    axes = None
    if head != "mlp" and not finetune:  # frozen features are one array for all seeds
        axes = typing.cast(Any, TrainState)(
            {"head": 0, "policy": 0, "representation": None}, *(0,) * 4
        )
    return algorithm._replace(init=init, seed_axes=0 if axes is None else axes)


def draw_pairs(
    key: jax.Array,
    sample: Callable[[jax.Array, jax.Array], jax.Array],
    expert: Transitions,
    replay: Transitions | None,
    start: Float[Array, "B O"],
) -> Pairs:
    """Draws the policy's actions, `sample(key, obs)`, each set with a key of its own."""
    key_next, key_start, key_replay = jax.random.split(key, 3)
    return Pairs(
        (expert.obs, expert.action),
        (expert.next_obs, sample(key_next, expert.next_obs)),
        (start, sample(key_start, start)),
        () if replay is None else (replay.obs, replay.action),
        () if replay is None else (replay.next_obs, sample(key_replay, replay.next_obs)),
    )


def estimate(
    expert_change: Float[Array, " B"],
    start_nu: Float[Array, " B"],
    replay_change: Float[Array, " B"] | None = None,
    *,
    gamma: float,
    alpha: float = 0.0,
    divergence: Divergence = "kl",
) -> Float[Array, ""]:
    """Returns the objective of a batch; policies raise it, dual variables lower it.

    Its expectation is that of the objective only for large batches: the logarithm of a mean is
    biased.

    Args:
        expert_change: `[B]`, nu(s, a) - gamma nu(s', a') of the expert's transitions.
        start_nu: `[B]`, nu(s0, a0).
        replay_change: `[B]`, as the first, of the logs; needed where alpha is above 0.
        gamma: discount.
        alpha: share of the logs.
        divergence: which. For chi2, f = (x - 1)^2 / 2, the conjugate y + y^2 / 2 is held at its
            least below y = -1, where densities would be negative.

    Raises:
        ValueError: if there is a share, but no logs.
    """
    if replay_change is None and alpha > 0.0:
        raise ValueError(f"a share alpha = {alpha:g} of the logs needs replay_change")
    linear = (1.0 - alpha) * (1.0 - gamma) * jnp.mean(start_nu)
    changes, shares = [expert_change], [1.0 - alpha]
    if replay_change is not None:
        linear = linear + alpha * jnp.mean(replay_change)
        changes, shares = [expert_change, replay_change], [1.0 - alpha, alpha]
    x = jnp.concatenate(changes)
    weights = [
        jnp.full(c.shape, p / c.shape[0], c.dtype) for c, p in zip(changes, shares, strict=True)
    ]
    w = jnp.concatenate(weights)
    if divergence == "kl":
        return jax.nn.logsumexp(x, b=w) - linear
    y = jnp.maximum(x, -1.0)
    return jnp.sum(w * (y + 0.5 * y**2)) - linear


def between(key: jax.Array, pairs: Pairs) -> tuple[Float[Array, "C O"], Float[Array, "C A"]]:
    """Returns points between the expert's pairs and the logs', (s, a) and (s', a') both.

    Without logs the other end is (s0, a0) of the policy. A share is drawn for each row.
    """
    others = (pairs.replay, pairs.replay_next) if pairs.replay else (pairs.start, pairs.start)
    share = jax.random.uniform(key, (pairs.expert[0].shape[0], 1))
    points = [
        [share * mine + (1.0 - share) * theirs for mine, theirs in zip(one, other, strict=True)]
        for one, other in zip((pairs.expert, pairs.expert_next), others, strict=True)
    ]
    obs, action = (jnp.concatenate(column) for column in zip(*points, strict=True))
    return obs, action


def gradient_penalty(
    nu: Callable[..., jax.Array], *inputs: Float[Array, "C _"]
) -> Float[Array, ""]:
    """Returns the mean of (|grad nu| - 1)^2, the gradient that by all inputs, `[C, ...]` each."""
    of_each = tuple(range(len(inputs)))
    slopes = jax.grad(lambda *x: jnp.sum(nu(*x)), argnums=of_each)(*inputs)
    square = sum(jnp.sum(slope**2, axis=-1) for slope in slopes)
    return jnp.mean((jnp.sqrt(square + _TINY) - 1.0) ** 2)


def _check_numbers(gamma: float, alpha: float, batch_size: int, **others: float) -> None:
    learner_lib.check_gamma(gamma)
    settings_lib.check({"alpha": alpha}, {"alpha": settings_lib.SHARE})
    learner_lib.check_rates(batch_size, **others)


def _check_features(
    demos: Demonstrations, head: Kind, representation: Representation, pretrained: Pretrained | None
) -> None:
    if pretrained is None:
        raise ValueError(f"head {head!r} needs pretrained features; make_pretraining learns them")
    needed = _shapes(jax.eval_shape(representation.init, jax.random.key(0)))
    found = _shapes(pretrained.params)
    for path in needed | found:
        if needed.get(path) != found.get(path):
            raise ValueError(
                f"pretrained must hold the parameters of representation, got {found.get(path)} for "
                f"{path}, not {needed.get(path)}; give the representation that they were learned in"
            )
    for mine, theirs in zip(demos.normalizer, pretrained.normalizer, strict=True):
        if not np.array_equal(mine, theirs):
            raise ValueError(
                "demos and pretrained must be normalized alike, got other shifts or scales; give "
                "normalizer=pretrained.normalizer to prepare"
            )


def _shapes(params: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x.shape for path, x in leaves}

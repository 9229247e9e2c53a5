"""Exact tabular optimistic gradient play: every agent climbs the optimistic value, all at once.

Zhang et al. 2025, arXiv:2509.24047.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlab.core import risk as risk_lib
from jaxlab.core.risk import Risk
from jaxlab.core.types import Algorithm, Metrics
from jaxlab.envs.games import Game, check_game
from jaxlab.learning import settings as settings_lib
from jaxlab.learning.settings import Settings
from jaxlab.marl import gradients, optimism, values
from jaxlab.marl.gradients import Form, States
from jaxlab.marl.values import Critic

Kind = Literal["gradient", "natural", "projected"]
FORMS: dict[Kind, Form] = {"gradient": "softmax", "natural": "natural", "projected": "direct"}
RULES = {
    "learning_rate": settings_lib.POSITIVE,
    "init_scale": settings_lib.NOT_NEGATIVE,
    "gamma": settings_lib.Rule("lie in [0, 1)", lambda x: (x >= 0.0) & (x < 1.0)),
}


class PlayState(NamedTuple):
    """All that evolves, and the settings.

    Attributes:
        tables: one `[S, A_i]` for each agent: logits, or probabilities of "projected".
        v: `[S]` optimistic values of the last evaluation, where the next one starts.
        settings: `beta`, `learning_rate`, `init_scale` and `gamma`.
    """

    tables: tuple[Float[Array, "S A"], ...]
    v: Float[Array, " S"]
    settings: Settings


def make_play(
    game: Game,
    *,
    measure: Callable[[Any], Risk] = risk_lib.entropic,
    beta: float = 0.5,
    kind: Kind = "natural",
    states: States = "tilted",
    critic: Critic = "joint",
    learning_rate: float = 0.05,
    init_scale: float = 0.0,
    gamma: float = 0.95,
) -> Algorithm:
    """Makes gradient play with exact values; one step of the algorithm is one of every agent.

    Args:
        game: the game.
        measure: of what the agents will do, made from `beta`: `core.risk.entropic`, `chi2`, `cvar`
            or `expectile`. Swapping it swaps the risk measure, and nothing else.
        beta: its parameter, by its own units: that of `cvar` is a share.
        kind: "gradient": of logits, weighted by states. "natural": mirror ascent, the logits grow
            by the weights. "projected": of probabilities, projected back.
        states, critic: see `gradients.policy_gradient`.
        learning_rate: length of a step.
        init_scale: standard deviation of the first logits; 0 begins with uniform policies.
        gamma: discount.

    Returns:
        The algorithm; its `init(key, settings)` takes other numbers for `beta`, `learning_rate`,
        `init_scale` and `gamma`, so that `learning.over_seeds` sweeps them in one program. The
        metrics are `policy/value`, the optimistic value of the start before the step, and
        `policy/residual`, how far it is from its fixed point.

    Raises:
        ValueError: if the game is none, a word is unknown or a number out of range.

    Example:
        >>> play = make_play(envs.climbing(), beta=0.5)
        >>> state = play.init(jax.random.key(0))
        >>> state, metrics = jax.jit(play.step)(state)
    """
    check_game(game)
    gradients.check_words(kind=(kind, Kind), states=(states, States), critic=(critic, Critic))
    numbers = {
        "beta": beta,
        "learning_rate": learning_rate,
        "init_scale": init_scale,
        "gamma": gamma,
    }
    rules = dict(RULES)
    if measure is risk_lib.entropic or measure is risk_lib.chi2:
        rules["beta"] = settings_lib.ANY._replace(finite=False)  # infinity is the maximum
    settings_lib.fill(None, numbers, rules)

    def check(settings: Any) -> None:
        settings_lib.check_given(settings, numbers, rules)
        optimism.check_parameters(measure, settings)

    check({"beta": beta})

    def init(key: jax.Array, settings: Mapping[str, Any] | None = None) -> PlayState:
        given = settings_lib.fill(settings, numbers, rules)
        keys = jax.random.split(key, game.num_agents)
        tables = tuple(
            given["init_scale"] * jax.random.normal(k, (game.num_states, num), jnp.float32)
            for k, num in zip(keys, game.num_actions, strict=True)
        )
        if kind == "projected":
            tables = tuple(jax.nn.softmax(table) for table in tables)
        return PlayState(tables, jnp.zeros((game.num_states,), jnp.float32), given)

    def step(state: PlayState) -> tuple[PlayState, Metrics]:
        given = state.settings
        found = gradients.policy_gradient(
            game,
            policies_of(state, kind),
            measure(given["beta"]),
            gamma=given["gamma"],
            form=FORMS[kind],
            states=states,
            critic=critic,
            initial=state.v,
        )
        rate = given["learning_rate"]
        tables = tuple(x + rate * g for x, g in zip(state.tables, found.agents, strict=True))
        if kind == "projected":
            tables = tuple(gradients.project_simplex(x) for x in tables)
        value = jnp.dot(jnp.asarray(game.start, found.values.v.dtype), found.values.v)
        metrics = {"policy/value": value, "policy/residual": found.values.residual}
        return PlayState(tables, found.values.v, given), metrics

    return Algorithm(init, step, check=check)


def policies_of(state: PlayState, kind: Kind = "natural") -> tuple[Float[Array, "S A"], ...]:
    """Returns the agents' policies, `[S, A_i]` each."""
    if kind == "projected":
        return state.tables
    return tuple(jax.nn.softmax(table) for table in state.tables)


def score(game: Game, state: PlayState, kind: Kind = "natural") -> Float[Array, ""]:
    """Returns what the policies are worth without optimism: the neutral value of the start."""
    joint = values.joint_policy(policies_of(state, kind))
    found = values.evaluate(game, joint, risk_lib.neutral(), gamma=state.settings["gamma"])
    return jnp.dot(jnp.asarray(game.start, joint.dtype), found.v)

"""ZOFL: constrained zeroth-order optimization by feedback linearization (arXiv:2509.24056)."""

from jaxlab.zeroth_order import noise, profiles
from jaxlab.zeroth_order.ask_tell import AskTell, AskTellState, external_problem, make_ask_tell
from jaxlab.zeroth_order.baselines.barrier import estimate_smoothness, make_lb_sgd
from jaxlab.zeroth_order.baselines.block_descent import make_zob_gda, make_zob_sgda
from jaxlab.zeroth_order.baselines.conex import make_szo_conex
from jaxlab.zeroth_order.baselines.first_order import make_alm, make_pdgd
from jaxlab.zeroth_order.baselines.penalty import (
    make_exact_penalty,
    make_quadratic_penalty,
    make_switching,
)
from jaxlab.zeroth_order.baselines.primal_dual import (
    make_zo_minmax,
    make_zoagp,
    make_zoceg,
    make_zoeg,
)
from jaxlab.zeroth_order.baselines.safe_qcqp import make_szo_qq
from jaxlab.zeroth_order.baselines.safeopt import make_safeopt
from jaxlab.zeroth_order.direction_sets import (
    KINDS,
    STREAMABLE,
    directions,
    gram_inflation,
    make_column_draw,
)
from jaxlab.zeroth_order.estimators import (
    balanced_radius,
    evaluate,
    gradient,
    noise_variance,
    one_point,
    two_point,
    within_box,
)
from jaxlab.zeroth_order.field import (
    Probe,
    diagonal_metric,
    exact_probe,
    feedback,
    fl_field,
    newton_metric,
    probe,
    streamed_probe,
)
from jaxlab.zeroth_order.kkt import better, kkt_gap, max_violation, violation
from jaxlab.zeroth_order.method import (
    BAD_START,
    DIVERGED,
    RUNNING,
    Proposal,
    State,
    make_algorithm,
    run,
)
from jaxlab.zeroth_order.multiplier import (
    diagonal_multiplier,
    fl_multiplier,
    initial_slack,
    nnqp,
    slack_system,
    solve_free,
)
from jaxlab.zeroth_order.problem import Problem, as_inequalities, from_host, make_problem, scaled
from jaxlab.zeroth_order.problems.case9 import opf9
from jaxlab.zeroth_order.problems.client_fairness import fair_logistic
from jaxlab.zeroth_order.problems.high_dimensional import sphere, stiefel
from jaxlab.zeroth_order.problems.hock_schittkowski import HS_NAMES, hs
from jaxlab.zeroth_order.problems.policy_search import policy_search_problem
from jaxlab.zeroth_order.problems.power_flow import opf9_blackbox
from jaxlab.zeroth_order.problems.qcqp import random_qcqp
from jaxlab.zeroth_order.problems.safe_learning import safe_learning_problem
from jaxlab.zeroth_order.settings import (
    ZOFLConfig,
    default_radius,
    polynomial_step,
    resolve,
    shrinking_radius,
)
from jaxlab.zeroth_order.velocity import Field, Memory, initial_step, zofl_field
from jaxlab.zeroth_order.zofl import make_zofl

__all__ = [
    "AskTell",
    "AskTellState",
    "BAD_START",
    "DIVERGED",
    "Field",
    "HS_NAMES",
    "KINDS",
    "Memory",
    "Probe",
    "Problem",
    "Proposal",
    "RUNNING",
    "STREAMABLE",
    "State",
    "ZOFLConfig",
    "as_inequalities",
    "balanced_radius",
    "better",
    "default_radius",
    "diagonal_metric",
    "diagonal_multiplier",
    "directions",
    "estimate_smoothness",
    "evaluate",
    "exact_probe",
    "external_problem",
    "fair_logistic",
    "feedback",
    "fl_field",
    "fl_multiplier",
    "from_host",
    "gradient",
    "gram_inflation",
    "hs",
    "initial_slack",
    "initial_step",
    "kkt_gap",
    "make_algorithm",
    "make_alm",
    "make_ask_tell",
    "make_column_draw",
    "make_exact_penalty",
    "make_lb_sgd",
    "make_pdgd",
    "make_problem",
    "make_quadratic_penalty",
    "make_safeopt",
    "make_switching",
    "make_szo_conex",
    "make_szo_qq",
    "make_zo_minmax",
    "make_zoagp",
    "make_zob_gda",
    "make_zob_sgda",
    "make_zoceg",
    "make_zoeg",
    "make_zofl",
    "max_violation",
    "newton_metric",
    "nnqp",
    "noise",
    "noise_variance",
    "one_point",
    "opf9",
    "opf9_blackbox",
    "policy_search_problem",
    "polynomial_step",
    "probe",
    "profiles",
    "random_qcqp",
    "resolve",
    "run",
    "safe_learning_problem",
    "scaled",
    "shrinking_radius",
    "slack_system",
    "solve_free",
    "sphere",
    "stiefel",
    "streamed_probe",
    "two_point",
    "violation",
    "within_box",
    "zofl_field",
]

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
    Stencil,
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
    BUDGET_SPENT,
    CONVERGED,
    DIVERGED,
    FEASIBLE,
    INFEASIBLE,
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
from jaxlab.zeroth_order.problems.curved_quadratics import (
    CurvedQuadratic,
    curved_quadratic,
    draw_curved_quadratics,
)
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
    # Problems: a black box, and what is known about it
    "Problem",
    "make_problem",
    "from_host",
    "external_problem",
    "as_inequalities",
    "scaled",
    "noise",
    # ZOFL: the method, its settings and its schedules
    "make_zofl",
    "ZOFLConfig",
    "resolve",
    "default_radius",
    "polynomial_step",
    "shrinking_radius",
    "Memory",
    "Field",
    "zofl_field",
    "initial_step",
    "make_ask_tell",
    "AskTell",
    "AskTellState",
    # Running a method, and what it reports
    "run",
    "make_algorithm",
    "Proposal",
    "State",
    "CONVERGED",
    "FEASIBLE",
    "INFEASIBLE",
    "BUDGET_SPENT",
    "DIVERGED",
    "BAD_START",
    "kkt_gap",
    "violation",
    "max_violation",
    "better",
    "profiles",
    # The multiplier
    "fl_multiplier",
    "nnqp",
    "solve_free",
    "diagonal_multiplier",
    "slack_system",
    "initial_slack",
    # The velocity of feedback linearization
    "fl_field",
    "feedback",
    "newton_metric",
    "diagonal_metric",
    "Probe",
    "probe",
    "exact_probe",
    "streamed_probe",
    # Directions and differences
    "KINDS",
    "STREAMABLE",
    "directions",
    "make_column_draw",
    "gram_inflation",
    "Stencil",
    "two_point",
    "one_point",
    "gradient",
    "evaluate",
    "within_box",
    "balanced_radius",
    "noise_variance",
    # Baselines
    "make_zo_minmax",
    "make_zoagp",
    "make_zob_gda",
    "make_zob_sgda",
    "make_szo_conex",
    "make_zoeg",
    "make_zoceg",
    "make_quadratic_penalty",
    "make_exact_penalty",
    "make_switching",
    "make_szo_qq",
    "make_lb_sgd",
    "estimate_smoothness",
    "make_safeopt",
    "make_pdgd",
    "make_alm",
    # Test problems
    "HS_NAMES",
    "hs",
    "random_qcqp",
    "CurvedQuadratic",
    "curved_quadratic",
    "draw_curved_quadratics",
    "fair_logistic",
    "safe_learning_problem",
    "opf9",
    "opf9_blackbox",
    "sphere",
    "stiefel",
    "policy_search_problem",
]

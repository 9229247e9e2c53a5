"""What the papers publish about ZOFL and FL, and what theory predicts of them; data only.

FL is first-order feedback linearization (arXiv:2503.12665), ZOFL its form from function values
(arXiv:2509.24056). The constants and figures of the ZOFL paper's own experiments are not known.
"""

from jaxlab.zeroth_order.settings import Scheme

FAIR_LOGISTIC_ITERATE = 300
"""Iterate of the client-fair logistic regression whose KKT gap is published, from 1 on."""
FAIR_LOGISTIC_GAP = {"FL-proximal": 7.4e-8, "PDGD": 1e-6, "ALM": 2.8e-7}
"""KKT gap there, by method; figures of two digits, 1e-6 of one."""
FAIR_LOGISTIC_MOMENTUM = (1e-12, 1e-11)
"""Range of the gap of FL with momentum there."""
FAIR_LOGISTIC_NEWTON = 1e-16
"""Gap that FL-Newton falls below with an exact solver: 1e-17, or 1e-10 with the authors' one."""
FAIR_LOGISTIC_OBJECTIVE = 0.6901
"""Objective of proximal FL there."""

QCQP_GAP = 1e-9
QCQP_ITERATIONS = {0.0: 4000.0, 0.8: 700.0}
"""Iterations to a KKT gap of `QCQP_GAP` on random cubic problems, by momentum; "about"."""
QCQP_GAINS = (1.0, 100.0, 1000.0, 2000.0)
"""Decay rates K of the gain study."""

SCHEMES: dict[Scheme, tuple[float, float]] = {"euler": (2.0, 2.0), "midpoint": (4.0, 3.0)}
"""Ratio of peak violations when the step is halved, and order of the violation of one step."""
FLOOR_RATIO = 2.5
"""Noise floor of a constraint at a = 0.5 over that at a = 0.1."""
POWER_FLOW_GAP = 5e-3
"""Most that is left of f - f* after 30 steps on the black-box power flow; an expectation."""
LEAKAGE = 1e2
"""Least ratio of the plug-in form's violation to the subspace form's, up to 1e7."""

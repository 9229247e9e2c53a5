"""ICU bed planning with M_t/G_t/inf queues (Akbari-Moghaddam et al. 2025, arXiv:2510.02852).

The names that users type, in the groups of the table in README.md.
"""

from jaxlab.core.tables import write_table
from jaxlab.queueing.arrivals.decomposition import (
    GRID,
    GridSelection,
    MSTLResult,
    STLConfig,
    STLResult,
    mstl,
    stl,
    stl_grid_select,
)
from jaxlab.queueing.arrivals.glm import (
    GLMFit,
    dispersion,
    negative_binomial_variance,
    poisson_deviance,
    poisson_glm,
)
from jaxlab.queueing.arrivals.rates import RateDesign, rate_design, weekday_effect
from jaxlab.queueing.arrivals.rolling import rolling_sd, rolling_variance_select
from jaxlab.queueing.arrivals.smoothers import (
    PenaltyPath,
    STLSelection,
    WhittakerFit,
    blocked_folds,
    penalty_path,
    stl_blocked_cv,
    whittaker_poisson,
    whittaker_select,
)
from jaxlab.queueing.calibration import (
    NullCalibration,
    Truth,
    null_calibration,
    patient_room,
    resample_stays,
    sample_stays,
    true_beds,
)
from jaxlab.queueing.census import poisson
from jaxlab.queueing.census.capacity import (
    beds_alpha,
    beds_average,
    beds_census_quantile,
    beds_erlang,
    beds_max,
    beds_naive_peak,
    beds_rule85,
    beds_sqrt_staffing,
    beds_stationary,
    census_recursion,
    erlang_b,
    occupancy_cohort,
    overflow_risk,
    overflow_threshold,
)
from jaxlab.queueing.census.companions import (
    departure_rate,
    dispersion_spread,
    occupancy_cov,
    sinusoid_mean,
    stationary_excess,
)
from jaxlab.queueing.census.initial import (
    initial_mean,
    initial_moments,
    initial_occupancy_pmf,
    initial_survivors,
    residual_survival,
)
from jaxlab.queueing.census.occupancy import (
    QueueInputs,
    census_weight,
    lagged_sum,
    occupancy_batch,
    occupancy_mean,
    occupancy_mean_general,
    warm_mask,
)
from jaxlab.queueing.census.poisson import expected_overflow
from jaxlab.queueing.census.simulate import (
    MonteCarloState,
    PathStats,
    SimSummary,
    make_monte_carlo,
    quantile_bands,
    simulate_free,
    simulate_paths,
    summarize,
)
from jaxlab.queueing.census.utilization import UtilMetrics, system_weighted, utilization_metrics
from jaxlab.queueing.data import tasks
from jaxlab.queueing.data.daily import (
    DailySeries,
    individual_variance,
    observed_census,
    stays_to_daily,
)
from jaxlab.queueing.data.input_files import read_processed, write_processed
from jaxlab.queueing.data.records import (
    Patients,
    Processed,
    Rejects,
    Stays,
    initial_ages,
    pooled_by_site,
    take_site,
)
from jaxlab.queueing.data.sources import (
    births,
    births_arrivals,
    births_with_los,
    find_sir3,
    load_sir3,
    read_sir3,
    real_los,
)
from jaxlab.queueing.data.stay_files import REASONS, read_stays, write_rejects, write_stays
from jaxlab.queueing.data.tasks import CALGARY_SITES, SCENARIOS, calgary_like, calgary_rates, demo5
from jaxlab.queueing.estimates import (
    LawEstimates,
    LawOptions,
    SeriesEstimates,
    SeriesOptions,
    estimate_laws,
    estimate_series,
)
from jaxlab.queueing.forecast import (
    ProjectedBeds,
    Projection,
    Summary,
    YearDraws,
    YearlyHistory,
    annual_admissions,
    draw_years,
    project_beds,
    projection,
    summarize_runs,
    yearly_history,
)
from jaxlab.queueing.pipeline import ALPHAS, Beds, Plan, compile_plan, plan, queue_inputs, size_beds
from jaxlab.queueing.planning import (
    Interval,
    Study,
    Truncation,
    bootstrap,
    bootstrap_beds,
    interval_of,
    observed,
    plan_study,
    rule_names,
    stack_rules,
)
from jaxlab.queueing.scenario import (
    BedModel,
    VarianceSensitivity,
    WhatIf,
    apply_scenario,
    bed_counts,
    truncated_mean,
    truncated_share,
    variance_sensitivity,
    what_if,
)
from jaxlab.queueing.settings import BedRules, QueueModel
from jaxlab.queueing.stays import los
from jaxlab.queueing.stays.censoring import complete_stays
from jaxlab.queueing.stays.conditional import FAMILIES, has_mean, survival
from jaxlab.queueing.stays.counts import counted_days, counted_survival
from jaxlab.queueing.stays.empirical import empirical_law, kaplan_meier, scaled_law
from jaxlab.queueing.stays.fit import FAMILIES_DEFAULT, LOSFit, fit_families, fit_los, select_los
from jaxlab.queueing.stays.los import LOSParams, lognormal_from_moments, lognormal_from_quantiles
from jaxlab.queueing.stays.mixture import (
    MixtureFit,
    Scored,
    fit_mixture,
    mixture_mean,
    mixture_quantile,
    mixture_survival,
    select_components,
)

__all__ = [
    # Settings that travel
    "QueueModel",
    "BedRules",
    "SeriesOptions",
    "LawOptions",
    # From stays to beds
    "plan",
    "compile_plan",
    "estimate_series",
    "estimate_laws",
    "size_beds",
    "queue_inputs",
    "Plan",
    "SeriesEstimates",
    "LawEstimates",
    "Beds",
    "ALPHAS",
    # A planning study of one hospital
    "plan_study",
    "bootstrap",
    "bootstrap_beds",
    "interval_of",
    "observed",
    "stack_rules",
    "rule_names",
    "Study",
    "Truncation",
    "Interval",
    # Files
    "read_stays",
    "write_stays",
    "write_rejects",
    "REASONS",
    "read_processed",
    "write_processed",
    "write_table",
    # Patients side by side
    "pooled_by_site",
    "take_site",
    "initial_ages",
    "Stays",
    "Rejects",
    "Patients",
    "Processed",
    # Daily series
    "stays_to_daily",
    "observed_census",
    "individual_variance",
    "DailySeries",
    # Real and synthetic data
    "births",
    "births_arrivals",
    "births_with_los",
    "real_los",
    "find_sir3",
    "load_sir3",
    "read_sir3",
    "demo5",
    "calgary_like",
    "calgary_rates",
    "tasks",
    "CALGARY_SITES",
    "SCENARIOS",
    # Arrival rates by seasonal decomposition
    "stl",
    "stl_grid_select",
    "mstl",
    "rolling_sd",
    "rolling_variance_select",
    "STLConfig",
    "STLResult",
    "MSTLResult",
    "GridSelection",
    "GRID",
    # Arrival rates that do not count noise twice
    "rate_design",
    "poisson_glm",
    "weekday_effect",
    "poisson_deviance",
    "dispersion",
    "negative_binomial_variance",
    "RateDesign",
    "GLMFit",
    # Smooth rates
    "whittaker_poisson",
    "whittaker_select",
    "penalty_path",
    "stl_blocked_cv",
    "blocked_folds",
    "WhittakerFit",
    "PenaltyPath",
    "STLSelection",
    # Laws of the stay
    "fit_los",
    "fit_families",
    "select_los",
    "kaplan_meier",
    "complete_stays",
    "empirical_law",
    "scaled_law",
    "counted_days",
    "counted_survival",
    "los",
    "lognormal_from_moments",
    "lognormal_from_quantiles",
    "LOSParams",
    "LOSFit",
    "FAMILIES_DEFAULT",
    # Mixtures
    "fit_mixture",
    "select_components",
    "mixture_mean",
    "mixture_quantile",
    "mixture_survival",
    "MixtureFit",
    "Scored",
    # Laws that follow the day of admission
    "survival",
    "has_mean",
    "FAMILIES",
    # Mean occupancy
    "occupancy_mean",
    "occupancy_batch",
    "occupancy_mean_general",
    "lagged_sum",
    "census_weight",
    "warm_mask",
    "QueueInputs",
    # Companions of the mean
    "occupancy_cov",
    "departure_rate",
    "stationary_excess",
    "dispersion_spread",
    "sinusoid_mean",
    "poisson",
    "expected_overflow",
    # Patients already in bed
    "initial_survivors",
    "initial_mean",
    "initial_moments",
    "initial_occupancy_pmf",
    "residual_survival",
    # Bed rules and their baselines
    "beds_alpha",
    "overflow_risk",
    "overflow_threshold",
    "beds_average",
    "beds_max",
    "beds_naive_peak",
    "beds_rule85",
    "beds_stationary",
    "beds_sqrt_staffing",
    "beds_census_quantile",
    "erlang_b",
    "beds_erlang",
    "census_recursion",
    "occupancy_cohort",
    # Utilization
    "utilization_metrics",
    "system_weighted",
    "UtilMetrics",
    # Monte Carlo
    "simulate_free",
    "simulate_paths",
    "make_monte_carlo",
    "summarize",
    "quantile_bands",
    "MonteCarloState",
    "PathStats",
    "SimSummary",
    # What-ifs
    "apply_scenario",
    "what_if",
    "variance_sensitivity",
    "bed_counts",
    "truncated_share",
    "truncated_mean",
    "BedModel",
    "WhatIf",
    "VarianceSensitivity",
    # Projection
    "projection",
    "yearly_history",
    "annual_admissions",
    "draw_years",
    "project_beds",
    "summarize_runs",
    "Projection",
    "YearlyHistory",
    "YearDraws",
    "ProjectedBeds",
    "Summary",
    # Bias and spread of the rules
    "null_calibration",
    "sample_stays",
    "resample_stays",
    "true_beds",
    "patient_room",
    "Truth",
    "NullCalibration",
]

"""Arrival rates: seasonal decompositions, regressions and smoothers of daily counts."""

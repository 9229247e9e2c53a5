"""ZOFL: constrained zeroth-order optimization by feedback linearization (arXiv:2509.24056)."""

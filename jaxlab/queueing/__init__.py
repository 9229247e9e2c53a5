"""ICU bed planning with M_t/G_t/inf queues (Akbari-Moghaddam et al. 2025, arXiv:2510.02852)."""

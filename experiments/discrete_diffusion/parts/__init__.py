"""Studies beside the comparison: where ratios point, DNA, macro-actions, own sequences."""

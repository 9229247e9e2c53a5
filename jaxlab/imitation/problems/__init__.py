"""Problems whose occupancies, divergences and density ratios are known."""

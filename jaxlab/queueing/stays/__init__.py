"""Laws of the length of stay: families, fits with censored stays, and their tails."""

"""How fast it is, in ratios taken in one run."""

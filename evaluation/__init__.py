"""How good it got: held-out solve rates and the report."""

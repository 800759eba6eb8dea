"""Who scores: R (preference model, verifiers) and R_Q (the reference model as judge)."""

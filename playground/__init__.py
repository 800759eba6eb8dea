"""A small language world with exact verifiers, and the base model that plays in it."""

"""Who plays: the engine, the rollout actor, the roles and their prompts, the records of a game."""

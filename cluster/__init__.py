"""Who runs it: the command line, the game loop, fleets of actors, placement, metrics."""

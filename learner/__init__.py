"""Who learns: advantages, loss, batching, the DeepSpeed ranks, weight publishing, checkpoints."""

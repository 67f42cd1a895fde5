"""Uses of a trained run or detector: evaluate, predict, audit a folder, export."""

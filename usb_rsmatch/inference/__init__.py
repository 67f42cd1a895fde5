"""What a trained run or detector is used for: evaluate, predict, audit a folder, export."""

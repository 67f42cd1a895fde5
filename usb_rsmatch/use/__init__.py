"""What a trained run is good for: evaluate, predict, audit a folder for synthetic images, export."""

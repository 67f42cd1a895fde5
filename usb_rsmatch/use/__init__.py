"""What a pool and a trained run are good for: look, evaluate, predict, audit a folder for synthetic images, export."""

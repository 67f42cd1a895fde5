"""Weak and strong views of the images, and the loaders that give batches of them."""

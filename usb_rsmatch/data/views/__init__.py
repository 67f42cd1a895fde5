"""Weak and strong views of the images, and the loaders that return batches of them."""

"""Detection of synthetic images: the light detector, its queue of mined examples, and its metrics."""

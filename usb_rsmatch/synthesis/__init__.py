"""Image generators: a small flow model, a VAE and a GAN, diffusion pipelines, and the command `synthesize`."""

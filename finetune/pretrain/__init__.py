"""Makes a base from nothing, in the three stages of Stable Diffusion: autoencoder, CLIP, denoiser."""

"""Pictures and captions in, training batches out; knows nothing of diffusion or of methods."""

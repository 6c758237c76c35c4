"""Personalise text-to-image diffusion models: several methods, one loop, one frozen base."""

__version__ = "0.1.0"

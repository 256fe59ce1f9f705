"""Pick what a student should learn from, by Local Average Log Probability (arXiv 2510.03988), in JAX."""

__version__ = "0.1.0"

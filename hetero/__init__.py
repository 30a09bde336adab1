"""hetero: serve one model from unequal machines."""

__version__ = "0.1.0"

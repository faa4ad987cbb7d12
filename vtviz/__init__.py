"""Visual Transformers (Wu et al. 2020) and their visual tokens, made visible."""

__version__ = "0.1.0"

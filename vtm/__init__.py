"""Learnable video token merging for long-form video understanding (Lee et al., NeurIPS 2024, arXiv 2410.23782)."""

"""Inference with a trained model: its file, its predictions for videos, and its graph for other programs."""

"""A trained model in use: its file, its predictions, and its graph for other programs."""

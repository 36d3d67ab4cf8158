"""Training-free token merging inside ready transformers (Pollard and Wray 2025; Bolya et al. 2023)."""

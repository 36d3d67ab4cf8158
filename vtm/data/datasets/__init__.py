"""The data sets: one file per data set, and their annotation tables."""

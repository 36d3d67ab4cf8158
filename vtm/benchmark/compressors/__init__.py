"""Benchmark of the compressors of video LLMs, in small models that are trained here, on drawn clips."""

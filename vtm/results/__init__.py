"""Read and write `results.json` and the predictions of a run; tables and plots of one run and of many."""

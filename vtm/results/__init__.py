"""`results.json`, its fields, written and read; tables and plots of one run and of many."""

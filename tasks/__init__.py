"""The task families: one folder each, with the data sets that it alone reads, torch-free, beside its task.py."""

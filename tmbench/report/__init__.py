"""Reports on any set of runs: `python -m tmbench.report`. Torch-free."""

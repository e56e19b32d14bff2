"""Meta-training of the learned optimizer: `python -m tmbench.learn`."""

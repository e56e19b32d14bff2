"""The launchers, which do the jobs of a sweep several at once: on this machine, on Slurm, or on a Ray cluster."""

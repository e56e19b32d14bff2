"""Tuning: the same number of trials for every optimizer, and the choice confirmed."""

"""The task families: one file each, and one for each data set."""

"""What is asked for: the settings of a run, their checks, what they become, and what makes two runs the same."""

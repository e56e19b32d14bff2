"""Training itself: the part of a run that needs torch and Lightning."""

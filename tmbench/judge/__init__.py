"""Judging: as few paired seeds as an honest answer to "is this optimizer better?" needs."""

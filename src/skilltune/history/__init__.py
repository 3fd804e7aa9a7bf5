"""Readers of a run, finished or under way, by its journal."""

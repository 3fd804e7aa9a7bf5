"""Runs commands that nobody vouches for: bounded in time and resources, with no process left behind, and confined as
far as this machine allows."""

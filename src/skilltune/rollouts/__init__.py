"""Rollouts: the forward pass and its journal keys."""

"""Preflight: what can be found out before money is spent."""

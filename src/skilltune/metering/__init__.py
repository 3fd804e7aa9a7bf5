"""Metering: budgets, slots, retries and the client that combines them."""

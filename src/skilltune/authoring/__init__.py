"""Create a skill folder, convert samples, and refuse samples that nobody has reviewed."""

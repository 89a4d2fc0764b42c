"""Training: the one loop, learning-rate schedules and their configuration."""

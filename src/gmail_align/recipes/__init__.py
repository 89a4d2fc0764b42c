"""Shipped recipes: one TOML file a run, opening with its runbook."""

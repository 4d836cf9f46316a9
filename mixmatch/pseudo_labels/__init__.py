"""Rounds of pseudo-labels: a trained run's confident predictions become labels, and training goes on."""

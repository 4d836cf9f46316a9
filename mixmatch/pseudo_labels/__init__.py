"""A stage that trains a run on: with its confident predictions as labels, or by another method."""

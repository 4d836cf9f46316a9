"""Training: the step, and the run that is made of steps."""

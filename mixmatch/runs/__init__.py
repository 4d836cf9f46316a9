"""What a run leaves: its directory, TensorBoard's curves and pictures, written in the background."""

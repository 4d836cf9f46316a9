"""Photographs in folders: which files there are, how they are decoded, and what is odd about them."""

"""Labeling by hand: which pictures to label next, and a page to do it on."""

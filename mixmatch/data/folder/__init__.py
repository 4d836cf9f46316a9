"""Photographs in folders: an index of the files, their decoding, and a report for ``--check``."""

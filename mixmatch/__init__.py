"""MixMatch (Berthelot et al., NeurIPS 2019, arXiv:1905.02249): the method, its data, and the run around it.

Imports run one way: main.py -> train -> {trainer, run, board} -> {method, augment, sampling, data, files} -> errors.
"""

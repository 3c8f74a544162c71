"""Convolutions for CPUs, by matrix products and Winograd's algorithm."""

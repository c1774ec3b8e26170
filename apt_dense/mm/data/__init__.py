"""Datasets, transforms and samplers, and what a config makes of its images."""

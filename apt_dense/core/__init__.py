"""Adaptive patching, packing and the APT-EVA-02 backbone.  Imports torch and nothing else."""

"""Pictures of patches and scores: torch, numpy and Pillow."""

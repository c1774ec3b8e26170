"""Finding thresholds on photographs and datasets: torch, numpy and Pillow."""

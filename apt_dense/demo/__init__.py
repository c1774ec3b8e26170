"""A page to play with: thresholds, patches and scores of a photograph."""

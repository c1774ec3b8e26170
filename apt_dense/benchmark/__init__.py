"""Speed and memory of the APT backbone against its dense twin; ``python -m apt_dense.benchmark --help``.

Needs torch and numpy; Pillow for photographs, matplotlib for plots.
"""

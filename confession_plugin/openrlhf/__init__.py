"""The adapter to OpenRLHF: one file per seam, and `install`, the only list of what is replaced.

Every replacement wraps the host's own function (``def seam(host, self, ...)``: `host` is the original) and passes
unknown arguments through, so a seam is a few lines around the host's code, never a copy of it.
"""

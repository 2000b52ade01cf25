"""The trained module, and its attachment to a host: which tokens get which residual in which
forward.
"""

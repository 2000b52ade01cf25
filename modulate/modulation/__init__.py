"""The trained module and its attachment: which token gets which residual."""

"""Training and measuring of the small host and the small backbones that ship."""

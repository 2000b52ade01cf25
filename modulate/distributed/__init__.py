"""The processes of one run: how they start and how they talk."""

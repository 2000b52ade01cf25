"""The processes of one run: how they are started and how they talk."""

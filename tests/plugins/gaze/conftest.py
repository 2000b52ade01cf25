"""Fixtures of the gaze tests."""

import pytest
import torch


@pytest.fixture
def saved(tmp_path):
    def save(content, name="best_model.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save

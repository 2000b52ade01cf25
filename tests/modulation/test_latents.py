"""Latents of a conditioning: spans of time steps, means, and the memory of a writer."""

import torch

from modulate import Mixture, visual_grid
from modulate.modulation.latents import Latents, step_spans


def test_every_token_knows_where_its_step_begins_and_ends():
    grids = [
        visual_grid([0.0, 1.0], frames_per_step=1, rows=1, cols=2),
        visual_grid([0.0], frames_per_step=1, rows=1, cols=3),
    ]
    assert step_spans(grids).tolist() == [[0, 2]] * 2 + [[2, 4]] * 2 + [[4, 7]] * 3


def test_means_stand_behind_the_latents_and_span_their_whole_row():
    tokens = torch.tensor([[1.0], [3.0], [8.0]])
    spans = torch.tensor([[0, 2], [0, 2], [2, 3]])
    latents = Latents([[tokens]], (1, 1), (1, 1), spans).with_means([(0, 2), (2, 3)])
    assert latents.layers[0].flatten().tolist() == [1.0, 3.0, 8.0, 2.0, 8.0]
    assert latents.span.tolist() == [[0, 2], [0, 2], [2, 3], [0, 2], [2, 3]]


def test_mixtures_are_written_out_where_single_tokens_are_read():
    mixture = Mixture(
        weights=torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]), vectors=torch.tensor([[[2.0], [4.0]]])
    )
    latents = Latents([[mixture]], (1,), (1,), torch.tensor([[0, 2], [0, 2]]))
    assert latents.mixtures(0) == [mixture]
    read, memory = latents.at(0, torch.tensor([1]), torch.tensor([[0, 2]]))
    assert read.tolist() == [[3.0]]
    assert memory.latents.flatten().tolist() == [2.0, 3.0]

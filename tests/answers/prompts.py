"""Conditioned prompts of tiny hosts of every family, and the slow scores of their answers."""

import torch

from modulate import ClipInput
from modulate.hosts.host import understand
from modulate.interfaces.frames import Frames
from modulate.interfaces.messages import VideoClip, user_turn
from tests.contract.encodings import built, noise
from tests.contract.processors import PROCESSORS
from tests.tiny import D_FEATURES, scanpath

# Prompts of different lengths.
TEXTS = ("Where", "Where is it", "What is the thing")


class Asked:
    """Three prompts about clips of their own, encoded by a family's real processor.

    ``prompts``: model inputs of each. ``clips``: the conditioning of each, one row.
    """

    def __init__(self, name, texts=TEXTS, times=(0.0, 2.0, 4.0, 6.0), same_clip=False):
        self.host = built(name)
        self.processor = PROCESSORS[name]()
        self.served = understand(self.host)
        self.prompts = []
        self.clips = []
        for i, text in enumerate(texts):
            frames = Frames(noise(len(times), 64, 96, seed=0 if same_clip else i), times)
            shown = VideoClip(frames, (0.0, times[-1] + 2.0))
            encoded = self.served.encode(self.processor, user_turn(shown, text))
            (grid,) = encoded.grids
            generator = torch.Generator().manual_seed(0 if same_clip else i)
            features = torch.randn(
                grid.steps, grid.tokens_per_step, D_FEATURES, generator=generator
            )
            self.prompts.append(encoded.inputs)
            self.clips.append([ClipInput(scanpath(), grid, features)])

    def slow_scores(self, attachment, i, answer, clips=None):
        """The log-probability of each token of ``answer``, from one forward of its own."""
        scores = self.slow_logits(attachment, i, answer, clips).log_softmax(-1)
        return torch.stack([scores[k, token] for k, token in enumerate(answer)])

    def slow_logits(self, attachment, i, answer, clips=None):
        """The logits at the prompt's last token and at each token of ``answer``."""
        prompt = self.prompts[i]
        length = prompt["input_ids"].shape[1]
        ids = torch.cat([prompt["input_ids"], answer[None]], 1)
        inputs = {**prompt, "input_ids": ids}
        for name, value in prompt.items():
            if name != "input_ids" and value.shape == prompt["input_ids"].shape:
                filler = 1 if name == "attention_mask" else 0
                more = torch.full((1, len(answer)), filler, dtype=value.dtype)
                inputs[name] = torch.cat([value, more], 1)
        with attachment.condition([clips or self.clips[i]]):
            return self.host(**inputs).logits[0, length - 1 :]


def drawn(*lengths, seed=0):
    """Answers of random tokens, of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(20, 60, (length,), generator=generator) for length in lengths]

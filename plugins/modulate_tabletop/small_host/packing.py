"""Pack many questions about one clip into one forward pass.

The questions share a visual prefix, and the attention mask separates them from each other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from modulate_tabletop.render import CLASSES
from modulate_tabletop.small_host.host_files import ID, PATCH, PIXELS

# Auxiliary losses at middle layers: after LABEL_LAYER layers, the word of an option predicts its
# letter; after WORD_LAYER, the last position predicts the answer's word; after FLAG_LAYER, an
# option predicts whether it is the answer.
LABEL_LAYER = 2
WORD_LAYER = 3
FLAG_LAYER = 4
CLASS_IDS = frozenset(ID[name] for name in CLASSES)
LETTER_IDS = frozenset(ID[letter] for letter in "ABCD")
TURN_START = "<|im_start|>user\n<|vision_start|>"
TURN_END = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Branch:
    """One question with its answer; ``kind`` groups the losses."""

    kind: str
    prompt: str
    answer: str
    sees_video: bool = True
    every: int = 1  # only every n-th token of the answer is supervised
    word: str | None = None  # the answer in words, which a middle layer learns before the letter


def pixels(frames: np.ndarray) -> torch.Tensor:
    """Resize frames (n, SIZE, SIZE, 3) uint8 to (n, 3, PIXELS, PIXELS) in −1..1.

    Luma is resized as the processor does it, chroma is halved as a 4:2:0 codec does it.
    """
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    small = F.avg_pool2d(x, 2)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    luma = F.interpolate(
        (x * weights).sum(1, keepdim=True),
        size=(PIXELS, PIXELS),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    return ((luma + small - (small * weights).sum(1, keepdim=True)).clamp(0, 255) / 127.5) - 1


def patches(images: torch.Tensor, steps: int) -> torch.Tensor:
    """Return images (batch * 2 * steps, 3, PIXELS, PIXELS) as the video processor's patches."""
    g = PIXELS // PATCH
    x = images.view(-1, steps, 2, 3, g // 2, 2, PATCH, g // 2, 2, PATCH).permute(
        0, 1, 4, 7, 5, 8, 3, 2, 6, 9
    )
    return x.reshape(-1, 3 * 2 * PATCH * PATCH)


class Packer:
    """Converts branches to ids, positions, mask and targets."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.cache: dict[str, list[int]] = {}

    def ids(self, words: str) -> list[int]:
        """Return token ids; caches them, because most strings recur."""
        if words not in self.cache:
            if len(self.cache) > 200_000:
                self.cache.clear()
            self.cache[words] = self.tokenizer(words)["input_ids"]
        return self.cache[words]

    def pack(
        self, rows: list[list[Branch]], steps: int, interval: float, offset: int
    ) -> dict[str, Any]:
        """Return ids, positions, mask, targets and hints of a batch; each row is one clip.

        ``interval`` is M-RoPE's temporal distance between steps. ``offset`` shifts the text after
        the video, because library versions differ in it.
        """
        head = self.ids(TURN_START)
        grid = PIXELS // PATCH // 2
        index = torch.arange(steps * grid * grid)
        time = (torch.arange(steps) * interval).long()
        vision = torch.stack(
            [time[index // (grid * grid)], index // grid % grid, index % grid]
        ) + len(head)
        start = len(head) + grid + offset
        prefix_ids = [*head, *[ID["<|video_pad|>"]] * len(index), ID["<|vision_end|>"]]
        prefix_pos = torch.cat(
            [torch.arange(len(head)).expand(3, -1), vision, torch.full((3, 1), start)], 1
        )
        # The layout of the processor: turn start, visual tokens, end of vision. All questions
        # continue from the same position, as if each were alone.
        built = [self._row(row, prefix_ids, prefix_pos, start + 1) for row in rows]
        length = max(len(branch[0]) for branch in built)
        ids = torch.full((len(rows), length), ID["<|endoftext|>"])
        positions = torch.zeros(3, len(rows), length, dtype=torch.long)
        segment = torch.full((len(rows), length), -1)
        blind = torch.zeros(len(rows), length, dtype=torch.bool)
        target_rows: list[tuple[int, int, int, str]] = []
        hint_rows: list[tuple[int, int, int, int]] = []
        for row, (tokens, pos, seg, no_video, targets, hints) in enumerate(built):
            n = len(tokens)
            ids[row, :n] = torch.tensor(tokens)
            positions[:, row, :n] = pos
            segment[row, :n] = torch.tensor(seg)
            blind[row, :n] = torch.tensor(no_video)
            target_rows += [(row, position, token, kind) for position, token, kind in targets]
            hint_rows += [(row, position, token, layer) for position, token, layer in hints]
        # Segment 0 is the visual prefix, each question has its own segment, padding is −1. A token
        # sees its own segment and, unless it is blind, the prefix.
        query = segment[:, :, None]
        key = segment[:, None, :]
        visible = (query == key) | ((key == 0) & ~blind[:, :, None])
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        # Padding sees itself: a row of the mask without any True would give NaN.
        itself = torch.eye(length, dtype=torch.bool)
        mask = causal & visible & (key >= 0) | itself
        return {
            "ids": ids,
            "positions": positions,
            "mask": mask[:, None],
            "targets": target_rows,
            "hints": hint_rows,
        }

    def _row(
        self, row: list[Branch], prefix: list[int], prefix_pos: torch.Tensor, start: int
    ) -> tuple:
        tokens = list(prefix)
        pos = [prefix_pos]
        seg = [0] * len(prefix)
        blind = [False] * len(prefix)
        targets = []
        hints = []
        for number, branch in enumerate(row, 1):
            question = self.ids(branch.prompt + TURN_END)
            answer = self.ids(branch.answer)
            targets += [
                (len(tokens) + len(question) - 1 + index, token, branch.kind)
                for index, token in enumerate(answer)
                if index % branch.every == branch.every - 1
            ]
            hints += [
                (len(tokens) + index, letter, LABEL_LAYER)
                for index, letter in self._labels(question)
            ]
            if branch.word:
                hints.append((len(tokens) + len(question) - 1, ID[branch.word], WORD_LAYER))
                hints += [
                    (len(tokens) + index, token, FLAG_LAYER)
                    for index, token in self._flags(question, branch.word)
                ]
            n = len(question) + len(answer)
            tokens += [*question, *answer]
            pos.append((torch.arange(n) + start).expand(3, -1))
            seg += [number] * n
            blind += [not branch.sees_video] * n
        return tokens, torch.cat(pos, 1), seg, blind, targets, hints

    def _flags(self, ids: list[int], word: str) -> list[tuple[int, int]]:
        """Return (position, Yes or No) for each option, or for the class that an alert names."""
        if word in ("Yes", "No"):
            return [
                (next(index for index, token in enumerate(ids) if token in CLASS_IDS), ID[word])
            ]
        return [
            (index, ID["Yes" if ids[index] == ID[word] else "No"]) for index, _ in self._labels(ids)
        ]

    def _labels(self, ids: list[int]) -> list[tuple[int, int]]:
        """Return (position, letter) for each option's word in a prompt."""
        return [
            (index + 3, ids[index + 1])
            for index in range(len(ids) - 3)
            if ids[index] == ID["\n"] and ids[index + 1] in LETTER_IDS and ids[index + 2] == ID["."]
        ]


def mark_effect(tokens: torch.Tensor, marked: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    """Return a mark's mean effect on visual tokens, (width,).

    The mean over the ``marked`` places minus that over the other ``full`` places. ``tokens`` is
    (clip, step * place, width); both masks are (clip, step * place, 1), ones and zeros.
    """
    return (tokens * marked).sum((0, 1)) / marked.sum() - (tokens * full).sum((0, 1)) / full.sum()


def forward(
    model: Any, packed: dict[str, Any], patch_values: torch.Tensor, steps: int, hints: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return logits, visual tokens, and with ``hints`` the logits of middle layers.

    Logits are in the order of ``packed['targets']``, those of middle layers in the order of
    ``packed['hints']``. The visual tokens are (batch * steps * places, width).
    """
    batch = len(packed["ids"])
    side = PIXELS // PATCH
    seen = model.model.visual(
        patch_values, grid_thw=torch.tensor([[steps, side, side]] * batch)
    ).pooler_output
    core = model.model.language_model
    embeds = core.embed_tokens(packed["ids"])
    embeds = embeds.masked_scatter((packed["ids"] == ID["<|video_pad|>"])[..., None], seen)
    out = core(
        inputs_embeds=embeds,
        position_ids=packed["positions"],
        attention_mask=packed["mask"],
        use_cache=False,
        output_hidden_states=hints,
    )
    rows, cols = zip(*[(row, position) for row, position, _, _ in packed["targets"]])
    logits = model.lm_head(out.last_hidden_state[list(rows), list(cols)])
    if not hints or not packed["hints"]:
        return logits, seen, None
    picked = torch.stack(
        [out.hidden_states[layer][row, position] for row, position, _, layer in packed["hints"]]
    )
    return logits, seen, model.lm_head(core.norm(picked))

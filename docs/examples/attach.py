import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from modulate import (
    Attachment,
    AttachmentReport,
    ClipInput,
    Frames,
    Message,
    ModulatedHost,
    Modulation,
    ModulationConfig,
    Picture,
    VideoClip,
    VisualGrid,
    read_frames,
    understand,
    visual_grid,
)
from modulate_gaze.scanpath import Scanpath

model = AutoModelForImageTextToText.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
processor = AutoProcessor.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
modulation = Modulation.from_pretrained("my-modulation")
config: ModulationConfig = modulation.config

# Frames at true times, and the prompt that shows them.
frames: Frames = read_frames("kitchen.mp4", [0.0, 1.0, 2.0, 3.0])
shown: VideoClip | Picture = VideoClip(frames, window=(0.0, 3.0))
conversation = [Message("user", (shown, "What am I looking at?"))]
prompt = understand(model).encode(processor, conversation)
grid: VisualGrid = prompt.grids[0]
assert grid == visual_grid(frames.times, 2, grid.rows, grid.cols, window=(0.0, 3.0))

# The clip's gaze, and a backbone's features of its frames on the same grid.
features = torch.randn(grid.steps, grid.tokens_per_step, config.d_features)
clip = ClipInput(Scanpath.read("gaze.csv"), grid, features)

attachment: Attachment = modulation.attach(model)
with attachment.condition([[clip]]):  # one row of the batch, with one clip
    answer = model.generate(**prompt.inputs, max_new_tokens=8)
report: AttachmentReport = attachment.report()
print(report.tokens, "visual tokens got a residual")
attachment.detach()  # the model is bit for bit what it was

# To train it: one module whose parameters are the modulation's alone.
trainable = ModulatedHost(Modulation.from_pretrained("my-modulation", is_trainable=True), model)
trainable([[clip]], **prompt.inputs).logits.mean().backward()
trainable.attachment.detach()

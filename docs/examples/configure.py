from transformers import AutoModelForImageTextToText

from modulate import ComponentSpec, Injection, LoraParams, Modulation, Tokens

model = AutoModelForImageTextToText.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
modulation = Modulation.for_host(
    model,
    encoder=ComponentSpec(name="coord_rel", params={"dim": 64}),
    modulator=ComponentSpec(name="gaze_resampler", params={"width": 64, "latents": 4}),
    injection=Injection(layers=(0, 1), tokens=Tokens(kind="visual")),
    lora=LoraParams(rank=4, targets=("q_proj", "v_proj")),
    d_features=1024,
)
modulation.save_pretrained("my-modulation")  # changes nothing yet: its output starts at zero

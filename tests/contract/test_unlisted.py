"""Families outside the contract: served right, or refused when attached with the true reason."""

import pytest
import torch
import transformers

from modulate import ClipInput, visual_grid
from modulate.errors import HostError
from modulate.hosts.host import understand
from modulate_hosts.contract import reference
from modulate_hosts.contract.families import LAYERS, MROPE, SIGLIP, VOCAB, WIDTH
from modulate_hosts.contract.prompts import BOS, END, IMAGE, PAD, START, VIDEO, noise
from modulate_hosts.contract.suite import close, strong
from tests.tiny import D_FEATURES, scanpath

T = transformers
IDS = dict(image_token_id=IMAGE, video_token_id=VIDEO)
PARTIAL = MROPE | {"partial_rotary_factor": 1.0}


def text_config(kind, **more):
    return (
        dict(
            model_type=kind,
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=256,
            bos_token_id=BOS,
            eos_token_id=2,
            pad_token_id=PAD,
        )
        | more
    )


def siglip(**more):
    return dict(model_type="siglip_vision_model", vision_use_head=False, **SIGLIP) | more


def grid(steps, rows, cols):
    return visual_grid([float(step) for step in range(steps)], 1, rows, cols, (0.0, 4.0))


def image(tokens):
    return [BOS, 12, START, *[IMAGE] * tokens, END, 7, 8]


# --- hosts


def paligemma():
    config = T.PaliGemmaConfig(
        vision_config=siglip(projection_dim=WIDTH),
        text_config=text_config("gemma"),
        image_token_index=IMAGE,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    return T.PaliGemmaForConditionalGeneration(config)


def llava():
    more = dict(
        image_token_index=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full"
    )
    return T.LlavaForConditionalGeneration(
        T.LlavaConfig(vision_config=siglip(), text_config=text_config("llama"), **more)
    )


def llava_next_video():
    more = dict(
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[16, 16]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        spatial_pool_stride=2,
    )
    return T.LlavaNextVideoForConditionalGeneration(
        T.LlavaNextVideoConfig(vision_config=siglip(), text_config=text_config("llama"), **more)
    )


def idefics3():
    more = dict(image_token_id=IMAGE, scale_factor=2, tie_word_embeddings=False)
    return T.Idefics3ForConditionalGeneration(
        T.Idefics3Config(vision_config=dict(SIGLIP), text_config=text_config("llama"), **more)
    )


def lfm2_vl():
    tower = dict(
        model_type="siglip2_vision_model",
        vision_use_head=False,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_patches=64,
        patch_size=4,
    )
    text = text_config(
        "lfm2", layer_types=["conv", "full_attention"] * 2, conv_L_cache=3, block_multiple_of=8
    )
    return T.Lfm2VlForConditionalGeneration(
        T.Lfm2VlConfig(
            vision_config=tower,
            text_config=text,
            image_token_id=IMAGE,
            downsample_factor=2,
            projector_hidden_size=32,
        )
    )


def glm4v():
    tower = dict(
        depth=1,
        hidden_size=16,
        intermediate_size=32,
        num_heads=2,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=WIDTH,
        image_size=16,
    )
    ends = dict(
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=10,
        video_end_token_id=11,
    )
    return T.Glm4vForConditionalGeneration(
        T.Glm4vConfig(
            vision_config=tower,
            text_config=text_config("glm4v_text", rope_parameters=PARTIAL),
            **IDS,
            **ends,
        )
    )


def llama4():
    tower = dict(
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        pixel_shuffle_ratio=0.5,
        projector_input_dim=16,
        projector_output_dim=16,
        vision_output_dim=16,
    )
    text = text_config(
        "llama4_text",
        intermediate_size_mlp=64,
        num_local_experts=2,
        moe_layers=[],
        attention_chunk_size=16,
        interleave_moe_layer_step=0,
    )
    return T.Llama4ForConditionalGeneration(
        T.Llama4Config(
            vision_config=tower,
            text_config=text,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        )
    )


def gemma4():
    text = text_config(
        "gemma4_text",
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=64,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        global_head_dim=8,
        num_global_key_value_heads=2,
    )
    tower = dict(
        model_type="gemma4_vision",
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        patch_size=4,
        pooling_kernel_size=2,
        position_embedding_size=64,
    )
    more = dict(audio_config=None, boi_token_id=START, eoi_token_id=END)
    return T.Gemma4ForConditionalGeneration(
        T.Gemma4Config(text_config=text, vision_config=tower, **IDS, **more)
    )


def qwen3_5():
    text = text_config(
        "qwen3_5_text",
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=PARTIAL,
    )
    tower = dict(
        depth=1,
        hidden_size=16,
        intermediate_size=32,
        num_heads=2,
        patch_size=4,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=WIDTH,
        num_position_embeddings=16,
    )
    return T.Qwen3_5ForConditionalGeneration(
        T.Qwen3_5Config(
            vision_config=tower,
            text_config=text,
            vision_start_token_id=START,
            vision_end_token_id=END,
            **IDS,
        )
    )


def queries(cls, config, **more):
    former = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        encoder_hidden_size=16,
        cross_attention_frequency=1,
        vocab_size=VOCAB,
    )
    return cls(
        config(
            vision_config=dict(SIGLIP),
            qformer_config=former,
            text_config=text_config("llama"),
            num_query_tokens=4,
            image_token_index=IMAGE,
            **more,
        )
    )


def blip_2():
    return queries(T.Blip2ForConditionalGeneration, T.Blip2Config)


def instructblip():
    return queries(T.InstructBlipForConditionalGeneration, T.InstructBlipConfig)


def instructblipvideo():
    return queries(
        T.InstructBlipVideoForConditionalGeneration,
        T.InstructBlipVideoConfig,
        video_token_index=VIDEO,
    )


# --- served

PICTURE = dict(pixel_values=noise(1, 3, 16, 16, seed=1))
FRAMES = [BOS, 10, *[START, *[IMAGE] * 6, END, 20] * 2, 11, 7, 8]
CLIPS = [BOS, *[START, *[VIDEO] * 6, END, 20] * 2, 7, 8]
MOVING = dict(pixel_values_videos=noise(48, 96, seed=1), video_grid_thw=torch.tensor([[2, 4, 6]]))
PATCHES = torch.tensor([[[col, row] for row in range(4) for col in range(4)]])


def token_types(ids, code, placeholder):
    return torch.tensor([[code if token == placeholder else 0 for token in ids]])


HOSTS = {
    "paligemma without types": (paligemma, image(16), grid(1, 4, 4), PICTURE),
    "paligemma as its processor has it: pictures of type 0": (
        paligemma,
        image(16),
        grid(1, 4, 4),
        PICTURE | {"token_type_ids": torch.zeros(1, 22, dtype=torch.long)},
    ),
    "paligemma with an answer of type 1": (
        paligemma,
        image(16),
        grid(1, 4, 4),
        PICTURE | {"token_type_ids": torch.tensor([[0] * 20 + [1] * 2])},
    ),
    "llava": (llava, image(16), grid(1, 4, 4), PICTURE),
    "llava_next_video": (
        llava_next_video,
        [BOS, *[VIDEO] * 8, 7, 8],
        grid(2, 2, 2),
        dict(pixel_values_videos=noise(1, 2, 3, 16, 16, seed=1)),
    ),
    "idefics3": (
        idefics3,
        image(4),
        grid(1, 2, 2),
        dict(pixel_values=noise(1, 1, 3, 16, 16, seed=1)),
    ),
    "lfm2_vl": (
        lfm2_vl,
        image(4),
        grid(1, 2, 2),
        dict(
            pixel_values=noise(1, 16, 48, seed=1),
            spatial_shapes=torch.tensor([[4, 4]]),
            pixel_attention_mask=torch.ones(1, 16, dtype=torch.long),
        ),
    ),
    "glm4v, whose frames are images": (
        glm4v,
        FRAMES,
        grid(2, 2, 3),
        MOVING | {"mm_token_type_ids": token_types(FRAMES, 2, IMAGE)},
    ),
    "llama4": (llama4, image(4), grid(1, 2, 2), PICTURE),
    "gemma4": (
        gemma4,
        image(4),
        grid(1, 2, 2),
        dict(
            pixel_values=noise(1, 16, 48, seed=1),
            image_position_ids=PATCHES,
            mm_token_type_ids=token_types(image(4), 1, IMAGE),
        ),
    ),
    "qwen3_5": (
        qwen3_5,
        CLIPS,
        grid(2, 2, 3),
        MOVING | {"mm_token_type_ids": token_types(CLIPS, 2, VIDEO)},
    ),
}
QUICK = ("paligemma", "llava")


def layers_of(host):
    decoder = host.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.model.layers


class Example:
    """A host and its inputs with one picture or clip."""

    def __init__(self, build, ids, grid, more):
        torch.manual_seed(0)
        self.host = build().eval().requires_grad_(False)
        self.host.generation_config.eos_token_id = None
        self.host.generation_config.pad_token_id = PAD
        self.inputs = dict(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            **more,
        )
        self.positions = [position for position, token in enumerate(ids) if token in (IMAGE, VIDEO)]
        features = torch.randn(
            grid.steps,
            grid.tokens_per_step,
            D_FEATURES,
            generator=torch.Generator().manual_seed(9),
        )
        self.clip = ClipInput(scanpath(), grid, features)
        self.modulation = strong(self.host, lora=True)

    def expected(self, call):
        """Return what ``call`` gives with merged LoRA, and residuals added by plain hooks."""
        handles = []
        for k, layer in enumerate(self.modulation.config.injection.layers):
            rows = torch.stack(reference.residual_rows(self.modulation, k, self.clip))

            def add(module, args, output, rows=rows):
                hidden = output[0] if isinstance(output, tuple) else output
                if hidden.shape[1] <= max(self.positions):
                    return None
                hidden = hidden.clone()
                hidden[:, self.positions] += rows
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            handles.append(layers_of(self.host)[layer].register_forward_hook(add))
        try:
            with reference.merged(self.host, self.modulation):
                return call()
        finally:
            for handle in handles:
                handle.remove()

    def conditioned(self, call):
        with self.modulation.attached(self.host) as attachment, attachment.condition([[self.clip]]):
            return call()


CELLS = [
    pytest.param(name, marks=[] if name.split(" ")[0] in QUICK else pytest.mark.slow)
    for name in HOSTS
]


@pytest.mark.parametrize("name", CELLS)
@torch.no_grad()
def test_forward_and_generation_are_right(name):
    example = Example(*HOSTS[name])
    forward = lambda: example.host(**example.inputs).logits
    try:
        bare = forward()
    except AttributeError as error:
        pytest.skip(f"the bare host of this transformers fails: {error}")
    got = example.conditioned(forward)
    close(got, example.expected(forward), atol=1e-3)
    assert not torch.allclose(got, bare, atol=1e-2)
    generate = lambda: example.host.generate(
        **example.inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    assert torch.equal(example.conditioned(generate), example.expected(generate))


# --- refused


def mllama():
    tower = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        image_size=16,
        patch_size=4,
        max_num_tiles=1,
        intermediate_layers_indices=[0],
        vision_output_dim=32,
        supported_aspect_ratios=[[1, 1]],
    )
    text = text_config(
        "mllama_text_model",
        cross_attention_layers=[1, 3],
        rope_parameters=dict(rope_type="default", rope_theta=1000.0),
    )
    return T.MllamaForConditionalGeneration(
        T.MllamaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE)
    )


def gemma3n():
    text = text_config(
        "gemma3n_text",
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=64,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        altup_num_inputs=4,
        num_kv_shared_layers=0,
        laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4,
        intermediate_size=[64] * 4,
    )
    sound = dict(
        hidden_size=16,
        conf_num_hidden_layers=1,
        conf_num_attention_heads=2,
        vocab_size=4,
        vocab_offset=60,
    )
    tower = dict(model_type="gemma3n_vision", hidden_size=16, vocab_size=4, vocab_offset=56)
    return T.Gemma3nForConditionalGeneration(
        T.Gemma3nConfig(
            text_config=text,
            audio_config=sound,
            vision_config=tower,
            image_token_id=IMAGE,
            audio_token_id=9,
            vision_soft_tokens_per_image=4,
        )
    )


def chameleon():
    codes = dict(
        embed_dim=8,
        num_embeddings=8,
        base_channels=32,
        channel_multiplier=[1],
        num_res_blocks=1,
        double_latent=False,
        latent_channels=8,
    )
    text = {
        name: value
        for name, value in text_config("").items()
        if name not in ("model_type", "head_dim")
    }
    names = {
        "<image>": IMAGE,
        **{f"IMGIMG{letter}Z": 40 + number for number, letter in enumerate("ABCDEFGH")},
    }
    return T.ChameleonForConditionalGeneration(
        T.ChameleonConfig(**text, vq_config=codes, vocabulary_map=names)
    )


def text_alone():
    return T.Qwen2ForCausalLM(
        T.Qwen2Config(
            **{name: value for name, value in text_config("qwen2").items() if name != "model_type"}
        )
    )


def two_towers(model, config):
    part = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return lambda: model(
        config(text_config=part, vision_config=part | dict(image_size=16, patch_size=4))
    )


QUERIES = r"cannot be modulated: its visual tokens are a Q-Former's queries, .* and its `generate`"

REFUSED = {
    "blip_2": (blip_2, f"Blip2ForConditionalGeneration {QUERIES}"),
    "instructblip": (instructblip, f"InstructBlipForConditionalGeneration {QUERIES}"),
    "instructblipvideo": (
        instructblipvideo,
        f"InstructBlipVideoForConditionalGeneration {QUERIES}",
    ),
    "mllama": (
        mllama,
        (
            r"MllamaForConditionalGeneration cannot be modulated: vision reaches its decoder by"
            r" cross-attention \(`cross_attn` of layer 1\)"
        ),
    ),
    "gemma3n": (
        gemma3n,
        (
            r"Gemma3nForConditionalGeneration cannot be modulated: its decoder layers hand on 4"
            r" states of each token"
        ),
    ),
    "chameleon": (
        chameleon,
        (
            r"ChameleonForConditionalGeneration is not understood as a multimodal host: .* has no"
            r" vision_config"
        ),
    ),
    "qwen2": (
        text_alone,
        r"Qwen2ForCausalLM is not understood as a multimodal host: .* has no vision_config",
    ),
    "clip": (
        two_towers(T.CLIPModel, T.CLIPConfig),
        r"CLIPTextModel is not understood as a language model: looked for `layers`",
    ),
    "siglip": (
        two_towers(T.SiglipModel, T.SiglipConfig),
        r"SiglipTextModel is not understood as a language model: looked for `layers`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_host_that_cannot_be_served_is_refused_when_it_is_attached(name):
    build, message = REFUSED[name]
    with pytest.raises(HostError, match=message):
        understand(build())

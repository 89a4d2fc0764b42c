"""CLIP in the naming of OpenAI and open_clip: to and from Hugging Face's, and run as it stands.

Running it as it stands, from the bare tensors, is what conversions and exports are checked by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, linear, scaled_dot_product_attention
from transformers import CLIPConfig, CLIPModel

from gmail_align.convert.config import Activation
from gmail_align.encoders.backbones.clip import KEPT
from gmail_align.errors import ModelError

State = Mapping[str, Tensor]
SCALARS = {"input_resolution", "context_length", "vocab_size"}
"""Entries that only OpenAI's own archives have; their models use QuickGELU."""
RESIDUAL = "positional_embedding_res"
"""Long-CLIP's trained position table, used behind the kept rows."""
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Vision width -> width of a head in open_clip's H, g and G; 64 everywhere else."""
_TOP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TURNED = {"visual.proj", "text_projection"}
"""Matrices that are applied from the right there and from the left in Hugging Face's naming."""
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOWERS = {"visual.transformer": "vision_model", "transformer": "text_model"}
_RESBLOCK = re.compile(r"(visual\.transformer|transformer)\.resblocks\.(\d+)\.(.+)\.?(weight|bias)")


@dataclass(frozen=True)
class TowerOptions:
    """What the weights of a tower do not tell."""

    heads: int
    epsilon: float = 1e-5
    """Added to the variance in layer norms."""


@dataclass(frozen=True)
class ClipOptions:
    """What the weights of a CLIP do not tell."""

    activation: Activation
    vision: TowerOptions
    text: TowerOptions
    end_of_text: int | None = None
    """The token at which texts are pooled; None for the largest id of each text."""


@dataclass(frozen=True)
class Shape:
    """What the tensors' shapes say of a model; heads are a guess by the width."""

    width: int
    layers: int
    heads: int
    patch: int
    image_size: int
    text_width: int
    text_layers: int
    text_heads: int
    vocabulary: int
    positions: int
    dim: int
    feed_forward: int
    text_feed_forward: int


def is_openai(state: State) -> bool:
    """Whether the names are those of OpenAI's and open_clip's CLIPs with a ViT."""
    return "visual.conv1.weight" in state and "visual.proj" in state


def normalise_state(state: State) -> dict[str, Tensor]:
    """Return the state in one form: fp32, no scalars, one position table, one text projection.

    Raises:
        ModelError: Long-CLIP's two position tables do not fit each other.
    """
    short = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    plain = {
        name: tensor.float()
        for name, tensor in short.items()
        if name not in SCALARS and not name.endswith("attn_mask")
    }
    if "text_projection.weight" in plain:
        plain["text_projection"] = plain.pop("text_projection.weight").T
    residual = plain.pop(RESIDUAL, None)
    if residual is not None:
        table = plain["positional_embedding"]
        if residual.shape != table.shape:
            raise ModelError(
                f"{RESIDUAL} has shape {tuple(residual.shape)}, positional_embedding "
                f"{tuple(table.shape)}: this is not a Long-CLIP"
            )
        plain["positional_embedding"] = torch.cat([table[:KEPT], residual[KEPT:]])
    return plain


def read_shape(state: State) -> Shape:
    """Read a model's shape off its tensors, as OpenAI's own code does.

    Raises:
        ModelError: a tensor is missing, or patches are not laid out in a square.
    """
    try:
        width, _, patch, _ = state["visual.conv1.weight"].shape
        cells = len(state["visual.positional_embedding"]) - 1
        vocabulary, text_width = state["token_embedding.weight"].shape
        side = round(cells**0.5)
        shape = Shape(
            width=width,
            layers=_depth(state, "visual.transformer"),
            heads=max(1, width // _HEAD_WIDTHS.get(width, 64)),
            patch=patch,
            image_size=patch * side,
            text_width=text_width,
            text_layers=_depth(state, "transformer"),
            text_heads=max(1, text_width // 64),
            vocabulary=vocabulary,
            positions=len(state["positional_embedding"]),
            dim=state["visual.proj"].shape[1],
            feed_forward=len(state["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
            text_feed_forward=len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
        )
    except KeyError as error:
        raise ModelError(f"the weights lack {error}: this is not a CLIP of two ViTs") from error
    if side * side != cells:
        raise ModelError(f"the weights have {cells} image positions, which do not form a square")
    return shape


def build_hf(state: State, options: ClipOptions) -> CLIPModel:
    """Build Hugging Face's model of a normalised state, in fp32.

    Args:
        state: What :func:`normalise_state` returned.
        options: What the weights do not tell.

    Raises:
        ModelError: a tensor is missing, unknown or of another shape, or the heads do not divide
            the width.
    """
    shape = read_shape(state)
    for width, tower in ((shape.width, options.vision), (shape.text_width, options.text)):
        if tower.heads < 1 or width % tower.heads:
            raise ModelError(f"{tower.heads} attention heads do not divide a width of {width}")
    end = shape.vocabulary - 1 if options.end_of_text is None else options.end_of_text
    text = {
        "hidden_size": shape.text_width,
        "num_hidden_layers": shape.text_layers,
        "num_attention_heads": options.text.heads,
        "layer_norm_eps": options.text.epsilon,
        "intermediate_size": shape.text_feed_forward,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "bos_token_id": shape.vocabulary - 2,
        "eos_token_id": end,
        "pad_token_id": shape.vocabulary - 1,
        "hidden_act": options.activation,
    }
    vision = {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": options.vision.heads,
        "layer_norm_eps": options.vision.epsilon,
        "intermediate_size": shape.feed_forward,
        "image_size": shape.image_size,
        "patch_size": shape.patch,
        "hidden_act": options.activation,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape.dim))
    load_strictly(model, to_hf(state))
    return model.eval()


def load_strictly(model: torch.nn.Module, state: State) -> None:
    """Load a state that has to fit in every name and shape.

    Raises:
        ModelError: it does not.
    """
    wanted = model.state_dict()
    odd = sorted(set(state) ^ set(wanted))
    if odd:
        fault = "is missing" if odd[0] in wanted else "is unknown"
        raise ModelError(f"the weights do not fit: {odd[0]} {fault}")
    for name, tensor in wanted.items():
        if tensor.shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            raise ModelError(f"the weights do not fit: {name} has shape {shapes}")
    model.load_state_dict(dict(state))


def to_hf(state: State) -> dict[str, Tensor]:
    """Rename a normalised state to Hugging Face's naming; unknown names stay as they are."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _RESBLOCK.fullmatch(name)
        if name in _TOP:
            renamed[_TOP[name]] = tensor.T.contiguous() if name in _TURNED else tensor
        elif block is None:
            renamed[name] = tensor
        else:
            tower, layer, part, kind = block.groups()
            place = f"{_TOWERS[tower]}.encoder.layers.{layer}"
            part = part.rstrip("._")
            if part == "attn.in_proj":
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{place}.self_attn.{letter}_proj.{kind}"] = third.clone()
            else:
                renamed[f"{place}.{_BLOCK.get(part, part)}.{kind}"] = tensor
    return renamed


def to_openai(state: State) -> dict[str, Tensor]:
    """Rename Hugging Face's naming to OpenAI's and open_clip's."""
    top = {ours: theirs for theirs, ours in _TOP.items()}
    block = {ours: theirs for theirs, ours in _BLOCK.items()}
    towers = {ours: theirs for theirs, ours in _TOWERS.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in top:
            turned = top[name] in _TURNED
            renamed[top[name]] = (tensor.T if turned else tensor).contiguous().clone()
            continue
        tower, _, _, layer, rest = name.split(".", 4)
        place = f"{towers[tower]}.resblocks.{layer}"
        part, _, kind = rest.rpartition(".")
        if part == "self_attn.q_proj":
            stem = name.removesuffix(f"q_proj.{kind}")
            thirds = [state[f"{stem}{letter}_proj.{kind}"] for letter in "qkv"]
            renamed[f"{place}.attn.in_proj_{kind}"] = torch.cat(thirds)
        elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
            renamed[f"{place}.{block[part]}.{kind}"] = tensor.clone()
    return renamed


@torch.no_grad()
def encode_image(
    state: State, pixels: Float[Tensor, "b 3 h w"], options: ClipOptions
) -> Float[Tensor, "b dim"]:
    """Run the image tower on bare tensors in OpenAI's naming."""
    shape = read_shape(state)
    patches = conv2d(pixels, state["visual.conv1.weight"], stride=shape.patch)
    tokens = patches.flatten(2).transpose(1, 2)
    first = state["visual.class_embedding"].expand(len(tokens), 1, -1)
    hidden = torch.cat([first, tokens], dim=1) + state["visual.positional_embedding"]
    tower = BareTower(state, options.vision, options.activation)
    hidden = tower.run("visual.transformer", tower.norm("visual.ln_pre", hidden), shape.layers)
    return tower.norm("visual.ln_post", hidden[:, 0]) @ state["visual.proj"]


@torch.no_grad()
def encode_text(
    state: State, ids: Int[Tensor, "m t"], options: ClipOptions
) -> Float[Tensor, "m dim"]:
    """Run the text tower on bare tensors in OpenAI's naming."""
    shape = read_shape(state)
    hidden = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
    tower, end = BareTower(state, options.text, options.activation), options.end_of_text
    hidden = tower.norm("ln_final", tower.run("transformer", hidden, shape.text_layers, True))
    places = ids.argmax(dim=-1) if end is None else (ids == end).int().argmax(dim=-1)
    return hidden[torch.arange(len(ids)), places] @ state["text_projection"]


@dataclass(frozen=True)
class BareTower:
    """A transformer of bare tensors, which are found by their names."""

    state: State
    options: TowerOptions
    activation: Activation = "gelu"
    blocks: str = "{tower}.resblocks.{layer}"
    """Name of a layer."""
    parts: tuple[str, ...] = (
        *("ln_1", "attn.in_proj_", "attn.out_proj"),
        *("ln_2", "mlp.c_fc", "mlp.c_proj"),
    )
    """Names of a layer's norm, its projection to queries, keys and values (with what precedes
    ``weight``), its output projection, its second norm and its feed-forward pass."""

    def run(
        self, tower: str, hidden: Float[Tensor, "b t width"], layers: int, causal: bool = False
    ) -> Float[Tensor, "b t width"]:
        """Return what the layers of ``tower`` make of tokens."""
        batch, length, width = hidden.shape
        heads, (first, mix, out, second, wide, narrow) = self.options.heads, self.parts
        for layer in range(layers):
            place = self.blocks.format(tower=tower, layer=layer)
            normed = self.norm(f"{place}.{first}", hidden)
            bias = self.state.get(f"{place}.{mix}bias")
            mixed = linear(normed, self.state[f"{place}.{mix}weight"], bias)
            q, k, v = mixed.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            attended = scaled_dot_product_attention(q, k, v, is_causal=causal)
            attended = attended.transpose(1, 2).reshape(batch, length, width)
            hidden = hidden + self._linear(f"{place}.{out}", attended)
            inner = self._linear(f"{place}.{wide}", self.norm(f"{place}.{second}", hidden))
            plain = self.activation == "gelu"
            inner = gelu(inner) if plain else inner * torch.sigmoid(1.702 * inner)
            hidden = hidden + self._linear(f"{place}.{narrow}", inner)
        return hidden

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        """Apply a layer norm."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return layer_norm(hidden, weight.shape, weight, bias, self.options.epsilon)

    def _linear(self, name: str, hidden: Tensor) -> Tensor:
        return linear(hidden, self.state[f"{name}.weight"], self.state[f"{name}.bias"])


def _depth(state: State, tower: str) -> int:
    start = f"{tower}.resblocks."
    return len({name[len(start) :].split(".")[0] for name in state if name.startswith(start)})

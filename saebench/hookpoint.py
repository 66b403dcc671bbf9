"""Names of places in a language model, in both dialects (TransformerLens and Hugging Face).

A hook point is a layer and a site. It prints under its TransformerLens name, which most SAE checkpoints use; the two
normalised inputs have no exact TransformerLens name and print under their Hugging Face name.
"""

import re
from dataclasses import dataclass, field

from saebench.errors import UsageError

# site -> printed name. TransformerLens's ln1.hook_normalized is another place: before the norm's weight.
_PRINTED = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "z": "blocks.{}.attn.hook_z",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "ln1_out": "model.layers.{}.input_layernorm",
    "ln2_out": "model.layers.{}.post_attention_layernorm",
    "activations": "activations",
}

# Suffix after `model.layers.L` in the Hugging Face dialect (Llama's module names).
_HF_SUFFIX = {
    "": "resid_post",
    ".output": "resid_post",
    ".input": "resid_pre",
    ".mlp": "mlp_out",
    ".mlp.output": "mlp_out",
    ".mlp.input": "ln2_out",
    ".self_attn": "attn_out",
    ".self_attn.output": "attn_out",
    ".self_attn.o_proj.input": "z",
    ".mlp.down_proj.input": "mlp_post",
    ".input_layernorm": "ln1_out",
    ".input_layernorm.output": "ln1_out",
    ".post_attention_layernorm": "ln2_out",
    ".post_attention_layernorm.output": "ln2_out",
    ".post_attention_layernorm.input": "resid_mid",
}
_TL_SUFFIX = {form.split("{}.")[1]: site for site, form in _PRINTED.items() if form.startswith("blocks")}

# Sites inside a block: (module below the block, its input or output). resid_mid is read and written through attention's
# output, because the residual stream bypasses every module between the two.
_PRE_NORM = {
    "mlp_out": ("mlp", "out"),
    "attn_out": ("self_attn", "out"),
    "resid_mid": ("self_attn", "mid"),
    "z": ("self_attn.o_proj", "in"),
    "mlp_post": ("mlp.down_proj", "in"),
    "ln1_out": ("input_layernorm", "out"),
    "ln2_out": ("post_attention_layernorm", "out"),
}
SANDWICH = {  # Gemma 2 and 3 normalise what attention and the MLP add
    "mlp_out": ("post_feedforward_layernorm", "out"),
    "attn_out": ("post_attention_layernorm", "out"),
    "resid_mid": ("post_attention_layernorm", "mid"),
    "z": ("self_attn.o_proj", "in"),
    "mlp_post": ("mlp.down_proj", "in"),
    "ln1_out": ("input_layernorm", "out"),
    "ln2_out": ("pre_feedforward_layernorm", "out"),
}
# On Gemma 2 and 3, Llama's module name for these sites is a module before the norm, or another norm.
MOVED_ON_GEMMA = frozenset({"mlp_out", "attn_out", "ln2_out", "resid_mid"})
_GPT2 = {
    "mlp_out": ("mlp", "out"),
    "attn_out": ("attn", "out"),
    "resid_mid": ("attn", "mid"),
    "z": ("attn.c_proj", "in"),
    "mlp_post": ("mlp.c_proj", "in"),
    "ln1_out": ("ln_1", "out"),
    "ln2_out": ("ln_2", "out"),
}
_GPT_NEOX = {  # attention and MLP run side by side here: there is no resid_mid
    "mlp_out": ("mlp", "out"),
    "attn_out": ("attention", "out"),
    "z": ("attention.dense", "in"),
    "mlp_post": ("mlp.dense_4h_to_h", "in"),
    "ln1_out": ("input_layernorm", "out"),
    "ln2_out": ("post_attention_layernorm", "out"),
}
MODULES = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "phi3", "olmo"), _PRE_NORM),
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma3"), SANDWICH),
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
}

_TL = re.compile(r"^blocks\.([0-9]{1,6})\.(.+)$")
_HF = re.compile(r"^(?:model\.|gpt_neox\.|transformer\.)?(?:layers|h)\.([0-9]{1,6})((?:\.[a-z_0-9]+)*)$")
_DICTIONARY_LEARNING = re.compile(r"^(resid_post|resid_pre|mlp_out|attn_out)_layer_([0-9]{1,6})$")


@dataclass(frozen=True, order=True)
class HookPoint:
    """A place in a decoder: `layer` counts from 0, `site` is one of `HookPoint.SITES`."""

    layer: int
    site: str
    # Whether the name was a module's: on Gemma 2 and 3 that module is at another place than the site (see Subject.require).
    as_module: bool = field(default=False, compare=False, repr=False)

    SITES = tuple(site for site in _PRINTED if site != "activations")

    def __str__(self) -> str:
        return _PRINTED[self.site].format(self.layer)

    @property
    def on_stream(self) -> bool:
        """Whether the site is on the residual stream between two blocks."""
        return self.site in ("resid_pre", "resid_post")

    @classmethod
    def parse(cls, name: str) -> "HookPoint":
        """Parse a name in either dialect; also `layers.L` and `resid_post_layer_L`.

        Raises:
            UsageError: the name is in neither dialect, or its place has no exact counterpart.
        """
        name = " ".join(name.split())  # an error is one line, whatever a config contains
        if match := _TL.match(name):
            site = _TL_SUFFIX.get(match[2])
            if site:
                return cls(int(match[1]), site)
        elif match := _HF.match(name):
            site = _HF_SUFFIX.get(match[2])
            if site:
                return cls(int(match[1]), site, as_module=True)
        elif match := _DICTIONARY_LEARNING.match(name):
            return cls(int(match[2]), match[1])
        elif name == _PRINTED["activations"]:
            return cls(0, name)
        if name.endswith("hook_normalized"):
            raise UsageError(
                f"hook point '{name}' is taken before the norm's weight and has no Hugging Face counterpart: "
                "use --hook model.layers.L.input_layernorm (or .post_attention_layernorm) if the SAE was trained there"
            )
        raise UsageError(f"unknown hook point '{name}': write it like blocks.15.hook_resid_post or model.layers.15.mlp")


# The only hook point of a source that is no language model: a file of activations, a planted model.
ACTIVATIONS = HookPoint(0, "activations")

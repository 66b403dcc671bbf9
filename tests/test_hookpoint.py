"""Names of places: both dialects mean the same place, one is printed, nonsense is one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saebench.errors import SaebenchError, UsageError
from saebench.hookpoint import HookPoint

# The table of the documentation, written out: (printed, other names of the same place).
TABLE = [
    ("blocks.3.hook_resid_post", ["model.layers.3", "layers.3", "model.layers.3.output", "resid_post_layer_3", "transformer.h.3",
                                  "gpt_neox.layers.3", "h.3"]),
    ("blocks.3.hook_resid_pre", ["model.layers.3.input", "layers.3.input", "resid_pre_layer_3"]),
    ("blocks.3.hook_resid_mid", ["model.layers.3.post_attention_layernorm.input"]),
    ("blocks.3.hook_mlp_out", ["model.layers.3.mlp", "model.layers.3.mlp.output", "layers.3.mlp", "mlp_out_layer_3"]),
    ("blocks.3.hook_attn_out", ["model.layers.3.self_attn", "model.layers.3.self_attn.output", "attn_out_layer_3"]),
    ("blocks.3.attn.hook_z", ["model.layers.3.self_attn.o_proj.input"]),
    ("blocks.3.mlp.hook_post", ["model.layers.3.mlp.down_proj.input"]),
    ("model.layers.3.input_layernorm", ["layers.3.input_layernorm", "model.layers.3.input_layernorm.output"]),
    ("model.layers.3.post_attention_layernorm", ["model.layers.3.mlp.input", "model.layers.3.post_attention_layernorm.output"]),
]  # fmt: skip


@pytest.mark.parametrize(("printed", "others"), TABLE)
def test_both_dialects_name_one_place_and_one_is_printed(printed: str, others: list[str]):
    place = HookPoint.parse(printed)
    assert place.layer == 3
    for name in [printed, *others, f"  {printed}\n"]:
        assert HookPoint.parse(name) == place
        assert str(HookPoint.parse(name)) == printed


def test_every_site_has_its_own_name_and_comes_back_from_it():
    places = [HookPoint(layer, site) for layer in (0, 7, 123) for site in HookPoint.SITES]
    assert len({str(p) for p in places}) == len(places)
    assert [HookPoint.parse(str(p)) for p in places] == places
    assert len(TABLE) == len(HookPoint.SITES)


@pytest.mark.parametrize(
    "name",
    ["", " ", "blocks", "blocks.3", "blocks.3.", "blocks.x.hook_resid_post", "blocks.-1.hook_resid_post",
     "blocks.3.hook_resid_Post", "blocks.3.hook_resid_post.", "blocks.3.hook_resid_post.hook_z", "blocks.1.5.hook_resid_post",
     "xblocks.3.hook_resid_post", "model.layers", "model.layers.", "model.layers.three", "model.layers.3.mlp.up_proj",
     "model.layers.3.post_feedforward_layernorm", "model.layers.3.mlp\nmodel.layers.4.mlp", "embed_tokens",
     "ln_final.hook_normalized",
     "blocks.3.ln1.hook_normalized", "blocks.3.ln2.hook_normalized", "resid_mid_layer_3", "resid_post_layer_", "trainer_0",
     "blocks.٣.hook_resid_post", "blocks.3.hook_q"],
)  # fmt: skip
def test_nonsense_is_refused_in_one_line(name: str):
    with pytest.raises(UsageError) as caught:
        HookPoint.parse(name)
    assert "\n" not in str(caught.value)
    assert "model.layers" in str(caught.value)  # says how it is written


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(name: str):
    try:
        place = HookPoint.parse(name)
    except SaebenchError as error:
        refusal = str(error)
        assert "\n" not in refusal
    else:
        assert HookPoint.parse(str(place)) == place

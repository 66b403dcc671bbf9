"""A tiny language model, and SAEs whose scores are known."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saebench.sae import SAE, JumpReLU, Metadata, ReLU, TopK


def tiny_llama(folder: Path, *, layers: int = 4, width: int = 32, vocabulary: int = 97, seed: int = 0) -> Path:
    """Save a random Llama that runs in milliseconds, without a tokenizer (use token ids); returns its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # The default initialisation is so small that every layer is nearly the identity.
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3 if parameter.ndim > 1 else 0.1).add_(0.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    return folder


def random_sae(d_in: int = 32, d_sae: int = 64, *, k: int | None = 8, seed: int = 0, **metadata: Any) -> SAE:
    """A random TopK SAE (ReLU if k is None): unit decoder rows, a nearly tied encoder, and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    W_enc = W_dec.T.clone() + 0.01 * torch.randn(d_in, d_sae, generator=generator)
    b_enc, b_dec = (0.1 * torch.randn(n, generator=generator) for n in (d_sae, d_in))
    activation = ReLU() if k is None else TopK(k)
    return SAE(W_enc, W_dec, b_enc, b_dec, activation, True, metadata=Metadata(declared_l0=k, **metadata))


def identity_sae(d: int, **metadata: Any) -> SAE:
    """An SAE of 2d latents whose reconstruction is its input, bit for bit."""
    eye = torch.eye(d)
    W_enc = torch.cat([eye, -eye], 1)
    return SAE(
        W_enc, W_enc.T.contiguous(), torch.zeros(2 * d), torch.zeros(d), ReLU(), False, metadata=Metadata(**metadata)
    )


def constant_sae(value: Tensor, **metadata: Any) -> SAE:
    """An SAE whose latents never fire, so that its reconstruction is always `value` [d]."""
    d = len(value)
    silent = JumpReLU(torch.tensor(math.inf).clamp(max=3e38))
    zeros = torch.zeros(d, d)
    return SAE(zeros, zeros.clone(), torch.zeros(d), value, silent, False, metadata=Metadata(**metadata))

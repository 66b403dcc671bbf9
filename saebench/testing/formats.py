"""`check_format`: proves on one good checkpoint that a format keeps its contract."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from saebench.errors import SaebenchError
from saebench.format import CheckpointError, Format, LoadOptions
from saebench.loading.checkpoint import read_as
from saebench.sae import SAE


def check_format(
    format: Format,
    path: Path,
    *,
    options: LoadOptions | None = None,
    x: Tensor | None = None,
    latents: Tensor | None = None,
    out: Tensor | None = None,
) -> None:
    """Prove on one good checkpoint that a format keeps its contract.

    - It recognises the checkpoint, and not an empty folder.
    - Two loads give the same SAE, and every convention names its source.
    - Latents and reconstruction equal those of the library that wrote the checkpoint.
    - A checkpoint that it writes, it reads back.
    - Damaged copies (truncated, emptied, an unknown config key) raise a SaebenchError of one line.

    Args:
        format: the format.
        path: a checkpoint of it, a file or a folder.
        options: for a checkpoint that needs them.
        x: [n, d_in] activations; a check without them proves little.
        latents, out: [n, d_sae] and [n, d_out], computed from x by the library that wrote the checkpoint.

    Raises:
        AssertionError: the contract is broken.
    """
    options = options or LoadOptions()
    sae = read_as(format, path, options)
    assert sae.sha256() == read_as(format, path, options).sha256(), "two loads of one checkpoint differ"
    assert sae.metadata.facts, "no convention is recorded: pass Metadata(facts=...), each with its source"
    for fact in sae.metadata.facts:
        assert fact.value, f"convention '{fact.name}' has no value"
        assert fact.source, f"convention '{fact.name}' has no source"
    if x is not None:
        if latents is not None:
            _near(sae.encode(x).dense(), latents, "latents")
        if out is not None:
            _near(sae(x), out, "the reconstruction")
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty")
        empty.mkdir()
        assert format.matches(path), f"matches({path}) is False"
        assert not format.matches(empty), "an empty folder matches"
        assert not format.matches(empty / "absent"), "a path that does not exist matches"
        _check_writing(format, sae, Path(folder, "written"))
        _check_damage(format, path, options, Path(folder, "damaged"))


def _near(found: Tensor, wanted: Tensor, name: str) -> None:
    assert found.shape == wanted.shape, f"{name}: shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    worst = float((found - wanted).abs().max())
    assert worst <= 1e-5 * float(wanted.abs().max()), f"{name}: off by up to {worst:g}"


def _check_writing(format: Format, sae: SAE, folder: Path) -> None:
    if type(format).save is Format.save:
        return
    try:
        format.save(sae, folder)
    except CheckpointError:
        return  # the format cannot hold this SAE
    again = read_as(format, folder, LoadOptions())
    x = torch.randn(32, sae.d_in, generator=torch.Generator().manual_seed(0))
    _near(again.encode(x).dense(), sae.encode(x).dense(), "latents after writing and reading")
    _near(again(x), sae(x), "reconstructions after writing and reading")


def _check_damage(format: Format, path: Path, options: LoadOptions, folder: Path) -> None:
    for damage, damaged in _damaged(path, folder):
        format.matches(damaged)  # must not raise
        refusal = _refusal(format, damaged, options)
        assert refusal, f"{damage}: the copy loads without an error"
        assert len(refusal.splitlines()) == 1, f"{damage}: the error has more than one line"


def _refusal(format: Format, path: Path, options: LoadOptions) -> str:
    """The error of loading the checkpoint at `path`; empty where there is none."""
    try:
        read_as(format, path, options)
    except SaebenchError as error:
        return str(error)
    return ""


def _damaged(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Damaged copies of a checkpoint, each with the name of its damage."""
    weights, configs = (".safetensors", ".pt", ".pth", ".npz"), (".json",)
    for damage, suffixes, change in (
        ("the weights cut in half", weights, lambda data: data[: len(data) // 2]),
        ("the weights emptied", weights, lambda data: b""),
        ("the config cut in half", configs, lambda data: data[: len(data) // 2]),
        ("an unknown config key", configs, _with_a_strange_key),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        copy = folder / path.name
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copy(path, copy)
        files = [f for f in (copy, *copy.rglob("*")) if f.is_file() and f.suffix in suffixes]
        for file in files:
            file.write_bytes(change(file.read_bytes()))
        if files:
            yield damage, copy


def _with_a_strange_key(data: bytes) -> bytes:
    return json.dumps(json.loads(data) | {"a_key_that_nobody_knows": 1}).encode()

"""Hostile archives: small files that would unpack to gigabytes, or whose indexes state what the data are not."""

import io
import json
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from saebench.loading.archives import NpzFile, TorchFile
from saebench.loading.checkpoint import load_sae
from saebench.loading.readers import CheckpointError
from saebench.loading.weights import SafetensorsFile
from tests.raising import raises


def npy(shape: tuple[int, ...], descr: str = "<f4", nbytes: int = 0) -> bytes:
    """A .npy file with that header, and so many zero bytes behind it."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue() + bytes(nbytes)


def peak() -> int:
    """Most memory that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_codecs_are_refused_before_a_member_is_opened(tmp_path: Path, method: int) -> None:
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("W_enc.npy", npy((2**24,), nbytes=2**26))
    assert path.stat().st_size < 2**17
    before = peak()
    with raises(CheckpointError, "params.npz", "W_enc.npy", method):
        NpzFile(path)
    with raises(CheckpointError, "params.npz", "W_enc.npy"):
        load_sae(tmp_path)
    assert peak() - before < 2**25


def test_a_deflated_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("W_enc.npy", npy((2**25,), nbytes=2**27))
    with raises(CheckpointError, "W_enc.npy", "absurd"):
        NpzFile(path)


def test_compressed_and_plain_arrays_are_read(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", W=array)
        assert torch.equal(NpzFile(tmp_path / "a.npz").get("W", 5, 7), torch.from_numpy(array))


@pytest.mark.parametrize(
    ("shape", "descr", "nbytes"),
    [
        ((10**12,), "<f4", 16),
        ((-2, -2), "<f4", 16),
        ((2**40, 2**40), "<f4", 0),
        ((10**9,), "|S0", 0),
        ((2,), "<U4", 32),
        ((4,), "|O", 32),
        ((4,), "<f4", 20),
    ],
)
def test_headers_that_are_not_the_data(tmp_path: Path, shape: tuple[int, ...], descr: str, nbytes: int) -> None:
    path = tmp_path / "params.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W.npy", npy(shape, descr, nbytes))
    with raises(CheckpointError, "params.npz"):
        NpzFile(path)


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """Many central entries of one member: each is honest, together they are larger than the file."""
    path = tmp_path / "params.npz"
    body = npy((1000,), nbytes=4000)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("W.npy", body)
        for i in range(9):
            again = zipfile.ZipInfo(f"W{i}.npy")
            first = archive.filelist[0]
            again.header_offset, again.CRC = first.header_offset, first.CRC
            again.file_size = again.compress_size = first.file_size
            archive.filelist.append(again)
    with raises(CheckpointError, "params.npz", "overlap"):
        NpzFile(path)


def test_nested_references_are_walked_once(tmp_path: Path) -> None:
    value: object = [torch.ones(2)]
    for _ in range(40):  # 2⁴⁰ paths to one tensor
        value = [value, value]
    torch.save({"W": torch.ones(3), "deep": value}, tmp_path / "a.pt")
    assert TorchFile(tmp_path / "a.pt").shapes == {"W": (3,)}


def test_a_header_longer_than_any_index_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a" * 2**24: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    assert len(header) > 2**24
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with raises(CheckpointError, "a.safetensors", len(header)):
        SafetensorsFile(tmp_path / "a.safetensors")

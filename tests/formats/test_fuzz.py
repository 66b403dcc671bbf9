"""Two thousand and more damaged checkpoints: refused with one line, or loaded as exactly the bytes given.

Nothing may run, nothing may crash or grow. Each damage is made from a seed, so that a failure can be made again.
"""

import io
import json
import pickle
import random
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saebench import SAE, SaebenchError, load_sae

REFERENCE = Path(__file__).parent / "reference"
# One of each format and file kind, with what loads it.
VICTIMS = {
    "saelens/jumprelu-none-sub": {},
    "saelens/topk-none-sub": {},
    "saelens/gated-none-sub": {},
    "saelens/jumprelu_skip_transcoder-none": {},
    "saelens/training-topk-scaled": {},
    "saelens/training-standard-whitened-sub": {},
    "saelens/legacy-topk": {},
    "dictionary_learning/BatchTopKSAE": {},
    "dictionary_learning/MatryoshkaBatchTopKSAE": {},
    "dictionary_learning/BatchTopKSAE-backup": {},
    "sparsify/skip/layers.3": {},
    "openai/topk/5.pt": {},
    "llama3_interpretability/topk/sae.pth": {"k": 5},
    "gemma_scope/res/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_71": {},
    "gemma_scope_2/skip-transcoder/transcoder/layer_3_width_16k_l0_small_affine": {},
    "llama_scope/jumprelu": {},
    "llamascopium/jumprelu": {},
    "goodfire/relu/Llama-3.1-8B-Instruct-SAE-l19.pth": {},
    "qwen_scope/topk/layer3.sae.pt": {"k": 5},
    "transcoders/circuit-tracer-jumprelu/layer_3.safetensors": {},
}
ROUNDS = 110  # times the victims: 2,200


def attempt(path: Path, options: dict[str, object]) -> SAE | None:
    """The SAE, or None for a refusal; anything else that is raised fails the test."""
    try:
        return load_sae(path, **options)
    except SaebenchError as error:
        message = str(error)
        assert message, "a refusal without a word"
        assert len(message.splitlines()) == 1, message
        assert len(message) < 1000
        return None


def copy(victim: str, into: Path) -> Path:
    """A copy of the checkpoint; returns the path that names it there."""
    source = REFERENCE / victim
    shutil.rmtree(into, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, into)
        return into
    shutil.copytree(source.parent, into)
    return into / source.name


def files(root: Path, *suffixes: str) -> list[Path]:
    folder = root if root.is_dir() else root.parent
    found = [p for p in sorted(folder.rglob("*")) if p.suffix in suffixes and "expected" not in p.name]
    return [p for p in found if p.name != "options.json"]


WEIGHTS = (".safetensors", ".pt", ".pth", ".npz")


def flip(root: Path, dice: random.Random) -> None:
    file = dice.choice(files(root, *WEIGHTS, ".json"))
    data = bytearray(file.read_bytes())
    for _ in range(dice.choice((1, 1, 4, 64))):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(data)


def truncate(root: Path, dice: random.Random) -> None:
    file = dice.choice(files(root, *WEIGHTS, ".json"))
    file.write_bytes(file.read_bytes()[: dice.randrange(file.stat().st_size)])


def splice(root: Path, dice: random.Random) -> None:
    file = dice.choice(files(root, *WEIGHTS))
    data = file.read_bytes()
    at, length = dice.randrange(len(data)), dice.randrange(1, 200)
    file.write_bytes(data[:at] + dice.randbytes(length) + data[at + dice.choice((0, length)) :])


def head(root: Path, dice: random.Random) -> None:
    """Damage in the first bytes, where the headers are."""
    file = dice.choice(files(root, *WEIGHTS))
    data = bytearray(file.read_bytes())
    for _ in range(dice.randrange(1, 6)):
        data[dice.randrange(min(400, len(data)))] = dice.randrange(256)
    file.write_bytes(data)


def reword(root: Path, dice: random.Random) -> None:
    """A config value of another type or far out of range, or a key that nobody knows."""
    configs = files(root, ".json")
    if not configs:
        return flip(root, dice)
    file = dice.choice(configs)
    data = json.loads(file.read_text())
    inner = dice.choice([data, *[v for v in data.values() if isinstance(v, dict) and v]])
    bad = [
        "false",
        "7.5",
        7.5,
        -1,
        0,
        2**70,
        None,
        [],
        {},
        [[[]]],
        float("nan"),
        "../../../etc",
        "a\nb",
        True,
        1e308,
        "",
    ]
    inner[dice.choice([*inner, "some_new_key"])] = dice.choice(bad)
    file.write_text(json.dumps(data))
    return None


def rename(root: Path, dice: random.Random) -> None:
    """Tensors under other names (path tricks among them), swapped, transposed, of other types, or not finite."""
    tensors_of(root, dice, retensor(dice))


def retensor(dice: random.Random) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    def change(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = dice.choice([n for n, v in state.items() if isinstance(v, torch.Tensor)])
        tensor = state[name]
        kind = dice.randrange(8)
        if kind == 0:
            state[dice.choice(["../../x", "/etc/passwd", "a\nb", "", "\u202e", name + " "])] = state.pop(name)
        elif kind == 1:
            state[name] = tensor.T.contiguous() if tensor.ndim == 2 else tensor.reshape(-1)[:0]
        elif kind == 2:
            state[name] = torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor * 0
        elif kind == 3:
            state[name] = tensor.to(dice.choice([torch.int8, torch.int64, torch.bool]))
        elif kind == 4:
            other = dice.choice([n for n, v in state.items() if isinstance(v, torch.Tensor)])
            state[name], state[other] = state[other].clone(), state[name].clone()
        elif kind == 5:
            state[name] = torch.full_like(tensor, -1)
        elif kind == 6:
            state[name] = tensor[..., :-1].clone() if tensor.ndim else tensor.reshape(1, 1, 1)
        else:
            del state[name]
        return state

    return change


def tensors_of(root: Path, dice: random.Random, change: Callable[[dict], dict]) -> None:
    file = dice.choice(files(root, *WEIGHTS))
    if file.suffix == ".safetensors":
        save_file({k: v.contiguous().clone() for k, v in change(load_file(file)).items()}, file)
    elif file.suffix == ".npz":
        arrays = {k: torch.from_numpy(v) for k, v in np.load(file).items()}
        np.savez(file, **{k.replace("/", "_") or "x": v.numpy() for k, v in change(arrays).items()})
    else:
        state = dict(torch.load(file))
        inner = state.get("ae", state)  # a backup wraps its weights
        changed = change(dict(inner))
        torch.save(changed if inner is state else state | {"ae": changed}, file)


class Bomb:
    """Unpickling this would leave a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.mark), "w"))


MARK = Path("/nonexistent")  # set by the test


def hostile(root: Path, dice: random.Random) -> None:
    """A pickle that runs code, in each of the shapes in which a loader may meet one."""
    file = dice.choice(files(root, *WEIGHTS))
    kind = dice.randrange(5)
    if kind == 0:
        file.write_bytes(pickle.dumps(Bomb(MARK)))
    elif kind == 1:
        torch.save({"W_enc": Bomb(MARK), "encoder.weight": Bomb(MARK)}, file)
    elif kind == 2:
        torch.save(Bomb(MARK), file, _use_new_zipfile_serialization=False)
    elif kind == 3:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(MARK)))
            archive.writestr("archive/version", "3")
    else:
        buffer = io.BytesIO()
        np.save(buffer, np.array([Bomb(MARK)], dtype=object), allow_pickle=True)
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
                archive.writestr(f"{name}.npy", buffer.getvalue())


def lie(root: Path, dice: random.Random) -> None:
    """Headers that state sizes which the file does not have."""
    file = dice.choice(files(root, *WEIGHTS))
    huge = dice.choice([2**31, 2**40, 2**62, 10**6])
    if file.suffix == ".safetensors":
        shape = dice.choice([[huge, 8], [8, huge], [huge], [0, 8], [2**33, 2**33]])
        header = {"W_enc": {"dtype": "F32", "shape": shape, "data_offsets": [0, dice.choice([32, huge])]}}
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", dice.choice([len(text), len(text), huge])) + text + bytes(64))
    elif file.suffix == ".npz":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
                head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({huge}, 8), }}".ljust(117) + "\n"
                archive.writestr(
                    f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head.encode() + bytes(10**6)
                )
    else:
        base = torch.zeros(2)
        lying = {
            name: base.expand(min(huge, 2**20), 2) for name in ("encoder.weight", "W_enc", "b_pre", "decoder.weight")
        }
        torch.save(lying, file)


DAMAGES = (flip, flip, truncate, splice, head, reword, reword, rename, rename, hostile, lie)


def cases() -> Iterator[tuple[str, int]]:
    for victim in VICTIMS:
        yield from ((victim, seed) for seed in range(ROUNDS))


@pytest.mark.parametrize("victim", VICTIMS)
def test_damaged_checkpoints(victim: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "MARK", tmp_path / "ran")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for seed in range(ROUNDS):
        dice = random.Random(f"{victim} {seed}")
        path = copy(victim, tmp_path / "checkpoint")
        damage = DAMAGES[seed % len(DAMAGES)]
        damage(path, dice)
        sae = attempt(path, VICTIMS[victim])
        refused += sae is None
        assert not (tmp_path / "ran").exists(), f"{victim} {seed}: code ran"
        if sae is not None:
            assert all(bool(torch.isfinite(t).all()) for _, t in sae.tensors()), f"{victim} {seed}"
            sae.encode(torch.ones(2, sae.d_in))
        if damage in (truncate, hostile, lie):
            assert sae is None, f"{victim} {seed}: {damage.__name__} was taken"
    assert refused > ROUNDS // 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 2**10  # KiB


def test_there_are_two_thousand() -> None:
    assert sum(1 for _ in cases()) >= 2000


@pytest.mark.parametrize("victim", ["saelens/jumprelu-none-sub", "saelens/topk-none-sub"])
def test_flipped_payload_bits_load_as_the_bytes_given(victim: str, tmp_path: Path) -> None:
    for seed in range(60):
        dice = random.Random(seed)
        path = copy(victim, tmp_path / "checkpoint")
        file = path / "sae_weights.safetensors"
        data = bytearray(file.read_bytes())
        start = 8 + struct.unpack("<Q", data[:8])[0]
        data[dice.randrange(start, len(data))] ^= 1 << dice.randrange(8)
        file.write_bytes(data)
        given = load_file(file)
        sae = attempt(path, {})
        if sae is None:
            assert not all(bool(torch.isfinite(t).all()) for t in given.values())
            continue
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            assert torch.equal(getattr(sae, name).view(torch.int32), given[name].view(torch.int32)), (seed, name)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "params.npz"
    shape = (2**14, 2**13)  # 512 MiB of zeros in 0.5 MB
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("W_dec", "b_enc", "b_dec", "threshold"):
            archive.writestr(f"{name}.npy", b"")
        with archive.open("W_enc.npy", "w", force_zip64=True) as file:
            file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head.encode())
            for _ in range(16):
                file.write(bytes(2**25))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert attempt(tmp_path, {"format": "gemma_scope"}) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10

"""Full disks and unwritable folders: finished work stays, and the error names what is left."""

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from saebench.errors import SaebenchError
from saebench.training.checkpoints import RunFolder
from saebench.training.request import SaeSpec
from saebench.training.run import prepare, train
from tests.raising import raises

from .conftest import Heard, same_weights
from .shared import Make, no_sae


def test_a_full_disk_is_said_before_anything_is_computed(
    request_for: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("saebench.training.checkpoints.shutil.disk_usage", lambda _: usage)
    with raises(SaebenchError, "GiB free", "needs") as caught:
        train(request_for(), tmp_path / "run", Heard())
    assert caught.value.exit_code == 1, "the command was right"


def test_a_folder_that_cannot_be_written_is_no_wrong_command(request_for: Make) -> None:
    with raises(SaebenchError, "/proc/nope/run.json") as caught:
        train(request_for(), Path("/proc/nope"), Heard())
    assert caught.value.exit_code == 1


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(request_for: Make, whole: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save({"step": 3, "x": torch.ones(4)})
    before = folder.checkpoint.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("saebench.training.checkpoints.save_file", _no_space)
        with raises(SaebenchError, "kept", tmp_path, "free"):
            folder.save({"step": 4, "x": torch.zeros(4)})
    assert folder.checkpoint.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_checkpoint_is_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    synced: list[tuple[int, bool]] = []
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append((os.fstat(fd).st_ino, folder.checkpoint.exists())), sync(fd))
    )
    folder.save({"step": 3, "x": torch.ones(4)})
    assert synced == [(folder.checkpoint.stat().st_ino, False)]


def _no_space(tensors: object, path: Path, metadata: object) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_one_sae_that_cannot_be_written_costs_no_other(request_for: Make, tmp_path: Path) -> None:
    """The first of three has NaN: the others are there, and the same command writes it without a step."""
    specs = tuple(SaeSpec(name, "topk", 48, i, {"k": 4}) for i, name in enumerate("abc"))
    train(request_for(saes=specs), tmp_path / "whole", Heard())
    out = tmp_path / "run"
    run = prepare(request_for(saes=specs), out, Heard())
    run.lanes[0].trainer.sae = no_sae  # type: ignore[method-assign]
    with raises(SaebenchError, "1 of 3 SAE", "a (W_dec is not finite)", "the same command") as caught:
        run.go(Heard())
    assert "\n" not in str(caught.value)
    assert not (out / "a").exists()
    assert all(same_weights(out / name, tmp_path / "whole" / name) for name in "bc")
    heard = Heard()
    train(request_for(saes=specs), out, heard)
    assert heard.steps == [run.steps], "it trained again"
    assert same_weights(out / "a", tmp_path / "whole" / "a")
    assert RunFolder(out).finished
    assert not RunFolder(out).checkpoint.exists()


class Limited(Heard):
    """Files may have so many bytes after the last step: the kernel refuses more, as a full disk does."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def end(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, resource.RLIM_INFINITY))


@pytest.fixture
def unlimited() -> Iterator[None]:
    """No limit is left behind."""
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_saes_are_written_where_the_last_checkpoint_does_not_fit(
    request_for: Make, tmp_path: Path, unlimited: None
) -> None:
    """The SAE has 13 kB, a checkpoint three times as many."""
    train(request_for(), tmp_path / "whole", Heard())
    out = tmp_path / "run"
    with raises(SaebenchError, "checkpoint", "File too large", out):
        train(request_for(checkpoint_every=10_000), out, Limited(20_000))
    assert same_weights(out / "topk-k4", tmp_path / "whole" / "topk-k4")
    heard = Heard()
    assert train(request_for(checkpoint_every=10_000), out, heard) == [out / "topk-k4"]
    assert not heard.steps, "it trained again"


@pytest.mark.parametrize(
    ("every", "kept"), [(10_000, "no checkpoint yet"), (15, "the checkpoint before it is kept in")]
)
def test_a_disk_without_room_for_anything_says_what_is_left(
    every: int, kept: str, request_for: Make, tmp_path: Path, unlimited: None
) -> None:
    with raises(SaebenchError, "1 of 1 SAE", "File too large", kept, "the same command"):
        train(request_for(checkpoint_every=every), tmp_path / "run", Limited(5_000))
    assert not RunFolder(tmp_path / "run").finished
    assert RunFolder(tmp_path / "run").checkpoint.exists() == (every == 15)


def test_a_damaged_checkpoint_is_said(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save({"step": 3, "x": torch.ones(4)})
    folder.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:50])
    with raises(SaebenchError, folder.checkpoint, "damaged", "delete"):
        folder.load()


def test_checkpoints_hold_nested_states_exactly(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    state = {"a": {0: {"step": torch.tensor(2.0)}, "rows": x[:, 1]}, "list": [x.bfloat16(), 1.5, None, True], "same": x}
    folder = RunFolder(tmp_path)
    folder.save(state)
    found = folder.load()
    assert found is not None
    assert torch.equal(found["a"][0]["step"], torch.tensor(2.0))
    assert torch.equal(found["a"]["rows"], x[:, 1])
    assert torch.equal(found["list"][0], x.bfloat16())
    assert found["list"][1:] == [1.5, None, True]

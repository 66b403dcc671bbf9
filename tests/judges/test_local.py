"""A local model as a judge: its probabilities are those of the whole text in one forward pass, its strings greedy."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from saebench.errors import UsageError
from saebench.judge import Judge, JudgeError, Reply, Request, Usage
from saebench.judging.choose import make_judge
from saebench.judging.session import JudgeSession
from saebench.testing import FunctionJudge, check_judge, tiny_llama
from tests.judges.server import Coin, JudgeServer
from tests.raising import raises

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def speaker(tmp_path_factory) -> Path:
    """A tiny random Llama that reads and writes single bytes, and a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{letter: i + 3 for i, letter in enumerate(letters)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tiny_llama(tmp_path_factory.mktemp("speaker") / "my-speaker", layers=2, vocabulary=len(vocabulary))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 600}))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(speaker) -> Any:
    made = make_judge(f"local:{speaker}")
    made.open()
    return made


def prompt(request: Request, form: str) -> str:
    user = f"{request.user}\n\nAnswer with one JSON object of this form: {form}"
    return f"<system>{request.system}\n<user>{user}\n<assistant>"


def test_probabilities_are_those_of_one_pass_over_the_whole_text(judge, speaker):
    model = AutoModelForCausalLM.from_pretrained(speaker, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(speaker)
    yes, no = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("t", "f"))
    for user in ("the sea", "a law \u4e2d \U0001f600", ""):
        request = Request("You judge.", user, {"a": "boolean", "b": "boolean"}, "p@1", 20)
        reply = judge.complete(request)
        text = prompt(request, '{"a": true or false, "b": true or false}') + '{"a":'
        for name in ("a", "b"):
            # true and false share the space: the bytes t and f tell them apart
            ids = tokenizer(text + " ", add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                likely = float(torch.softmax(model(ids).logits[0, -1][[yes, no]], 0)[0])
            assert reply.probabilities[name] == pytest.approx(likely, rel=1e-4, abs=1e-7)
            assert reply.data[name] == (likely > 0.5)
            text += f' {"true" if reply.data[name] else "false"}, "b":'
        assert json.loads(reply.text) == reply.data
        assert reply.state == "ok"


def test_a_string_is_greedy(judge, speaker):
    request = Request("You explain.", "the sea", {"why": "string"}, "p@1", 24)
    reply = judge.complete(request)
    model = AutoModelForCausalLM.from_pretrained(speaker)
    tokenizer = AutoTokenizer.from_pretrained(speaker)
    ids = tokenizer(
        prompt(request, '{"why": ...}') + '{"why": "', add_special_tokens=False, return_tensors="pt"
    ).input_ids
    out: list[int] = []
    ended = False
    for _ in range(24):
        with torch.no_grad():
            token = int(model(torch.cat([ids, torch.tensor([out], dtype=torch.long)], 1)).logits[0, -1].argmax())
        written = tokenizer.decode([*out, token], skip_special_tokens=True)
        if token <= 2 or '"' in written or "\n" in written:
            ended = True
            break
        out.append(token)
    expected = tokenizer.decode(out).strip()
    assert reply.state == ("ok" if ended else "truncated")
    assert json.loads(reply.text)["why"] == expected
    assert reply.data == ({"why": expected} if ended else {})


def test_the_contract(speaker):
    made = make_judge(f"local:{speaker}")
    check_judge(made)


def test_what_was_asked_before_changes_no_bit(judge, speaker):
    asked = [Request(f"System {i % 3}.", f"text {i}", {"a": "boolean"}, "p@1", 20) for i in range(12)]
    first = JudgeSession(judge).complete_all(asked)
    other = make_judge(f"local:{speaker}")
    assert JudgeSession(other).complete_all(asked[::-1])[::-1] == first


def test_too_long_a_prompt_has_failed(judge):
    reply = judge.complete(Request("s", "x" * 700, {"a": "boolean"}, "p@1", 20))
    assert reply.state == "failed"
    assert "takes 600" in reply.problem


def test_its_identity_is_its_weights_and_names_no_folder(speaker):
    identity = make_judge(f"local:{speaker}").identity
    assert identity["model"] == "my-speaker"
    assert len(identity["sha256"]) == 64
    assert str(speaker.parent) not in json.dumps(identity)
    assert make_judge(f"replay:local:{speaker}").identity == identity


def test_it_has_no_address():
    with raises(JudgeError, "--judge-url"):
        make_judge("local:smollm2-135m-instruct", "http://localhost:8000")
    with raises(UsageError, "'nobody'"):
        make_judge("local:nobody").identity  # noqa: B018


# --- check_judge can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_the_vendors_keep_the_contract(api):
    with JudgeServer(Coin(strings={"answer": "a boat"})) as server:
        check_judge(server.judge(api))


class Moody(FunctionJudge):
    """Never says the same twice."""

    def __init__(self) -> None:
        super().__init__(lambda request: dict.fromkeys(request.fields, len(self.asked) % 2 == 0))


def bad(reply: Reply) -> Judge:
    return FunctionJudge(lambda request: reply)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Moody(), "another reply"),
        (bad(Reply("ok")), "state ok"),
        (bad(Reply("ok", {"x": True})), "field 'x'"),
        (bad(Reply("refused")), "without a problem"),
        (bad(Reply("refused", problem="no")), "no request is answered"),
        (bad(Reply("truncated", {"first": True}, problem="cut")), "truncated"),
        (bad(Reply("fine")), "'fine'"),  # type: ignore[arg-type]
        (bad(Reply("malformed", {"first": "yes"}, problem="?")), "'first' is no boolean"),
        (bad(Reply("malformed", {}, problem="?", probabilities={"first": 2.0}, usage=Usage(1, 1))), "P(first) is 2.0"),
    ],
)
def test_check_judge_finds(made, words):
    with raises(AssertionError, words):
        check_judge(made)

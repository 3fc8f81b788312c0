"""Which tokens of messages count: masks from characters, over tokenizers, templates and conversations."""

import copy
from pathlib import Path

import pytest
import torch
import trl
from transformers import AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import has_generation_markers

from hf_ppl_select.likelihood.engine import LikelihoodEngine
from hf_ppl_select.scoring.messages import mark_blocks, take_marks
from hf_ppl_select.scoring.rows import tokenize_rows
from hf_ppl_select.scoring.texts import score_rows
from tests.scoring.chats import CONVERSATIONS, END, TEMPLATES
from tests.scoring.families import families

FAMILIES = families()
ALL_FAMILIES = [*FAMILIES, "smollm2"]
PARAMETERS = {"type": "object", "properties": {"weight": {"type": "number", "description": "kg"}}, "required": []}
TOOL = {"type": "function", "function": {"name": "dose", "description": "A dose.", "parameters": PARAMETERS}}


@pytest.fixture(scope="module")
def model():
    """For any of the tokenizers: random, float32, with as many embeddings as the largest needs."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, vocab_size=50_000, max_position_embeddings=2048, initializer_range=0.5)
    return LlamaForCausalLM(config).eval()


def tokenizer_and_twin(name, request):
    if name != "smollm2":
        return copy.deepcopy(FAMILIES[name][0]), FAMILIES[name][1]
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue("smollm2_dir"))
    return tokenizer, tokenizer


def mask_by_hand(pieces, ids, twin):
    """Which tokens are made from a character that counts, and the bytes of these tokens and pieces together."""
    text, counts = "", []
    for piece, is_answer in pieces:
        text += piece
        counts += [is_answer] * len(piece)
    encoded = twin(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == ids
    counted, spelled = [], {place for place, inside in enumerate(counts) if inside}
    for token, (begin, end) in enumerate(encoded["offset_mapping"]):
        if any(counts[begin:end]):
            counted.append(token)
            spelled |= set(range(begin, end))
    return counted, sum(len(text[place].encode()) for place in spelled) if counted else 0


def nll_by_hand(model, ids, counted):
    with torch.no_grad():
        losses = -model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(losses[position - 1, ids[position]].item() for position in counted)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_tokens_bytes_and_nll_are_those_of_the_marked_characters(family, template, model, request):
    tokenizer, twin = tokenizer_and_twin(family, request)
    source, write = TEMPLATES[template]
    rows = tokenize_rows({"messages": CONVERSATIONS}, tokenizer, chat_template=source)
    bos = tokenizer.bos_token_id
    scored = score_rows(rows, LikelihoodEngine(model), bos=bos, max_length=2048, stride=1024)
    for index, (messages, row) in enumerate(zip(CONVERSATIONS, rows, strict=True)):
        pieces = [(piece.replace(END, tokenizer.eos_token), counts) for piece, counts in write(messages)]
        text = "".join(piece for piece, _ in pieces)
        assert text == tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
        counted, num_bytes = mask_by_hand(pieces, row.ids, twin)
        assert list(row.counted) == counted
        assert (scored.num_tokens[index], scored.num_bytes[index]) == (len(counted), num_bytes)
        lead = [bos] if counted[:1] == [0] and row.ids[:1] != [bos] else []  # a chat starts as it does in training
        nll = nll_by_hand(model, lead + row.ids, [position + len(lead) for position in counted])
        assert scored.nll_sum[index] == pytest.approx(nll, rel=1e-5)


def test_bytes_are_those_of_the_text_that_is_counted(tiny_tokenizer):
    """Of parts, of reasoning, of tool calls, whatever the template writes inside of its marks."""
    template = (
        "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% else %}{% generation %}"
        "{% if m['reasoning_content'] %}<think>{{ m['reasoning_content'] }}</think>{% endif %}"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
        "{% for call in m['tool_calls'] or [] %}<call>{{ call | tojson }}</call>{% endfor %}"
        "{% endgeneration %}{% endif %}{% endfor %}"
    )
    question = {"role": "user", "content": "?"}
    answers = {
        "Hello world": {"content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "world"}]},
        "<think>é</think>Yes.": {"content": "Yes.", "reasoning_content": "é"},
        '<call>{"name": "dose"}</call>': {"content": "", "tool_calls": [{"name": "dose"}]},
        "": {"content": ""},
    }
    chats = [[question, {"role": "assistant", **answer}] for answer in answers.values()]
    rows = tokenize_rows({"messages": chats}, tiny_tokenizer, chat_template=template)
    assert [row.num_bytes for row in rows] == [len(text.encode()) for text in answers]
    assert [tiny_tokenizer.decode([row.ids[i] for i in row.counted]) for row in rows] == list(answers)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_bytes_of_a_first_token_that_is_not_scored_do_not_count(family, model, request):
    tokenizer, twin = tokenizer_and_twin(family, request)
    bos = tokenizer.bos_token
    texts = [
        "Hello world, hello there.",
        "  the patient 😀",
        "日本語 の",
        f"{bos}fever",
        "A",
        "",
        "\n\nA dog",
        "😀😀",
        " ",
    ]
    pairs = {"prompt": [""] * len(texts), "completion": texts}
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    source, _ = TEMPLATES["nothing between turns"]
    for batch in ({"text": texts}, pairs, {"messages": chats}):
        rows = tokenize_rows(batch, tokenizer, chat_template=source)
        for bos_id in (None, tokenizer.bos_token_id):
            scored = score_rows(rows, LikelihoodEngine(model), bos=bos_id, max_length=6, stride=2)
            for index, text in enumerate(texts):
                offsets = twin(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
                begin, num_tokens = 0, len(offsets)
                if offsets and (bos_id is None or text.startswith(bos)):
                    num_tokens -= 1
                    (_, begin), second = offsets[0], [second for second, _ in offsets[1:2]]
                    begin = min(begin, *second) if second else begin  # both may be bytes of one character
                num_bytes = len(text[begin:].encode()) if num_tokens else 0
                assert (scored.num_tokens[index], scored.num_bytes[index]) == (num_tokens, num_bytes), (text, batch)


def test_the_templates_of_trl_are_marked_where_transformers_finds_them():
    """Seventy templates of real models: the marks change no text, and lie where transformers' own renderer is sure."""
    chat = [
        {"role": "user", "content": " Hi there\n"},
        {"role": "assistant", "content": " Hello 😀 \n", "reasoning_content": "Hm."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Yes."},
    ]
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    num_marked = 0
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        source = path.read_text(encoding="utf-8")
        marks = has_generation_markers(source)
        assert (mark_blocks(source) is not None) == marks
        marked = mark_blocks(source if marks else source + "{% generation %}{% endgeneration %}")
        parts = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
        messages = parts if "llava" in path.name else chat  # takes no contents of text
        for tools in (None, [TOOL]):
            options = {"tools": tools, "add_generation_prompt": True, **special}
            ((text,), (spans,)) = render_jinja_template(
                [messages], chat_template=source, return_assistant_tokens_mask=True, **options
            )
            ((found,), _) = render_jinja_template([messages], chat_template=marked, **options)
            assert take_marks(found)[0] == text, path.name
            if marks:
                assert take_marks(found)[1] == spans, path.name
                num_marked += bool(spans)
    assert num_marked > 40


def test_what_cannot_be_mapped_is_one_error_that_names_the_row(tiny_tokenizer):
    kept = "{% set said %}{% generation %}{{ messages[0]['content'] }}{% endgeneration %}{% endset %}"
    chats = {"messages": [[], [{"role": "assistant", "content": " Hello"}]]}
    for changed in ("{{ said | length }}{{ said }}", "{{ said | trim }}", "{{ said[:3] }}"):
        with pytest.raises(ValueError, match=r"Row 1 of the batch: what the {% generation %} blocks .* put the marks"):
            tokenize_rows(chats, tiny_tokenizer, chat_template=kept + changed)
    (_, row) = tokenize_rows(chats, tiny_tokenizer, chat_template=kept + "Said: {{ said }}. {{ said | upper }}")
    assert tiny_tokenizer.decode([row.ids[i] for i in row.counted]) == " Hello HELLO"

    with pytest.raises(
        ValueError, match="Row 1 of the batch: ByT5Tokenizer does not say where .* load a fast tokenizer"
    ):
        tokenize_rows(chats, ByT5Tokenizer(), chat_template=TEMPLATES["nothing between turns"][0])
    with pytest.raises(ValueError, match="Row 1 of the batch holds U.FDD0 or U.FDD1"):
        chats["messages"][1][0]["content"] = "\ufdd0"
        tokenize_rows(chats, tiny_tokenizer, chat_template=TEMPLATES["nothing between turns"][0])

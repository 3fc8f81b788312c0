"""Chat templates and conversations, and by hand what each template writes: pieces of text, and whether they count."""

from __future__ import annotations

CHATML = "<|im_start|>{{ m['role'] }}\n"


def loop(answer, other, before=""):
    body = f"{{% if m['role'] == 'assistant' %}}{answer}{{% else %}}{other}{{% endif %}}"
    return f"{{% for m in messages %}}{before}{body}{{% endfor %}}"


def marked(text):
    return f"{{% generation %}}{text}{{% endgeneration %}}"


def by_turn(answer, other):
    """`answer` and `other` make the pieces of one turn."""
    return lambda messages: [
        piece for turn in messages for piece in (answer if turn["role"] == "assistant" else other)(turn)
    ]


CONTENT = "{{ m['content'] }}"
EOS = "{{ eos_token }}"
END = "[the EOS of the tokenizer]"
PLAIN = lambda turn: [(turn["content"], False)]  # noqa: E731

TEMPLATES = {
    "nothing between turns": (
        loop(marked(CONTENT), CONTENT),
        by_turn(lambda turn: [(turn["content"], True)], PLAIN),
    ),
    "eos outside": (
        loop(marked(CONTENT) + EOS, CONTENT + EOS),
        by_turn(
            lambda turn: [(turn["content"], True), (END, False)],
            lambda turn: [(turn["content"] + END, False)],
        ),
    ),
    "eos inside, mark at both borders": (
        loop(marked(CONTENT + EOS), CONTENT + EOS),
        by_turn(lambda turn: [(turn["content"] + END, True)], lambda turn: [(turn["content"] + END, False)]),
    ),
    "chatml, end of turn inside": (
        loop(marked(CONTENT + "<|im_end|>") + "{{ '\n' }}", CONTENT + "<|im_end|>\n", CHATML),
        by_turn(
            lambda turn: [("<|im_start|>assistant\n", False), (turn["content"] + "<|im_end|>", True), ("\n", False)],
            lambda turn: [(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n", False)],
        ),
    ),
    "whitespace control": (
        "{%- for m in messages -%}\n    {%- if m['role'] == 'assistant' -%}\n    <a>\n"
        "    {%- generation -%}\n\n      {{- m['content'] }} {\n   {%- endgeneration %}\n\n    {# a comment #}\n"
        "    {% generation %}\n    {% if m['content'] %}!{% endif %}\n    {% endgeneration %}\n"
        "    {%- else %}{{ m['content'] }}\n    {%- endif %}\n{% endfor %}\n",
        by_turn(
            lambda turn: [
                ("<a>", False),
                (turn["content"] + " {", True),
                ("\n", False),
                ("!" if turn["content"] else "", True),
            ],
            PLAIN,
        ),
    ),
    "the whole turn counts": (
        loop(marked("{{ m['role'] }}: " + CONTENT + "\n"), "{{ m['role'] }}: " + CONTENT + "\n"),
        by_turn(
            lambda turn: [(f"assistant: {turn['content']}\n", True)],
            lambda turn: [(f"{turn['role']}: {turn['content']}\n", False)],
        ),
    ),
    "a space before and after the mark": (
        loop("Answer: " + marked(CONTENT) + " \n", "Question: " + CONTENT + " \n"),
        by_turn(
            lambda turn: [("Answer: ", False), (turn["content"], True), (" \n", False)],
            lambda turn: [(f"Question: {turn['content']} \n", False)],
        ),
    ),
    "whitespace inside of the mark": (
        loop(marked("  " + CONTENT + " \t ") + "{{ '\n' }}", CONTENT),
        by_turn(lambda turn: [(f"  {turn['content']} \t ", True), ("\n", False)], PLAIN),
    ),
    "a macro, and text that is kept first": (
        "{% macro say(m) %}[{% generation %}{{ m['content'] }}{% endgeneration %}]{% endmacro %}"
        "{% set all %}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ say(m) }}{% else %}"
        "{{ m['content'] }}{% endif %}{% endfor %}{% endset %}<s>{{ all }}",
        lambda messages: [
            ("<s>", False),
            *by_turn(lambda turn: [("[", False), (turn["content"], True), ("]", False)], PLAIN)(messages),
        ],
    ),
    "two marks in a turn, and one in another": (
        loop(
            marked("<think>" + marked("{{ m['role'] }}") + "</think>") + "{{ '\n\n' }}" + marked(CONTENT),
            CONTENT,
            "{% raw %}{{ }}{% endraw %} ",
        ),
        by_turn(
            lambda turn: [
                ("{{ }} ", False),
                ("<think>assistant</think>", True),
                ("\n\n", False),
                (turn["content"], True),
            ],
            lambda turn: [("{{ }} " + turn["content"], False)],
        ),
    ),
}

USER, ASSISTANT = "user", "assistant"
CONVERSATIONS = [
    [{"role": role, "content": content} for role, content in turns]
    for turns in (
        [(ASSISTANT, "A"), (USER, "What is fever?")],
        [(USER, "Hello there"), (ASSISTANT, "Hello world 😀")],
        [("system", "Be short."), (USER, "日本語?"), (ASSISTANT, "你好 世界。"), (USER, "é"), (ASSISTANT, "é ü ß👩‍⚕️")],
        [(USER, ""), (ASSISTANT, ""), (USER, "the"), (ASSISTANT, "the patient presented"), (ASSISTANT, "")],
        [
            (USER, "the dog "),
            (ASSISTANT, "sat on the mat. "),
            (USER, "  The"),
            (ASSISTANT, "\n\ncapital of France \n"),
        ],
        [(USER, "Name"), (ASSISTANT, " "), (USER, " "), (ASSISTANT, "😀")],
        [
            (ASSISTANT, "breath"),
            (ASSISTANT, "less"),
            (USER, "ness"),
            (ASSISTANT, "Hello  world <|im_end|> </s> there"),
        ],
        [(USER, "Only a question")],
    )
]

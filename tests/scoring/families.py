"""Small tokenizers of the families there are, trained on a few sentences: any text can be tokenized by each."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The patient presented with fever, cough and shortness of breath.",
    "The capital of France is Paris. Hello world, hello there. A dog sat on the mat.",
    "user assistant system tool: Question? Answer! Numbers 0 1 2 3 4 5: ; , . ! ? ( ) [ ] { }",
    "日本語 の テスト です。 你好 世界 é ü ß 😀 👩‍⚕️",
] * 3
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BOS, EOS = "<s>", "</s>"


def byte_level(*, add_prefix_space=False, trim_offsets=False, across_words=False):
    """GPT-2's; with `trim_offsets` Llama-3's; `across_words` like SuperBPE's, whose tokens hold several words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=not across_words)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets, add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return train(tokenizer, trainers.BpeTrainer, vocab_size=450, initial_alphabet=alphabet)


def llama2(*, metaspace=False):
    """Sentencepiece as Llama-2 has it: a space before the text (of each piece between special tokens), bytes for
    characters it does not know; `metaspace` is the later way, with a space before the whole text only.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = pre_tokenizers.Metaspace()
    pieces = [piece for sentence in SENTENCES[:3] for piece, _ in words.pre_tokenize_str(sentence)]
    learner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    special = ["<unk>", BOS, EOS, *BYTES]
    learner.train_from_iterator(
        pieces, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    )
    tokenizer.model = learner.model
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return train(tokenizer, trainers.UnigramTrainer, vocab_size=250, unk_token="<unk>")


def word_piece():
    """BERT's, which drops whitespace, accents and capitals, and puts [CLS] and [SEP] around a text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    train(tokenizer, trainers.WordPieceTrainer, vocab_size=300)
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    special = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    return tokenizer


def word_level():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return train(tokenizer, trainers.WordLevelTrainer, vocab_size=300)


def train(tokenizer, trainer, **options):
    special = ["<unk>", BOS, EOS]
    tokenizer.train_from_iterator(SENTENCES, trainer(special_tokens=special, show_progress=False, **options))
    return tokenizer


def families():
    """Name -> tokenizer, and one with the same tokens and offsets to trust: itself, but where it trims offsets."""
    made = {
        "byte_level": byte_level(),
        "byte_level_prefix_space": byte_level(add_prefix_space=True),
        "byte_level_trimmed": byte_level(trim_offsets=True),
        "across_words": byte_level(across_words=True),
        "llama2": llama2(),
        "llama2_metaspace": llama2(metaspace=True),
        "unigram": unigram(),
        "word_piece": word_piece(),
        "word_level": word_level(),
    }
    found = {}
    for name, tokenizer in made.items():
        tokenizer.add_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
        found[name] = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token="<unk>", pad_token=EOS
        )
    return {
        name: (tokenizer, found["byte_level"] if name == "byte_level_trimmed" else tokenizer)
        for name, tokenizer in found.items()
    }

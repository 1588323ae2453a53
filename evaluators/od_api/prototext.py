"""Reads protobuf text as the OD API does, and says of a broken file what is wrong and where."""

import codecs
import re

import tensorflow as tf
from google.protobuf import text_format

from evaluators.protocol import Refusal

_NOT_BRACES = re.compile(r"#[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BYTE_ORDER_MARK = "\ufeff"


def read(what, path, message, hint=""):
    """Fills a protobuf message from a file; of a field that is given twice the last value counts.

    Args:
        what: what the file is, to call it by.
        path: the file.
        message: the empty message.
        hint: what to say of a file that does not parse.

    Returns:
        The file's text.

    Raises:
        Refusal: it cannot be read, is not UTF-8 text, or does not parse.
    """
    text = _text(what, path)
    try:
        text_format.Merge(text, message)
    except text_format.ParseError as error:
        unclosed = braces(text)[1]
        if unclosed:
            hint = "the brace that opens in line {} is never closed".format(unclosed[-1])
        raise _broken(what, path, "does not parse: " + described(error), hint) from error
    return text


def described(error):
    """Returns a ParseError's text with its line and column in words, in visible characters."""
    text = str(error)
    if error.GetLine() is not None:
        place = "{}:{} : ".format(error.GetLine(), error.GetColumn())
        text = text[len(place) :] if text.startswith(place) else text
        text = "line {}, column {}: {}".format(error.GetLine(), error.GetColumn(), text)
    return visible(text)


def visible(text):
    """Returns the text with a code for each character that cannot be seen, line ends apart."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii")
        for c in text
    )


def braces(text):
    """Returns (lines of the braces that open at the top level, lines of those never closed)."""
    top, opened = [], []
    bare = _NOT_BRACES.sub("", text)  # neither a comment nor a string spans lines
    for number, line in enumerate(bare.split("\n"), start=1):
        for character in line:
            if character == "{":
                if not opened:
                    top.append(number)
                opened.append(number)
            elif character == "}" and opened:
                opened.pop()
    return top, opened


def _text(what, path):
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            data = file.read()
    except tf.errors.OpError as error:
        text = "cannot be read: {}".format(error.message)
        raise _broken(what, path, text, "it must be a file that this user may read") from error
    if data.startswith(_UTF_16):
        raise _broken(what, path, "is UTF-16 text, which the trainer cannot read", _SAVE)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = "is not UTF-8 text: line {} holds the byte 0x{:02x}".format(line, data[error.start])
        raise _broken(what, path, text, _SAVE) from error
    if text.startswith(_BYTE_ORDER_MARK):
        text = "begins with a byte order mark (U+FEFF), which the trainer cannot read"
        raise _broken(what, path, text, _SAVE)
    return text


_SAVE = "save it as UTF-8 without a byte order mark"


def _broken(what, path, text, hint):
    return Refusal("bad_pipeline_config", "{} ({}) {}".format(what, path, text), hint)

"""Metric: what a score is computed from, named as users write it.

A metric is one of

- a name as the evaluator records it: `DetectionBoxes_Precision/mAP`, `Loss/total_loss`
- a short name: `mAP`, `mAP50`, `loss`, ... (`SHORT_NAMES`)
- a category's figure: `AP[person]`, `AP50[traffic light]`, `AR100[car]`; in quotes where the
  category's name has a single bracket: `AP['a]b']`
- an expression over short names, categories' figures and quoted full names:
  `mAP - 0.002 * latency_ms`, `min(AP[person], AP[car])`, `'Loss/total_loss' / 2`

Pure: text and numbers in, numbers out. simpleeval evaluates the expressions; it has no attribute
access, no imports, and bounds on powers.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from watcher.errors import ConfigError

Mode = Literal["max", "min"]
# (metric name, category); the category is '' for an overall metric.
Key = tuple[str, str]
Values = Mapping[Key, float | None]

# Of an image in a pass of the model; a measurement, unlike all that is computed.
LATENCY = "latency_ms"
_BOX, _MASK = "DetectionBoxes_", "DetectionMasks_"


def _either(suffix: str, *others: str) -> tuple[str, ...]:
    """Names of a COCO metric: of boxes, else of masks; then other sets', Model Garden's last."""
    return (_BOX + suffix, _MASK + suffix, *others)


# Short name to the recorded names it may mean; the first that an evaluation has is taken.
SHORT_NAMES: dict[str, tuple[str, ...]] = {
    "mAP": _either("Precision/mAP", "AP"),
    "mAP50": _either("Precision/mAP@.50IOU", "PascalBoxes_Precision/mAP@0.5IOU", "AP50"),
    "mAP75": _either("Precision/mAP@.75IOU", "AP75"),
    "mAP_small": _either("Precision/mAP (small)", "APs"),
    "mAP_medium": _either("Precision/mAP (medium)", "APm"),
    "mAP_large": _either("Precision/mAP (large)", "APl"),
    "AR1": _either("Recall/AR@1", "ARmax1"),
    "AR10": _either("Recall/AR@10", "ARmax10"),
    "AR100": _either("Recall/AR@100", "ARmax100"),
    "AR100_small": _either("Recall/AR@100 (small)", "ARs"),
    "AR100_medium": _either("Recall/AR@100 (medium)", "ARm"),
    "AR100_large": _either("Recall/AR@100 (large)", "ARl"),
    "mask_mAP": (_MASK + "Precision/mAP", "mask_AP"),
    "loss": ("Loss/total_loss", "total_loss", "validation_loss"),
    LATENCY: (LATENCY,),
}
# The same of a category, as in AP[person].
CATEGORY_NAMES: dict[str, tuple[str, ...]] = {
    "AP": _either("Precision/mAP", "AP"),
    "AP50": _either("Precision/mAP@.50IOU", "AP50"),
    "AP75": _either("Precision/mAP@.75IOU", "AP75"),
    "AR100": _either("Recall/AR@100", "ARmax100"),
    "mask_AP": (_MASK + "Precision/mAP", "mask_AP"),
    "iou": ("iou",),
}
_ALIKE = str.maketrans("OoIl", "0011")
_KEYWORDS = ("if", "else", "and", "or", "not")
_FUNCTIONS = {"min": min, "max": max, "abs": abs, "sqrt": math.sqrt, "log": math.log}

# The smaller the better: what these say by their names.
_LOWER = re.compile(r"^Loss/|loss$|latency|seconds$|_ms$|memory", re.IGNORECASE)
# Then Model Garden's names.
_HIGHER = re.compile(
    r"(Precision|Recall)/|^(mask_)?A[PR](\d+|[sml]|max\d+)?$|accuracy|^(mean_)?iou\b"
)
_TERM = re.compile(
    r"""(?P<quoted>'[^']+'|"[^"]+"|`[^`]+`)"""
    r"""|(?P<category>[A-Za-z_]\w*)\s*\[\s*(?:(?P<quoted_of>'[^']+'|"[^"]+"|`[^`]+`)\s*\]"""
    r"|(?P<of>(?:[^\[\]]|\[[^\[\]]*\])+)\])"
    r"|(?P<word>(?<![\w.])[A-Za-z_]\w*)"
)


class Metric:
    """A metric as a user wrote it.

    Attributes:
        text: What the user wrote.
        is_expression: False when it is one recorded value as it is.
    """

    def __init__(self, text: str) -> None:
        """Parse `text`; raises ConfigError when it is no expression."""
        self.text = text.strip()
        self._terms: dict[str, tuple[Key, ...]] = {}
        self._written: dict[str, str] = {}
        self._code = self._parse()
        self.is_expression = self._code != "m0_"
        if self.is_expression:
            self._try_out()

    def __repr__(self) -> str:
        return f"Metric({self.text!r})"

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every recorded value that the metric may read."""
        return tuple(key for keys in self._terms.values() for key in keys)

    @property
    def natural_mode(self) -> Mode | None:
        """Which score is better by the metric's nature, as far as its name tells it.

        None for an expression, which has none, and for a name that says nothing, a plugin's say.
        """
        if self.is_expression:
            return None
        if any(lower_is_better(name) for name, _ in self.keys):
            return "min"
        return "max" if any(_HIGHER.search(name) for name, _ in self.keys) else None

    def value(self, values: Values) -> float | None:
        """Compute the metric of one evaluation.

        Args:
            values: What was recorded, by (name, category).

        Returns:
            A recorded value as it is, also -1. An expression is None when a part of it was not
            recorded, is not finite or is -1, which COCO writes where there was nothing to measure.
        """
        parts = {alias: _first(values, keys) for alias, keys in self._terms.items()}
        if not self.is_expression:
            return parts["m0_"]
        if any(part is None or not math.isfinite(part) or part == -1.0 for part in parts.values()):
            return None
        return self._compute({alias: part for alias, part in parts.items() if part is not None})

    def replicates(self, values: Mapping[Key, Sequence[float]]) -> Sequence[float] | None:
        """Compute the metric replicate by replicate.

        Args:
            values: The replicates of what was recorded, by (name, category).

        Returns:
            One number a replicate, NaN where it has no value; None where a part has none at all.
        """
        parts = {}
        for alias, keys in self._terms.items():
            part = next((values[key] for key in keys if key in values), None)
            if part is None:
                return None
            parts[alias] = part
        if not self.is_expression:
            return parts["m0_"]
        rows = (dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=False))
        # As for `value`: min(0.5, nan) would be 0.5 or nan, as they are ordered.
        found = (None if any(map(math.isnan, row.values())) else self._compute(row) for row in rows)
        return [math.nan if value is None else value for value in found]

    def parts(self, values: Values) -> list[tuple[str, Key, float | None]]:
        """Return each recorded value that the metric reads: its name for people, key and value."""
        found = []
        for alias, keys in self._terms.items():
            key = next((key for key in keys if key in values), keys[0])
            found.append((self._written.get(alias) or _shown(key), key, values.get(key)))
        return found

    def missing(self, names: Collection[str], categories: Collection[str] | None) -> str | None:
        """Return the first part that an evaluation will not have, None when it has all.

        Args:
            names: The overall metrics it records.
            categories: The categories it records figures of, None when that is not known.
        """
        for keys in self._terms.values():
            overall = [name for name, category in keys if not category]
            if overall and not set(overall) & set(names):
                return _shown(keys[0])
            of = keys[0][1]
            if of and categories is not None and of not in categories:
                return f"category {of}"
        return None

    def _parse(self) -> str:
        if not self.text:
            raise ConfigError("metric is empty", hint="the default is DetectionBoxes_Precision/mAP")
        whole = _TERM.fullmatch(self.text)
        # Recorded names hold slashes, spaces and @: a name is told from an expression by that.
        if not whole and _looks_recorded(self.text):
            self._terms["m0_"] = ((self.text, ""),)
            return "m0_"
        return _TERM.sub(self._alias, self.text)

    def _alias(self, match: re.Match[str]) -> str:
        word = match["word"]
        if word in _FUNCTIONS or word in _KEYWORDS:
            return str(word)
        if match["category"]:
            figure = match["category"]
            of = match["quoted_of"][1:-1] if match["quoted_of"] else match["of"].strip()
            if figure not in CATEGORY_NAMES:
                raise ConfigError(
                    f"metric ({self.text}): {figure}[...] is not a category's figure",
                    hint=f"there are: {', '.join(CATEGORY_NAMES)}, as in AP[person]",
                )
            keys = tuple((name, of) for name in CATEGORY_NAMES[figure])
        else:
            name = word or match["quoted"][1:-1]
            keys = tuple((full, "") for full in SHORT_NAMES.get(name, (name,)))
        for alias, known in self._terms.items():
            if known == keys:
                return alias
        alias = f"m{len(self._terms)}_"
        self._terms[alias], self._written[alias] = keys, match[0]
        return alias

    def _try_out(self) -> None:
        """Find at once what is no expression, by computing it on figures that suit most."""
        try:
            self._evaluate(dict.fromkeys(self._terms, 0.5))
        except ArithmeticError:
            pass  # it may still be right for other figures
        except Exception as error:
            text = str(error).replace("<unknown>, ", "")
            for alias, written in self._written.items():
                text = text.replace(alias, written)
            raise ConfigError(
                f"metric ({self.text}) is not an expression: {text or type(error).__name__}",
                hint="write it as `mAP - 0.002 * latency_ms` or `min(AP[person], AP[car])`, a full"
                " name in quotes",
            ) from error

    def _compute(self, parts: Mapping[str, float]) -> float | None:
        from simpleeval import InvalidExpression

        try:
            result = self._evaluate(parts)
        except (ArithmeticError, ValueError, TypeError, InvalidExpression):
            return None  # a division by 0, the logarithm of 0, the order of what is no real number
        if result == -1.0:
            # A figure of its own here, not COCO's mark for nothing measured: the next number to it.
            return math.nextafter(-1.0, 0.0)
        return result if math.isfinite(result) else None

    def _evaluate(self, parts: Mapping[str, float]) -> float:
        from simpleeval import SimpleEval  # only where an expression is used

        result = SimpleEval(names=dict(parts), functions=_FUNCTIONS).eval(self._code)
        if isinstance(result, complex):
            raise ArithmeticError("the root of a negative number")
        if isinstance(result, bool) or not isinstance(result, int | float):
            raise TypeError(f"it gives {result!r}, which is not a number")
        return float(result)


def of_category(figure: str, category: str) -> str:
    """Return the figure of a category as a user writes it, such as `AP[person]`."""
    text = f"{figure}[{category}]"
    read = _TERM.match(text)  # as parsing does, which takes what is quoted first
    if read and read.end() == len(text) and Metric(text).keys[0][1] == category:
        return text
    quote = next((mark for mark in "'\"`" if mark not in category), "'")
    return f"{figure}[{quote}{category}{quote}]"


def lower_is_better(name: str) -> bool:
    """Tell whether less of a recorded metric is better, as a loss or a latency says by its name."""
    return _LOWER.search(name) is not None


def is_taken(name: str) -> bool:
    """Tell whether `name`, as a user writes it, means something else than the metric of that name.

    What the evaluation records under its full name is not looked at: the evaluator knows that.
    """
    return name in SHORT_NAMES or name in CATEGORY_NAMES or name in (*_FUNCTIONS, *_KEYWORDS)


@lru_cache(maxsize=64)
def parse_metric(text: str) -> Metric:
    """Return the metric that `text` names; raises ConfigError when it is not one."""
    return Metric(text)


def parse_directed(text: str) -> tuple[Metric, Mode]:
    """Parse `METRIC`, `METRIC:max` or `METRIC:min`; without a mode it is the metric's nature."""
    name, colon, mode = text.rpartition(":")
    if colon and mode in ("max", "min"):
        return parse_metric(name), "max" if mode == "max" else "min"
    metric = parse_metric(text)
    return metric, metric.natural_mode or "max"


def unknown_metric(
    field: str, text: str, part: str, names: Iterable[str], categories: Iterable[str] | None
) -> ConfigError:
    """Return the error for a metric whose `part` the evaluation does not report."""
    reported = set(names)
    shorts = [short for short, full in SHORT_NAMES.items() if not reported.isdisjoint(full)]
    known = [*shorts, *sorted(reported)]
    # O and 0, l and 1 look alike: a name that is the same but for those is meant.
    alike = [name for name in known if name.translate(_ALIKE) == part.translate(_ALIKE)]
    close = alike or difflib.get_close_matches(part, known, n=1)
    listed = f"there are: {', '.join(sorted(reported))}"
    bare = next((name for name in known if name.startswith(f"{part}/") and name in text), None)
    if bare:
        listed = f"a name that holds more than letters goes in quotes, '{bare}'; {listed}"
        close = []
    if part.startswith("category ") and categories is not None:
        listed = f"there are: {', '.join(categories)}"
    hint = f"did you mean {close[0]}? {listed}" if close else listed
    return ConfigError(
        f"{field} ({text}): {part} is not reported by this evaluation"
        if part != text
        else f"{field} ({text}) is not reported by this evaluation",
        hint=hint,
    )


def _looks_recorded(text: str) -> bool:
    """True for one recorded name, such as `DetectionBoxes_Recall/AR@100 (small)`."""
    if text.split("/")[0].strip() in SHORT_NAMES:
        return False
    if re.fullmatch(r"\w+@\S+", text):
        return True
    return re.fullmatch(r"[A-Za-z]\w*/[^*+'\"`\[\],]+", text) is not None and not re.search(
        r"\s[-/]\s|\)\s*/", text
    )


def _first(values: Values, keys: tuple[Key, ...]) -> float | None:
    return next((values[key] for key in keys if key in values), None)


def _shown(key: Key) -> str:
    name, category = key
    short = next((short for short, names in SHORT_NAMES.items() if names[0] == name), name)
    return of_category(short, category) if category else short

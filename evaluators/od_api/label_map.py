"""The label map: read as the OD API reads it, with names that tell its categories apart.

What the OD API raises for is refused by file and line. What it takes and nobody means (an item
with two ids, two items with one) is evaluated as it does it, and told.
"""

import collections
import re
import unicodedata

from google.protobuf import text_format
from object_detection.protos import string_int_label_map_pb2
from object_detection.utils import label_map_util

from evaluators.od_api import prototext
from evaluators.protocol import Refusal

HINT = "write one item a class: item { id: 1 name: 'person' }"
BACKGROUND = "background"
LISTED = 5
# Control characters, line ends among them: no name in a table, a log or a metric can hold them.
_CONTROL = ("Cc", "Cs", "Zl", "Zp")


class LabelMap:
    """The classes of one label map.

    Attributes:
        path: the file.
        as_written: the OD API's categories: dicts with `id`, `name`, and what else it wants.
        categories: the same with the names that are shown, each once: `shown_names`.
        ids_by_name: the OD API's {name: id}.
        ids_by_text: {name or display name: id}, by which a record's class/text is looked up. Where
            an item has no display name, '' is one for it too.
        problems: (severity, sentence, remedy) of what the OD API takes and nobody means.
    """

    def __init__(self, path):
        self.path = path
        proto = string_int_label_map_pb2.StringIntLabelMap()
        text = prototext.read("label map", path, proto, HINT)
        self._lines = prototext.braces(text)[0]
        self._check(proto)
        highest = max(item.id for item in proto.item)
        try:
            self.as_written = label_map_util.convert_label_map_to_categories(proto, highest)
        except ValueError as error:
            raise self._refusal(": " + prototext.visible(str(error))) from error
        if not self.as_written:
            raise self._refusal(" holds no class")
        names = shown_names({c["id"]: c["name"] for c in self.as_written})
        self.categories = [dict(c, name=names[c["id"]]) for c in self.as_written]
        self.ids_by_name = label_map_util.get_label_map_dict(proto)
        shown = label_map_util.get_label_map_dict(proto, use_display_name=True)
        self.ids_by_text = {
            text: max(self.ids_by_name.get(text, -1), shown.get(text, -1))
            for text in {**self.ids_by_name, **shown}
        }
        self.problems = [*self._repeated(text), *self._ambiguous(proto), *self._renamed()]

    def _check(self, proto):
        """Refuses what the OD API raises for."""
        if not proto.item:
            raise self._refusal(" holds no class")
        for number, item in enumerate(proto.item):
            if item.id > 0 or (item.id == 0 and BACKGROUND in (item.name, item.display_name)):
                continue
            wrong = "has the id {}, and ids begin at 1".format(item.id)
            if not item.HasField("id"):
                wrong = "has no id"
            raise self._refusal(", {} {}".format(self._item(proto, number), wrong))

    def _item(self, proto, number):
        """Returns words for an item, with its line unless the file is written in another way."""
        words = "item {}".format(number + 1)
        if len(self._lines) == len(proto.item):
            words = "line {}: the item".format(self._lines[number])
        name = prototext.visible(proto.item[number].name)
        return "{} ({})".format(words, name) if name else words

    def _repeated(self, text):
        """Tells of the first item with two ids or names, of which the last counts."""
        try:
            text_format.Parse(text, string_int_label_map_pb2.StringIntLabelMap())
        except text_format.ParseError as error:
            field = re.search(r'multiple "(\w+)" fields', str(error))
            if field:
                text = "line {}: a second {} in one item, where only the last counts".format(
                    error.GetLine(), field[1]
                )
                yield self._problem("error", text, HINT)

    def _ambiguous(self, proto):
        """Tells of ids and names that several items have."""
        names, ids = collections.defaultdict(list), collections.defaultdict(list)
        for item in proto.item:
            names[item.id].append(item.name or item.display_name)
            if item.name and item.id not in ids[item.name]:
                ids[item.name].append(item.id)
        for number, found in names.items():
            if len(found) > 1:
                text = "the id {} has {} items ({}), which are one class".format(
                    number, len(found), listed(found)
                )
                yield self._problem("warning", text, "give each class an id of its own")
        for name, found in ids.items():
            if len(found) > 1:
                text = (
                    "the ids {} share a name ({}): objects of that class/text count as {}".format(
                        listed(found), prototext.visible(name), found[-1]
                    )
                )
                yield self._problem("warning", text, "give each class a name of its own")

    def _renamed(self):
        """Tells of names that are shown otherwise than they are written."""
        new = [
            ours["name"]
            for theirs, ours in zip(self.as_written, self.categories)
            if theirs["name"] != ours["name"]
        ]
        if new:
            text = "names that do not tell classes apart are shown as " + listed(new)
            yield self._problem("note", text, None)

    def _problem(self, severity, text, remedy):
        return severity, "label map ({}): {}".format(self.path, text), remedy

    def _refusal(self, text):
        return Refusal("bad_pipeline_config", "label map ({}){}".format(self.path, text), HINT)


def shown_names(names):
    """Returns {id: the name that is shown}, each once, from {id: name as written}.

    What one category alone is called stays as it is. Of several with one name all are shown as
    `name (id 2)`: under the bare name the OD API's metrics hold whichever they computed last. A
    category without a name is `id 2`.
    """
    one_line = {number: _one_line(name) for number, name in names.items()}
    times = collections.Counter(one_line.values())
    shown = {n: name for n, name in one_line.items() if name.strip() and times[name] == 1}
    taken = set(shown.values())
    for number, name in one_line.items():
        while number not in shown:
            name = "{} (id {})".format(name, number) if name.strip() else "id {}".format(number)
            if name not in taken:  # by a category that is really called so
                shown[number] = name
                taken.add(name)
    return shown


def listed(values):
    """Returns the first values in words, visible and separated by commas."""
    more = ", and {} more".format(len(values) - LISTED) if len(values) > LISTED else ""
    return ", ".join(prototext.visible(str(value)) for value in values[:LISTED]) + more


def _one_line(name):
    if not any(unicodedata.category(c) in _CONTROL for c in name):
        return name
    return " ".join(
        "".join(" " if unicodedata.category(c) in _CONTROL else c for c in name).split()
    )

"""Makes a checkpoint of one of the tests' families here: `family.py FAMILY`; prints its prefix.

Runs in the training interpreter, in a folder with the shapes. A family of moving averages is
trained for two steps by the OD API's own loop, the others are as they were initialised.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "od"))
import compare
from families import FAMILIES, SAME_MODEL


def main(family):
    """Prints the answer."""
    source = SAME_MODEL.get(family, family)
    path = pathlib.Path(source + ".pipeline")
    # Neither eval input nor label map has a part in the weights.
    text = FAMILIES[source].replace('"other', '"val').replace('"one_name', '"label_map')
    path.write_text(text)
    prefix = compare.checkpoint_of(family, path)
    json.dump(str(pathlib.Path(prefix).absolute()), compare.ANSWER)
    compare.ANSWER.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

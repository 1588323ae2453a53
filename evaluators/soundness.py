"""What no sound evaluation gives: NaN and infinity."""

import math

from evaluators.protocol import Failure

NAMED_VARIABLES = 5


def check_finite(metrics, never_nan):
    """Refuses metrics that no sound evaluation gives: nothing is ever infinite.

    Args:
        metrics: by name.
        never_nan: tells of a name whether NaN is no value of it either. A category without ground
            truth has the AP NaN in some sets of metrics: that is their word for "none". A loss has
            no such excuse.

    Raises:
        Failure: there is such a metric.
    """
    bad = [
        name
        for name, value in sorted(metrics.items())
        if math.isinf(value) or (math.isnan(value) and never_nan(name))
    ]
    if bad:
        raise Failure("not_finite", "NaN or infinity in " + ", ".join(bad), permanent=True)


def require_finite(bad):
    """Refuses a checkpoint in which these variables hold NaN or infinity.

    Args:
        bad: their keys.

    Raises:
        Failure: there is one.
    """
    bad = list(bad)
    if bad:
        message = "{} variables hold NaN or infinity: {}".format(len(bad), _few(bad))
        raise Failure("not_finite", message, permanent=True)


def _few(names):
    shown = "; ".join(sorted(names)[:NAMED_VARIABLES])
    return shown + ("; ..." if len(names) > NAMED_VARIABLES else "")

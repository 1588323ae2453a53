"""Says which outputs of small traced functions `randomness` finds random.

Imported by `compare.py`, in the training interpreter. Each name says what is expected: `sure_...`
is the same each time.
"""

import tensorflow as tf
from evaluators.od_api import randomness

GENERATOR = tf.random.Generator.from_seed(1)
MADE_BEFORE = tf.constant(1.0)


@tf.function
def inner(a, b):
    """Returns two outputs; only the second draws."""
    return a + 1, b + tf.random.uniform([3], seed=5)


@tf.function
def outer(a, b):
    """Calls `inner` and turns its outputs round."""
    first, second = inner(a, b)
    return second, first


def loop(step, a):
    """Runs `step` on `a` in a while loop."""
    return tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, step(x)), [0, a])[1]


def cases(a):
    """Returns {name: tensor}."""
    random, sure = outer(a, a)
    draw = tf.random.uniform
    return {
        "random_by_itself": tf.random.shuffle(a),
        "random_nested_call": random,
        "sure_nested_call": sure,
        "random_argument_of_a_call": inner(draw([3]), a)[0],
        "random_while_body": loop(lambda x: x + tf.random.normal([3]), a),
        "sure_while_body": loop(lambda x: x + 1, a),
        "random_into_a_while": loop(lambda x: x + 1, draw([3])),
        "random_branch": tf.cond(a[0] > 0, lambda: draw([3]), lambda: a),
        "sure_branch": tf.cond(a[0] > 0, lambda: 2 * a, lambda: a),
        "random_map": tf.map_fn(lambda x: x * draw([]), a),
        "sure_map": tf.map_fn(lambda x: 2 * x, a),
        "sure_stateless": tf.random.stateless_uniform([3], [1, 2]),
        "random_seed_of_stateless": tf.random.stateless_uniform([3], tf.cast(random[:2], tf.int32)),
        "random_generator": GENERATOR.normal([3]),
        "random_categorical": tf.random.categorical([[0.5, 0.5]], 3),
        "sure_beside_a_random_one": a * 2,
        "sure_made_before": MADE_BEFORE,
    }


def found_random():
    """Returns {name: whether it is found random}."""
    found = {}

    @tf.function
    def traced(a):
        outputs = cases(a)
        random = randomness.random_outputs(outputs)
        found.update({name: name in random for name in outputs})
        return outputs

    traced(tf.constant([1.0, 2.0, 3.0]))
    return found

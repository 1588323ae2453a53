"""What TensorFlow raises where records or their images cannot be read."""

import tensorflow as tf

UNREADABLE = (
    tf.errors.DataLossError,
    tf.errors.FailedPreconditionError,  # a folder
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    UnicodeDecodeError,  # of TensorFlow's own text, where that quotes a record
)

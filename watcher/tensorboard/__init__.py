"""TensorBoard: the evaluations as curves beside the trainer's, in `MODEL_DIR/eval/NAME`.

A projection of the database, as `best/` is: whatever is recorded and has no event file gets one, so
nothing is marked as written, and evaluations from before this was switched on appear as well. A
child process (`__main__`) does it, since the library takes 30 MiB; the daemon only starts it
(`keeper`), and goes on whatever becomes of it.

How TensorBoard reads decides how this writes (2.13, its two readers measured: the data server, and
the one of `--load_fast=false`, which is EventAccumulator's):

- One file an evaluation, written under a name that TensorBoard does not read and renamed into
  place. A file that grew could end in half an event after a crash; and as to duplicates, what is
  written is a matter of names: each holds the identity of its evaluation.
- EventAccumulator reads files in the order of their names and never looks at one that sorts before
  the last it saw; so names begin with a number that only grows, the time in seconds as in every
  event file's name.
- The data server drops the points of a step and all later ones when an earlier step comes after
  them. So when an earlier step is evaluated later, the files of the later steps get another name,
  which comes after it, and are read once more. EventAccumulator would then show those twice; it
  drops them at an event that says "training started again at this step", with which each file
  begins.
- Without TensorFlow EventAccumulator opens the last file it saw again and again, and stays where it
  is when that is gone. So a name that is no longer needed is removed a minute after those behind it
  were made, when something is written again. Until then it does no harm: read as a whole, what a
  later file shows replaces it.

A step has one point: of two evaluations of it the last one's, of two checkpoints the one that was
discovered last. Points of another evaluation (another fingerprint) cannot be compared: they move
into `earlier-FINGERPRINT` beside the files of the present one, where they are a curve of their own.
So do those of an earlier life of a trainer that started over, into `earlier-generation-N`.
Files that are not ours are never touched.
"""
